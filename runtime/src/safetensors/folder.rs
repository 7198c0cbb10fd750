//! A checkpoint folder: one file, or shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::header::UniqueStrings;
use super::{File, MAX_HEADER_BYTES, TensorInfo, shown};
use crate::{Error, Result, View, ViewMut};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// All weights of a checkpoint folder, wherever they lie in it.
///
/// `model.safetensors` is taken where it exists, else the shards that `model.safetensors.index.json` names, as
/// `transformers` chooses. The shards' own headers say which tensors there are; the index must agree with them.
pub struct Folder {
    path: PathBuf,
    files: Vec<File>,
    // The file of each tensor.
    places: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: UniqueStrings,
}

impl Folder {
    /// Maps and checks all files of a checkpoint.
    ///
    /// # Errors
    /// A sentence that names the file and, where it is about one, the tensor.
    pub fn open(path: impl AsRef<Path>) -> Result<Folder> {
        let path = path.as_ref();
        let kind = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if !kind.is_dir() {
            return Err(Error::format(
                path,
                format!("this is a file; a checkpoint is a folder that holds {SINGLE} or {INDEX}"),
            ));
        }
        if is_there(&path.join(SINGLE)) {
            return Self::of_files(path, vec![File::open(path.join(SINGLE))?]);
        }
        if is_there(&path.join(INDEX)) {
            return Self::of_index(path);
        }
        Err(Error::format(path, what_is_there_instead(path)))
    }

    fn of_files(path: &Path, files: Vec<File>) -> Result<Folder> {
        let mut places = BTreeMap::new();
        for (place, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(first) = places.insert(name.to_string(), place) {
                    let first: &File = &files[first];
                    return Err(Error::format(
                        file.path(),
                        format!(
                            "tensor {} is also in {}; every tensor must be in one shard",
                            shown(name),
                            first.path().display()
                        ),
                    ));
                }
            }
        }
        Ok(Folder { path: path.to_path_buf(), files, places })
    }

    fn of_index(path: &Path) -> Result<Folder> {
        let index_path = path.join(INDEX);
        let fail = |message: String| Error::format(&index_path, message);
        let bytes = std::fs::metadata(&index_path).map_err(Error::io("read", &index_path))?.len();
        if bytes > MAX_HEADER_BYTES {
            return Err(fail(format!(
                "the index is {bytes} bytes long, over the limit of {MAX_HEADER_BYTES}"
            )));
        }
        let text = std::fs::read(&index_path).map_err(Error::io("read", &index_path))?;
        let index: Index = serde_json::from_slice(&text).map_err(|error| {
            fail(format!("the index must be an object whose `weight_map` gives a shard's file name to each tensor: {error}"))
        })?;
        let weight_map = index.weight_map.0;

        let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        let mut files = Vec::new();
        for &shard in &shards {
            let mut parts = Path::new(shard).components();
            let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == shard);
            if !plain || shard.contains('\\') {
                return Err(fail(format!(
                    "shard {} is not the name of a file in this folder",
                    shown(shard)
                )));
            }
            if !is_there(&path.join(shard)) {
                let tensors = weight_map.values().filter(|value| *value == shard).count();
                return Err(fail(format!(
                    "shard {} with {tensors} tensors is not in the folder; copy it there or download it again",
                    shown(shard)
                )));
            }
            files.push(File::open(path.join(shard))?);
        }
        let folder = Self::of_files(path, files)?;
        for (name, shard) in &weight_map {
            if folder.file_of(name).is_none_or(|file| file.path() != path.join(shard)) {
                return Err(fail(format!(
                    "tensor {} should be in shard {}, but is not",
                    shown(name),
                    shown(shard)
                )));
            }
        }
        Ok(folder)
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in the order of their names.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The names of all tensors, file after file, in the order of their data.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flat_map(File::names)
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.file_of(name)?.tensor(name)
    }

    /// The tensor of a name where it lies, without a copy. See [`File::view`].
    pub fn view(&self, name: &str) -> Option<View<'_>> {
        self.file_of(name)?.view(name)
    }

    /// Copies and converts a float tensor. See [`File::read_into`].
    ///
    /// # Errors
    /// As [`File::read_into`].
    pub fn read_into(&self, name: &str, output: &mut ViewMut<'_>) -> Result<()> {
        self.file_with(name)?.read_into(name, output)
    }

    /// The elements of a float tensor as `f32`. See [`File::read_f32`].
    ///
    /// # Errors
    /// As [`File::read_f32`].
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        self.file_with(name)?.read_f32(name)
    }

    fn file_of(&self, name: &str) -> Option<&File> {
        self.places.get(name).map(|&place| &self.files[place])
    }

    fn file_with(&self, name: &str) -> Result<&File> {
        self.file_of(name).ok_or_else(|| {
            Error::format(
                &self.path,
                format!(
                    "there is no tensor {} in this checkpoint of {} tensors",
                    shown(name),
                    self.places.len()
                ),
            )
        })
    }
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Folder({}, {} tensors)", self.path.display(), self.places.len())
    }
}

// A link to nothing counts: opening it then says what is missing.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Why a folder without weights of ours may look as if it had some.
fn what_is_there_instead(path: &Path) -> String {
    let missing = format!("the folder holds neither {SINGLE} nor {INDEX}");
    let mut names: Vec<String> = std::fs::read_dir(path)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    if let Some(shard) = names.iter().find(|name| name.ends_with(".safetensors")) {
        return format!(
            "{missing}; it holds {}, but shards need their index: copy {INDEX} there too",
            shown(shard)
        );
    }
    if let Some(pickle) =
        names.iter().find(|name| name.starts_with("pytorch_model") && name.ends_with(".bin"))
    {
        return format!(
            "{missing}, only {}, a pickle, which is not read because loading one may run any code; save the model again with `save_pretrained(..., safe_serialization=True)`",
            shown(pickle)
        );
    }
    format!("{missing}; a checkpoint folder needs one of them")
}
