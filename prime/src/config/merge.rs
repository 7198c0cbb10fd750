//! Laying files and single settings over the defaults, and saying what does not fit.

use anyhow::{Result, bail};
use toml::{Table, Value};

use crate::graders::nearest;

/// Lays a file over what is there.
pub(super) fn merge_text(table: &mut Table, text: &str) -> Result<()> {
    let file: Table = text.parse()?;
    merge(table, file, "").map_err(|error| match find_line(text, &error.key) {
        Some(line) => anyhow::anyhow!("line {line}: {error}"),
        None => anyhow::anyhow!("{error}"),
    })
}

/// A key that cannot be laid over the defaults.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct KeyError {
    key: String,
    message: String,
}

pub(super) fn merge(
    base: &mut Table,
    over: Table,
    prefix: &str,
) -> std::result::Result<(), KeyError> {
    for (key, value) in over {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let fail = |message: String| Err(KeyError { key: key.clone(), message });
        let Some(old) = base.get_mut(&key) else {
            let suggestion = nearest(&key, base.keys().map(String::as_str))
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            let place = if prefix.is_empty() { String::new() } else { format!(" in [{prefix}]") };
            return fail(format!("there is no setting `{key}`{place}{suggestion}"));
        };
        match (old, value) {
            (Value::Table(old), Value::Table(new)) => merge(old, new, &path)?,
            (old @ Value::Float(_), Value::Integer(new)) => *old = Value::Float(new as f64),
            (old, new) if old.type_str() == new.type_str() => *old = new,
            (old, new) => {
                return fail(format!("`{path}` is {} `{new}`, expected {}", kind(&new), kind(old)));
            }
        }
    }
    Ok(())
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

/// The line on which a key is set, for messages.
fn find_line(text: &str, key: &str) -> Option<usize> {
    let is_key = |line: &str| {
        let line = line.trim().trim_start_matches('[');
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
    };
    text.lines().position(is_key).map(|index| index + 1)
}

/// Applies `section.key=value`.
pub(super) fn set(table: &mut Table, text: &str) -> Result<()> {
    let Some((path, value)) = text.split_once('=') else {
        bail!("expected section.key=value, such as policy.learning_rate=1e-4");
    };
    let (path, value) = (path.trim(), value.trim());
    // What is not a TOML value is a string: nobody should have to quote quotes for the shell.
    let value = format!("value = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.to_string()));
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty());
    let Some(last) = last else {
        bail!("expected section.key=value, such as policy.learning_rate=1e-4")
    };
    let mut over = Table::from_iter([(last.to_string(), value)]);
    for key in keys.into_iter().rev() {
        over = Table::from_iter([(key.to_string(), Value::Table(over))]);
    }
    merge(table, over, "")?;
    Ok(())
}
