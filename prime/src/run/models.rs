//! The models of a run beside the policy: where they come from, and what of them can be checked before anything is trained.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::adapters::{self, Owner};
use crate::config::{Config, Reference};
use crate::prompts::Prompts;
use crate::setup;
use crate::trainer::Model;

/// Checks that the folders of PRM and reference hold models with the policy's tokenizer, before anything is trained for them.
pub(super) fn check_prm_folders(config: &Config, prompts: &Prompts) -> Result<()> {
    let (path, reference_path) = (&config.prm.path, &config.prm.reference_path);
    if config.prm.reference == Reference::Policy && !reference_path.is_empty() {
        bail!(
            "prm.reference_path is \"{reference_path}\", but prm.reference is \"policy\": leave the path empty, or set prm.reference=frozen"
        );
    }
    if config.prm.reference_offload && config.prm.reference == Reference::Policy {
        bail!(
            "prm.reference_offload is true, but prm.reference is \"policy\", which has to be on the device: set prm.reference=frozen, or leave it false"
        );
    }
    for (key, path) in [("prm.path", path), ("prm.reference_path", reference_path)] {
        if !path.is_empty() {
            setup::check_model(Path::new(path), prompts.tokenizer())
                .with_context(|| format!("{key} must be a model with the policy's tokenizer"))?;
        }
    }
    Ok(())
}

/// Checks that the critic's folder holds a model with the policy's tokenizer, likewise.
pub(super) fn check_critic_folder(config: &Config, prompts: &Prompts) -> Result<()> {
    if config.critic.path.is_empty() {
        return Ok(());
    }
    setup::check_model(Path::new(&config.critic.path), prompts.tokenizer())
        .context("critic.path must be a model with the policy's tokenizer")
}

/// The PRM and its frozen reference, where there is one.
pub(super) fn prm_models(
    config: &Config,
    prompts: &Prompts,
    start: &Model,
    base: &Path,
) -> Result<(Model, Option<Model>)> {
    let (path, reference_path) = (&config.prm.path, &config.prm.reference_path);
    let begins_as = match path.as_str() {
        "" => adapters::frozen(config, start)?,
        path => {
            setup::load_model(config, Path::new(path), prompts.tokenizer()).context("prm.path")?
        }
    };
    let reference = match (config.prm.reference, reference_path.as_str()) {
        (Reference::Policy, _) => None,
        (Reference::Frozen, "") => Some(adapters::reference(config, &begins_as)?),
        (Reference::Frozen, path) => {
            let model = setup::load_reference(config, Path::new(path), prompts.tokenizer());
            Some(model.context("prm.reference_path")?)
        }
    };
    let prm = match config.lora.prm() {
        Some(lora) => {
            let own = std::path::absolute(&config.prm.path);
            let base = if config.prm.path.is_empty() { base.to_path_buf() } else { own? };
            adapters::attach(&begins_as, &lora, &base, config.seed, Owner::Prm)?
        }
        None => begins_as,
    };
    Ok((prm, reference))
}

/// The model from which the policy's KL penalties are measured, where there are any.
pub(super) fn kl_reference(
    config: &Config,
    prompts: &Prompts,
    start: &Model,
) -> Result<Option<Model>> {
    if !config.needs_kl_reference() {
        return Ok(None);
    }
    let path = &config.policy.kl_reference;
    if path.is_empty() {
        return start.duplicate().map(Some);
    }
    let model = setup::load_model(config, Path::new(path), prompts.tokenizer());
    model.context("policy.kl_reference").map(Some)
}
