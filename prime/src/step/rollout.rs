//! Prompts to rollouts: several samples of each prompt from the policy.

use std::sync::Arc;

use anyhow::Result;
use prime_model::{Completion, Generator, Request, Sampling};

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

/// Draws the samples of each prompt, those of one prompt together and in order. `progress` is called with the number finished.
///
/// # Errors
/// When a prompt does not fit the generator's plan.
pub fn rollout(
    generator: &mut Generator,
    prompts: &[Prompt],
    settings: &Settings,
    stop: &[u32],
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
    let mut completions = generator.generate(&requests, stop, progress)?.into_iter();
    Ok(prompts.iter().map(|_| completions.by_ref().take(settings.samples).collect()).collect())
}
