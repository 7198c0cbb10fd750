//! The files that commands read and write: JSON Lines, with `-` for the standard streams.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Stdout, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use prime_runtime::checkpoint::AtomicFile;
use serde_json::{Map, Value};

use crate::graders::parse_object;

/// Opens a file to read, or standard input.
pub(super) fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {shown}"))?;
    if file.metadata().with_context(|| format!("cannot read {shown}"))?.is_dir() {
        bail!("{shown} is a folder, expected a file of JSON Lines");
    }
    Ok(Box::new(BufReader::with_capacity(1 << 18, file)))
}

/// A JSON object of the input and the number of its line.
pub(super) struct Line {
    /// Counted from 1.
    pub number: usize,
    /// Its fields, in their order.
    pub fields: Map<String, Value>,
}

/// The objects of an input, one a line; blank lines are passed over.
pub(super) struct Lines {
    input: Box<dyn BufRead>,
    number: usize,
}

impl Lines {
    /// The lines of a file.
    pub(super) fn open(path: &Path) -> Result<Lines> {
        Ok(Lines { input: open(path)?, number: 0 })
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Result<Line>> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match self.input.read_until(b'\n', &mut bytes) {
                Err(error) => {
                    return Some(
                        Err(anyhow::Error::new(error)).context("the input cannot be read"),
                    );
                }
                Ok(0) => return None,
                Ok(_) => self.number += 1,
            }
            if !bytes.trim_ascii().is_empty() {
                break;
            }
        }
        let number = self.number;
        let fields = parse_object(&bytes).with_context(|| at_line(number));
        Some(fields.map(|fields| Line { number, fields }))
    }
}

/// How a message names a line of the input.
pub(super) fn at_line(number: usize) -> String {
    format!("line {number} of the input")
}

/// Where a command writes: a file that appears whole or not at all, a device or pipe, or standard output.
pub(super) enum Output {
    Standard(BufWriter<Stdout>),
    Device(BufWriter<File>),
    File(AtomicFile),
}

impl Output {
    /// Standard output.
    pub(super) fn standard() -> Output {
        Output::Standard(BufWriter::new(io::stdout()))
    }

    /// A file, or standard output for `-`.
    pub(super) fn create(path: &Path) -> Result<Output> {
        if path == Path::new("-") {
            return Ok(Output::standard());
        }
        // A pipe or a device such as /dev/null has no "whole or nothing".
        if std::fs::metadata(path).is_ok_and(|kind| !kind.is_file() && !kind.is_dir()) {
            let file = File::options().write(true).open(path);
            let file = file.with_context(|| format!("cannot write {}", path.display()))?;
            return Ok(Output::Device(BufWriter::new(file)));
        }
        Ok(Output::File(AtomicFile::create(path)?))
    }

    /// Writes a value as a line of JSON.
    pub(super) fn line(&mut self, value: &impl serde::Serialize) -> Result<()> {
        serde_json::to_writer(&mut *self, value)
            .map_err(io::Error::from)
            .and_then(|()| self.write_all(b"\n"))
            .context("the output cannot be written")
    }

    /// Puts the output in its place; without this a file is not there.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Output::Standard(mut output) => output.flush().context("the output cannot be written"),
            Output::Device(mut output) => output.flush().context("the output cannot be written"),
            Output::File(file) => Ok(file.commit()?),
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Output::Standard(output) => output.write(bytes),
            Output::Device(output) => output.write(bytes),
            Output::File(output) => output.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Output::Standard(output) => output.flush(),
            Output::Device(output) => output.flush(),
            Output::File(output) => output.flush(),
        }
    }
}

/// Writes a text to standard output.
pub(super) fn print(text: impl std::fmt::Display) -> Result<()> {
    let mut output = Output::standard();
    write!(output, "{text}").context("the output cannot be written")?;
    output.finish()
}
