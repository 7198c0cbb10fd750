//! Rows of a Parquet file, by the `parquet` crate's record reader.
//!
//! The record reader takes some faults of a file's schema for faults of the program and panics. Every call into it is therefore made under a
//! guard that turns a panic into a sentence.

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context, Result, anyhow, bail, ensure};
use parquet::file::reader::FileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};

use super::pages::{self, Pages};

/// What a Parquet file begins with.
pub const MAGIC: &[u8] = b"PAR1";

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside the record reader, whose panics are answers about a file.
pub(crate) fn is_guarded() -> bool {
    GUARDED.get()
}

/// Calls into the record reader.
fn guarded<T>(work: impl FnOnce() -> parquet::errors::Result<T>) -> Result<T> {
    GUARDED.set(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(false);
    match done {
        Ok(result) => result.map_err(|error| anyhow!("the Parquet file is damaged ({error})")),
        Err(panic) => {
            let message = panic.downcast_ref::<&str>().copied();
            let message = message.or(panic.downcast_ref::<String>().map(String::as_str));
            let message = message.unwrap_or("no reason is known");
            Err(anyhow!("the Parquet file is damaged, or of a form that is not read ({message})"))
        }
    }
}

/// The rows of a file, in its order.
pub struct Reader {
    rows: RowIter<'static>,
    /// Nothing is read after a fault: where the next row begins is not known.
    failed: bool,
}

impl Reader {
    /// Opens a file and looks at what it says of itself.
    pub fn open(file: File) -> Result<Reader> {
        let reader = guarded(|| Pages::open(file))?;
        for group in reader.metadata().row_groups() {
            for column in group.columns() {
                let codec = column.compression();
                ensure!(
                    pages::are_read(codec),
                    "the column {:?} is compressed with {}, which is not read: write the file with zstd, snappy, gzip, lz4 or brotli",
                    column.column_path().string(),
                    codec.to_string().split('(').next().unwrap_or_default().to_lowercase()
                );
            }
        }
        let rows = guarded(|| {
            let rows = RowIter::from_file_into(Box::new(reader));
            Ok(rows)
        })?;
        Ok(Reader { rows, failed: false })
    }
}

impl Iterator for Reader {
    type Item = Result<Map<String, Value>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let row = guarded(|| self.rows.next().transpose()).transpose()?.and_then(object);
        self.failed = row.is_err();
        Some(row)
    }
}

fn object(row: Row) -> Result<Map<String, Value>> {
    let convert = |(name, field): (String, Field)| {
        let value = value(field).with_context(|| format!("the column {name:?}"))?;
        Ok((name, value))
    };
    row.into_columns().into_iter().map(convert).collect()
}

fn value(field: Field) -> Result<Value> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(x) => x.into(),
        Field::Byte(x) => x.into(),
        Field::Short(x) => x.into(),
        Field::Int(x) => x.into(),
        Field::Long(x) => x.into(),
        Field::UByte(x) => x.into(),
        Field::UShort(x) => x.into(),
        Field::UInt(x) => x.into(),
        Field::ULong(x) => x.into(),
        Field::Float16(x) => number(x.to_f64()),
        // By its shortest text, as JSON would hold it: 0.1 and not 0.10000000149.
        Field::Float(x) => number(x.to_string().parse().unwrap_or(f64::from(x))),
        Field::Double(x) => number(x),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(_) => bail!("it holds bytes that are not UTF-8 text"),
        },
        Field::Group(row) => Value::Object(object(row)?),
        Field::ListInternal(list) => {
            list.elements().iter().cloned().map(value).collect::<Result<_>>()?
        }
        Field::MapInternal(map) => {
            let pair = |(key, entry): &(Field, Field)| {
                let key = match value(key.clone())? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                Ok((key, value(entry.clone())?))
            };
            Value::Object(map.entries().iter().map(pair).collect::<Result<_>>()?)
        }
        // Dates, times and decimals, as they are written.
        other => other.to_string().into(),
    })
}

/// A number; what JSON cannot hold (NaN, infinity) is null.
fn number(x: f64) -> Value {
    Number::from_f64(x).map_or(Value::Null, Value::Number)
}
