//! What is recorded of a step's rollouts: the lines that `prime replay` reads, with the texts that people and reports need.

use std::io::Write;

use anyhow::Result;
use prime_model::Tokenizer;
use serde::Serialize;

use crate::step::Rollouts;
use crate::step::batch::Record;

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    record: Record<'a>,
    prompt: &'a str,
    prompt_token_ids: &'a [u32],
    /// Joined, they are the response's text; a token that only begins a character has none.
    token_texts: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    updated_log_probs: Option<&'a [f32]>,
}

/// Writes every response as a line of JSON. `updated` are log-probabilities of all tokens after the policy's update, where they were computed.
///
/// # Errors
/// When a token cannot be decoded or writing fails.
pub fn write(
    mut out: impl Write,
    batch: &Rollouts,
    tokenizer: &Tokenizer,
    updated: Option<&[f32]>,
) -> Result<()> {
    for group in &batch.groups {
        let prompt = tokenizer.decode(&group.prompt_tokens, false)?;
        for response in group.responses.clone() {
            let record = batch.record(response);
            let ids = record.token_ids.unwrap_or_default();
            let line = Line {
                token_texts: tokenizer.pieces(&group.prompt_tokens, ids)?,
                prompt: &prompt,
                prompt_token_ids: &group.prompt_tokens,
                updated_log_probs: updated.map(|values| &values[batch.span(response)]),
                record,
            };
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}
