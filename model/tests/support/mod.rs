//! The model folders that tests read.

use std::path::{Path, PathBuf};

/// A model folder.
pub struct Folder {
    /// Its last part.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The folders that are committed.
pub fn fixtures() -> Vec<Folder> {
    folders(&repository().join("tests/fixtures/models"))
}

/// The larger folders that may lie beside the repository, or where `PRIME_VECTORS` says; none when they are not there.
pub fn vectors() -> Vec<Folder> {
    let root = match std::env::var_os("PRIME_VECTORS") {
        Some(root) => PathBuf::from(root),
        None => repository().join("../shared/vectors"),
    };
    let models = root.join("models");
    if !models.is_dir() {
        println!("skipped: there are no reference models in {}", models.display());
        return Vec::new();
    }
    folders(&models)
}

fn folders(root: &Path) -> Vec<Folder> {
    let entries = std::fs::read_dir(root).unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    let mut folders: Vec<Folder> = entries
        .map(|entry| {
            let path = entry.unwrap().path();
            Folder { name: path.file_name().unwrap().to_string_lossy().into_owned(), path }
        })
        .collect();
    folders.sort_by(|a, b| a.name.cmp(&b.name));
    folders
}
