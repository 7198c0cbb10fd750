//! A conversation as the text a model was trained on, by the Jinja template of its folder.
//!
//! The template runs in the surroundings that `transformers` gives it: blocks are trimmed, Python's methods exist on texts and lists,
//! `raise_exception` and `strftime_now` are functions, `tojson` writes as Python's `json` does.

use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::keys::{self, Keys};
use crate::{Error, Result};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// The chat template of a folder and the special tokens it may name.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: Vec<(String, String)>,
    path: PathBuf,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTemplate({})", self.path.display())
    }
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// The template of a folder: `chat_template.jinja`, or else the key `chat_template` of `tokenizer_config.json`.
    ///
    /// # Errors
    /// When the folder has none, or it cannot be read.
    pub fn load(dir: &Path) -> Result<ChatTemplate> {
        ChatTemplate::find(dir)?.ok_or_else(|| {
            Error::file(
                dir,
                "the folder has no chat template: neither `chat_template.jinja` nor the key `chat_template` in \
                 `tokenizer_config.json`",
            )
        })
    }

    /// As [`ChatTemplate::load`], for folders that may have none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn find(dir: &Path) -> Result<Option<ChatTemplate>> {
        let special = keys::special_tokens(dir)?;
        let path = dir.join("chat_template.jinja");
        if path.exists() {
            let source = keys::read_text(&path)?;
            return ChatTemplate::new(path, &source, special).map(Some);
        }
        let path = dir.join("tokenizer_config.json");
        if !path.exists() {
            return Ok(None);
        }
        let keys = Keys::parse(&keys::read_text(&path)?).map_err(|m| Error::file(&path, m))?;
        match template_of(&keys).map_err(|message| Error::file(&path, message))? {
            Some(source) => ChatTemplate::new(path, &source, special).map(Some),
            None => Ok(None),
        }
    }

    /// A template from its text. `special` are the tokens it may name, such as `("eos_token", "</s>")`; `path` is for messages.
    ///
    /// # Errors
    /// When the text is not a template.
    pub fn new(
        path: impl AsRef<Path>,
        source: &str,
        special: Vec<(String, String)>,
    ) -> Result<ChatTemplate> {
        let path = path.as_ref().to_path_buf();
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| sentence(&path, &error))?);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment.add_test("iterable", is_iterable);
        environment
            .add_template_owned(NAME, without_generation_marks(source))
            .map_err(|error| sentence(&path, &error))?;
        Ok(ChatTemplate { environment, special, path })
    }

    /// The text of a conversation; with `add_generation_prompt`, up to where the assistant begins to speak.
    ///
    /// # Errors
    /// When the template refuses the conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let turns = messages.iter().map(|message| {
            Value::from_pairs([("role", &message.role), ("content", &message.content)])
        });
        let special = self.special.iter().map(|(key, token)| (key.as_str(), token.as_str()));
        let values = context! {
            messages => turns.collect::<Vec<_>>(),
            tools => (),
            documents => (),
            add_generation_prompt => add_generation_prompt,
            ..Value::from_pairs(special)
        };
        let rendered = self.environment.get_template(NAME).and_then(|t| t.render(values));
        rendered.map_err(|error| sentence(&self.path, &error))
    }
}

/// The template in a `tokenizer_config.json`: a text, or a list of named ones of which `default` is meant.
fn template_of(keys: &Keys<'_>) -> std::result::Result<Option<String>, String> {
    let Some(value) = keys.get("chat_template") else { return Ok(None) };
    if let Some(text) = value.as_str() {
        return Ok(Some(text.to_string()));
    }
    let Some(list) = value.as_array() else {
        return Err(format!(
            "`chat_template` is {}, expected a text or a list of named templates",
            keys::kind(value)
        ));
    };
    let mut names = Vec::new();
    for entry in list {
        let field = |key: &str| entry.get(key).and_then(|value| value.as_str());
        let (Some(name), Some(template)) = (field("name"), field("template")) else {
            return Err(
                "`chat_template` holds an entry without the texts `name` and `template`".into()
            );
        };
        if name == "default" {
            return Ok(Some(template.to_string()));
        }
        names.push(format!("`{}`", keys::short(name)));
    }
    Err(format!("`chat_template` has no template named `default`, only {}", names.join(", ")))
}

fn sentence(path: &Path, error: &minijinja::Error) -> Error {
    let detail = match error.detail() {
        Some(detail) => detail.to_string(),
        None => error.kind().to_string(),
    };
    let line = match error.line() {
        Some(line) => format!(" in line {line}"),
        None => String::new(),
    };
    Error::file(path, format!("the chat template failed{line}: {detail}"))
}

/// `{% generation %}` marks what the assistant said for training masks; its text is the same with and without. An `if` that is always
/// true stands in for it and trims the same white space.
fn without_generation_marks(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + length];
        let name = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replacement = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => name,
        };
        result.push_str(&rest[..start + 2]);
        result.push_str(&tag.replacen(name, replacement, usize::from(!name.is_empty())));
        rest = &rest[start + length..];
    }
    result.push_str(rest);
    result
}

fn raise_exception(message: String) -> std::result::Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> std::result::Result<String, minijinja::Error> {
    clock::format(&format, clock::now())
        .map_err(|message| minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// As Python sees it: a text can be walked through, none cannot.
fn is_iterable(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined
            | ValueKind::String
            | ValueKind::Bytes
            | ValueKind::Seq
            | ValueKind::Map
            | ValueKind::Iterable
    )
}

/// Writes as Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    for key in ["ensure_ascii", "separators", "sort_keys"] {
        // Known to transformers; templates that pass them pass their defaults.
        let _: Option<Value> = options.get(key)?;
    }
    options.assert_all_used()?;
    let mut text = String::new();
    write_json(&value, indent, 0, &mut text)?;
    Ok(text)
}

fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    text: &mut String,
) -> std::result::Result<(), minijinja::Error> {
    // Lines when indented; a space behind commas otherwise.
    let line = |depth: usize| match indent {
        Some(width) => format!("\n{}", " ".repeat(width.min(16) * depth)),
        None => String::new(),
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&value.to_string()),
        ValueKind::String => push_json_string(value, text),
        ValueKind::Seq | ValueKind::Iterable => {
            text.push('[');
            let mut empty = true;
            for item in value.try_iter()? {
                text.push_str(if empty { "" } else { comma });
                text.push_str(&line(depth + 1));
                write_json(&item, indent, depth + 1, text)?;
                empty = false;
            }
            text.push_str(&if empty { String::new() } else { line(depth) });
            text.push(']');
        }
        ValueKind::Map => {
            text.push('{');
            let mut empty = true;
            for key in value.try_iter()? {
                text.push_str(if empty { "" } else { comma });
                text.push_str(&line(depth + 1));
                push_json_string(&key, text);
                text.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, text)?;
                empty = false;
            }
            text.push_str(&if empty { String::new() } else { line(depth) });
            text.push('}');
        }
        other => {
            return Err(minijinja::Error::new(
                ErrorKind::BadSerialization,
                format!("tojson cannot write a value of kind {other}"),
            ));
        }
    }
    Ok(())
}

fn push_json_string(value: &Value, text: &mut String) {
    let content = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    text.push_str(&serde_json::Value::from(content).to_string());
}
