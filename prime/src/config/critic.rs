//! `[critic]`: the model whose values `advantage.estimator = "gae"` subtracts.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::check::within;
use super::{OptimizerConfig, PolicyConfig};
use crate::step::Estimator;

/// `[critic]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CriticConfig {
    pub path: String,
    pub shared: bool,
    pub coef: f32,
    pub clip: f32,
    pub warmup_batches: u64,
    pub minibatches: usize,
    pub epochs: usize,
    #[serde(flatten)]
    pub optimizer: OptimizerConfig,
}

impl CriticConfig {
    /// How far a value may move in an update, where it is bounded.
    pub fn bound(&self) -> Option<f32> {
        (self.clip > 0.0).then_some(self.clip)
    }

    pub(super) fn check(&self, estimator: Estimator, policy: &PolicyConfig) -> Result<()> {
        within("critic.clip", f64::from(self.clip), 0.0, 1e6)?;
        within("critic.coef", f64::from(self.coef), 1e-9, 1e6)?;
        if estimator != Estimator::Gae {
            for (key, set) in
                [("critic.shared=true", self.shared), ("critic.path", !self.path.is_empty())]
            {
                ensure!(
                    !set,
                    "{key} is given, but advantage.estimator is \"{estimator}\", which has no critic: set advantage.estimator=gae"
                );
            }
            return Ok(());
        }
        if !self.shared {
            return Ok(());
        }
        ensure!(
            self.path.is_empty(),
            "critic.path is \"{}\", but critic.shared is true: a shared critic is the policy with a value head; leave the path empty",
            self.path
        );
        ensure!(
            self.warmup_batches == 0,
            "critic.warmup_batches is {}, expected 0 where critic.shared is true: training a shared trunk for its values alone would undo the policy",
            self.warmup_batches
        );
        for (name, ours, policys) in [
            ("minibatches", self.minibatches, policy.minibatches),
            ("epochs", self.epochs, policy.epochs),
        ] {
            ensure!(
                ours == 1 || ours == policys,
                "critic.{name} is {ours} and policy.{name} {policys}, but critic.shared is true: a shared critic learns in the policy's updates; leave critic.{name} at 1"
            );
        }
        Ok(())
    }
}
