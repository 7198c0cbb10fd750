//! A task's problems as a model reads them: prompts and worked solutions in tokens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use prime_model::{ChatTemplate, Config as ModelConfig, Tokenizer, Weights, folder};

use crate::order::Order;
use crate::step::rollout::{Prompt, Stop};
use crate::tasks::{Problem, Purpose, Split, Task};

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
    /// Texts that end a response.
    stop: Vec<String>,
    /// The orders of a finite training set, for SFT and for RL.
    orders: [Order; 2],
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
        let orders = [Purpose::Sft, Purpose::Rl].map(|purpose| Order::new(task.shares(purpose)));
        Prompts { task, tokenizer, chat, max_prompt_tokens, source, stop: Vec::new(), orders }
    }

    /// Ends responses at these texts too.
    pub fn stopping_at(mut self, texts: &[String]) -> Self {
        self.stop = texts.to_vec();
        self
    }

    /// The same for another trainer.
    pub fn share(&self) -> Prompts {
        let (task, tokenizer, chat) =
            (self.task.clone(), self.tokenizer.clone(), self.chat.clone());
        Prompts::new(task, tokenizer, chat, self.max_prompt_tokens, self.source.clone())
            .stopping_at(&self.stop)
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
        self.task.ready()?;
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

    /// As [`Prompts::check`] for SFT alone: demonstrations are needed, and nothing has to be held out.
    ///
    /// # Errors
    /// When there are no demonstrations.
    pub fn check_demonstrations(&self) -> Result<()> {
        ensure!(
            self.task.len(Split::Train).is_none() || self.orders[0].epoch() > 0,
            "{} has no worked solutions to learn from: name their field, or conversations with stage = \"sft\"",
            self.task.name()
        );
        Ok(())
    }

    /// After how many unusable training problems in a row there is no hope of a usable one: those of a finite set, twice, as a row may
    /// begin in one epoch and end in the next.
    pub fn patience(&self) -> u64 {
        const MANY: u64 = 100_000;
        let epoch = self.orders.iter().map(Order::epoch).max().unwrap_or(0);
        self.task.len(Split::Train).map_or(MANY, |count| (2 * count.max(epoch)).min(MANY))
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// What ends a response: the tokenizer's and the model's tokens, and the texts of the configuration.
    pub fn stop(&self, config: &ModelConfig) -> Stop {
        let mut tokens = config.eos_token_ids.clone();
        tokens.extend(self.tokenizer.eos_id());
        tokens.sort_unstable();
        tokens.dedup();
        Stop { tokens, texts: self.stop.clone(), tokenizer: self.tokenizer.clone() }
    }

    /// A prompt of a split; none when it is longer than the limit.
    ///
    /// # Errors
    /// When the split has no such problem or the text cannot be encoded.
    pub fn prompt(&self, split: Split, index: u64) -> Result<Option<Prompt>> {
        let problem = self.problem(split, index)?;
        let tokens = self.encode_prompt(&problem)?;
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

    /// The tokens of a problem's prompt, through the chat template where it is a conversation.
    ///
    /// # Errors
    /// When the text cannot be encoded, or the chat template refuses the conversation.
    pub fn encode_prompt(&self, problem: &Problem) -> Result<Vec<u32>> {
        let tokens = if problem.messages.is_empty() {
            self.tokenizer.encode(&problem.prompt, true)?
        } else {
            let chat = self.chat.as_ref().context("a conversation needs a chat template")?;
            self.tokenizer.encode(&chat.render(&problem.messages, true)?, false)?
        };
        if tokens.is_empty() {
            bail!("a prompt of {} has no tokens: `{}`", self.task.name(), problem.prompt);
        }
        Ok(tokens)
    }

    /// The worked example at a place of the training set for SFT, cut to nothing: none when its solution is longer than `max_solution`, or the
    /// whole than `max_tokens`.
    ///
    /// # Errors
    /// When the task has no worked solutions or the text cannot be encoded.
    pub fn demonstration(
        &self,
        place: u64,
        seed: u64,
        max_solution: usize,
        max_tokens: usize,
    ) -> Result<Option<Demonstration>> {
        let index = match self.task.len(Split::Train) {
            None => place,
            Some(_) => self.training_index(place, seed, Purpose::Sft),
        };
        let problem = self.problem(Split::Train, index)?;
        let Some(solution) = &problem.solution else {
            bail!(
                "{} has no worked solutions: set sft.steps=0 or name their field",
                self.task.name()
            );
        };
        let prompt = self.encode_prompt(&problem)?;
        let mut response = self.tokenizer.encode(solution, false)?;
        let Some(eos) = self.tokenizer.eos_id() else {
            bail!(
                "the tokenizer names no end-of-text token, so SFT could not teach where a response ends"
            );
        };
        response.push(eos);
        let fits = prompt.len() <= self.max_prompt_tokens
            && response.len() <= max_solution
            && prompt.len() + response.len() <= max_tokens;
        Ok(fits.then_some(Demonstration { prompt, response }))
    }

    /// The training problem at a place of the run's order: a fresh one of an endless task; of a finite one, as its shares say, in an order that
    /// the seed and the epoch fix.
    pub fn training_index(&self, place: u64, seed: u64, purpose: Purpose) -> u64 {
        if self.task.len(Split::Train).is_none() {
            return RL_OFFSET + place;
        }
        self.orders[usize::from(purpose == Purpose::Rl)].index(place, seed)
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
