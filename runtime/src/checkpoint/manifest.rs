//! The manifest: every file of a checkpoint with its length and checksum.

use std::fs;
use std::path::{Component, Path};

use serde::{Deserialize, Serialize};

use super::swap::sync_folder;
use crate::{Error, Result};

pub(super) const MANIFEST: &str = "manifest.json";

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Manifest {
    version: u32,
    files: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
struct Record {
    path: String,
    bytes: u64,
    blake3: String,
}

/// Records every file of a folder in its manifest and flushes all of it to disk.
pub(super) fn seal(folder: &Path) -> Result<()> {
    let mut files = Vec::new();
    record(folder, "", &mut files)?;
    let text = serde_json::to_string_pretty(&Manifest { version: VERSION, files })
        .map_err(|error| Error::format(folder.join(MANIFEST), error.to_string()))?;
    let path = folder.join(MANIFEST);
    fs::write(&path, text + "\n").map_err(Error::io("write", &path))?;
    sync(&path)?;
    sync_folder(folder)
}

fn record(folder: &Path, prefix: &str, files: &mut Vec<Record>) -> Result<()> {
    let mut entries = fs::read_dir(folder)
        .and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>())
        .map_err(Error::io("list", folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            return Err(Error::format(
                &path,
                "the name is not UTF-8, which a manifest cannot hold",
            ));
        };
        let name = format!("{prefix}{name}");
        // The kind of the entry itself: links are not followed.
        let kind = entry.file_type().map_err(Error::io("read", &path))?;
        if kind.is_dir() {
            record(&path, &format!("{name}/"), files)?;
            sync_folder(&path)?;
        } else if kind.is_file() {
            if name == MANIFEST {
                return Err(Error::format(
                    &path,
                    "a checkpoint's manifest is written by `save` alone",
                ));
            }
            sync(&path)?;
            let (bytes, blake3) = checksum(&path)?;
            files.push(Record { path: name, bytes, blake3 });
        } else {
            return Err(Error::format(
                &path,
                "a checkpoint holds files and folders, but this is a link or a device",
            ));
        }
    }
    Ok(())
}

fn sync(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("flush", path))
}

fn checksum(path: &Path) -> Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    fs::File::open(path)
        .and_then(|file| hasher.update_reader(file).map(|_| ()))
        .map_err(Error::io("read", path))?;
    Ok((hasher.count(), hasher.finalize().to_hex().to_string()))
}

/// Reads a checkpoint and compares every file with the manifest. Files that were added later are not looked at.
///
/// # Errors
/// A sentence that names the first file that is missing or changed.
pub fn verify(checkpoint: impl AsRef<Path>) -> Result<()> {
    let checkpoint = checkpoint.as_ref();
    let path = checkpoint.join(MANIFEST);
    if !path.exists() {
        return Err(Error::format(
            checkpoint,
            format!(
                "there is no complete checkpoint here: {MANIFEST}, which is written last, is missing"
            ),
        ));
    }
    let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let manifest: Manifest = serde_json::from_str(&text)
        .map_err(|error| Error::format(&path, format!("the manifest cannot be read: {error}")))?;
    if manifest.version != VERSION {
        return Err(Error::format(
            &path,
            format!(
                "the manifest is of version {}, expected {VERSION}; another version of this program wrote it",
                manifest.version
            ),
        ));
    }
    for record in manifest.files {
        let relative = Path::new(&record.path);
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::format(
                &path,
                format!("`{}` is not a path inside the checkpoint", record.path.escape_debug()),
            ));
        }
        let file = checkpoint.join(relative);
        if !file.is_file() {
            return Err(Error::format(&file, "the file is missing from its checkpoint"));
        }
        let (bytes, blake3) = checksum(&file)?;
        if bytes != record.bytes {
            return Err(Error::format(
                &file,
                format!(
                    "the file is {bytes} bytes long, but was saved with {}; the checkpoint is damaged",
                    record.bytes
                ),
            ));
        }
        if blake3 != record.blake3 {
            return Err(Error::format(
                &file,
                "the file is not what was saved: its checksum differs from the manifest; the checkpoint is damaged",
            ));
        }
    }
    Ok(())
}
