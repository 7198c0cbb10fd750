//! Conversations in a column: `[{role, content}]`, or ShareGPT's `[{from, value}]`.

use anyhow::{Context, Result, bail, ensure};
use prime_model::Message;
use serde_json::Value;

use crate::graders::kind;

/// The turns of a conversation, with the roles `system`, `user` and `assistant`.
///
/// # Errors
/// When it is not a conversation, with the turn and what is wrong with it.
pub fn messages(turns: &[Value]) -> Result<Vec<Message>> {
    ensure!(!turns.is_empty(), "the conversation has no turns");
    let message = |(i, turn): (usize, &Value)| {
        message(turn).with_context(|| format!("turn {} of the conversation", i + 1))
    };
    turns.iter().enumerate().map(message).collect()
}

fn message(turn: &Value) -> Result<Message> {
    let Value::Object(turn) = turn else {
        bail!("expected an object with role and content, found {}", kind(turn))
    };
    let (role, content) = match (turn.get("role"), turn.get("from")) {
        (Some(role), _) => (role, turn.get("content")),
        (None, Some(from)) => (from, turn.get("value")),
        (None, None) => bail!("it has neither `role` and `content` nor `from` and `value`"),
    };
    let Some(role) = role.as_str() else {
        bail!("its role must be text, and is {}", kind(role));
    };
    let role = match role {
        "system" => "system",
        "user" | "human" => "user",
        "assistant" | "gpt" | "chatgpt" | "bing" | "bard" => "assistant",
        other => {
            bail!("its role is {other:?}, expected system, user (or human) or assistant (or gpt)")
        }
    };
    match content {
        Some(Value::String(content)) => Ok(Message::new(role, content)),
        Some(other) => bail!("what it says must be text, and is {}", kind(other)),
        None => bail!("it does not say anything: `content` (or `value`) is missing"),
    }
}
