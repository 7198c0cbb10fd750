//! Models with low-rank adapters: where the weights beside an adapter are, and what of a run shares them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prime_model::{Adapter, Config as ModelConfig, LoraSettings, Tokenizer, Weights, lora};
use prime_runtime::{DType, Device};

use crate::config::Config;
use crate::prompts::Prompts;
use crate::run::folder::RunFolder;
use crate::trainer::Model;

/// Whose adapter it is, among those of one run: each begins with numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The policy's.
    Policy = 0,
    /// The PRM's.
    Prm = 1,
}

/// The folder whose `config.json` describes a model: of an adapter's folder, that of the weights beside it.
///
/// # Errors
/// When an adapter names a base that is not there.
pub fn model_folder(folder: &Path) -> Result<PathBuf> {
    let Some(base) = lora::base_of(folder)? else { return Ok(folder.to_path_buf()) };
    ensure!(
        base.join("config.json").exists(),
        "the adapter in {} belongs to the model {}, which is no model folder here; name the model and the adapter: --model BASE --adapter {}",
        folder.display(),
        base.display(),
        folder.display()
    );
    Ok(base)
}

/// A model of a Hugging Face folder, with the adapter of another; or of an adapter's folder, with the weights it names.
///
/// # Errors
/// When a folder is not what it should be, or the tokenizer is not the model's.
pub fn load(
    folder: &Path,
    adapter: Option<&Path>,
    tokenizer: &Tokenizer,
    device: Device,
    dtype: DType,
) -> Result<Model> {
    if adapter.is_none() && lora::base_of(folder)?.is_some() {
        return load(&model_folder(folder)?, Some(folder), tokenizer, device, dtype);
    }
    let config = ModelConfig::load(folder)?;
    tokenizer.check(&config).with_context(|| format!("{}", folder.display()))?;
    let mut weights = Weights::load(folder, &config, device, dtype)?;
    if let Some(adapter) = adapter {
        let base = std::path::absolute(folder)?;
        let adapter = Adapter::load(adapter, &config, &weights, &base)?;
        weights = weights.with_adapter(adapter);
    }
    Ok(Model { config, weights })
}

/// A model that shares the weights of another and learns by an adapter of its own; a model that has an adapter learns by that.
///
/// # Errors
/// When the adapter that is there is of another kind, or the memory is not to be had.
pub fn attach(
    model: &Model,
    settings: &LoraSettings,
    base: &Path,
    seed: u64,
    owner: Owner,
) -> Result<Model> {
    if let Some(adapter) = model.weights.adapter() {
        let found = &adapter.layout().settings;
        ensure!(
            found == settings,
            "the model to start from has adapters of rank {}, alpha {} for {}; [lora] asks for rank {}, alpha {} for {}: merge the adapter first (prime merge), or ask for the same",
            found.rank,
            found.alpha,
            found.targets.join(", "),
            settings.rank,
            settings.alpha,
            settings.targets.join(", ")
        );
        return model.duplicate();
    }
    let adapter = Adapter::new(&model.config, settings, &model.weights, base, seed, owner as u32)?;
    let weights = model.weights.share().with_adapter(adapter);
    Ok(Model { config: model.config.clone(), weights })
}

/// The same model to score with: weights that stay as they are may be shared.
///
/// # Errors
/// When the memory is not to be had.
pub fn frozen(config: &Config, model: &Model) -> Result<Model> {
    if config.lora.rank > 0 && model.weights.adapter().is_none() {
        return Ok(Model { config: model.config.clone(), weights: model.weights.share() });
    }
    model.duplicate()
}

/// As [`frozen`], of a model that the PRM is compared with: where such a reference is offloaded, in the host's memory.
///
/// # Errors
/// When the memory is not to be had, or there is nothing to offload.
pub fn reference(config: &Config, model: &Model) -> Result<Model> {
    if !config.prm.reference_offload {
        return frozen(config, model);
    }
    ensure!(
        config.lora.rank == 0,
        "prm.reference_offload is true, but with lora.rank = {} the reference shares its weights with the model that learns, and takes no memory of its own: leave it false",
        config.lora.rank
    );
    ensure!(
        model.weights.adapter().is_none(),
        "prm.reference_offload is true, but the reference has an adapter: merge it into its model first (prime merge)"
    );
    let weights = model.weights.copy_to(Device::Cpu)?;
    Ok(Model { config: model.config.clone(), weights })
}

/// The folder of the weights that a run's adapters stand beside: the model that the run started from, or, where that was made here, one
/// that is saved in the run's folder.
///
/// # Errors
/// When the disk refuses.
pub fn base_folder(
    config: &Config,
    prompts: &Prompts,
    folder: &RunFolder,
    model: &Model,
) -> Result<PathBuf> {
    if let Some(adapter) = model.weights.adapter() {
        return Ok(adapter.base().to_path_buf());
    }
    if !config.lora.sft && config.sft.steps > 0 && folder.path().join("sft").is_dir() {
        return Ok(std::path::absolute(folder.path().join("sft").join("policy"))?);
    }
    if !config.model.path.is_empty() {
        return Ok(std::path::absolute(&config.model.path)?);
    }
    let base = std::path::absolute(folder.path().join("base"))?;
    if !base.join("config.json").exists() {
        prompts.save_model(&base, &model.config, &model.weights)?;
    }
    Ok(base)
}
