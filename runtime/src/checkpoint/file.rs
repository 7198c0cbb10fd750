//! One file that appears complete or not at all.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::swap::{self, Temporary};
use crate::{Error, Result};

/// A file being written under a temporary name beside its place. [`AtomicFile::commit`] puts it there; dropped
/// before that, it is removed and what was there stays.
///
/// ```
/// # use std::io::Write;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("scores.jsonl");
/// let mut file = prime_runtime::checkpoint::AtomicFile::create(&path)?;
/// writeln!(file, "{{}}").unwrap();
/// assert!(!path.exists());
/// file.commit()?;
/// assert!(path.exists());
/// # Ok::<(), prime_runtime::Error>(())
/// ```
pub struct AtomicFile {
    // Dropped before the temporary, whose drop removes the file.
    output: BufWriter<fs::File>,
    temporary: Temporary,
    target: PathBuf,
}

impl AtomicFile {
    /// Begins a file that is to be at `path`. Through a symbolic link the file it points to is replaced.
    ///
    /// # Errors
    /// When `path` is a folder or a device, or the system does not let a file be created beside it.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let target = match fs::metadata(path) {
            Ok(kind) if kind.is_file() => path.canonicalize().map_err(Error::io("open", path))?,
            Ok(kind) => {
                let what = if kind.is_dir() { "a folder" } else { "not a regular file" };
                return Err(Error::format(
                    path,
                    format!("this is {what}, expected a file to write"),
                ));
            }
            Err(_) => path.to_path_buf(),
        };
        let (temporary, file) = Temporary::file(&target)?;
        Ok(AtomicFile { output: BufWriter::with_capacity(1 << 18, file), temporary, target })
    }

    /// Flushes the file to disk and renames it to its place.
    ///
    /// # Errors
    /// When the system refuses, as a full disk does; the old file is as it was then.
    pub fn commit(self) -> Result<()> {
        let AtomicFile { output, temporary, target } = self;
        let file =
            output.into_inner().map_err(|error| Error::io("write", &target)(error.into_error()))?;
        file.sync_all().map_err(Error::io("write", &target))?;
        swap::rename_file(temporary, &target)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Writes a small file as [`AtomicFile`] does.
///
/// # Errors
/// As [`AtomicFile`].
pub fn atomic_write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(Error::io("write", path))?;
    file.commit()
}
