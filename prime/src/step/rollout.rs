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

/// Draws the samples of each prompt, those of one prompt together and in order. `progress` is called with the number finished.
///
/// # Errors
/// When a prompt does not fit the generator's plan.
pub fn rollout(
    generator: &mut Generator,
    prompts: &[Prompt],
    settings: &Settings,
    stop: &Stop,
    progress: impl FnMut(usize),
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
        generator.generate(&requests, &stop.tokens, progress)?
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
            generator.generate_watched(&requests, &stop.tokens, progress, &mut watch)?;
        if let Some(error) = failure {
            return Err(error);
        }
        completions
    };
    let mut completions = completions.into_iter();
    Ok(prompts.iter().map(|_| completions.by_ref().take(settings.samples).collect()).collect())
}
