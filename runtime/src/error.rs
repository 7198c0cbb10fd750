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
