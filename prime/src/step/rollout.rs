//! Prompts to rollouts: several samples of each prompt from the policy.

use std::sync::Arc;

use anyhow::Result;
use prime_model::{Completion, Finish, Generator, Request, Sampling, TextStream, Tokenizer};

use crate::tasks::Problem;

/// A problem of the task with its prompt's tokens.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// The problem's place in its split.
    pub index: u64,
    /// The problem.
    pub problem: Problem,
    /// Its prompt as the model reads it.
    pub tokens: Arc<[u32]>,
}

/// How samples are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Samples of each prompt.
    pub samples: usize,
    /// How each is drawn.
    pub sampling: Sampling,
    /// The most tokens of a response.
    pub max_new_tokens: usize,
    /// The number of the first sample; the others follow. With the seed it fixes every draw.
    pub first_sequence: u64,
}

/// What ends a response.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Tokens; the one drawn is the response's last.
    pub tokens: Vec<u32>,
    /// Texts; the token that completes one is the response's last.
    pub texts: Vec<String>,
    /// What reads tokens as text.
    pub tokenizer: Arc<Tokenizer>,
}

/// The end of one response's text, as far as a text that stops it could begin there.
struct Tail<'a> {
    stream: TextStream<'a>,
    text: String,
}

impl Tail<'_> {
    /// Whether the token completes one of the texts.
    fn completes(&mut self, token: u32, texts: &[String]) -> Result<bool> {
        self.text.push_str(&self.stream.push(token)?);
        if texts.iter().any(|stop| self.text.contains(stop.as_str())) {
            return Ok(true);
        }
        let longest = texts.iter().map(String::len).max().unwrap_or(0);
        let mut start = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        self.text.drain(..start);
        Ok(false)
    }
}

/// Draws the samples of each prompt, those of one prompt together and in order. `finished` sees each when it has ended: its place among
/// all, and the sample.
///
/// # Errors
/// When a prompt does not fit the generator's plan.
pub fn rollout(
    generator: &mut Generator,
    prompts: &[Prompt],
    settings: &Settings,
    stop: &Stop,
    finished: &mut dyn FnMut(usize, &Completion),
) -> Result<Vec<Vec<Completion>>> {
    let requests: Vec<Request> = prompts
        .iter()
        .flat_map(|prompt| std::iter::repeat_n(prompt, settings.samples))
        .enumerate()
        .map(|(i, prompt)| Request {
            prompt: prompt.tokens.clone(),
            sequence: settings.first_sequence + i as u64,
            sampling: settings.sampling,
            max_new_tokens: settings.max_new_tokens,
        })
        .collect();
    let completions = if stop.texts.is_empty() {
        generator.generate_watched(&requests, &stop.tokens, finished, &mut |_, _| None)?
    } else {
        let tail = |_| Tail { stream: stop.tokenizer.stream(false), text: String::new() };
        let mut tails: Vec<Tail<'_>> = requests.iter().map(tail).collect();
        let mut failure = None;
        let mut watch = |request: usize, token: u32| {
            let completed = tails[request].completes(token, &stop.texts).unwrap_or_else(|error| {
                failure.get_or_insert(error);
                true
            });
            completed.then_some(Finish::Stop)
        };
        let completions =
            generator.generate_watched(&requests, &stop.tokens, finished, &mut watch)?;
        if let Some(error) = failure {
            return Err(error);
        }
        completions
    };
    let mut completions = completions.into_iter();
    Ok(prompts.iter().map(|_| completions.by_ref().take(settings.samples).collect()).collect())
}

#[cfg(test)]
mod tests {
    use prime_model::{Architecture, Config, GenerationLimits, RopeScaling, Weights};
    use prime_runtime::DType;

    use super::*;

    const SYMBOLS: &str = "abcdefghij";

    fn model(tokenizer: &Tokenizer) -> (Config, Weights) {
        let config = Config {
            architecture: Architecture::Llama,
            vocab_size: tokenizer.vocab_size(),
            hidden_size: 16,
            intermediate_size: 24,
            num_layers: 1,
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 8,
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            tie_word_embeddings: false,
            qkv_bias: false,
            output_bias: false,
            qk_norm: false,
            max_position_embeddings: 64,
            dtype: DType::F32,
            bos_token_id: None,
            eos_token_ids: vec![1],
            pad_token_id: None,
            initializer_range: 0.02,
        };
        let weights = Weights::random(&config, DType::F32, 3).unwrap();
        (config, weights)
    }

    fn samples(texts: &[&str], slots: usize) -> Vec<Vec<Completion>> {
        let tokenizer = Arc::new(Tokenizer::characters(SYMBOLS, "<pad>", "<eos>").unwrap());
        let (config, weights) = model(&tokenizer);
        let limits = GenerationLimits { slots, positions: 64, step_tokens: 32 };
        let mut generator = Generator::new(&config, &weights, limits).unwrap();
        let prompt = |index: u64, text: &str| Prompt {
            index,
            problem: Problem::default(),
            tokens: tokenizer.encode(text, false).unwrap().into(),
        };
        let sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 9 };
        let settings = Settings { samples: 8, sampling, max_new_tokens: 40, first_sequence: 0 };
        let texts = texts.iter().map(|text| text.to_string()).collect();
        let stop = Stop { tokens: vec![1], texts, tokenizer: tokenizer.clone() };
        let prompts = [prompt(0, "abc"), prompt(1, "jj")];
        rollout(&mut generator, &prompts, &settings, &stop, &mut |_, _| ()).unwrap()
    }

    /// The text of a character tokenizer, special tokens as one character each.
    fn text(tokens: &[u32]) -> String {
        let symbols: Vec<char> = format!("_${SYMBOLS}").chars().collect();
        tokens.iter().map(|&token| symbols[token as usize]).collect()
    }

    #[test]
    fn a_text_ends_a_response_with_the_token_that_completes_it_and_changes_nothing_before() {
        let free = samples(&[], 4);
        let stopped = samples(&["ab", "cde", "g"], 4);
        let mut ends = 0;
        for (free, stopped) in free.iter().flatten().zip(stopped.iter().flatten()) {
            let whole = text(&free.tokens);
            let found =
                ["ab", "cde", "g"].iter().filter_map(|s| Some(whole.find(s)? + s.len())).min();
            let length = found.unwrap_or(whole.len());
            assert_eq!(stopped.tokens, free.tokens[..length], "{whole}");
            assert_eq!(stopped.log_probs, free.log_probs[..length]);
            let finish = if found.is_some() { Finish::Stop } else { free.finish };
            assert_eq!(stopped.finish, finish, "{whole}");
            ends += usize::from(found.is_some());
        }
        assert!(ends > 4, "{ends}");
        assert_eq!(samples(&["ab", "cde", "g"], 3), stopped, "whatever is sampled beside it");
    }

    #[test]
    fn special_tokens_are_texts_too() {
        for completion in samples(&["<pad>"], 4).iter().flatten() {
            let pads = completion.tokens.iter().filter(|&&token| token == 0).count();
            assert!(
                pads == 0
                    || completion.tokens.iter().position(|&t| t == 0)
                        == Some(completion.tokens.len() - 1)
            );
            if pads == 1 {
                assert_eq!(completion.finish, Finish::Stop);
            }
        }
    }
}
