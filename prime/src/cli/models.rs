//! Model folders, as commands load them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use prime_model::{Config, Tokenizer};
use prime_runtime::{DType, Device};

use crate::adapters;
use crate::trainer::Model;

/// Loads the model of a Hugging Face folder to a device, with an adapter beside it; or that of an adapter's folder.
pub(super) fn load(
    folder: &Path,
    adapter: Option<&Path>,
    tokenizer: &Tokenizer,
    device: Device,
    dtype: DType,
) -> Result<Model> {
    check(folder)?;
    crate::bench::tune::use_device(device)?;
    adapters::load(folder, adapter, tokenizer, device, dtype)
}

/// Loads the tokenizer of a model folder.
pub(super) fn tokenizer(folder: &Path) -> Result<Tokenizer> {
    check(folder)?;
    Ok(Tokenizer::load(folder)?)
}

/// Refuses what is not a model folder; for a run's folder it says where its models are.
pub(super) fn check(folder: &Path) -> Result<()> {
    let shown = folder.display();
    if folder.is_file() {
        bail!("{shown} is a file, expected a model folder with config.json and safetensors");
    }
    if !folder.is_dir() {
        bail!("there is no model folder {shown}");
    }
    if is_model(folder) {
        return Ok(());
    }
    match newest_policy(folder)? {
        Some(policy) => bail!(
            "{shown} is the folder of a run, not of a model; its newest model is {}",
            policy.display()
        ),
        None => bail!("{shown} is not a model folder: it has no config.json"),
    }
}

/// The model folder that `folder` means: itself, or the newest policy where it is the folder of a run.
pub(super) fn of_run_or_itself(folder: &Path) -> Result<PathBuf> {
    if folder.is_dir()
        && !is_model(folder)
        && let Some(policy) = newest_policy(folder)?
    {
        super::say(&format!("the model is {}", policy.display()));
        return Ok(policy);
    }
    Ok(folder.to_path_buf())
}

/// The PRM that `folder` means: itself, or that of the folder of a run, offline or not.
pub(super) fn prm_of_run_or_itself(folder: &Path) -> Result<PathBuf> {
    if folder.is_dir() && !is_model(folder) {
        let mut places = vec![folder.to_path_buf()];
        let checkpoints = folder.join("checkpoints");
        if checkpoints.is_dir() {
            let latest = prime_runtime::checkpoint::latest(&checkpoints)
                .with_context(|| format!("cannot look through {}", checkpoints.display()))?;
            places.extend(latest);
        }
        let mut prms = places.into_iter().map(|place| place.join("prm"));
        if let Some(prm) = prms.find(|prm| is_model(prm)) {
            super::say(&format!("the PRM is {}", prm.display()));
            return Ok(prm);
        }
    }
    Ok(folder.to_path_buf())
}

/// The newest policy of a run's folder or of a checkpoint, where it is one.
fn newest_policy(folder: &Path) -> Result<Option<PathBuf>> {
    let mut places = vec![folder.join("sft"), folder.to_path_buf()];
    let checkpoints = folder.join("checkpoints");
    if checkpoints.is_dir() {
        let latest = prime_runtime::checkpoint::latest(&checkpoints)
            .with_context(|| format!("cannot look through {}", checkpoints.display()))?;
        places.splice(0..0, latest);
    }
    let mut policies = places.into_iter().map(|place| place.join("policy"));
    Ok(policies.find(|policy| is_model(policy)))
}

/// Whether a folder holds a model, or an adapter that names one.
fn is_model(folder: &Path) -> bool {
    folder.join("config.json").exists() || folder.join("adapter_config.json").exists()
}

/// The longest sequence that a model takes, said of one that is longer.
pub(super) fn check_length(tokens: usize, config: &Config) -> Result<()> {
    let most = config.max_position_embeddings;
    if tokens > most {
        bail!("it has {tokens} tokens, but the model was made for sequences of up to {most}");
    }
    Ok(())
}
