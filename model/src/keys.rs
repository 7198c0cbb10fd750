//! The keys of a JSON object, read with the types they should have. Messages are sentences without the file's name, which the caller adds.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

type Checked<T> = std::result::Result<T, String>;

/// No file this reads is near this size in any published model; tokenizers are the largest.
const MAX_BYTES: u64 = 256 << 20;

/// The text of a JSON or template file of a model folder.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let file = std::fs::File::open(path).map_err(prime_runtime::Error::io("open", path))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(prime_runtime::Error::io("read", path))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::file(path, format!("it is larger than {MAX_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        Error::file(path, format!("it is not UTF-8 from byte {}", error.utf8_error().valid_up_to()))
    })
}

/// A quoted value, cut where a hostile file would fill the screen.
pub(crate) fn short(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST {
        return text.to_string();
    }
    text.chars().take(MOST).chain("...".chars()).collect()
}

/// The type of a value, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// An object's keys. A key that is null counts as missing.
pub(crate) struct Keys<'a> {
    map: std::borrow::Cow<'a, Map<String, Value>>,
}

impl Keys<'static> {
    /// The object that a file holds.
    pub(crate) fn parse(text: &str) -> Checked<Self> {
        match serde_json::from_str(text) {
            Ok(Value::Object(map)) => Ok(Keys { map: std::borrow::Cow::Owned(map) }),
            Ok(other) => Err(format!("it holds {}, expected an object", kind(&other))),
            Err(error) => Err(format!("it is not JSON: {error}")),
        }
    }
}

impl Keys<'_> {
    /// The value, unless it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, if only as null.
    pub(crate) fn contains(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    fn wrong<T>(&self, key: &str, value: &Value, expected: &str) -> Checked<T> {
        let shown = match value {
            Value::Array(_) | Value::Object(_) => kind(value).to_string(),
            other => short(&other.to_string()),
        };
        Err(format!("`{key}` is {shown}, expected {expected}"))
    }

    /// A positive integer that must be there.
    pub(crate) fn size(&self, key: &str, most: usize) -> Checked<usize> {
        self.optional_size(key, most)?
            .ok_or_else(|| format!("`{key}` is missing, expected 1 to {most}"))
    }

    /// A positive integer.
    pub(crate) fn optional_size(&self, key: &str, most: usize) -> Checked<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(size) if (1..=most).contains(&size) => Ok(Some(size)),
            _ => self.wrong(key, value, &format!("a whole number from 1 to {most}")),
        }
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Checked<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) => Ok(Some(number)),
            None => self.wrong(key, value, "a number"),
        }
    }

    /// A number that must be there.
    pub(crate) fn required_number(&self, key: &str) -> Checked<f64> {
        self.number(key)?.ok_or_else(|| format!("`{key}` is missing, expected a number"))
    }

    /// True or false.
    pub(crate) fn flag(&self, key: &str) -> Checked<Option<bool>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Bool(flag) => Ok(Some(*flag)),
            other => self.wrong(key, other, "true or false"),
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Checked<Option<&str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::String(text) => Ok(Some(text)),
            other => self.wrong(key, other, "a text"),
        }
    }

    /// An object.
    pub(crate) fn object(&self, key: &str) -> Checked<Option<Keys<'_>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Object(map) => Ok(Some(Keys { map: std::borrow::Cow::Borrowed(map) })),
            other => self.wrong(key, other, "an object"),
        }
    }

    /// A token's id. Early Llama 2 folders write -1 for a token that is not there.
    pub(crate) fn token_id(&self, key: &str) -> Checked<Option<u32>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        self.one_id(key, value)
    }

    /// A token's id, or several in a list.
    pub(crate) fn token_ids(&self, key: &str) -> Checked<Vec<u32>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => {
                let ids = values.iter().map(|value| self.one_id(key, value));
                Ok(ids.collect::<Checked<Vec<_>>>()?.into_iter().flatten().collect())
            }
            Some(value) => Ok(self.one_id(key, value)?.into_iter().collect()),
        }
    }

    fn one_id(&self, key: &str, value: &Value) -> Checked<Option<u32>> {
        if value.as_i64() == Some(-1) {
            return Ok(None);
        }
        match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(Some(id)),
            None => self.wrong(key, value, "a token id: a whole number, 0 or more"),
        }
    }
}

/// The special tokens that a folder's `tokenizer_config.json` names, in its order, then those of `special_tokens_map.json` that it does not.
pub(crate) fn special_tokens(dir: &Path) -> Result<Vec<(String, String)>> {
    let mut tokens: Vec<(String, String)> = Vec::new();
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let path = dir.join(file);
        if !path.exists() {
            continue;
        }
        let keys =
            Keys::parse(&read_text(&path)?).map_err(|message| Error::file(&path, message))?;
        for (key, value) in keys.map.iter().filter(|(key, _)| key.ends_with("_token")) {
            // Written as its text or as an object that holds it.
            let content = value.as_str().or_else(|| value.get("content")?.as_str());
            if let Some(content) = content.filter(|_| !tokens.iter().any(|(k, _)| k == key)) {
                tokens.push((key.clone(), content.to_string()));
            }
        }
    }
    Ok(tokens)
}
