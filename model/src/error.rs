//! The error type of the model. Every message says what was wrong, where, and what would be right.

use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a model folder and its tokens.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime or a kernel refused.
    #[error(transparent)]
    Runtime(#[from] prime_runtime::Error),
    /// A file of a model folder that is not what it should be.
    #[error("{path}: {message}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong in it and what would be right.
        message: String,
    },
    /// A value outside its range.
    #[error("{0}")]
    Value(String),
    /// A loss, norm or gradient that is NaN or infinite.
    #[error("{0}")]
    NonFinite(String),
}

impl Error {
    /// An [`Error::File`] for `path`.
    pub fn file(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), message: message.into() }
    }
}
