//! Rows of data files: JSON Lines, JSON, and Parquet, each row as a JSON object.
//!
//! [`rows`] tells the formats apart by their first bytes, not by the name of the file:
//!
//! - **Parquet** (`PAR1`): nested lists, structs and maps; pages as they are or compressed with zstd, snappy, gzip, LZ4 or
//!   brotli. Not read: encrypted files. Row groups are read one after the other.
//! - **JSON**: one list of objects, or one object of columns (each a list, or an object keyed by the row's name, as pandas writes it). Held
//!   in memory whole.
//! - **JSON Lines** otherwise: one object a line, blank lines passed over, read as a stream.
//!
//! Whatever a file holds, a fault is a sentence with the file, the line or row, and the column.

pub mod chat;
mod json;
mod pages;
mod parquet;

use std::fs::File;
use std::io::{BufRead, BufReader, Seek};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use crate::graders::{kind, nearest, parse_object};

pub(crate) use parquet::is_guarded;

/// One row of a data file.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What messages call the row, such as `train.jsonl, line 3`.
    place: Place,
    /// Its columns, in the order of the file.
    pub fields: Map<String, Value>,
}

/// Where a row stands.
#[derive(Clone, Debug, PartialEq)]
struct Place {
    file: Arc<str>,
    unit: &'static str,
    number: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {} {}", self.file, self.unit, self.number)
    }
}

impl Row {
    /// The row's file and number, as messages name it.
    pub fn place(&self) -> String {
        self.place.to_string()
    }

    /// The value of a column. A dot leads into a struct or, with a number, into a list: `reward_model.ground_truth`, `prompt.0.content`.
    ///
    /// # Errors
    /// When the row has no such column, with the nearest one that it has.
    pub fn get(&self, name: &str) -> Result<&Value> {
        if let Some(value) = self.fields.get(name) {
            return Ok(value);
        }
        let mut names = name.split('.');
        let mut value = field(&self.fields, names.next().unwrap_or(name), self.place.unit)?;
        for inner in names {
            value = match value {
                Value::Object(object) => field(object, inner, self.place.unit)
                    .with_context(|| format!("in the field {name:?}"))?,
                Value::Array(list) => {
                    let index: Option<usize> = inner.parse().ok();
                    index.and_then(|index| list.get(index)).with_context(|| {
                        format!(
                            "the field {name:?} asks for element {inner:?} of a list of {}",
                            list.len()
                        )
                    })?
                }
                other => {
                    bail!("the field {name:?} leads into {}, which has no fields", kind(other))
                }
            };
        }
        Ok(value)
    }

    /// A column that holds text, or a number, which is taken as it is written.
    ///
    /// # Errors
    /// When it is missing or holds something else.
    pub fn text(&self, name: &str) -> Result<String> {
        match self.get(name)? {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            other => Err(anyhow!("the field {name:?} must be text, and is {}", kind(other))),
        }
    }

    /// A column that holds a list.
    ///
    /// # Errors
    /// When it is missing or holds something else.
    pub fn list(&self, name: &str) -> Result<&[Value]> {
        match self.get(name)? {
            Value::Array(list) => Ok(list),
            other => Err(anyhow!("the field {name:?} must be a list, and is {}", kind(other))),
        }
    }

    /// Puts the row's place before an error about what it holds.
    ///
    /// # Errors
    /// The one that is given.
    pub fn checked<T>(&self, result: Result<T>) -> Result<T> {
        result.with_context(|| self.place())
    }
}

fn field<'a>(object: &'a Map<String, Value>, name: &str, unit: &str) -> Result<&'a Value> {
    object.get(name).ok_or_else(|| {
        let present = match nearest(name, object.keys().map(String::as_str)) {
            Some(near) => format!("the nearest present one is {near:?}"),
            None if object.is_empty() => "it has no fields".to_owned(),
            None => {
                let names: Vec<String> =
                    object.keys().take(16).map(|key| format!("{key:?}")).collect();
                format!("it has {}", names.join(", "))
            }
        };
        anyhow!("the {unit} has no field {name:?}; {present}")
    })
}

/// The rows of a file, one after the other.
pub struct Rows {
    file: Arc<str>,
    number: u64,
    source: Source,
}

enum Source {
    Lines(BufReader<File>),
    Whole(std::vec::IntoIter<Map<String, Value>>),
    Parquet(Box<parquet::Reader>),
}

/// Opens a data file.
///
/// # Errors
/// When it cannot be read, or is a damaged Parquet or JSON file. Faults in later rows are told by the iterator.
pub fn rows(path: impl AsRef<Path>) -> Result<Rows> {
    let path = path.as_ref();
    let shown: Arc<str> = path.display().to_string().into();
    let file =
        File::open(path).with_context(|| format!("the data set {shown} cannot be opened"))?;
    let read = || format!("the data set {shown} cannot be read");
    ensure!(
        !file.metadata().with_context(read)?.is_dir(),
        "the data set {shown} is a folder, expected a file of JSON Lines, JSON or Parquet"
    );
    let mut input = BufReader::with_capacity(1 << 18, file);
    let start = input.fill_buf().with_context(read)?;
    let source = if start.starts_with(parquet::MAGIC) {
        input.rewind().with_context(read)?;
        let reader = parquet::Reader::open(input.into_inner());
        Source::Parquet(Box::new(reader.with_context(|| shown.to_string())?))
    } else if json::is_whole(start, path) {
        match json::read(&mut input).with_context(|| shown.to_string())? {
            Some(rows) => Source::Whole(rows.into_iter()),
            // Objects one after the other, in a file that is named as if it were one value.
            None => {
                input.rewind().with_context(read)?;
                Source::Lines(input)
            }
        }
    } else {
        Source::Lines(input)
    };
    Ok(Rows { file: shown, number: 0, source })
}

impl Rows {
    fn place(&self) -> Place {
        let unit = if matches!(self.source, Source::Lines(_)) { "line" } else { "row" };
        Place { file: self.file.clone(), unit, number: self.number }
    }

    /// The next line that is not blank.
    fn next_line(&mut self) -> Option<Result<Map<String, Value>>> {
        let Source::Lines(input) = &mut self.source else { return None };
        let mut line = Vec::new();
        loop {
            line.clear();
            match input.read_until(b'\n', &mut line) {
                Ok(0) => return None,
                Ok(_) => self.number += 1,
                Err(error) => {
                    let context = format!("the data set {} cannot be read", self.file);
                    return Some(Err(anyhow::Error::new(error).context(context)));
                }
            }
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(parse_object(&line).with_context(|| self.place().to_string()));
            }
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        let fields = match &mut self.source {
            Source::Lines(_) => self.next_line()?,
            Source::Whole(rows) => {
                let row = rows.next()?;
                self.number += 1;
                Ok(row)
            }
            Source::Parquet(reader) => {
                let row = reader.next()?;
                self.number += 1;
                row.with_context(|| self.place().to_string())
            }
        };
        Some(fields.map(|fields| Row { place: self.place(), fields }))
    }
}

#[cfg(test)]
pub(crate) mod tests;
