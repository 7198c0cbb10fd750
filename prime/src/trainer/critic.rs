//! The critic of a run: a model of its own, or a value head on the policy.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use prime_model::{Config as ModelConfig, Mode, VALUE_HEAD_FILE, Weights};

use super::{Model, State};
use crate::config::Config;
use crate::engine::{Engine, Learner, save_optimizer};
use crate::metrics::Metrics;
use crate::prompts::Prompts;
use crate::setup;
use crate::step::critic_update::{self, Joint};
use crate::step::{Estimator, Rollouts};

/// A folder of a checkpoint: a Hugging Face folder with the head beside its weights, or, where the policy is the trunk, the head alone.
const FOLDER: &str = "critic";

pub(super) enum Critic {
    /// A model that learns by itself, with buffers of its own where its shape is not the policy's.
    Own { engine: Option<Box<Engine>>, learner: Box<Learner> },
    /// A head on the policy, which learns in the policy's updates.
    Shared,
}

impl Critic {
    /// The critic that a configuration asks for, if any; a shared one is put on the policy.
    pub(super) fn new(
        config: &Config,
        prompts: &Prompts,
        policy: &mut Model,
        mode: Mode,
    ) -> Result<Option<Critic>> {
        if config.advantage.estimator != Estimator::Gae {
            return Ok(None);
        }
        if config.critic.shared {
            policy.weights.add_value_head(&policy.config)?;
            return Ok(Some(Critic::Shared));
        }
        let mut model = match config.critic.path.as_str() {
            "" => policy.duplicate()?,
            path => setup::load_model(config, Path::new(path), prompts.tokenizer())
                .context("critic.path")?,
        };
        model.weights.add_value_head(&model.config)?;
        let path = Path::new(&config.critic.path);
        if !config.critic.path.is_empty() && path.join(VALUE_HEAD_FILE).exists() {
            model.weights.load_value_head(path).context("critic.path")?;
        }
        let batches = config.train.steps + config.critic.warmup_batches;
        let updates = batches * (config.critic.minibatches * config.critic.epochs) as u64;
        let tokens = config.micro_batch_tokens();
        let engine = (model.config != policy.config)
            .then(|| Engine::new(&model.config, config.device(), config.dtype(), tokens, mode))
            .transpose()?;
        let learner = Learner::new(
            model.weights,
            &config.critic.optimizer,
            updates,
            config.seed.wrapping_add(2 << 40),
        )?;
        Ok(Some(Critic::Own { engine: engine.map(Box::new), learner: Box::new(learner) }))
    }

    /// Batches that train it before the policy's first update.
    pub(super) fn warmup_batches(&self, config: &Config) -> u64 {
        match self {
            Critic::Own { .. } => config.critic.warmup_batches,
            Critic::Shared => 0,
        }
    }

    /// Its weights, where it is a model of its own.
    pub(super) fn weights(&self) -> Option<&Weights> {
        match self {
            Critic::Own { learner, .. } => Some(&learner.weights),
            Critic::Shared => None,
        }
    }

    /// What a shared critic adds to the policy's loss.
    pub(super) fn joint(&self, config: &Config) -> Option<Joint> {
        match self {
            Critic::Own { .. } => None,
            Critic::Shared => Some(Joint { coef: config.critic.coef, clip: config.critic.bound() }),
        }
    }

    /// Its values of a batch, before anything is updated.
    pub(super) fn values(
        &mut self,
        engine: &mut Engine,
        policy: &Learner,
        batch: &Rollouts,
    ) -> Result<Vec<f32>> {
        match self {
            Critic::Own { engine: own, learner } => {
                critic_update::values(own.as_deref_mut().unwrap_or(engine), learner, batch)
            }
            Critic::Shared => critic_update::values(engine, policy, batch),
        }
        .context("the critic's values")
    }

    /// Trains a critic of its own on a batch with returns.
    pub(super) fn update(
        &mut self,
        config: &Config,
        engine: &mut Engine,
        batch: &Rollouts,
        state: &mut State,
        metrics: &mut Metrics,
    ) -> Result<()> {
        let Critic::Own { engine: own, learner } = self else { return Ok(()) };
        let started = Instant::now();
        let settings = critic_update::Settings {
            clip: config.critic.bound(),
            minibatches: config.critic.minibatches,
            epochs: config.critic.epochs,
            seed: config.seed,
            batch: state.warmup_batches + state.step,
        };
        let engine = own.as_deref_mut().unwrap_or(engine);
        let outcome = critic_update::critic_update(engine, learner, batch, &settings)
            .context("the critic's update")?;
        state.critic_updates = learner.optimizer().step();
        metrics.set("seconds/critic", started.elapsed().as_secs_f64());
        metrics.set("critic/gradient_norm", outcome.gradient_norm);
        metrics.set("critic/learning_rate", outcome.learning_rate);
        report(metrics, batch, outcome.loss, outcome.clip_fraction);
        Ok(())
    }

    /// Forgets what a refused step left.
    pub(super) fn clear(&mut self, state: &mut State) -> Result<()> {
        if let Critic::Own { learner, .. } = self {
            state.critic_updates = learner.optimizer().step();
            learner.gradients.clear()?;
        }
        Ok(())
    }

    pub(super) fn save(
        &self,
        folder: &Path,
        prompts: &Prompts,
        policy: (&ModelConfig, &Weights),
    ) -> Result<()> {
        let path = folder.join(FOLDER);
        match self {
            Critic::Own { engine, learner } => {
                let config = engine.as_ref().map_or(policy.0, |engine| engine.config());
                prompts.save_model(&path, config, &learner.weights)?;
                learner.weights.save_value_head(&path)?;
                save_optimizer(&folder.join("trainer").join("critic.safetensors"), learner)
            }
            Critic::Shared => {
                std::fs::create_dir_all(&path)
                    .with_context(|| format!("cannot create {}", path.display()))?;
                Ok(policy.1.save_value_head(&path)?)
            }
        }
    }

    /// Takes up what was saved; the policy's own weights have been.
    pub(super) fn restore(
        &mut self,
        folder: &Path,
        policy: (&ModelConfig, &mut Weights),
        updates: u64,
    ) -> Result<()> {
        let path = folder.join(FOLDER);
        match self {
            Critic::Own { engine, learner } => {
                let config = engine.as_ref().map_or(policy.0, |engine| engine.config());
                let (device, dtype) = (learner.weights.data().device(), learner.weights.dtype());
                learner.weights = Weights::load(&path, config, device, dtype)?;
                learner.weights.add_value_head(config)?;
                learner.weights.load_value_head(&path)?;
                let moments = folder.join("trainer").join("critic.safetensors");
                Ok(learner.optimizer_mut().restore(&moments, updates)?)
            }
            Critic::Shared => {
                policy.1.add_value_head(policy.0)?;
                Ok(policy.1.load_value_head(&path)?)
            }
        }
    }
}

/// What is said of every critic.
pub(super) fn report(metrics: &mut Metrics, batch: &Rollouts, loss: f64, clip_fraction: f64) {
    let mean = |column: &[f32]| {
        column.iter().map(|&x| f64::from(x)).sum::<f64>() / column.len().max(1) as f64
    };
    metrics.set("critic/loss", loss);
    metrics.set("critic/clip_fraction", clip_fraction);
    metrics.set("critic/value", mean(&batch.values));
    metrics.set("critic/return", mean(&batch.returns));
    if let Some(share) = critic_update::explained_variance(&batch.values, &batch.returns) {
        metrics.set("critic/explained_variance", share);
    }
}
