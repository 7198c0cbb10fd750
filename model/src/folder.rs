//! A model as a Hugging Face folder, written so that `transformers` loads it.

use std::path::{Path, PathBuf};

use prime_runtime::safetensors::{Source, write_sharded};
use prime_runtime::{Error as RuntimeError, checkpoint};

use crate::{Config, Error, Result, Tokenizer, Weights};

/// Weights larger than this are split into shards.
const MAX_SHARD_BYTES: u64 = 4_000_000_000;

/// The files beside configuration and weights that make a folder usable, where it has them.
const COMPANIONS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
];

/// Where the tokenizer of a saved folder comes from.
#[derive(Clone, Copy, Debug)]
pub enum Companions<'a> {
    /// The folder is to have none.
    None,
    /// Tokenizer, chat template and generation settings are those of another folder, copied byte for byte.
    Of(&'a Path),
    /// The tokenizer was made here.
    Tokenizer(&'a Tokenizer),
}

/// Saves a model folder: it appears complete or not at all, in place of an older one of ours.
///
/// # Errors
/// A sentence when something else is in that place, or the system refuses; what was there before is as it was.
pub fn save(
    dir: &Path,
    config: &Config,
    weights: &Weights,
    companions: Companions<'_>,
) -> Result<()> {
    let absolute = std::path::absolute(dir).map_err(RuntimeError::io("find", dir))?;
    let (Some(parent), Some(name)) =
        (absolute.parent(), absolute.file_name().and_then(|n| n.to_str()))
    else {
        return Err(Error::file(dir, "this is not the path of a folder to save a model in"));
    };
    refuse_foreign(&absolute)?;
    checkpoint::save(parent, name, 0, |folder| write(folder, config, weights, companions))?;
    Ok(())
}

/// Writes the files of a model into a folder that holds no weights yet; it is created if need be. [`save`] calls it in
/// a temporary place, and so can whoever saves several models as one checkpoint.
///
/// Weights are written in the dtype they are held in, and `config.json` says so. Of a model with an adapter, the adapter alone is
/// written, as PEFT does: `adapter_config.json`, which names the folder of the weights, and `adapter_model.safetensors`.
///
/// # Errors
/// A sentence with the file that could not be written or copied.
pub fn write(
    dir: &Path,
    config: &Config,
    weights: &Weights,
    companions: Companions<'_>,
) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(RuntimeError::io("create", dir))?;
    if weights.adapter().is_none() {
        write_weights(dir, weights)?;
    }
    match companions {
        Companions::None => {}
        Companions::Of(source) => {
            for name in COMPANIONS {
                copy(&source.join(name), &dir.join(name))?;
            }
        }
        Companions::Tokenizer(tokenizer) => {
            for (name, text) in tokenizer.files() {
                checkpoint::atomic_write(dir.join(name), text.as_bytes())?;
            }
        }
    }
    // Last: a folder with it is a whole one.
    if let Some(adapter) = weights.adapter() {
        return crate::lora::peft::write(dir, adapter);
    }
    let config = Config { dtype: weights.dtype(), ..config.clone() };
    let text = format!("{:#}\n", config.to_json());
    checkpoint::atomic_write(dir.join("config.json"), text.as_bytes())?;
    Ok(())
}

fn write_weights(dir: &Path, weights: &Weights) -> Result<()> {
    let sources =
        weights.layout().tensors.iter().map(|tensor| {
            Source::view(tensor.name.clone(), weights.view(&tensor.range, &tensor.dims))
        });
    write_sharded(dir, "model", sources, &[("format", "pt")], MAX_SHARD_BYTES)?;
    Ok(())
}

fn copy(from: &Path, to: &PathBuf) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    let bytes = std::fs::read(from).map_err(RuntimeError::io("read", from))?;
    checkpoint::atomic_write(to, &bytes)?;
    Ok(())
}

/// A folder that was not saved here is not replaced: it may hold anything.
fn refuse_foreign(dir: &Path) -> Result<()> {
    let mut entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(RuntimeError::io("list", dir)(error).into()),
    };
    if entries.next().is_none() || dir.join("manifest.json").is_file() {
        return Ok(());
    }
    Err(Error::file(
        dir,
        "the folder holds files that were not saved by this program; choose another one, or empty it first",
    ))
}
