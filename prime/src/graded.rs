//! Graded responses from files of JSON Lines, JSON or Parquet: what an implicit PRM is trained on offline.
//!
//! A row is one of
//! - `{"prompt", "response", "outcome"}`: a response;
//! - `{"prompt", "completions": [...], "correctness": [...]}`: the responses to a prompt (the columns of the implicit PRM's rollouts);
//! - `{"prompt", "texts": [...], "scores": [...]}`: the same, as `prime eval --output` writes them;
//! - `{"prompt_token_ids", "token_ids", "outcome"}`: a rollout that a run recorded.
//!
//! Outcomes are numbers from 0 to 1, or true and false. `finished` (of a response, or a list) says whether it ended by itself: it then ends with
//! the tokenizer's end-of-text token; it is true where it is missing. Rows of one prompt are a group, wherever they stand.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use prime_model::{ChatTemplate, Message, Tokenizer};
use serde_json::{Map, Value};

use crate::data::{self, Row};
use crate::step::{Response, Rollouts};

/// The graded responses to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct GradedPrompt {
    /// The prompt as text, by which it is told from others.
    pub text: String,
    /// Its tokens.
    pub prompt: Vec<u32>,
    /// The tokens of each response, and its outcome.
    pub responses: Vec<(Vec<u32>, f32)>,
}

/// How texts become tokens.
pub struct Encoder<'a> {
    /// The model's.
    pub tokenizer: &'a Tokenizer,
    /// Where prompts are a user's messages.
    pub chat: Option<&'a ChatTemplate>,
    /// The most tokens of a prompt and a response together.
    pub max_tokens: usize,
}

/// What was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GradedFile {
    /// Prompts in the order in which they first stand in the files.
    pub prompts: Vec<GradedPrompt>,
    /// Responses that were left out: they are too long with their prompts, or have no tokens.
    pub left_out: usize,
}

/// Reads files, one after the other.
///
/// # Errors
/// When a row cannot be used; it is named.
pub fn read(paths: &[impl AsRef<Path>], encoder: &Encoder<'_>) -> Result<GradedFile> {
    let mut read = GradedFile::default();
    let mut places = HashMap::new();
    for path in paths {
        for row in data::rows(path)? {
            let row = row?;
            let entry = row.checked(encoder.entry(&row))?;
            let place = *places.entry(entry.text.clone()).or_insert_with(|| {
                read.prompts.push(GradedPrompt { responses: Vec::new(), ..entry.clone() });
                read.prompts.len() - 1
            });
            let prompt = &mut read.prompts[place];
            for (tokens, outcome) in entry.responses {
                if tokens.is_empty() || prompt.prompt.len() + tokens.len() > encoder.max_tokens {
                    read.left_out += 1;
                } else {
                    prompt.responses.push((tokens, outcome));
                }
            }
        }
    }
    read.prompts.retain(|prompt| !prompt.responses.is_empty());
    Ok(read)
}

impl Encoder<'_> {
    fn entry(&self, row: &Row) -> Result<GradedPrompt> {
        let fields = &row.fields;
        if fields.contains_key("token_ids") {
            return self.recorded(row);
        }
        let text = row.text("prompt")?;
        let prompt = match self.chat {
            None => self.tokenizer.encode(&text, true)?,
            Some(chat) => {
                let rendered = chat.render(&[Message::new("user", &*text)], true)?;
                self.tokenizer.encode(&rendered, false)?
            }
        };
        ensure!(!prompt.is_empty(), "the prompt is empty");
        let list = [("completions", "correctness"), ("texts", "scores")]
            .into_iter()
            .find(|(texts, _)| fields.contains_key(*texts));
        let Some((texts, scores)) = list else {
            let response = self.response(&row.text("response")?, finished(fields, None)?)?;
            let outcome = row.get("outcome")?;
            return Ok(GradedPrompt {
                text,
                prompt,
                responses: vec![(response, number("outcome", outcome)?)],
            });
        };
        let (written, graded) = (row.list(texts)?, row.list(scores)?);
        ensure!(
            written.len() == graded.len(),
            "{texts} has {} responses and {scores} {} outcomes",
            written.len(),
            graded.len()
        );
        let mut responses = Vec::with_capacity(written.len());
        for (i, (response, outcome)) in written.iter().zip(graded).enumerate() {
            let Value::String(response) = response else { bail!("{texts}[{i}] is not text") };
            let response = self.response(response, finished(fields, Some(i))?)?;
            responses.push((response, number(&format!("{scores}[{i}]"), outcome)?));
        }
        Ok(GradedPrompt { text, prompt, responses })
    }

    fn recorded(&self, row: &Row) -> Result<GradedPrompt> {
        let tokens = |name: &str| -> Result<Vec<u32>> {
            let vocabulary = self.tokenizer.vocab_size();
            row.list(name)?
                .iter()
                .enumerate()
                .map(|(t, value)| {
                    let id = value.as_u64().filter(|&id| (id as usize) < vocabulary);
                    let id = id.with_context(|| {
                        format!("{name}[{t}] is {value}, not one of {vocabulary} tokens")
                    })?;
                    Ok(id as u32)
                })
                .collect()
        };
        let (prompt, response) = (tokens("prompt_token_ids")?, tokens("token_ids")?);
        ensure!(!prompt.is_empty(), "the prompt is empty");
        let text = self.tokenizer.decode(&prompt, true)?;
        let outcome = row.get("outcome")?;
        Ok(GradedPrompt { text, prompt, responses: vec![(response, number("outcome", outcome)?)] })
    }

    fn response(&self, text: &str, finished: bool) -> Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode(text, false)?;
        if finished
            && let Some(eos) = self.tokenizer.eos_id().filter(|id| tokens.last() != Some(id))
        {
            tokens.push(eos);
        }
        Ok(tokens)
    }
}

fn finished(fields: &Map<String, Value>, index: Option<usize>) -> Result<bool> {
    let value = match (fields.get("finished"), index) {
        (None, _) => return Ok(true),
        (Some(Value::Array(values)), Some(i)) => {
            values.get(i).with_context(|| format!("finished[{i}] is missing"))?
        }
        (Some(value), _) => value,
    };
    value.as_bool().with_context(|| format!("finished is {value}; it must be true or false"))
}

fn number(name: &str, value: &Value) -> Result<f32> {
    let number = match value {
        Value::Bool(right) => Some(f64::from(u8::from(*right))),
        other => other.as_f64(),
    };
    number
        .filter(|x| (0.0..=1.0).contains(x))
        .map(|x| x as f32)
        .ok_or_else(|| anyhow!("{name} is {value}; it must be a number from 0 to 1, true or false"))
}

/// Some prompts as a batch of rollouts, which a policy that is not known sampled.
///
/// # Errors
/// When they are too many.
pub fn batch<'a>(prompts: impl IntoIterator<Item = &'a GradedPrompt>) -> Result<Rollouts> {
    let mut batch = Rollouts::new();
    for (i, prompt) in prompts.into_iter().enumerate() {
        let responses: Vec<Response> = prompt
            .responses
            .iter()
            .map(|(tokens, outcome)| Response {
                tokens: tokens.clone(),
                old_log_probs: vec![0.0; tokens.len()],
                outcome: *outcome,
                finished: true,
            })
            .collect();
        batch.push_group(i.to_string(), prompt.prompt.clone(), &responses)?;
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, max_tokens: usize) -> Result<GradedFile> {
        let tokenizer = Tokenizer::characters("0123456789+=", "<pad>", "<eos>").unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let encoder = Encoder { tokenizer: &tokenizer, chat: None, max_tokens };
        read(&[file.path()], &encoder)
    }

    #[test]
    fn every_form_of_a_line_is_read_and_lines_of_a_prompt_are_a_group() {
        let text = r#"{"prompt":"1+1=","response":"2","outcome":1}
{"prompt":"2+2=","completions":["4","5"],"correctness":[true,0.5]}

{"prompt":"1+1=","texts":["3","2"],"scores":[0,1.0],"finished":[false,true]}
"#;
        let read = read_text(text, 64).unwrap();
        assert_eq!(read.left_out, 0);
        let outcomes = |i: usize| -> Vec<f32> {
            read.prompts[i].responses.iter().map(|(_, outcome)| *outcome).collect()
        };
        assert_eq!(read.prompts.len(), 2);
        assert_eq!((outcomes(0), outcomes(1)), (vec![1.0, 0.0, 1.0], vec![1.0, 0.5]));
        let lengths: Vec<usize> =
            read.prompts[0].responses.iter().map(|(tokens, _)| tokens.len()).collect();
        // What was cut off has no end of text.
        assert_eq!(lengths, [2, 1, 2]);

        let (prompt, response) = (&read.prompts[1].prompt, &read.prompts[1].responses[0].0);
        let recorded = serde_json::json!({
            "prompt_id": "7", "prompt_token_ids": prompt, "token_ids": response, "outcome": 1.0
        });
        let again = read_text(&recorded.to_string(), 64).unwrap();
        assert_eq!(again.prompts[0].text, "2+2=");
        assert_eq!(again.prompts[0].responses[0].0, *response);
        let batch = batch(&read.prompts).unwrap();
        assert_eq!((batch.len(), batch.groups.len()), (5, 2));
    }

    #[test]
    fn what_is_too_long_is_left_out_and_counted() {
        let text = r#"{"prompt":"1+1=","completions":["2","1111111111"],"correctness":[1,0]}"#;
        let read = read_text(text, 7).unwrap();
        assert_eq!((read.left_out, read.prompts[0].responses.len()), (1, 1));
        assert!(read_text(text, 3).unwrap().prompts.is_empty());
    }

    #[test]
    fn a_line_that_cannot_be_used_is_named_with_what_is_wrong() {
        for (line, expected) in [
            (r#"{"response":"2","outcome":1}"#, "no field \"prompt\""),
            (r#"{"prompt":"1","response":"2"}"#, "no field \"outcome\""),
            (r#"{"prompt":"1","response":"2","outcome":2}"#, "outcome is 2; it must be a number"),
            (r#"{"prompt":"1","completions":["2"],"correctness":[]}"#, "completions has 1"),
            (r#"{"prompt":"1","completions":[2],"correctness":[1]}"#, "completions[0] is not text"),
            (r#"{"prompt":"1","texts":["2"]}"#, "no field \"scores\""),
            (r#"{"prompt_token_ids":[1],"token_ids":[99],"outcome":1}"#, "token_ids[0] is 99"),
            (r#"{"token_ids":[1],"outcome":1}"#, "no field \"prompt_token_ids\""),
        ] {
            let message = format!("{:#}", read_text(&format!("\n{line}"), 64).unwrap_err());
            assert!(message.contains(", line 2: ") && message.contains(expected), "{message}");
        }
    }
}
