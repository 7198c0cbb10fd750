//! An implicit PRM trained offline, on graded responses from files.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use prime_model::{Config as ModelConfig, Mode, folder};
use prime_runtime::process::peak_memory_bytes;
use prime_runtime::random::{Generator as Random, Stream};

use crate::config::Config;
use crate::engine::{Engine, Learner, Sample, load_state, save_optimizer, save_state};
use crate::frozen::Frozen;
use crate::graded::{GradedPrompt, batch};
use crate::metrics::Metrics;
use crate::step::prm_targets::{Loss, PrmLoss, loss_of};
use crate::step::prm_update::{self, Mismatched, prm_update};
use crate::step::{Rollouts, accuracy};
use crate::trainer::Model;

/// A PRM learning from graded responses.
pub struct Offline {
    config: Config,
    /// The folder whose tokenizer files a saved PRM gets.
    source: std::path::PathBuf,
    model_config: ModelConfig,
    engine: Engine,
    learner: Learner,
    reference: Option<Frozen>,
    train: Vec<GradedPrompt>,
    held_out: Rollouts,
    state: State,
}

/// Where the training stands: everything random is a function of it.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// Updates made.
    pub step: u64,
}

impl Offline {
    /// A trainer before its first update. Without a reference the log-probabilities themselves are the reward.
    ///
    /// # Errors
    /// When there is nothing to train on, or memory is not to be had.
    pub fn new(
        config: &Config,
        model: Model,
        reference: Option<Model>,
        source: &Path,
        train: Vec<GradedPrompt>,
        held_out: &[GradedPrompt],
    ) -> Result<Self> {
        ensure!(!train.is_empty(), "there are no graded responses to train on");
        let mode =
            if config.train.checkpoint_activations { Mode::TrainCheckpointed } else { Mode::Train };
        let (device, dtype) = (config.device(), config.dtype());
        let tokens = config.train.micro_batch_tokens.max(config.offline.max_tokens);
        let engine = Engine::new(&model.config, device, dtype, tokens, mode)?;
        let offload = config.prm.reference_offload;
        let reference = reference
            .map(|other| Frozen::new(config, other, &model.config, tokens, offload))
            .transpose()?;
        let batches = train.len().div_ceil(config.offline.batch_size) as u64;
        let total = batches * config.offline.epochs as u64;
        let mut offline = Offline {
            config: config.clone(),
            source: source.to_path_buf(),
            model_config: model.config,
            engine,
            learner: Learner::new(
                model.weights,
                &config.prm.optimizer,
                total,
                config.seed.wrapping_add(1 << 40),
            )?,
            reference,
            train,
            held_out: batch(held_out)?,
            state: State::default(),
        };
        let mut held_out = std::mem::take(&mut offline.held_out);
        held_out.ref_log_probs = offline.under_reference(&held_out.samples())?;
        offline.held_out = held_out;
        Ok(offline)
    }

    /// Updates made.
    pub fn steps(&self) -> u64 {
        self.state.step
    }

    /// Updates of the whole training.
    pub fn total(&self) -> u64 {
        self.batches() * self.config.offline.epochs as u64
    }

    /// Whether there are held-out prompts.
    pub fn evaluates(&self) -> bool {
        !self.held_out.is_empty()
    }

    fn batches(&self) -> u64 {
        self.train.len().div_ceil(self.config.offline.batch_size) as u64
    }

    /// The prompts of the next update: every epoch each once, in an order that the seed and the epoch fix.
    fn draw(&self) -> Result<Rollouts> {
        let (epoch, place) = (self.state.step / self.batches(), self.state.step % self.batches());
        let mut order: Vec<u32> = (0..self.train.len() as u32).collect();
        Random::new(self.config.seed, Stream::Shuffle, (3 << 32) + epoch).shuffle(&mut order);
        let size = self.config.offline.batch_size;
        let first = place as usize * size;
        let last = (first + size).min(order.len());
        batch(order[first..last].iter().map(|&i| &self.train[i as usize]))
    }

    /// Log-probabilities under the reference; 0 where there is none.
    fn under_reference(&mut self, samples: &[Sample<'_>]) -> Result<Vec<f32>> {
        match &mut self.reference {
            Some(reference) => reference.score(&mut self.engine, samples, 1.0),
            None => Ok(vec![0.0; samples.iter().map(|sample| sample.response.len()).sum()]),
        }
    }

    /// One update on the next prompts.
    ///
    /// # Errors
    /// When the loss or a gradient is NaN or infinite: weights and place are then those before the step.
    pub fn step(&mut self) -> Result<Metrics> {
        let made = self.try_step();
        if made.is_err() {
            self.learner.gradients.clear()?;
        }
        made
    }

    fn try_step(&mut self) -> Result<Metrics> {
        let started = Instant::now();
        let mut batch = self.draw()?;
        batch.ref_log_probs = self.under_reference(&batch.samples())?;
        let settings = prm_update::Settings { loss: self.loss(), minibatches: 1, epochs: 1 };
        let mismatched = Mismatched::of(&batch, self.config.offline.max_tokens);
        let of_reference = match settings.loss.name {
            PrmLoss::Kto => self.under_reference(mismatched.samples())?,
            _ => Vec::new(),
        };
        let outcome = prm_update(
            &mut self.engine,
            &mut self.learner,
            &batch,
            Some((&mismatched, &of_reference)),
            &settings,
        )?;
        batch.prm_log_probs = outcome.prm_log_probs;
        self.state.step += 1;
        let seconds = started.elapsed().as_secs_f64();
        let mut metrics = Metrics::new("prm", self.state.step);
        metrics.set("prm/loss", outcome.loss);
        metrics.set("prm/gradient_norm", outcome.update.gradient_norm);
        metrics.set("prm/learning_rate", outcome.update.learning_rate);
        metrics.set("prm/pairwise_accuracy", accuracy::pairwise(&batch)?);
        metrics.set("prm/responses", batch.len() as f64);
        metrics.set("seconds/step", seconds);
        metrics.set("throughput/prm_tokens_per_second", batch.token_count() as f64 / seconds);
        metrics.set("memory/peak_bytes", peak_memory_bytes() as f64);
        Ok(metrics)
    }

    fn loss(&self) -> Loss {
        self.config.prm.loss()
    }

    /// What the PRM as it stands makes of the held-out prompts: its loss on them as one batch, and how well it tells right from wrong.
    ///
    /// # Errors
    /// When a log-probability is not finite.
    pub fn evaluate(&mut self) -> Result<Metrics> {
        let mut held_out = std::mem::take(&mut self.held_out);
        let metrics = self.evaluate_on(&mut held_out);
        held_out.prm_log_probs.clear();
        self.held_out = held_out;
        metrics
    }

    fn evaluate_on(&mut self, held_out: &mut Rollouts) -> Result<Metrics> {
        let loss = self.loss();
        let mut kl = 0.0;
        if loss.name == PrmLoss::Kto {
            let mismatched = Mismatched::of(held_out, self.config.offline.max_tokens);
            let of_reference = self.under_reference(mismatched.samples())?;
            let (engine, learner) = (&mut self.engine, &self.learner);
            kl = mismatched.kl(engine, learner, &of_reference, &(0..held_out.len()), loss.beta)?;
        }
        let mut log_probs = Vec::new();
        self.engine.score(
            &self.learner.weights,
            &held_out.samples(),
            1.0,
            &mut log_probs,
            &mut Vec::new(),
        )?;
        held_out.prm_log_probs = log_probs;
        let mut metrics = Metrics::new("eval", self.state.step);
        metrics.set("prm/loss", loss_of(held_out, &loss, kl)?);
        metrics.set("prm/pairwise_accuracy", accuracy::pairwise(held_out)?);
        metrics.set("prm/auc", accuracy::auc(held_out)?);
        metrics.set("prm/sign_accuracy", accuracy::sign(held_out)?);
        metrics.set("prm/responses", held_out.len() as f64);
        Ok(metrics)
    }

    /// Writes the PRM as a Hugging Face folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save_model(&self, path: &Path) -> Result<()> {
        std::fs::create_dir_all(path)
            .with_context(|| format!("cannot create {}", path.display()))?;
        let companions = folder::Companions::Of(&self.source);
        Ok(folder::write(path, &self.model_config, &self.learner.weights, companions)?)
    }

    /// Writes the training's state into a checkpoint folder: `prm` and `trainer`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.save_model(&folder.join("prm"))?;
        let trainer = folder.join("trainer");
        std::fs::create_dir_all(&trainer)
            .with_context(|| format!("cannot create {}", trainer.display()))?;
        save_optimizer(&trainer.join("prm.safetensors"), &self.learner)?;
        save_state(folder, &self.state)
    }

    /// Takes the training up where a checkpoint left it.
    ///
    /// # Errors
    /// When the checkpoint is not one of this configuration.
    pub fn restore(&mut self, folder: &Path) -> Result<()> {
        self.state = load_state(folder)?;
        self.learner.weights.reload(&folder.join("prm"), &self.model_config)?;
        let moments = folder.join("trainer").join("prm.safetensors");
        Ok(self.learner.optimizer_mut().restore(&moments, self.state.step)?)
    }
}
