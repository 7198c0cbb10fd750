//! Files and checkpoint folders, written so that a crash leaves the old one or the new one.
//!
//! Everything is first written under a temporary name in the same folder, flushed to disk, and renamed; the system
//! renames in one step. A checkpoint carries a `manifest.json` with the length and the BLAKE3 checksum of each of
//! its files, written last: a folder without one was never finished.
//!
//! - [`save`], [`latest`] and [`verify`] keep the numbered checkpoints of a run, `step-N`.
//! - [`AtomicFile`] and [`atomic_write`] do for one file what [`save`] does for a folder.
//! - [`FolderLock`] keeps a second run out of a folder.
//! - [`remove_stale`] and [`prune`] clear away what killed processes left.
//!
//! A temporary is locked by the process that writes it. The system drops the lock when the process dies, however
//! it dies, so a temporary that can be locked has no owner; process numbers, which come back, are not relied on.

mod file;
mod lock;
mod manifest;
mod swap;

pub use file::{AtomicFile, atomic_write};
pub use lock::FolderLock;
pub use manifest::verify;

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Error, Result};
use manifest::MANIFEST;
use swap::{OLD_PREFIX, TEMPORARY_PREFIX, Temporary};

/// Writes the checkpoint `name` in the folder `parent`, which is created if need be, and returns its path.
///
/// `write` fills an empty folder; then every file in it is recorded in the manifest and flushed, and the folder is
/// renamed to `name`, in place of an older checkpoint of that name. Of the complete checkpoints named `step-N`,
/// the `keep` with the highest numbers are kept (all of them if it is 0), and always the one just written.
///
/// # Errors
/// Whatever `write` returns, or a sentence with the file that the system refused; what was saved before is as it was.
pub fn save<E: From<Error>>(
    parent: impl AsRef<Path>,
    name: &str,
    keep: usize,
    write: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<PathBuf, E> {
    let parent = parent.as_ref();
    if !is_plain_name(name) {
        return Err(Error::Value(format!(
            "`{}` cannot name a checkpoint: expected a plain folder name that does not begin with a dot",
            name.escape_debug()
        ))
        .into());
    }
    fs::create_dir_all(parent).map_err(Error::io("create", parent))?;
    let target = parent.join(name);
    swap::settle(&target)?;
    let temporary = Temporary::folder(parent, name)?;
    write(temporary.path())?;
    manifest::seal(temporary.path())?;
    swap::replace(temporary, &target)?;
    if step_of(name).is_some() {
        remove_old_steps(parent, Some(name), keep)?;
    }
    Ok(target)
}

/// The complete checkpoint `step-N` with the highest N, or `None` when there is none or no such folder.
///
/// Complete means that its manifest is there; [`verify`] reads all of it.
///
/// # Errors
/// When the folder cannot be listed.
pub fn latest(parent: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    let parent = parent.as_ref();
    if !parent.exists() {
        return Ok(None);
    }
    for name in names_in(parent)? {
        if let Some(name) = name.strip_prefix(OLD_PREFIX) {
            swap::put_back(&parent.join(name))?;
        }
    }
    Ok(complete_steps(parent)?.pop().map(|(_, name)| parent.join(name)))
}

/// Removes the temporaries that dead processes left in `folder`, and returns how many. To be called when a run starts.
///
/// # Errors
/// When the folder cannot be listed or a leftover cannot be removed.
pub fn remove_stale(folder: impl AsRef<Path>) -> Result<usize> {
    let folder = folder.as_ref();
    let mut removed = 0;
    for name in names_in(folder)? {
        if let Some(name) = name.strip_prefix(OLD_PREFIX) {
            swap::settle(&folder.join(name))?;
        } else if name.starts_with(TEMPORARY_PREFIX) && swap::remove_unowned(&folder.join(name))? {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes what [`save`] would have removed, had the process not been killed before it came to that: of the complete checkpoints
/// `step-N` all but the `keep` with the highest numbers; none if it is 0.
///
/// # Errors
/// When the folder cannot be listed or a checkpoint cannot be removed.
pub fn prune(parent: impl AsRef<Path>, keep: usize) -> Result<()> {
    remove_old_steps(parent.as_ref(), None, keep)
}

fn remove_old_steps(parent: &Path, saved: Option<&str>, keep: usize) -> Result<()> {
    if keep == 0 {
        return Ok(());
    }
    let steps = complete_steps(parent)?;
    let surplus = steps.len().saturating_sub(keep);
    for (_, name) in &steps[..surplus] {
        if Some(name.as_str()) != saved {
            swap::discard(&parent.join(name))?;
        }
    }
    Ok(())
}

/// The checkpoints `step-N` that have a manifest, lowest number first.
fn complete_steps(parent: &Path) -> Result<Vec<(u64, String)>> {
    let mut steps: Vec<(u64, String)> = names_in(parent)?
        .into_iter()
        .filter(|name| parent.join(name).join(MANIFEST).is_file())
        .filter_map(|name| Some((step_of(&name)?, name)))
        .collect();
    steps.sort();
    Ok(steps)
}

/// The names in a folder that are UTF-8; ours all are.
fn names_in(folder: &Path) -> Result<Vec<String>> {
    fs::read_dir(folder)
        .map_err(Error::io("list", folder))?
        .filter_map(|entry| {
            entry
                .map(|entry| entry.file_name().into_string().ok())
                .map_err(Error::io("list", folder))
                .transpose()
        })
        .collect()
}

fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("step-")?;
    // `parse` alone would take a sign.
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_after_the_prefix_make_a_step() {
        assert_eq!(step_of("step-12"), Some(12));
        for name in
            ["step-", "step-+1", "step--1", "step-1a", "Step-1", "step-99999999999999999999"]
        {
            assert_eq!(step_of(name), None, "{name}");
        }
    }
}
