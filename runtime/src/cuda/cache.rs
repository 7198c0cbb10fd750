//! Compiled kernels on disk: a file each, named by a hash of all that went into it.
//!
//! A file holds a line that says what it is, a BLAKE3 checksum of the rest, the length of the kernel's name in the code,
//! that name, and the code. It appears whole under its name; one whose checksum is wrong is not there, and is written
//! anew.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use super::context::Chip;
use super::nvrtc::{Compiled, OPTIONS};
use super::program::Text;
use crate::{Error, Result};

/// The folder of compiled kernels, instead of `prime/kernels` in the user's cache.
pub const CACHE_VARIABLE: &str = "PRIME_KERNEL_CACHE";

const MAGIC: &[u8] = b"prime kernel 1\n";
const CHECKSUM: usize = 32;

/// Where compiled kernels are kept; none when neither a folder is named nor the user has a home.
pub(super) fn folder() -> Option<PathBuf> {
    let variable =
        |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable(CACHE_VARIABLE).or_else(|| {
        let caches = variable("XDG_CACHE_HOME")
            .filter(|folder| folder.is_absolute())
            .or_else(|| Some(variable("HOME")?.join(".cache")))?;
        Some(caches.join("prime").join("kernels"))
    })
}

/// The folder of compiled kernels, made if it was not there, in which a file could be written just now.
///
/// # Errors
/// A sentence that says why kernels will be compiled by every process.
pub fn kernel_cache() -> Result<PathBuf> {
    let folder = folder().ok_or_else(|| {
        Error::Device(format!(
            "there is no folder for compiled kernels: neither {CACHE_VARIABLE} nor HOME is set"
        ))
    })?;
    let trial = folder.join(format!(".trial-{}", unique()));
    write_whole(&trial, &[MAGIC])?;
    std::fs::remove_file(&trial).map_err(Error::io("remove", &trial))?;
    Ok(folder)
}

/// The file of an instance.
pub(super) fn entry(
    folder: &Path,
    text: &Text,
    expression: &str,
    chip: Chip,
    compiler: &str,
) -> PathBuf {
    let mut hash = blake3::Hasher::new();
    // Lengths keep the end of one part from being read as the beginning of the next.
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(MAGIC);
    part(compiler.as_bytes());
    part(chip.architecture().as_bytes());
    OPTIONS.iter().for_each(|option| part(option.as_bytes()));
    part(expression.as_bytes());
    part(text.source.as_bytes());
    for (name, header) in &text.headers {
        part(name.as_bytes());
        part(header.as_bytes());
    }
    let stem = Path::new(&text.name).file_stem().unwrap_or_default().to_string_lossy();
    let stem: String = stem.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    folder.join(format!("{stem}-{}.kernel", &hash.finalize().to_hex()[..32]))
}

/// The kernel of a file; none when there is no such file or it is damaged.
pub(super) fn read(entry: &Path) -> Option<Compiled> {
    let bytes = std::fs::read(entry).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let (checksum, content) = rest.split_at_checked(CHECKSUM)?;
    if blake3::hash(content).as_bytes() != checksum {
        return None;
    }
    let (length, content) = content.split_first_chunk::<4>()?;
    let (symbol, cubin) = content.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    let symbol = String::from_utf8(symbol.to_vec()).ok()?;
    Some(Compiled { symbol, cubin: cubin.to_vec() })
}

/// Writes the file of a kernel, which others may read or write at the same time.
pub(super) fn write(entry: &Path, compiled: &Compiled) -> Result<()> {
    let length = (compiled.symbol.len() as u32).to_le_bytes();
    let content = [length.as_slice(), compiled.symbol.as_bytes(), &compiled.cubin].concat();
    write_whole(entry, &[MAGIC, blake3::hash(&content).as_bytes(), &content])
}

// Not flushed to the disk: what a power cut leaves of a file fails its checksum and is compiled again.
fn write_whole(path: &Path, parts: &[&[u8]]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
    let temporary = path.with_extension(unique());
    let written = std::fs::File::create_new(&temporary)
        .and_then(|mut file| parts.iter().try_for_each(|part| file.write_all(part)))
        .map_err(Error::io("write", &temporary))
        .and_then(|()| std::fs::rename(&temporary, path).map_err(Error::io("write", path)));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Says, once in a process, that kernels cannot be kept. Nothing else is wrong with them.
pub(super) fn warn(error: &Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        eprintln!(
            "warning: compiled kernels cannot be kept and will be compiled again by the next process: {error}; {CACHE_VARIABLE} names another folder for them"
        );
    });
}
