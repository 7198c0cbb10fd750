//! Supervised fine-tuning on worked solutions: the warm-up before RL.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use prime_kernels::fill;
use prime_model::{Mode, on_host};
use prime_runtime::process::peak_memory_bytes;

use crate::config::Config;
use crate::engine::{
    Engine, Learner, Sample, Scored, TokenGradients, load_state, save_optimizer, save_state,
};
use crate::metrics::Metrics;
use crate::prompts::{Demonstration, Prompts};
use crate::trainer::Model;

/// A model learning from demonstrations.
pub struct Sft {
    config: Config,
    prompts: Prompts,
    model_config: prime_model::Config,
    engine: Engine,
    learner: Learner,
    state: State,
}

/// Where the training stands.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// Updates made.
    pub step: u64,
    /// Demonstrations looked at: the place in the task.
    pub demonstrations: u64,
}

impl Sft {
    /// A trainer before its first update.
    ///
    /// # Errors
    /// When memory is not to be had.
    pub fn new(config: &Config, prompts: Prompts, model: Model) -> Result<Self> {
        let mode =
            if config.train.checkpoint_activations { Mode::TrainCheckpointed } else { Mode::Train };
        let (device, dtype) = (config.device(), config.dtype());
        let engine = Engine::new(&model.config, device, dtype, config.micro_batch_tokens(), mode)?;
        let learner =
            Learner::new(model.weights, &config.sft.optimizer, config.sft.steps, config.seed)?;
        let (config, state) = (config.clone(), State::default());
        Ok(Sft { config, prompts, model_config: model.config, engine, learner, state })
    }

    /// Updates made.
    pub fn steps(&self) -> u64 {
        self.state.step
    }

    /// The model as it stands.
    pub fn into_model(self) -> Model {
        Model { config: self.model_config, weights: self.learner.weights }
    }

    /// One update on the next demonstrations.
    ///
    /// # Errors
    /// When the loss or a gradient is NaN or infinite: weights and place are then those before the step.
    pub fn step(&mut self) -> Result<Metrics> {
        let before = self.state.clone();
        let made = self.try_step();
        if made.is_err() {
            self.state = before;
            self.learner.gradients.clear()?;
        }
        made
    }

    fn try_step(&mut self) -> Result<Metrics> {
        let started = Instant::now();
        let (demonstrations, skipped) = self.draw()?;
        let samples: Vec<Sample<'_>> = demonstrations
            .iter()
            .map(|demonstration| Sample {
                prompt: &demonstration.prompt,
                response: &demonstration.response,
            })
            .collect();
        let targets: usize = samples.iter().map(|sample| sample.response.len()).sum();
        let tokens: usize =
            targets + samples.iter().map(|sample| sample.prompt.len()).sum::<usize>();
        let mut loss = 0.0;
        let nll = |scored: Scored<'_>, d: &mut TokenGradients<'_>| {
            let log_probs = on_host::<f32>(scored.log_probs)?;
            loss -= log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() / targets as f64;
            ensure!(loss.is_finite(), "the loss is {loss}");
            Ok(fill::forward(d.log_probs.reborrow(), -1.0 / targets as f32)?)
        };
        self.engine.differentiate(
            &self.learner.weights,
            &mut self.learner.gradients,
            &samples,
            1.0,
            nll,
        )?;
        let update = self.learner.update()?;
        self.state.step += 1;
        let seconds = started.elapsed().as_secs_f64();
        let mut metrics = Metrics::new("sft", self.state.step);
        metrics.set("sft/loss", loss);
        metrics.set("sft/gradient_norm", update.gradient_norm);
        metrics.set("sft/learning_rate", update.learning_rate);
        metrics.set("sft/skipped", skipped as f64);
        metrics.set("seconds/step", seconds);
        metrics.set("throughput/sft_tokens_per_second", tokens as f64 / seconds);
        metrics.set("memory/peak_bytes", peak_memory_bytes() as f64);
        Ok(metrics)
    }

    /// The next demonstrations that fit, and how many did not.
    fn draw(&mut self) -> Result<(Vec<Demonstration>, usize)> {
        let limit = self.config.micro_batch_tokens();
        let longest = match self.config.sft.max_solution_tokens {
            0 => limit,
            longest => longest,
        };
        let (mut drawn, mut skipped) = (Vec::with_capacity(self.config.sft.batch_size), 0);
        let mut in_a_row = 0;
        while drawn.len() < self.config.sft.batch_size {
            let place = self.state.demonstrations;
            self.state.demonstrations += 1;
            match self.prompts.demonstration(place, self.config.seed, longest, limit)? {
                Some(demonstration) => {
                    drawn.push(demonstration);
                    in_a_row = 0;
                }
                None => (skipped, in_a_row) = (skipped + 1, in_a_row + 1),
            }
            if in_a_row >= self.prompts.patience() {
                bail!(
                    "{in_a_row} demonstrations in a row were too long: prompts have at most rollout.max_prompt_tokens, {}, solutions at most {longest} tokens, and both together {limit}",
                    self.config.rollout.max_prompt_tokens
                );
            }
        }
        Ok((drawn, skipped))
    }

    /// Writes the training's state into a checkpoint folder: `policy` and `trainer`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.prompts.save_model(
            &folder.join("policy"),
            &self.model_config,
            &self.learner.weights,
        )?;
        let trainer = folder.join("trainer");
        std::fs::create_dir_all(&trainer)
            .with_context(|| format!("cannot create {}", trainer.display()))?;
        save_optimizer(&trainer.join("policy.safetensors"), &self.learner)?;
        save_state(folder, &self.state)
    }

    /// Takes the training up where a checkpoint left it.
    ///
    /// # Errors
    /// When the checkpoint is not one of this configuration.
    pub fn restore(&mut self, folder: &Path) -> Result<()> {
        self.state = load_state(folder)?;
        self.learner.weights.reload(&folder.join("policy"), &self.model_config)?;
        self.learner
            .optimizer_mut()
            .restore(&folder.join("trainer").join("policy.safetensors"), self.state.step)?;
        Ok(())
    }
}
