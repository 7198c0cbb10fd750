//! Configuration: the documented defaults, then files from left to right, then `--set` overrides.
//!
//! `configs/default.toml` is at once the documentation, the list of all keys, and the defaults: a key that is not in it is
//! refused with the nearest one that is.

mod mix;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prime_kernels::numerics::Numerics;
use prime_model::{AdamWSettings, Decay, LoraSettings, Schedule, StateSettings};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::graders::{GraderSettings, nearest};
use crate::step::policy_loss::{Covariance, KlPenalty};
use crate::step::prm_targets::Loss;
use crate::step::{
    Aggregation, Estimator, Form, Granularity, KlKind, PolicyLoss, PrmLoss, ProcessNorm, advantage,
    aggregate, implicit_reward,
};
use crate::tasks::{ArithmeticSettings, CountdownSettings, JsonlSettings};

mod critic;

pub use critic::CriticConfig;

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
        /// Reach a target with given numbers.
        Countdown,
        /// Problems from JSON Lines files.
        Jsonl,
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

/// The keys that every optimiser has, in the section of the model that it updates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct OptimizerConfig {
    pub learning_rate: f64,
    pub warmup: u64,
    pub decay: DecayName,
    pub final_fraction: f64,
    pub weight_decay: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub max_gradient_norm: f64,
    pub optimizer_state: StateName,
    pub master_weights: MastersName,
    pub optimizer_offload: bool,
}

impl OptimizerConfig {
    /// What the optimiser keeps over a run; `seed` fixes how it rounds.
    pub fn settings(&self, seed: u64) -> AdamWSettings {
        AdamWSettings {
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.epsilon,
            weight_decay: self.weight_decay,
            max_gradient_norm: self.max_gradient_norm,
            state: StateSettings {
                int8: self.optimizer_state == StateName::Int8,
                masters: self.master_weights == MastersName::Float32,
                offload: self.optimizer_offload,
                seed,
            },
        }
    }

    /// The learning rate over a run of `total` updates.
    pub fn schedule(&self, total: u64) -> Schedule {
        let decay = match self.decay {
            DecayName::Constant => Decay::Constant,
            DecayName::Cosine => Decay::Cosine,
            DecayName::Linear => Decay::Linear,
        };
        Schedule {
            peak: self.learning_rate,
            warmup: self.warmup,
            total,
            decay,
            final_fraction: self.final_fraction,
        }
    }

    fn check(&self, section: &str, dtype: &str, device: &str) -> Result<()> {
        let name = |key: &str| format!("{section}.{key}");
        ensure!(
            self.master_weights == MastersName::Float32
                || prime_runtime::DType::parse(dtype) == Some(prime_runtime::DType::BF16),
            "{section}.master_weights is \"none\", which is for model.dtype = \"bfloat16\": {dtype} weights are their own masters"
        );
        ensure!(
            !self.optimizer_offload || device != "cpu",
            "{section}.optimizer_offload moves state from a device's memory to the host's, where it is already on the cpu"
        );
        within(&name("learning_rate"), self.learning_rate, 0.0, 1.0)?;
        within(&name("final_fraction"), self.final_fraction, 0.0, 1.0)?;
        within(&name("weight_decay"), self.weight_decay, 0.0, 10.0)?;
        within(&name("beta1"), self.beta1, 0.0, 0.999_999)?;
        within(&name("beta2"), self.beta2, 0.0, 0.999_999)?;
        within(&name("epsilon"), self.epsilon, 1e-30, 1.0)?;
        within(&name("max_gradient_norm"), self.max_gradient_norm, 0.0, f64::MAX)
    }
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

    fn check(&self) -> Result<()> {
        prime_runtime::Device::parse(&self.device)?;
        if let Err(message) = self.numerics.parse::<Numerics>() {
            bail!("numerics: {message}");
        }
        self.grader.check()?;
        self.lora.check()?;
        let (dtype, device) = (&self.model.dtype, &self.device);
        self.sft.optimizer.check("sft", dtype, device)?;
        self.prm.optimizer.check("prm", dtype, device)?;
        self.policy.optimizer.check("policy", dtype, device)?;
        self.critic.optimizer.check("critic", dtype, device)?;
        ensure!(
            self.lora.rank == 0 || self.advantage.estimator != Estimator::Gae,
            "lora.rank is {}, but advantage.estimator is \"gae\", whose critic trains all weights: take another estimator, or lora.rank=0",
            self.lora.rank
        );
        // Generous, and small enough that no size computed from them overflows.
        const MANY: usize = 1 << 24;
        let counts = [
            ("sft.batch_size", self.sft.batch_size, MANY),
            ("rollout.prompts", self.rollout.prompts, MANY),
            ("rollout.samples", self.rollout.samples, 1 << 16),
            ("rollout.max_new_tokens", self.rollout.max_new_tokens, 1 << 20),
            ("rollout.max_prompt_tokens", self.rollout.max_prompt_tokens, 1 << 20),
            ("rollout.slots", self.rollout.slots, 1 << 14),
            ("rollout.pass_tokens", self.rollout.pass_tokens, 1 << 22),
            ("filter.groups", self.filter.groups, MANY),
            ("filter.max_rounds", self.filter.max_rounds, MANY),
            ("prm.minibatches", self.prm.minibatches, 1 << 16),
            ("prm.epochs", self.prm.epochs, 1 << 16),
            ("critic.minibatches", self.critic.minibatches, 1 << 16),
            ("critic.epochs", self.critic.epochs, 1 << 16),
            ("offline.max_tokens", self.offline.max_tokens, 1 << 21),
            ("offline.batch_size", self.offline.batch_size, MANY),
            ("offline.epochs", self.offline.epochs, 1 << 16),
            ("policy.minibatches", self.policy.minibatches, 1 << 16),
            ("policy.epochs", self.policy.epochs, 1 << 16),
            ("train.micro_batch_tokens", self.train.micro_batch_tokens, 1 << 22),
            ("eval.problems", self.eval.problems, MANY),
            ("eval.samples", self.eval.samples, 1 << 16),
            ("study.seeds", self.study.seeds as usize, 1 << 10),
            ("study.triples", self.study.triples, MANY),
            ("study.continuations", self.study.continuations, 1 << 16),
        ];
        for (name, value, most) in counts {
            ensure!((1..=most).contains(&value), "{name} is {value}, expected 1 to {most}");
        }
        let steps = [
            ("sft.steps", self.sft.steps),
            ("sft.warmup", self.sft.optimizer.warmup),
            ("prm.warmup", self.prm.optimizer.warmup),
            ("prm.warmup_batches", self.prm.warmup_batches),
            ("critic.warmup", self.critic.optimizer.warmup),
            ("critic.warmup_batches", self.critic.warmup_batches),
            ("policy.warmup", self.policy.optimizer.warmup),
            ("train.steps", self.train.steps),
            ("train.save_every", self.train.save_every),
            ("train.stop_after", self.train.stop_after),
            ("train.record_every", self.train.record_every),
            ("train.record_update_every", self.train.record_update_every),
        ];
        for (name, value) in steps {
            ensure!(value <= 1 << 30, "{name} is {value}, expected at most {}", 1 << 30);
        }
        ensure!(
            self.sft.max_solution_tokens <= 1 << 20,
            "sft.max_solution_tokens is {}, expected at most {}",
            self.sft.max_solution_tokens,
            1 << 20
        );
        ensure!(self.threads <= 1024, "threads is {}, expected 0 to 1024", self.threads);
        ensure!(
            self.rollout.samples >= 2,
            "rollout.samples is {}, expected at least 2: each sample is compared with the others of its prompt",
            self.rollout.samples
        );
        ensure!(
            self.rollout.pass_tokens >= self.rollout.slots,
            "rollout.pass_tokens is {}, expected at least rollout.slots, {}: each sequence under way feeds a token a pass",
            self.rollout.pass_tokens,
            self.rollout.slots
        );
        within("rollout.temperature", f64::from(self.rollout.temperature), 1e-3, 100.0)?;
        within("rollout.top_p", f64::from(self.rollout.top_p), 1e-6, 1.0)?;
        within("rollout.min_p", f64::from(self.rollout.min_p), 0.0, 1.0)?;
        within("filter.lower", self.filter.lower, 0.0, 1.0)?;
        within("filter.upper", self.filter.upper, self.filter.lower, 1.0)?;
        within("filter.oversample", self.filter.oversample, 1.0, 65536.0)?;
        ensure!(
            !self.rollout.stop.iter().any(String::is_empty),
            "rollout.stop holds an empty text, which every response would end with"
        );
        ensure!(
            !self.filter.skip_solved || self.task.name == TaskName::Jsonl,
            "filter.skip_solved needs a data set, whose problems come again: a built-in task never runs out of new ones"
        );
        within("prm.beta", self.prm.beta, 1e-9, 1e9)?;
        within("prm.margin", self.prm.margin, 0.0, 1e9)?;
        within("prm.kto_desirable", self.prm.kto_desirable, 0.0, 1e9)?;
        within("prm.kto_undesirable", self.prm.kto_undesirable, 0.0, 1e9)?;
        within("advantage.process_coef", self.advantage.process_coef, 0.0, 1e9)?;
        within("advantage.gae_lambda", self.advantage.gae_lambda, 0.0, 1.0)?;
        self.critic.check(self.advantage.estimator, &self.policy)?;
        ensure!(
            self.train.stop_after == 0 || self.eval.every > 0,
            "train.stop_after is {}, but eval.every is 0: without evaluations there is nothing to stop for",
            self.train.stop_after
        );
        within("advantage.outcome_coef", self.advantage.outcome_coef, 0.0, 1e9)?;
        within("advantage.process_gamma", self.advantage.process_gamma, 0.0, 1.0)?;
        within("policy.clip_low", f64::from(self.policy.clip_low), 0.0, 1.0)?;
        within("policy.clip_high", f64::from(self.policy.clip_high), 0.0, 1e6)?;
        within("policy.entropy_coef", f64::from(self.policy.entropy_coef), -10.0, 10.0)?;
        self.check_losses()?;
        within("eval.temperature", f64::from(self.eval.temperature), 0.0, 100.0)?;
        ensure!(
            self.policy.dual_clip == 0.0 || self.policy.dual_clip > 1.0,
            "policy.dual_clip is {}, expected 0 (off) or more than 1",
            self.policy.dual_clip
        );
        if prime_runtime::DType::parse(&self.model.dtype)
            .is_none_or(|dtype| dtype == prime_runtime::DType::F16)
        {
            bail!("model.dtype is \"{}\", expected \"float32\" or \"bfloat16\"", self.model.dtype);
        }
        Ok(())
    }

    fn check_losses(&self) -> Result<()> {
        let (advantage, policy) = (&self.advantage, &self.policy);
        within("advantage.outcome_gamma", advantage.outcome_gamma, 0.0, 1.0)?;
        within("advantage.process_lambda", advantage.process_lambda, 0.0, 1.0)?;
        within("advantage.overlong_factor", advantage.overlong_factor, 0.0, 1e9)?;
        within("advantage.kl_coef", advantage.kl_coef, 0.0, 1e9)?;
        within("policy.kl_coef", policy.kl_coef, 0.0, 1e9)?;
        within("policy.cov_share", policy.cov_share, 0.0, 1.0)?;
        within("policy.cov_low", policy.cov_low, -1e9, 1e9)?;
        within("policy.cov_high", policy.cov_high, policy.cov_low, 1e9)?;
        within("policy.cov_penalty", policy.cov_penalty, 0.0, 1e9)?;
        ensure!(
            advantage.overlong_buffer <= self.rollout.max_new_tokens,
            "advantage.overlong_buffer is {}, expected at most rollout.max_new_tokens, {}",
            advantage.overlong_buffer,
            self.rollout.max_new_tokens
        );
        ensure!(
            advantage.granularity != Granularity::Step || !advantage.step_separator.is_empty(),
            "advantage.granularity is \"step\", which needs a text that separates steps in advantage.step_separator"
        );
        ensure!(
            policy.dual_clip == 0.0 || policy.loss == PolicyLoss::Ppo,
            "policy.dual_clip is {}, but policy.loss is \"{}\": the dual clip is of \"ppo\" alone",
            policy.dual_clip,
            policy.loss
        );
        ensure!(
            policy.kl_reference.is_empty() || self.needs_kl_reference(),
            "policy.kl_reference is \"{}\", but neither policy.kl_coef nor advantage.kl_coef is above 0",
            policy.kl_reference
        );
        Ok(())
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

fn within(name: &str, value: f64, low: f64, high: f64) -> Result<()> {
    ensure!(value >= low && value <= high, "{name} is {value}, expected {low} to {high}");
    Ok(())
}

/// Lays a file over what is there.
fn merge_text(table: &mut Table, text: &str) -> Result<()> {
    let file: Table = text.parse()?;
    merge(table, file, "").map_err(|error| match find_line(text, &error.key) {
        Some(line) => anyhow::anyhow!("line {line}: {error}"),
        None => anyhow::anyhow!("{error}"),
    })
}

/// A key that cannot be laid over the defaults.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct KeyError {
    key: String,
    message: String,
}

fn merge(base: &mut Table, over: Table, prefix: &str) -> std::result::Result<(), KeyError> {
    for (key, value) in over {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let fail = |message: String| Err(KeyError { key: key.clone(), message });
        let Some(old) = base.get_mut(&key) else {
            let suggestion = nearest(&key, base.keys().map(String::as_str))
                .map(|near| format!("; did you mean `{near}`?"))
                .unwrap_or_default();
            let place = if prefix.is_empty() { String::new() } else { format!(" in [{prefix}]") };
            return fail(format!("there is no setting `{key}`{place}{suggestion}"));
        };
        match (old, value) {
            (Value::Table(old), Value::Table(new)) => merge(old, new, &path)?,
            (old @ Value::Float(_), Value::Integer(new)) => *old = Value::Float(new as f64),
            (old, new) if old.type_str() == new.type_str() => *old = new,
            (old, new) => {
                return fail(format!("`{path}` is {} `{new}`, expected {}", kind(&new), kind(old)));
            }
        }
    }
    Ok(())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

/// The line on which a key is set, for messages.
fn find_line(text: &str, key: &str) -> Option<usize> {
    let is_key = |line: &str| {
        let line = line.trim().trim_start_matches('[');
        line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with(['=', ']', '.']))
    };
    text.lines().position(is_key).map(|index| index + 1)
}

/// Applies `section.key=value`.
fn set(table: &mut Table, text: &str) -> Result<()> {
    let Some((path, value)) = text.split_once('=') else {
        bail!("expected section.key=value, such as policy.learning_rate=1e-4");
    };
    let (path, value) = (path.trim(), value.trim());
    // What is not a TOML value is a string: nobody should have to quote quotes for the shell.
    let value = format!("value = {value}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(value.to_string()));
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().filter(|key| !key.is_empty());
    let Some(last) = last else {
        bail!("expected section.key=value, such as policy.learning_rate=1e-4")
    };
    let mut over = Table::from_iter([(last.to_string(), value)]);
    for key in keys.into_iter().rev() {
        over = Table::from_iter([(key.to_string(), Value::Table(over))]);
    }
    merge(table, over, "")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn load(text: &str, overrides: &[&str]) -> Result<Config> {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), text)?;
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        Config::load(&[file.path().to_path_buf()], &overrides)
    }

    pub(super) fn message(text: &str, overrides: &[&str]) -> String {
        format!("{:#}", load(text, overrides).unwrap_err())
    }

    #[test]
    fn files_lie_over_the_defaults_and_overrides_over_the_files() {
        let config = load(
            "seed = 7\n[policy]\nlearning_rate = 1\n",
            &["policy.clip_low=0.1", "model.path=a b"],
        )
        .unwrap();
        assert_eq!((config.seed, config.policy.optimizer.learning_rate), (7, 1.0));
        assert_eq!((config.policy.clip_low, config.model.path.as_str()), (0.1, "a b"));
        assert_eq!(config.policy.clip_high, 0.2);
    }

    #[test]
    fn the_documented_settings_of_graders_are_their_defaults() {
        assert_eq!(load("", &[]).unwrap().grader, GraderSettings::default());
        assert!(
            message("", &["grader.code.threads=0"])
                .contains("grader.code.threads is 0, expected 1 to 10000")
        );
    }

    #[test]
    fn a_resolved_configuration_loads_as_itself() {
        let config = load("", &["train.steps=3", "prm.update=before"]).unwrap();
        assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
        let text = message("seed = 1\n[policy]\nlearning_rat = 1e-4\n", &[]);
        assert!(
            text.ends_with("line 3: there is no setting `learning_rat` in [policy]; did you mean `learning_rate`?"),
            "{text}"
        );
        assert!(message("", &["sfft.steps=1"]).contains("did you mean `sft`?"));
        assert!(message("", &["seed"]).contains("expected section.key=value"));
    }

    #[test]
    fn values_of_another_kind_or_out_of_range_are_refused_by_name() {
        assert!(
            message("seed = \"x\"", &[])
                .contains("`seed` is a string `\"x\"`, expected an integer")
        );
        assert!(message("", &["filter.lower=2"]).contains("filter.lower is 2, expected 0 to 1"));
        let text = message("", &["rollout.slots=-1"]);
        assert!(text.contains("`-1`, expected a whole number from 0 in `rollout.slots`"), "{text}");
        assert!(message("", &["rollout.samples=1"]).contains("expected at least 2"));
        assert!(
            message("", &["rollout.slots=0"]).contains("rollout.slots is 0, expected 1 to 16384")
        );
        assert!(message("", &["train.steps=9223372036854775807"]).contains("train.steps is 9"));
        assert!(message("", &["policy.learning_rate=nan"]).contains("policy.learning_rate is NaN"));
        assert!(message("", &["advantage.form=ppo"]).contains("paper, prime-repo, verl"));
        assert!(message("seed = ", &[]).contains("line 1"));
    }

    #[test]
    fn a_critic_that_would_not_do_what_is_said_of_it_is_refused() {
        let refused = |set: &[&str], what: &str| {
            let text = message("", set);
            assert!(text.contains(what), "{text}");
        };
        const GAE: &str = "advantage.estimator=gae";
        refused(&["critic.shared=true"], "advantage.estimator is \"rloo\", which has no critic");
        refused(&["critic.path=x"], "critic.path is given, but advantage.estimator");
        let shared = |more| [GAE, "critic.shared=true", more];
        refused(&shared("critic.path=x"), "leave the path empty");
        refused(&shared("critic.warmup_batches=2"), "critic.warmup_batches is 2, expected 0");
        refused(&shared("critic.epochs=3"), "critic.epochs is 3 and policy.epochs 1");
        refused(&[GAE, "critic.clip=-1"], "critic.clip is -1, expected 0");
        refused(&[GAE, "critic.coef=0"], "critic.coef is 0");
        refused(&[GAE, "advantage.gae_lambda=2"], "advantage.gae_lambda is 2, expected 0 to 1");
        refused(&["train.stop_after=2", "eval.every=0"], "there is nothing to stop for");
        load("", &shared("policy.epochs=3")).unwrap();
        load("", &[GAE, "critic.warmup_batches=2", "critic.epochs=3"]).unwrap();
    }
}
