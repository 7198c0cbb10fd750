//! From a configuration to a task, a tokenizer and a model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use prime_model::{
    Architecture, ChatTemplate, Config as ModelConfig, RopeScaling, Tokenizer, Weights,
};
use prime_runtime::Device;

use crate::adapters;
use crate::config::{Config, TaskName};
use crate::graders::nearest;
use crate::prompts::Prompts;
use crate::tasks::{Arithmetic, Columns, Countdown, Jsonl, Task};
use crate::trainer::Model;

/// The task of a configuration.
///
/// # Errors
/// When its settings or its files are not right.
pub fn task(config: &Config) -> Result<Arc<dyn Task>> {
    let seed = config.seed;
    Ok(match config.task.name {
        TaskName::Arithmetic => Arc::new(Arithmetic::new(config.task.arithmetic.clone(), seed)?),
        TaskName::Columns => Arc::new(Columns::new(config.task.columns.clone(), seed)?),
        TaskName::Countdown => Arc::new(Countdown::new(config.task.countdown.clone(), seed)?),
        TaskName::Jsonl => Arc::new(Jsonl::load_with(&config.task.jsonl, &config.grader)?),
    })
}

/// The prompts of a configuration's task for a model in `model_folder`, or for one that is yet to be made.
///
/// # Errors
/// When the tokenizer or chat template is missing or unusable.
pub fn prompts(config: &Config, model_folder: Option<&Path>) -> Result<Prompts> {
    prompts_of(config, task(config)?, model_folder)
}

/// As [`prompts`], of a task that was read already.
///
/// # Errors
/// As for [`prompts`].
pub fn prompts_of(
    config: &Config,
    task: Arc<dyn Task>,
    model_folder: Option<&Path>,
) -> Result<Prompts> {
    let source = model_folder.map(Path::to_path_buf).or_else(|| {
        (!config.model.tokenizer.is_empty()).then(|| PathBuf::from(&config.model.tokenizer))
    });
    let tokenizer = match (&source, task.alphabet()) {
        (Some(folder), _) => Tokenizer::load(folder)?,
        (None, Some(alphabet)) => Tokenizer::characters(alphabet, "<pad>", "<eos>")?,
        (None, None) => bail!(
            "the task {} needs a tokenizer: name a model folder in model.path, or a folder with a tokenizer.json in model.tokenizer",
            task.name()
        ),
    };
    let chats = config.task.name == TaskName::Jsonl
        && config.task.jsonl.sources()?.iter().any(|source| source.chat);
    let chat = match (chats, &source) {
        (false, _) => None,
        (true, Some(folder)) => Some(Arc::new(ChatTemplate::load(folder)?)),
        (true, None) => bail!("task.jsonl.chat=true needs a model folder with a chat template"),
    };
    let limit = config.rollout.max_prompt_tokens;
    let prompts = Prompts::new(task, Arc::new(tokenizer), chat, limit, source);
    Ok(prompts.stopping_at(&config.rollout.stop))
}

/// A model of a Hugging Face folder, or of an adapter's, on the configuration's device and in its dtype, checked against the tokenizer.
///
/// # Errors
/// When the folder is not a model that this program knows, or its vocabulary does not hold the tokenizer's.
pub fn load_model(config: &Config, folder: &Path, tokenizer: &Tokenizer) -> Result<Model> {
    ensure!(folder.is_dir(), "there is no model folder {}", folder.display());
    adapters::load(folder, None, tokenizer, config.device(), config.dtype())
}

/// As [`load_model`], of a model that the PRM is compared with: where such a reference is offloaded, in the host's memory.
///
/// # Errors
/// As for [`load_model`].
pub fn load_reference(config: &Config, folder: &Path, tokenizer: &Tokenizer) -> Result<Model> {
    ensure!(folder.is_dir(), "there is no model folder {}", folder.display());
    let device = if config.prm.reference_offload { Device::Cpu } else { config.device() };
    adapters::load(folder, None, tokenizer, device, config.dtype())
}

/// Checks a model folder without its weights: that it is a model that this program knows, with this tokenizer.
///
/// # Errors
/// When it is not.
pub fn check_model(folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
    ensure!(folder.is_dir(), "there is no model folder {}", folder.display());
    tokenizer.check_same(&Tokenizer::load(folder)?)?;
    Ok(tokenizer.check(&ModelConfig::load(&adapters::model_folder(folder)?)?)?)
}

/// The model that a run starts from: that of `model.path`, or a new one.
///
/// # Errors
/// When the folder or the shape is not right.
pub fn base_model(config: &Config, prompts: &Prompts) -> Result<Model> {
    if !config.model.path.is_empty() {
        return load_model(config, Path::new(&config.model.path), prompts.tokenizer());
    }
    let model = new_config(config, prompts.tokenizer())?;
    let weights = Weights::random(&model, config.dtype(), config.seed)?.to(config.device())?;
    Ok(Model { config: model, weights })
}

/// The configuration of a new model.
pub(crate) fn new_config(config: &Config, tokenizer: &Tokenizer) -> Result<ModelConfig> {
    let shape = &config.model;
    let architectures = Architecture::ALL.map(|architecture| architecture.model_type());
    let Some(architecture) = Architecture::ALL
        .into_iter()
        .find(|architecture| architecture.model_type() == shape.architecture)
    else {
        let hint = nearest(&shape.architecture, architectures)
            .map(|near| format!("; did you mean \"{near}\"?"))
            .unwrap_or_default();
        bail!(
            "model.architecture is \"{}\", expected one of {}{hint}",
            shape.architecture,
            architectures.join(", ")
        );
    };
    let model = ModelConfig {
        architecture,
        vocab_size: tokenizer.vocab_size(),
        hidden_size: shape.hidden_size,
        intermediate_size: shape.intermediate_size,
        num_layers: shape.num_layers,
        num_heads: shape.num_heads,
        num_kv_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
        rms_norm_eps: 1e-6,
        rope_theta: shape.rope_theta,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: shape.tie_word_embeddings,
        qkv_bias: architecture == Architecture::Qwen2,
        output_bias: false,
        qk_norm: architecture == Architecture::Qwen3,
        max_position_embeddings: config.rollout.max_prompt_tokens + config.rollout.max_new_tokens,
        dtype: config.dtype(),
        bos_token_id: None,
        eos_token_ids: tokenizer.eos_id().into_iter().collect(),
        pad_token_id: None,
        initializer_range: shape.initializer_range,
    };
    model.validate().context("the new model's shape in [model]")?;
    Ok(model)
}
