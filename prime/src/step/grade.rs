//! Rollouts to outcomes: every response graded by the task, and the batch put together.

use anyhow::Result;
use prime_model::{Completion, Finish, Tokenizer};

use super::rollout::Prompt;
use super::{Response, Rollouts};
use crate::tasks::Task;

/// Grades every response and packs prompts and responses into one batch.
///
/// # Errors
/// When a response cannot be decoded or does not make a batch.
pub fn grade(
    task: &dyn Task,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    completions: Vec<Vec<Completion>>,
) -> Result<Rollouts> {
    let mut batch = Rollouts::new();
    for (prompt, completions) in prompts.iter().zip(completions) {
        let mut responses = Vec::with_capacity(completions.len());
        for completion in completions {
            let finished = completion.finish == Finish::Stop;
            let text = tokenizer.decode(&completion.tokens, true)?;
            let outcome = task.grade(&prompt.problem, &text, finished).score;
            batch.entropies.extend_from_slice(&completion.entropy);
            responses.push(Response {
                tokens: completion.tokens,
                old_log_probs: completion.log_probs,
                outcome,
                finished,
            });
        }
        batch.push_group(prompt.index.to_string(), prompt.tokens.to_vec(), &responses)?;
    }
    Ok(batch)
}
