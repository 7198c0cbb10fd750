//! The settings of an optimiser.

use anyhow::{Result, ensure};
use prime_model::{AdamWSettings, Decay, Schedule, StateSettings};
use serde::{Deserialize, Serialize};

use super::check::within;
use super::{DecayName, MastersName, StateName};

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

    pub(super) fn check(&self, section: &str, dtype: &str, device: &str) -> Result<()> {
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
