//! Configuration: the documented defaults, then files from left to right, then `--set` overrides.
//!
//! `configs/default.toml` is at once the documentation, the list of all keys, and the defaults: a key that is not in it is
//! refused with the nearest one that is.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use prime_kernels::numerics::Numerics;
use prime_model::LoraSettings;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::graders::GraderSettings;
use crate::step::policy_loss::{Covariance, KlPenalty};
use crate::step::prm_targets::Loss;
use crate::step::{
    Aggregation, Estimator, Form, Granularity, KlKind, PolicyLoss, PrmLoss, ProcessNorm, advantage,
    aggregate, implicit_reward,
};
use crate::tasks::{ArithmeticSettings, ColumnsSettings, CountdownSettings, JsonlSettings};

mod check;
mod critic;
mod merge;
mod mix;
mod optimizer;

pub use critic::CriticConfig;
use merge::{merge_text, set};
pub use optimizer::OptimizerConfig;

/// The documented defaults, as text.
pub const DEFAULT: &str = include_str!("../configs/default.toml");

/// What an offline PRM changes of them, as text.
pub const PRM: &str = include_str!("../configs/prm.toml");

/// An enum whose values are written in lower case in a configuration.
macro_rules! choices {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }
    };
}

choices! {
    /// The built-in tasks, and data sets from files.
    TaskName {
        /// Chains of + - * with worked lines.
        Arithmetic,
        /// Sums of numbers of several digits, column by column.
        Columns,
        /// Reach a target with given numbers.
        Countdown,
        /// Problems from JSON Lines files.
        Jsonl,
    }
}

impl TaskName {
    /// The name as it is written in configurations.
    pub fn name(self) -> &'static str {
        match self {
            TaskName::Arithmetic => "arithmetic",
            TaskName::Columns => "columns",
            TaskName::Countdown => "countdown",
            TaskName::Jsonl => "jsonl",
        }
    }
}

choices! {
    /// A learning rate's course after its warm-up.
    DecayName {
        /// It stays.
        Constant,
        /// Half a cosine.
        Cosine,
        /// A straight line.
        Linear,
    }
}

choices! {
    /// How a batch is filled with prompts that pass the filter.
    Refill {
        /// One round; up to as many groups as wanted.
        Once,
        /// Rounds until there are enough; surplus prompts are sampled anew in the next step.
        Resample,
        /// One larger round; filled up with prompts that failed.
        Oversample,
    }
}

choices! {
    /// What the PRM's log-probabilities are compared with.
    Reference {
        /// The policy that sampled.
        Policy,
        /// A model that never changes.
        Frozen,
    }
}

choices! {
    /// What an optimiser's moments are held in.
    StateName {
        /// Four bytes each.
        Float32,
        /// One byte each, with a scale a block.
        Int8,
    }
}

choices! {
    /// What stands beside bfloat16 weights.
    MastersName {
        /// A float32 copy, from which they are rounded.
        Float32,
        /// Nothing: they are rounded at random.
        None,
    }
}

choices! {
    /// When the PRM is updated, seen from its scoring of the batch.
    PrmUpdate {
        /// Scored by the forward pass of the update itself.
        After,
        /// Updated, then scored.
        Before,
        /// Scored, then updated.
        Reverse,
    }
}

/// Everything a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // `configs/default.toml` documents every key once.
pub struct Config {
    pub seed: u64,
    pub threads: usize,
    pub device: String,
    pub numerics: String,
    pub task: TaskConfig,
    pub grader: GraderSettings,
    pub model: ModelConfig,
    pub lora: LoraConfig,
    pub sft: SftConfig,
    pub rollout: RolloutConfig,
    pub filter: FilterConfig,
    pub prm: PrmConfig,
    pub offline: OfflineConfig,
    pub advantage: AdvantageConfig,
    pub critic: CriticConfig,
    pub policy: PolicyConfig,
    pub train: TrainConfig,
    pub eval: EvalConfig,
    pub study: StudyConfig,
}

/// `[task]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TaskConfig {
    pub name: TaskName,
    pub arithmetic: ArithmeticSettings,
    pub columns: ColumnsSettings,
    pub countdown: CountdownSettings,
    pub jsonl: JsonlSettings,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ModelConfig {
    pub path: String,
    pub tokenizer: String,
    pub architecture: String,
    pub hidden_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub intermediate_size: usize,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
    pub initializer_range: f32,
    pub dtype: String,
}

/// `[lora]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f64,
    pub targets: Vec<String>,
    pub prm_rank: usize,
    pub sft: bool,
}

impl LoraConfig {
    /// The policy's adapters; none where all weights are trained.
    pub fn policy(&self) -> Option<LoraSettings> {
        self.of_rank(self.rank)
    }

    /// The PRM's.
    pub fn prm(&self) -> Option<LoraSettings> {
        self.of_rank(if self.prm_rank == 0 { self.rank } else { self.prm_rank })
    }

    fn of_rank(&self, rank: usize) -> Option<LoraSettings> {
        let Self { alpha, ref targets, .. } = *self;
        (self.rank > 0).then(|| LoraSettings { rank, alpha, targets: targets.clone() })
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.rank > 0 || self.prm_rank == 0,
            "lora.prm_rank is {}, but lora.rank is 0: without adapters of the policy the PRM has none",
            self.prm_rank
        );
        for settings in [self.policy(), self.prm()].into_iter().flatten() {
            settings.check().context("[lora]")?;
        }
        Ok(())
    }
}

/// `[sft]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SftConfig {
    pub steps: u64,
    pub batch_size: usize,
    pub max_solution_tokens: usize,
    #[serde(flatten)]
    pub optimizer: OptimizerConfig,
}

/// `[rollout]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RolloutConfig {
    pub prompts: usize,
    pub samples: usize,
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub stop: Vec<String>,
    pub max_new_tokens: usize,
    pub max_prompt_tokens: usize,
    pub slots: usize,
    pub pass_tokens: usize,
}

/// `[filter]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct FilterConfig {
    pub lower: f64,
    pub upper: f64,
    pub drop_truncated: bool,
    pub refill: Refill,
    pub groups: usize,
    pub oversample: f64,
    pub max_rounds: usize,
    pub skip_solved: bool,
}

/// `[prm]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PrmConfig {
    pub path: String,
    pub reference_path: String,
    pub reference: Reference,
    pub reference_offload: bool,
    pub beta: f64,
    pub loss: PrmLoss,
    pub margin: f64,
    pub kto_desirable: f64,
    pub kto_undesirable: f64,
    pub update: PrmUpdate,
    pub warmup_batches: u64,
    pub minibatches: usize,
    pub epochs: usize,
    #[serde(flatten)]
    pub optimizer: OptimizerConfig,
}

impl PrmConfig {
    /// The loss with its settings.
    pub fn loss(&self) -> Loss {
        Loss {
            name: self.loss,
            beta: self.beta,
            margin: self.margin,
            desirable: self.kto_desirable,
            undesirable: self.kto_undesirable,
        }
    }
}

/// `[offline]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct OfflineConfig {
    pub files: Vec<String>,
    pub held_out: String,
    pub held_out_one_in: u32,
    pub reference: String,
    pub chat: bool,
    pub max_tokens: usize,
    pub batch_size: usize,
    pub epochs: usize,
    pub eval_every: u64,
}

/// `[advantage]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct AdvantageConfig {
    pub estimator: Estimator,
    pub form: Form,
    pub process_norm: ProcessNorm,
    pub process_coef: f64,
    pub outcome_coef: f64,
    pub process_gamma: f64,
    pub outcome_gamma: f64,
    pub gae_lambda: f64,
    pub granularity: Granularity,
    pub step_separator: String,
    pub process_lambda: f64,
    pub process_use_outcome: bool,
    pub overlong_buffer: usize,
    pub overlong_factor: f64,
    pub kl_coef: f64,
    pub kl_kind: KlKind,
}

/// `[policy]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PolicyConfig {
    pub loss: PolicyLoss,
    pub minibatches: usize,
    pub epochs: usize,
    pub clip_low: f32,
    pub clip_high: f32,
    pub dual_clip: f32,
    pub cov_share: f64,
    pub cov_low: f64,
    pub cov_high: f64,
    pub cov_penalty: f64,
    pub entropy_coef: f32,
    #[serde(with = "aggregate::or_auto")]
    pub aggregation: Option<Aggregation>,
    pub mask_truncated: bool,
    pub kl_coef: f64,
    pub kl_kind: KlKind,
    pub kl_reference: String,
    #[serde(flatten)]
    pub optimizer: OptimizerConfig,
}

/// `[train]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct TrainConfig {
    pub steps: u64,
    pub outcome_only: bool,
    pub compare: bool,
    pub micro_batch_tokens: usize,
    pub checkpoint_activations: bool,
    pub save_every: u64,
    pub keep: usize,
    pub record_every: u64,
    pub stop_after: u64,
    pub record_update_every: u64,
    pub report: bool,
}

/// `[eval]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct EvalConfig {
    pub problems: usize,
    pub samples: usize,
    pub temperature: f32,
    pub every: u64,
}

impl PolicyConfig {
    /// Which tokens the losses that choose by covariance take.
    pub fn covariance(&self) -> Covariance {
        Covariance {
            share: self.cov_share,
            low: self.cov_low,
            high: self.cov_high,
            penalty: self.cov_penalty,
        }
    }

    /// How token losses make the loss: as configured, or as the loss was published.
    pub fn aggregation(&self) -> Aggregation {
        self.aggregation.unwrap_or(self.loss.aggregation())
    }
}

/// `[study]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct StudyConfig {
    pub seeds: u64,
    pub triples: usize,
    pub continuations: usize,
    pub batches: Vec<u64>,
    pub steps: Vec<u64>,
    pub conditions: Vec<String>,
    pub teachings: Vec<String>,
}

impl Config {
    /// Defaults, then `files` from left to right, then `overrides` (`section.key=value`), checked.
    ///
    /// # Errors
    /// A sentence with the file, the key, and what would be right.
    pub fn load(files: &[PathBuf], overrides: &[String]) -> Result<Config> {
        Config::load_over("", files, overrides)
    }

    /// The same with a built-in configuration between the defaults and the files.
    ///
    /// # Errors
    /// As for [`Config::load`].
    pub fn load_over(built_in: &str, files: &[PathBuf], overrides: &[String]) -> Result<Config> {
        let mut table: Table = DEFAULT.parse().context("the built-in defaults")?;
        merge_text(&mut table, built_in).context("the built-in configuration")?;
        for file in files {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            merge_text(&mut table, &text).with_context(|| format!("{}", file.display()))?;
        }
        for text in overrides {
            set(&mut table, text).with_context(|| format!("--set {text}"))?;
        }
        mix::complete(&mut table).context("the configuration")?;
        let config: Config = Value::Table(table).try_into().map_err(|error: toml::de::Error| {
            let message = error.to_string().trim().replace('\n', " ");
            let message = ["usize", "u64", "u32"].iter().fold(message, |message, kind| {
                message.replace(&format!("expected {kind}"), "expected a whole number from 0")
            });
            anyhow::anyhow!("the configuration: {message}")
        })?;
        config.check()?;
        Ok(config)
    }

    /// The configuration of a run folder.
    ///
    /// # Errors
    /// When the file is missing or not a configuration of this version.
    pub fn load_resolved(path: &Path) -> Result<Config> {
        Config::load(&[path.to_path_buf()], &[])
    }

    /// The resolved configuration as a file.
    ///
    /// # Errors
    /// Never for a configuration that was loaded.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string_pretty(self)?)
    }

    /// Whether the policy is held to a reference of its own.
    pub fn needs_kl_reference(&self) -> bool {
        self.policy.kl_coef > 0.0 || self.advantage.kl_coef > 0.0
    }

    /// How process rewards are computed.
    pub fn rewards(&self) -> implicit_reward::Settings {
        implicit_reward::Settings {
            form: self.advantage.form,
            beta: self.prm.beta,
            process_norm: self.advantage.process_norm,
            granularity: self.advantage.granularity,
            lambda: self.advantage.process_lambda,
            use_outcome: self.advantage.process_use_outcome,
        }
    }

    /// How advantages are computed.
    pub fn returns(&self) -> advantage::Settings {
        let config = &self.advantage;
        let length_penalty = advantage::LengthPenalty {
            max_length: self.rollout.max_new_tokens,
            buffer: config.overlong_buffer,
            factor: config.overlong_factor,
        };
        advantage::Settings {
            estimator: config.estimator,
            form: config.form,
            outcome_coef: config.outcome_coef,
            process_coef: config.process_coef,
            process_gamma: config.process_gamma,
            outcome_gamma: config.outcome_gamma,
            length_penalty: (config.overlong_buffer > 0).then_some(length_penalty),
            kl: (config.kl_coef > 0.0)
                .then_some(KlPenalty { coef: config.kl_coef, kind: config.kl_kind }),
            gae_lambda: config.gae_lambda,
        }
    }

    /// Where the models lie and compute.
    pub fn device(&self) -> prime_runtime::Device {
        prime_runtime::Device::parse(&self.device).unwrap_or_default()
    }

    /// How sums run on devices other than the host.
    pub fn numerics(&self) -> Numerics {
        self.numerics.parse().unwrap_or_default()
    }

    /// What the models compute in.
    pub fn dtype(&self) -> prime_runtime::DType {
        prime_runtime::DType::parse(&self.model.dtype).unwrap_or(prime_runtime::DType::F32)
    }
}

#[cfg(test)]
mod tests;
