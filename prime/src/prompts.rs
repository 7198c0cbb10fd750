//! A task's problems as a model reads them: prompts and worked solutions in tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use prime_model::{ChatTemplate, Config as ModelConfig, Message, Tokenizer, Weights, folder};
use prime_runtime::random::{Generator as Random, Stream};

use crate::step::rollout::Prompt;
use crate::tasks::{Problem, Split, Task};

/// Where training problems of RL begin in an endless task: those before are for SFT.
const RL_OFFSET: u64 = 1 << 40;

/// A task and the tokenizer that its prompts go through.
pub struct Prompts {
    task: Arc<dyn Task>,
    tokenizer: Arc<Tokenizer>,
    chat: Option<Arc<ChatTemplate>>,
    max_prompt_tokens: usize,
    /// The folder whose tokenizer files a saved model gets; none where the tokenizer was made for the task.
    source: Option<PathBuf>,
    /// The order of a finite training set: that of one epoch.
    order: std::sync::Mutex<Option<(u64, Vec<u32>)>>,
}

/// A worked example of SFT.
#[derive(Clone, Debug)]
pub struct Demonstration {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The solution's tokens and the end of the text.
    pub response: Vec<u32>,
}

impl Prompts {
    /// A task seen through a tokenizer, with a chat template where prompts are a user's messages.
    pub fn new(
        task: Arc<dyn Task>,
        tokenizer: Arc<Tokenizer>,
        chat: Option<Arc<ChatTemplate>>,
        max_prompt_tokens: usize,
        source: Option<PathBuf>,
    ) -> Self {
        Prompts {
            task,
            tokenizer,
            chat,
            max_prompt_tokens,
            source,
            order: std::sync::Mutex::new(None),
        }
    }

    /// The same for another trainer.
    pub fn share(&self) -> Prompts {
        let (task, tokenizer, chat) =
            (self.task.clone(), self.tokenizer.clone(), self.chat.clone());
        Prompts::new(task, tokenizer, chat, self.max_prompt_tokens, self.source.clone())
    }

    /// The task.
    pub fn task(&self) -> &dyn Task {
        &*self.task
    }

    /// Checks that there is something to train on and something to evaluate, of which the first `problems` are taken.
    ///
    /// # Errors
    /// When a split is empty or none of its prompts is within the limit.
    pub fn check(&self, problems: u64) -> Result<()> {
        let name = self.task.name();
        for (split, what, most) in
            [(Split::Train, "training", self.patience()), (Split::HeldOut, "held-out", problems)]
        {
            let count = self.task.len(split).unwrap_or(u64::MAX).min(most);
            ensure!(
                count > 0,
                "{name} has no {what} problems: a run needs some to train on, and some held out to evaluate on"
            );
            let mut fits = false;
            for index in 0..count {
                fits = self.prompt(split, index)?.is_some();
                if fits {
                    break;
                }
            }
            ensure!(
                fits,
                "no {what} prompt of {name} is within rollout.max_prompt_tokens, {}: all of the first {count} are longer",
                self.max_prompt_tokens
            );
        }
        Ok(())
    }

    /// After how many unusable training problems in a row there is no hope of a usable one: those of a finite set, twice, as a row may
    /// begin in one epoch and end in the next.
    pub fn patience(&self) -> u64 {
        const MANY: u64 = 100_000;
        self.task.len(Split::Train).map_or(MANY, |count| (2 * count).min(MANY))
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens that end a response: the tokenizer's and the model's.
    pub fn stop_tokens(&self, config: &ModelConfig) -> Vec<u32> {
        let mut stop = config.eos_token_ids.clone();
        stop.extend(self.tokenizer.eos_id());
        stop.sort_unstable();
        stop.dedup();
        stop
    }

    /// A prompt of a split; none when it is longer than the limit.
    ///
    /// # Errors
    /// When the split has no such problem or the text cannot be encoded.
    pub fn prompt(&self, split: Split, index: u64) -> Result<Option<Prompt>> {
        let problem = self.problem(split, index)?;
        let tokens = self.encode_prompt(&problem.prompt)?;
        Ok((tokens.len() <= self.max_prompt_tokens).then(|| Prompt {
            index,
            problem,
            tokens: tokens.into(),
        }))
    }

    fn problem(&self, split: Split, index: u64) -> Result<Problem> {
        self.task
            .problem(split, index)
            .with_context(|| format!("{} has no problem {index}", self.task.name()))
    }

    fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let tokens = match &self.chat {
            None => self.tokenizer.encode(prompt, true)?,
            Some(chat) => {
                let text = chat.render(&[Message::new("user", prompt)], true)?;
                self.tokenizer.encode(&text, false)?
            }
        };
        if tokens.is_empty() {
            bail!("a prompt of {} has no tokens: `{prompt}`", self.task.name());
        }
        Ok(tokens)
    }

    /// The worked example at a place of the training set for SFT, cut to nothing: none when it is longer than `max_tokens`.
    ///
    /// # Errors
    /// When the task has no worked solutions or the text cannot be encoded.
    pub fn demonstration(
        &self,
        place: u64,
        seed: u64,
        max_tokens: usize,
    ) -> Result<Option<Demonstration>> {
        let index = match self.task.len(Split::Train) {
            None => place,
            Some(_) => self.training_index(place, seed),
        };
        let problem = self.problem(Split::Train, index)?;
        let Some(solution) = &problem.solution else {
            bail!(
                "{} has no worked solutions: set sft.steps=0 or name their field",
                self.task.name()
            );
        };
        let prompt = self.encode_prompt(&problem.prompt)?;
        let mut response = self.tokenizer.encode(solution, false)?;
        let Some(eos) = self.tokenizer.eos_id() else {
            bail!(
                "the tokenizer names no end-of-text token, so SFT could not teach where a response ends"
            );
        };
        response.push(eos);
        let fits =
            prompt.len() <= self.max_prompt_tokens && prompt.len() + response.len() <= max_tokens;
        Ok(fits.then_some(Demonstration { prompt, response }))
    }

    /// The training problem at a place of the run's order: a fresh one of an endless task; of a finite one, each once an epoch in an
    /// order that the seed and the epoch fix.
    pub fn training_index(&self, place: u64, seed: u64) -> u64 {
        let Some(count) = self.task.len(Split::Train) else { return RL_OFFSET + place };
        // An empty set has no problem 0 either, and says so when it is asked for it.
        let count = count.max(1);
        let (epoch, offset) = (place / count, place % count);
        let mut order = self.order.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let mut indices: Vec<u32> = (0..count as u32).collect();
            Random::new(seed, Stream::Shuffle, (1 << 32) + epoch).shuffle(&mut indices);
            *order = Some((epoch, indices));
        }
        order.as_ref().map_or(offset, |(_, indices)| u64::from(indices[offset as usize]))
    }

    /// Saves a model as a Hugging Face folder, with this tokenizer.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save_model(&self, path: &Path, config: &ModelConfig, weights: &Weights) -> Result<()> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        match &self.source {
            Some(source) => folder::write(path, config, weights, folder::Companions::Of(source))?,
            None => folder::write(
                path,
                config,
                weights,
                folder::Companions::Tokenizer(&self.tokenizer),
            )?,
        }
        Ok(())
    }
}
