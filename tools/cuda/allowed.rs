//! `spills.txt`: local memory that is accepted, each with a reason.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// One line: an instance on a chip may use so many bytes of local memory a thread.
#[derive(Debug)]
pub struct Allowed {
    /// The file, below `kernels`.
    pub file: String,
    /// The instance's text.
    pub instance: String,
    /// The chip.
    pub chip: String,
    /// Bytes a thread, at most.
    pub bytes: u32,
}

/// Reads the list.
pub fn read(path: &Path) -> Result<Vec<Allowed>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Vec<Allowed>> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [file, instance, chip, bytes, reason] = fields[..] else {
            bail!(
                "line {}: a line has the five parts file | instance | chip | bytes | reason",
                number + 1
            );
        };
        if reason.is_empty() {
            bail!("line {}: {instance} on {chip} is listed without a reason", number + 1);
        }
        if crate::chip::Chip::find(chip).is_none() {
            bail!("line {}: `{chip}` is no chip that kernels are compiled for", number + 1);
        }
        let bytes = bytes
            .parse()
            .with_context(|| format!("line {}: `{bytes}` is no number of bytes", number + 1))?;
        found.push(Allowed {
            file: file.into(),
            instance: instance.into(),
            chip: chip.into(),
            bytes,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_a_reason_is_refused() {
        assert_eq!(parse("# why\na.cu | b<float> | sm_80 | 8 | rare").unwrap()[0].bytes, 8);
        assert!(parse("a.cu | b<float> | sm_80 | 8 |").is_err());
        assert!(parse("a.cu | b<float> | sm_80 | 8").is_err());
        assert!(parse("a.cu | b<float> | sm_70 | 8 | rare").is_err());
    }
}
