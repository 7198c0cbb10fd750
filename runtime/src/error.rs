//! The one error type of the runtime and the kernels. Every message says what was wrong, where, and what would be right.

use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong below the model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor's shape does not agree with the others of the same call.
    #[error("{operation}: {message}")]
    Shape {
        /// The operation that checked, such as `rms_norm.forward`.
        operation: &'static str,
        /// Which tensor, which dimension, what was expected.
        message: String,
    },
    /// A dtype that the operation does not take.
    #[error("{operation}: `{tensor}` is {found}, expected {expected}")]
    DType {
        /// The operation that checked.
        operation: &'static str,
        /// The tensor's name in the contract.
        tensor: &'static str,
        /// What it is.
        found: crate::DType,
        /// What it may be.
        expected: &'static str,
    },
    /// A device that this build or this machine does not offer.
    #[error("{0}")]
    Device(String),
    /// A device without the memory that was asked of it.
    #[error("{}", out_of_memory(*device, *bytes, *free, parts))]
    OutOfMemory {
        /// Which one.
        device: crate::Device,
        /// How much was asked for at once.
        bytes: usize,
        /// How much is free, where the device says so.
        free: Option<usize>,
        /// Names and bytes of the largest buffers of the plan that asked for it.
        parts: Vec<(String, usize)>,
    },
    /// A value outside its range.
    #[error("{0}")]
    Value(String),
    /// A file that is not what it should be.
    #[error("{path}: {message}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong in it and what would be right.
        message: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, such as `read` or `create`.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Error {
    /// A [`Error::Format`] for `path`.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::Format { path: path.as_ref().to_path_buf(), message: message.into() }
    }

    /// A closure that turns an [`std::io::Error`] into [`Error::Io`], for `map_err`.
    pub fn io(action: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io { action, path, source }
    }
}

fn out_of_memory(
    device: crate::Device,
    bytes: usize,
    free: Option<usize>,
    parts: &[(String, usize)],
) -> String {
    let mut text = format!("{device} is out of memory: {} are needed", size(bytes));
    if let Some(free) = free {
        text += &format!(" and {} are free", size(free));
    }
    if !parts.is_empty() {
        let parts: Vec<String> =
            parts.iter().map(|(name, bytes)| format!("{name} with {}", size(*bytes))).collect();
        text += &format!("; the largest parts are {}", parts.join(", "));
    }
    text
}

fn size(bytes: usize) -> String {
    const UNITS: [&str; 6] = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut number, mut unit) = (bytes as f64, 0);
    while number >= 1024.0 && unit + 1 < UNITS.len() {
        number /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} bytes") } else { format!("{number:.1} {}", UNITS[unit]) }
}
