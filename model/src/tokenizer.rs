//! Text to token ids and back, by the `tokenizer.json` of a model folder.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Config, Error, Result, keys};

/// The name of the file that holds a tokenizer.
pub(crate) const FILE: &str = "tokenizer.json";

/// A tokenizer and the text it was read from.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: String,
    path: PathBuf,
    special: HashSet<u32>,
    ids: usize,
    bos: Option<String>,
    eos: Option<String>,
    pad: Option<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} ids, {})", self.ids, self.path.display())
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a folder, and the names of its special tokens from `tokenizer_config.json` where there is one.
    ///
    /// # Errors
    /// A sentence with the file and what is wrong in it.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join(FILE);
        let mut tokenizer = Tokenizer::from_json(&path, keys::read_text(&path)?)?;
        let names = keys::special_tokens(dir)?;
        let name = |key: &str| names.iter().find(|(k, _)| k == key).map(|(_, token)| token.clone());
        tokenizer.bos = name("bos_token");
        tokenizer.eos = name("eos_token");
        tokenizer.pad = name("pad_token");
        Ok(tokenizer)
    }

    /// Reads the text of a `tokenizer.json`; `path` is for messages. Truncation and padding that it may ask for are left out: every token of a text counts here.
    ///
    /// # Errors
    /// A sentence with the file and what is wrong in it.
    pub fn from_json(path: impl AsRef<Path>, text: String) -> Result<Tokenizer> {
        let path = path.as_ref().to_path_buf();
        let wrong = |message: String| Error::file(&path, message);
        let mut value: Value = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("it is not JSON: {error}")))?;
        let Some(object) = value.as_object_mut() else {
            return Err(wrong(format!("it holds {}, expected an object", keys::kind(&value))));
        };
        let mut cut = false;
        for key in ["truncation", "padding"] {
            if let Some(setting) = object.get_mut(key).filter(|setting| !setting.is_null()) {
                *setting = Value::Null;
                cut = true;
            }
        }
        let cut_text = cut.then(|| value.to_string());
        check_templates(value.get("post_processor")).map_err(wrong)?;
        let inner = tokenizers::Tokenizer::from_bytes(cut_text.as_deref().unwrap_or(&text))
            .map_err(|error| wrong(format!("it is not a tokenizer: {error}")))?;
        // What it puts around every text has ids of its own.
        let around = inner.encode_fast("", true).map(|text| text.get_ids().to_vec());
        let ids = inner.get_vocab(true).into_values().chain(around.unwrap_or_default());
        let ids = ids.max().map_or(0, |id| id as usize + 1);
        if ids == 0 {
            return Err(wrong("its vocabulary is empty".into()));
        }
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        Ok(Tokenizer { inner, json: text, path, special, ids, bos: None, eos: None, pad: None })
    }

    /// A tokenizer with one token a character: `pad` is 0, `eos` is 1, the symbols follow in their order.
    ///
    /// # Errors
    /// When a symbol occurs twice, or the special tokens are one, empty, or a symbol.
    pub fn characters(symbols: &str, pad: &str, eos: &str) -> Result<Tokenizer> {
        let mut vocabulary = serde_json::Map::new();
        let tokens = [pad.to_string(), eos.to_string()].into_iter();
        for token in tokens.chain(symbols.chars().map(String::from)) {
            if token.is_empty() || vocabulary.contains_key(&token) {
                return Err(Error::Value(format!(
                    "the token `{token}` of a character tokenizer is empty or occurs twice"
                )));
            }
            vocabulary.insert(token, json!(vocabulary.len()));
        }
        let special = |id: usize, content: &str| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        };
        let value = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [special(0, pad), special(1, eos)],
            "normalizer": null,
            "pre_tokenizer": {
                "type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": false,
            },
            "post_processor": null,
            "decoder": {"type": "Fuse"},
            // The unknown token is not in the vocabulary: a character that is not there is an error, not a guess.
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
        });
        let text = serde_json::to_string_pretty(&value).expect("a JSON value can be written");
        let mut tokenizer = Tokenizer::from_json("the character tokenizer", text)?;
        tokenizer.pad = Some(pad.into());
        tokenizer.eos = Some(eos.into());
        Ok(tokenizer)
    }

    /// The files that hold this tokenizer in a model folder: `tokenizer.json` as it was read, and the `tokenizer_config.json` that `transformers` needs beside it.
    pub fn files(&self) -> Vec<(&'static str, String)> {
        let mut config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": false,
            "model_max_length": 1_000_000_000u32,
        });
        for (key, token) in
            [("bos_token", &self.bos), ("eos_token", &self.eos), ("pad_token", &self.pad)]
        {
            if let Some(token) = token {
                config[key] = json!(token);
            }
        }
        let config = serde_json::to_string_pretty(&config).expect("a JSON value can be written");
        vec![(FILE, self.json.clone()), ("tokenizer_config.json", config)]
    }

    /// The ids of a text. With `add_special`, those that the tokenizer puts around every text (a Llama's begin-of-text) are included; special
    /// tokens written in the text are recognised either way.
    ///
    /// # Errors
    /// When the text holds a character that the vocabulary cannot express.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, add_special) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => {
                // One-character vocabularies fail for one reason; say which character.
                let stranger = text.chars().find(|c| self.token_to_id(&c.to_string()).is_none());
                Err(Error::Value(match stranger {
                    Some(c) => format!(
                        "the text holds the character {c:?}, which the tokenizer {} does not know",
                        self.path.display()
                    ),
                    None => format!(
                        "the tokenizer {} cannot encode the text: {error}",
                        self.path.display()
                    ),
                }))
            }
        }
    }

    /// The text of ids. Ids that stand for no token (rows that pad an embedding to a round size) give no text.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|error| {
            Error::Value(format!("the tokenizer {} cannot decode: {error}", self.path.display()))
        })
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.ids
    }

    /// The id of a token.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is a special token, such as one that ends a text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The token that begins a text, by `tokenizer_config.json`.
    pub fn bos_token(&self) -> Option<&str> {
        self.bos.as_deref()
    }

    /// The token that ends a text, by `tokenizer_config.json`.
    pub fn eos_token(&self) -> Option<&str> {
        self.eos.as_deref()
    }

    /// The token that ends a text, by `tokenizer_config.json`, as an id.
    pub fn eos_id(&self) -> Option<u32> {
        self.token_to_id(self.eos_token()?)
    }

    /// Checks that the model has an embedding for every token.
    ///
    /// # Errors
    /// A sentence with the first token that has none.
    pub fn check(&self, config: &Config) -> Result<()> {
        if self.ids <= config.vocab_size {
            return Ok(());
        }
        let first = (config.vocab_size..self.ids)
            .find_map(|id| Some((id, self.id_to_token(u32::try_from(id).ok()?)?)));
        let (id, token) = first.unwrap_or((self.ids - 1, String::new()));
        Err(Error::file(
            &self.path,
            format!(
                "its ids go up to {}, but the model has a `vocab_size` of {}: the token `{}` with id {id} has no \
                 embedding. Is this the tokenizer of another model?",
                self.ids - 1,
                config.vocab_size,
                keys::short(&token)
            ),
        ))
    }

    /// Checks that another tokenizer gives every token the same id, so that two models can score the same ids.
    ///
    /// # Errors
    /// A sentence with the first id that differs.
    pub fn check_same(&self, other: &Tokenizer) -> Result<()> {
        if self.json == other.json {
            return Ok(());
        }
        for id in 0..self.ids.max(other.ids) as u32 {
            let (ours, theirs) = (self.id_to_token(id), other.id_to_token(id));
            if ours != theirs {
                let show = |token: Option<String>| match token {
                    Some(token) => format!("`{}`", keys::short(&token)),
                    None => "no token".to_string(),
                };
                return Err(Error::file(
                    &other.path,
                    format!(
                        "id {id} is {} here, but {} in {}: the two models need the same tokenizer",
                        show(theirs),
                        show(ours),
                        self.path.display()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The text of each of `ids`, which follow `before`: joined, they are the text of all. A token that only begins a character has
    /// none; the one that completes the character has it.
    ///
    /// # Errors
    /// As for [`Tokenizer::decode`].
    pub fn pieces(&self, before: &[u32], ids: &[u32]) -> Result<Vec<String>> {
        // Tokens that wait for their character to become whole: bytes that are no text would wait for ever.
        const MOST_WAITING: usize = 8;
        let mut stream = self.stream(false);
        stream.ids.extend(before.last());
        stream.shown = stream.ids.len();
        let mut pieces = Vec::with_capacity(ids.len());
        for &id in ids {
            stream.ids.push(id);
            let text = stream.pending()?;
            let waiting = stream.ids.len() - stream.shown;
            if text.ends_with(char::REPLACEMENT_CHARACTER) && waiting < MOST_WAITING {
                pieces.push(String::new());
                continue;
            }
            stream.start = stream.shown;
            stream.shown = stream.ids.len();
            pieces.push(text);
        }
        if let Some(last) = pieces.last_mut().filter(|_| stream.shown < stream.ids.len()) {
            *last = stream.pending()?;
        }
        Ok(pieces)
    }

    /// Turns ids into text as they come.
    pub fn stream(&self, skip_special: bool) -> TextStream<'_> {
        TextStream { tokenizer: self, skip_special, ids: Vec::new(), start: 0, shown: 0 }
    }
}

/// Checks that a post-processor defines the special tokens that its templates name; the library relies on it.
fn check_templates(processor: Option<&Value>) -> std::result::Result<(), String> {
    let Some(processor) = processor else { return Ok(()) };
    for inner in processor["processors"].as_array().into_iter().flatten() {
        check_templates(Some(inner))?;
    }
    let defined = &processor["special_tokens"];
    for piece in
        ["single", "pair"].into_iter().filter_map(|key| processor[key].as_array()).flatten()
    {
        // A piece is written as an object, or as its text.
        let named = piece["SpecialToken"]["id"].as_str().or_else(|| piece.as_str());
        if let Some(name) =
            named.filter(|name| !name.starts_with('$') && defined.get(name).is_none())
        {
            return Err(format!(
                "its post-processor names the token `{}`, but does not define it in `special_tokens`",
                keys::short(name)
            ));
        }
    }
    Ok(())
}

/// Text of ids that come one by one. A character whose bytes are spread over several tokens comes when it is whole.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    ids: Vec<u32>,
    /// The first id that still matters: what comes after it may look different without it (a leading space).
    start: usize,
    /// Ids before this one have been shown.
    shown: usize,
}

impl TextStream<'_> {
    /// The text that this id completes; often that of the id alone, sometimes none.
    ///
    /// # Errors
    /// As for [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.pending()?;
        // An incomplete character decodes to the replacement character.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        self.start = self.shown;
        self.shown = self.ids.len();
        Ok(text)
    }

    /// What is left when no more ids come: a character that was never completed.
    ///
    /// # Errors
    /// As for [`Tokenizer::decode`].
    pub fn finish(self) -> Result<String> {
        self.pending()
    }

    fn pending(&self) -> Result<String> {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, self.skip_special);
        let before = decode(&self.ids[self.start..self.shown])?;
        let text = decode(&self.ids[self.start..])?;
        let same: usize = before
            .chars()
            .zip(text.chars())
            .take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len_utf8())
            .sum();
        Ok(text[same..].to_string())
    }
}
