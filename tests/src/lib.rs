//! What the tests that cross crates share: where models with known numbers lie, and runs small enough for tests.

pub mod runs;

use std::path::{Path, PathBuf};

/// The folders of models with an `expected.safetensors` beside them: the fixtures of this repository, and the published vectors
/// where they are at hand (in the folder that PRIME_VECTORS names, or in `shared/vectors` beside the repository).
pub fn model_folders() -> Vec<PathBuf> {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests lie in the repository");
    let vectors = std::env::var_os("PRIME_VECTORS")
        .map_or_else(|| root.with_file_name("shared").join("vectors"), PathBuf::from)
        .join("models");
    if !vectors.is_dir() {
        eprintln!(
            "the published vectors are not at hand in {}: the fixtures alone are checked",
            vectors.display()
        );
    }
    let folders = [root.join("tests/fixtures/models"), vectors];
    let mut found: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.filter_map(|entry| entry.ok().map(|entry| entry.path())))
        .filter(|path| path.join("expected.safetensors").is_file())
        .collect();
    found.sort();
    assert!(found.len() >= 3, "the fixtures of tests/fixtures/models are missing");
    found
}

/// Integers of a safetensors file.
pub fn read_ids(file: &prime_runtime::safetensors::File, name: &str) -> Vec<u32> {
    let tensor =
        file.tensor(name).unwrap_or_else(|| panic!("{} has no {name}", file.path().display()));
    tensor
        .bytes
        .chunks_exact(8)
        .map(|bytes| i64::from_le_bytes(bytes.try_into().expect("8 bytes")) as u32)
        .collect()
}
