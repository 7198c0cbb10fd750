//! A JSON file that is one value: a list of objects, or an object of columns.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use crate::graders::kind;

/// Whether a file that begins like this may be one JSON value.
pub fn is_whole(start: &[u8], path: &Path) -> bool {
    let start = start.strip_prefix("\u{feff}".as_bytes()).unwrap_or(start);
    match start.trim_ascii_start().first() {
        Some(b'[') => true,
        // An object alone says nothing: the first line of JSON Lines is one too.
        Some(b'{') => path.extension().is_some_and(|extension| extension == "json"),
        _ => false,
    }
}

/// The rows of the value; none when the file holds several values.
pub fn read(input: &mut impl Read) -> Result<Option<Vec<Map<String, Value>>>> {
    let mut text = String::new();
    input.read_to_string(&mut text).context("the file cannot be read as UTF-8 text")?;
    let text = text.trim_start_matches('\u{feff}');
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let first = match values.next() {
        Some(Ok(value)) => value,
        Some(Err(error)) => bail!("the file is not JSON ({error})"),
        None => return Ok(Some(Vec::new())),
    };
    if !text[values.byte_offset()..].trim().is_empty() {
        ensure!(first.is_object(), "something follows the JSON list that the file begins with");
        return Ok(None);
    }
    match first {
        Value::Array(list) => list.into_iter().enumerate().map(|(i, row)| object(i, row)).collect(),
        Value::Object(columns) => of_columns(columns),
        other => Err(anyhow!("the file must hold a list or an object, and holds {}", kind(&other))),
    }
    .map(Some)
}

fn object(index: usize, row: Value) -> Result<Map<String, Value>> {
    match row {
        Value::Object(row) => Ok(row),
        other => Err(anyhow!("row {} must be a JSON object, and is {}", index + 1, kind(&other))),
    }
}

/// The rows of an object of columns; an object of anything else is a row of its own.
fn of_columns(columns: Map<String, Value>) -> Result<Vec<Map<String, Value>>> {
    let is_column = |value: &Value| value.is_array() || value.is_object();
    if columns.is_empty() || !columns.values().all(is_column) {
        return Ok(vec![columns]);
    }
    // The rows of a keyed column are those of the first column, by their keys; lists go by place.
    let mut keys: Option<Vec<String>> = None;
    let mut rows: Vec<Map<String, Value>> = Vec::new();
    for (i, (name, column)) in columns.into_iter().enumerate() {
        let values: Vec<Value> = match column {
            Value::Array(values) => values,
            Value::Object(mut column) => {
                let keys =
                    keys.get_or_insert_with(|| column.keys().cloned().collect::<Vec<String>>());
                ensure!(
                    column.len() == keys.len(),
                    "the column {name:?} has {} rows, others have {}",
                    column.len(),
                    keys.len()
                );
                keys.iter()
                    .map(|key| {
                        column
                            .remove(key)
                            .with_context(|| format!("the column {name:?} has no row {key:?}"))
                    })
                    .collect::<Result<_>>()?
            }
            _ => unreachable!("columns are lists or objects"),
        };
        if i == 0 {
            rows = vec![Map::new(); values.len()];
        }
        ensure!(
            values.len() == rows.len(),
            "the column {name:?} has {} rows, others have {}",
            values.len(),
            rows.len()
        );
        for (row, value) in rows.iter_mut().zip(values) {
            row.insert(name.clone(), value);
        }
    }
    Ok(rows)
}
