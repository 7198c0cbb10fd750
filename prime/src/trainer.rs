//! The life of a PRIME step, and what lives from step to step.
//!
//! prompts -> rollouts -> outcome grading -> prompt filter -> log-probs under the PRM and the reference -> PRM update ->
//! process rewards -> advantages -> policy update -> metrics. Each arrow is a function of a file of [`crate::step`].

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use prime_kernels::numerics::{self, Numerics};
use prime_kernels::policy_loss::Clip;
use prime_model::{Config as ModelConfig, GenerationLimits, Generator, Mode, Weights};
use prime_runtime::Device;
use prime_runtime::process::{peak_memory_bytes, processor_seconds};
use serde::{Deserialize, Serialize};

use crate::config::{Config, PrmUpdate, Reference};
use crate::engine::{Engine, Learner, Sample, load_state, save_optimizer, save_state};
use crate::frozen::Frozen;
use crate::metrics::Metrics;
use crate::prompts::Prompts;
use crate::step::curriculum::Curriculum;
use crate::step::rollout::Stop;
use crate::step::{
    PrmLoss, Rollouts, accuracy, advantage, implicit_reward, policy_loss, policy_update, prm_update,
};

mod critic;
mod draw;
mod sample;

use critic::Critic;

/// Where a run stands; with weights and optimiser states, all that a resumed run needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Policy updates, counted in batches.
    pub step: u64,
    /// Batches that trained PRM and critic alone.
    pub warmup_batches: u64,
    /// Samples drawn so far: each has a number of its own, which fixes its randomness.
    pub samples: u64,
    /// Training prompts drawn so far: the place in the task.
    pub prompts: u64,
    /// Prompts that passed the filter and found no place in their batch: they are sampled anew, first of all.
    pub buffer: Vec<u64>,
    /// What is remembered of the prompts, where solved ones are left out.
    #[serde(default)]
    pub curriculum: Curriculum,
    /// Optimiser updates of the policy.
    pub policy_updates: u64,
    /// Optimiser updates of the PRM.
    pub prm_updates: u64,
    /// Optimiser updates of a critic of its own.
    #[serde(default)]
    pub critic_updates: u64,
}

/// The implicit PRM: a language model that learns, and what it is compared with.
struct Prm {
    /// Buffers of its own where its shape is not the policy's.
    engine: Option<Engine>,
    learner: Learner,
    /// The frozen reference; none where the sampling policy is the reference.
    reference: Option<Frozen>,
}

/// A model and where it came from.
pub struct Model {
    /// Its configuration.
    pub config: ModelConfig,
    /// Its weights.
    pub weights: Weights,
}

impl Model {
    /// A copy of the weights; of those with an adapter, a copy of the adapter.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn duplicate(&self) -> Result<Model> {
        Ok(Model { config: self.config.clone(), weights: self.weights.duplicate()? })
    }
}

/// Everything that a PRIME run holds.
pub struct Trainer {
    config: Config,
    prompts: Prompts,
    model_config: ModelConfig,
    engine: Engine,
    policy: Learner,
    prm: Option<Prm>,
    critic: Option<Critic>,
    /// What the policy's KL penalties are measured from.
    kl_reference: Option<Frozen>,
    generator: Generator,
    stop: Stop,
    state: State,
}

impl Trainer {
    /// A trainer at step 0. Without `prm`, it trains on outcomes alone.
    ///
    /// # Errors
    /// When the models do not fit the task, or memory is not to be had.
    pub fn new(
        config: &Config,
        prompts: Prompts,
        mut policy: Model,
        prm: Option<(Model, Option<Model>)>,
    ) -> Result<Self> {
        let mode =
            if config.train.checkpoint_activations { Mode::TrainCheckpointed } else { Mode::Train };
        let tokens = config.micro_batch_tokens();
        let (device, dtype) = (config.device(), config.dtype());
        let model_config = policy.config.clone();
        let engine = Engine::new(&model_config, device, dtype, tokens, mode)?;
        let batches = config.train.steps;
        let prm = match prm {
            None => None,
            Some((prm, reference)) => {
                let offload = config.prm.reference_offload;
                let reference = reference
                    .map(|model| Frozen::new(config, model, &model_config, tokens, offload))
                    .transpose()?;
                let updates = (config.prm.warmup_batches + batches)
                    * (config.prm.minibatches * config.prm.epochs) as u64;
                let engine = (prm.config != model_config)
                    .then(|| Engine::new(&prm.config, device, dtype, tokens, mode))
                    .transpose()?;
                Some(Prm {
                    engine,
                    learner: Learner::new(
                        prm.weights,
                        &config.prm.optimizer,
                        updates,
                        config.seed.wrapping_add(1 << 40),
                    )?,
                    reference,
                })
            }
        };
        let critic = Critic::new(config, &prompts, &mut policy, mode)?;
        let generator = Generator::new(&model_config, &policy.weights, config.generation_limits())?;
        let updates = batches * (config.policy.minibatches * config.policy.epochs) as u64;
        let policy = Learner::new(policy.weights, &config.policy.optimizer, updates, config.seed)?;
        let stop = prompts.stop(&model_config);
        let state = State::default();
        Ok(Trainer {
            config: config.clone(),
            prompts,
            model_config,
            engine,
            policy,
            prm,
            critic,
            kl_reference: None,
            generator,
            stop,
            state,
        })
    }

    /// The trainer with a model that never changes, from which the configuration's KL penalties are measured.
    ///
    /// # Errors
    /// When memory is not to be had.
    pub fn with_kl_reference(mut self, reference: Option<Model>) -> Result<Self> {
        let tokens = self.config.micro_batch_tokens();
        self.kl_reference = reference
            .map(|model| Frozen::new(&self.config, model, &self.model_config, tokens, false))
            .transpose()?;
        Ok(self)
    }

    /// Where the run stands.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The policy's configuration.
    pub fn model_config(&self) -> &ModelConfig {
        &self.model_config
    }

    /// The policy's weights.
    pub fn policy(&self) -> &Weights {
        &self.policy.weights
    }

    /// The PRM's weights, where there is one.
    pub fn prm(&self) -> Option<&Weights> {
        self.prm.as_ref().map(|prm| &prm.learner.weights)
    }

    /// The weights of a critic of its own, where there is one.
    pub fn critic(&self) -> Option<&Weights> {
        self.critic.as_ref().and_then(Critic::weights)
    }

    /// The generator, holding the policy's present weights, for an evaluation between steps.
    ///
    /// # Errors
    /// Never, unless memory is corrupt.
    pub fn generator(&mut self) -> Result<&mut Generator> {
        self.generator.load_weights(&self.policy.weights)?;
        Ok(&mut self.generator)
    }

    /// Log-probabilities of a batch's responses under the policy as it now is, at the temperature of sampling: after a step, what its
    /// update made of them.
    ///
    /// # Errors
    /// When the batch does not fit the model.
    pub fn policy_log_probs(&mut self, batch: &Rollouts) -> Result<Vec<f32>> {
        let temperature = self.config.rollout.temperature;
        score(&mut self.engine, &self.policy.weights, &batch.samples(), temperature)
    }

    /// The prompts of the task.
    pub fn prompts(&self) -> &Prompts {
        &self.prompts
    }

    /// Batches that train PRM and critic alone, before the policy's first update.
    pub fn warmup_batches(&self) -> u64 {
        self.prm_warmup().max(self.critic_warmup())
    }

    fn prm_warmup(&self) -> u64 {
        self.prm.as_ref().map_or(0, |_| self.config.prm.warmup_batches)
    }

    fn critic_warmup(&self) -> u64 {
        self.critic.as_ref().map_or(0, |critic| critic.warmup_batches(&self.config))
    }

    /// Whether batches that train PRM and critic alone are still to come.
    pub fn is_warming_up(&self) -> bool {
        self.state.warmup_batches < self.warmup_batches()
    }

    /// One batch that trains PRM and critic alone, before the policy's first update. Where one of them has fewer such batches than the other,
    /// they are the last.
    ///
    /// # Errors
    /// As for [`Trainer::step`].
    pub fn warm_up(&mut self, progress: &mut dyn FnMut(usize)) -> Result<(Metrics, Rollouts)> {
        self.refusable(|trainer| trainer.try_warm_up(progress))
    }

    /// One PRIME step.
    ///
    /// # Errors
    /// When no prompts are to be had, or a loss or gradient is NaN or infinite. The place in the run is then that before the step. An
    /// update is refused whole; of a step that failed later than its first update, [`State`] counts those that were made.
    pub fn step(&mut self, progress: &mut dyn FnMut(usize)) -> Result<(Metrics, Rollouts)> {
        self.refusable(|trainer| trainer.try_step(progress))
    }

    fn refusable<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.state.clone();
        let made = step(self);
        if made.is_err() {
            self.state = before;
            self.state.policy_updates = self.policy.optimizer().step();
            self.policy.gradients.clear()?;
            if let Some(prm) = &mut self.prm {
                self.state.prm_updates = prm.learner.optimizer().step();
                prm.learner.gradients.clear()?;
            }
            if let Some(critic) = &mut self.critic {
                critic.clear(&mut self.state)?;
            }
        }
        made
    }

    fn try_warm_up(&mut self, progress: &mut dyn FnMut(usize)) -> Result<(Metrics, Rollouts)> {
        let start = Began::now();
        let stage = if self.prm.is_some() { "prm_warmup" } else { "critic_warmup" };
        let mut metrics = Metrics::new(stage, self.state.warmup_batches + 1);
        let mut batch = self.sample(progress, &mut metrics)?;
        let left = self.warmup_batches() - self.state.warmup_batches;
        if !batch.is_empty() {
            if left <= self.prm_warmup() {
                self.reward(&mut batch, &mut metrics)?;
            }
            if left <= self.critic_warmup() {
                self.refer(&mut batch, &mut metrics)?;
                self.advise(&mut batch, &mut metrics)?;
                self.update_critic(&batch, &mut metrics)?;
            }
        }
        self.state.warmup_batches += 1;
        finish(&mut metrics, start);
        Ok((metrics, batch))
    }

    fn try_step(&mut self, progress: &mut dyn FnMut(usize)) -> Result<(Metrics, Rollouts)> {
        let start = Began::now();
        let mut metrics = Metrics::new("prime", self.state.step + 1);
        let mut batch = self.sample(progress, &mut metrics)?;
        if !batch.is_empty() {
            self.reward(&mut batch, &mut metrics)?;
            self.refer(&mut batch, &mut metrics)?;
            self.advise(&mut batch, &mut metrics)?;
            self.update_critic(&batch, &mut metrics)?;
            self.update_policy(&mut batch, &mut metrics)?;
        }
        self.state.step += 1;
        finish(&mut metrics, start);
        Ok((metrics, batch))
    }

    /// Log-probs under reference and PRM, the PRM's update, and process rewards.
    fn reward(&mut self, batch: &mut Rollouts, metrics: &mut Metrics) -> Result<()> {
        let Some(prm) = &mut self.prm else { return Ok(()) };
        let started = Instant::now();
        let same_bits =
            self.config.device() == Device::Cpu || numerics::chosen() == Numerics::Invariant;
        let samples_what_it_trains = self.config.rollout.temperature == 1.0 && same_bits;
        batch.ref_log_probs = match &mut prm.reference {
            // On the host, and where sums do not depend on the batch, the sampler's log-probs are the trainer's, bit for bit; at another temperature
            // they are of another distribution. Elsewhere they differ by roundings, which would be rewards where the PRM is still the policy.
            None if samples_what_it_trains => batch.old_log_probs.clone(),
            None => score(&mut self.engine, &self.policy.weights, &batch.samples(), 1.0)?,
            Some(frozen) => frozen.score(&mut self.engine, &batch.samples(), 1.0)?,
        };
        let most = self.config.micro_batch_tokens();
        let mismatched = match self.config.prm.loss {
            PrmLoss::Kto => {
                let mismatched = prm_update::Mismatched::of(batch, most);
                let samples = mismatched.samples();
                Some(match &mut prm.reference {
                    None => score(&mut self.engine, &self.policy.weights, samples, 1.0)?,
                    Some(frozen) => frozen.score(&mut self.engine, samples, 1.0)?,
                })
            }
            _ => None,
        };
        metrics.set("seconds/reference", started.elapsed().as_secs_f64());
        let started = Instant::now();
        let engine = prm.engine.as_mut().unwrap_or(&mut self.engine);
        let settings = prm_update::Settings {
            loss: self.config.prm.loss(),
            minibatches: self.config.prm.minibatches,
            epochs: self.config.prm.epochs,
        };
        if self.config.prm.update == PrmUpdate::Reverse {
            batch.prm_log_probs = score(engine, &prm.learner.weights, &batch.samples(), 1.0)?;
        }
        let of_batch = prm_update::Mismatched::of(batch, most);
        let mismatched = mismatched.as_ref().map(|reference| (&of_batch, &reference[..]));
        let outcome =
            prm_update::prm_update(engine, &mut prm.learner, batch, mismatched, &settings)
                .context("the PRM's update")?;
        match self.config.prm.update {
            PrmUpdate::After => batch.prm_log_probs = outcome.prm_log_probs,
            PrmUpdate::Before => {
                batch.prm_log_probs = score(engine, &prm.learner.weights, &batch.samples(), 1.0)?;
            }
            PrmUpdate::Reverse => {}
        }
        self.state.prm_updates = prm.learner.optimizer().step();
        batch.process_rewards = implicit_reward::process_rewards(batch, &self.config.rewards())?;
        metrics.set("seconds/prm", started.elapsed().as_secs_f64());
        let tokens = batch.token_count() as f64;
        metrics.set("throughput/prm_tokens_per_second", tokens / started.elapsed().as_secs_f64());
        metrics.set("prm/loss", outcome.loss);
        metrics.set("prm/gradient_norm", outcome.update.gradient_norm);
        metrics.set("prm/learning_rate", outcome.update.learning_rate);
        metrics.set("prm/pairwise_accuracy", accuracy::pairwise(batch)?);
        // Against the running policy the sum of log-ratios has no fixed zero: its sign means nothing, and is not reported.
        if self.config.prm.reference == Reference::Frozen {
            metrics.set("prm/sign_accuracy", accuracy::sign(batch)?);
        }
        let mean = batch.process_rewards.iter().map(|&x| f64::from(x)).sum::<f64>() / tokens;
        let squares =
            batch.process_rewards.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
        metrics.set("process_reward/mean", mean);
        metrics.set("process_reward/std", (squares / tokens).sqrt());
        Ok(())
    }

    /// Log-probs under the reference of the policy's KL penalties, at the temperature that the policy is sampled at.
    fn refer(&mut self, batch: &mut Rollouts, metrics: &mut Metrics) -> Result<()> {
        let Some(reference) = &mut self.kl_reference else { return Ok(()) };
        let started = Instant::now();
        let temperature = self.config.rollout.temperature;
        batch.kl_ref_log_probs =
            reference.score(&mut self.engine, &batch.samples(), temperature)?;
        metrics.set("seconds/kl_reference", started.elapsed().as_secs_f64());
        Ok(())
    }

    /// The critic's values, where there is one, returns and advantages.
    fn advise(&mut self, batch: &mut Rollouts, metrics: &mut Metrics) -> Result<()> {
        if let Some(critic) = &mut self.critic {
            batch.values = critic.values(&mut self.engine, &self.policy, batch)?;
        }
        let mut settings = self.config.returns();
        // None without a PRM, and none yet in batches that warm up the critic before the PRM.
        if batch.process_rewards.is_empty() {
            settings.process_coef = 0.0;
        }
        if let Some(penalty) = &settings.length_penalty {
            let sum: f64 = batch.lengths().iter().map(|&length| penalty.of(length)).sum();
            metrics.set("reward/length_penalty", sum / batch.len() as f64);
        }
        if let Some(kl) = settings.kl {
            let divergences = advantage::divergences(batch, &batch.old_log_probs, kl)?;
            let sum: f64 = divergences.iter().map(|&x| f64::from(x)).sum();
            metrics.set("reward/kl", sum / batch.token_count() as f64);
        }
        let advantages = advantage::advantages(batch, &settings)?;
        batch.returns = advantages.returns;
        batch.advantages = advantages.advantages;
        Ok(())
    }

    /// The update of a critic of its own; a shared one learns with the policy.
    fn update_critic(&mut self, batch: &Rollouts, metrics: &mut Metrics) -> Result<()> {
        let Some(critic) = &mut self.critic else { return Ok(()) };
        critic.update(&self.config, &mut self.engine, batch, &mut self.state, metrics)
    }

    fn update_policy(&mut self, batch: &mut Rollouts, metrics: &mut Metrics) -> Result<()> {
        let started = Instant::now();
        let config = &self.config.policy;
        let clip = Clip {
            low: config.clip_low,
            high: config.clip_high,
            dual: (config.dual_clip > 0.0).then_some(config.dual_clip),
        };
        let settings = policy_update::Settings {
            loss: policy_loss::LossSettings {
                loss: config.loss,
                clip,
                covariance: config.covariance(),
            },
            entropy_coef: config.entropy_coef,
            kl: (config.kl_coef > 0.0)
                .then_some(policy_loss::KlPenalty { coef: config.kl_coef, kind: config.kl_kind }),
            aggregation: config.aggregation(),
            mask_truncated: config.mask_truncated,
            max_new_tokens: self.config.rollout.max_new_tokens,
            temperature: self.config.rollout.temperature,
            minibatches: config.minibatches,
            epochs: config.epochs,
            seed: self.config.seed,
            step: self.state.step,
            critic: self.critic.as_ref().and_then(|critic| critic.joint(&self.config)),
        };
        let outcome =
            policy_update::policy_update(&mut self.engine, &mut self.policy, batch, &settings)
                .context("the policy's update")?;
        self.state.policy_updates = self.policy.optimizer().step();
        batch.new_log_probs = outcome.new_log_probs;
        metrics.set("seconds/policy", started.elapsed().as_secs_f64());
        let rate = batch.token_count() as f64 / started.elapsed().as_secs_f64();
        metrics.set("throughput/policy_tokens_per_second", rate);
        metrics.set("policy/loss", outcome.loss);
        metrics.set("policy/clip_fraction", outcome.clip_fraction);
        metrics.set("policy/kl", outcome.kl);
        if config.dual_clip > 0.0 {
            metrics.set("policy/dual_clip_fraction", outcome.dual_clip_fraction);
        }
        if settings.loss.selects() {
            metrics.set("policy/selected_fraction", outcome.selected);
        }
        if config.mask_truncated {
            metrics.set("policy/masked_responses", outcome.masked);
        }
        if let Some(kl) = outcome.kl_reference {
            metrics.set("policy/kl_reference", kl);
        }
        metrics.set("policy/entropy", outcome.entropy);
        metrics.set("policy/gradient_norm", outcome.gradient_norm);
        metrics.set("policy/learning_rate", outcome.learning_rate);
        if let Some(values) = outcome.critic {
            critic::report(metrics, batch, values.loss, values.clip_fraction);
        }
        Ok(())
    }

    /// Writes the policy as a Hugging Face folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save_policy(&self, folder: &Path) -> Result<()> {
        self.prompts.save_model(folder, &self.model_config, &self.policy.weights)
    }

    /// Writes the run's state into a checkpoint folder: `policy`, `prm`, `critic` (Hugging Face folders) and `trainer`.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.save_policy(&folder.join("policy"))?;
        let trainer = folder.join("trainer");
        std::fs::create_dir_all(&trainer)
            .with_context(|| format!("cannot create {}", trainer.display()))?;
        save_optimizer(&trainer.join("policy.safetensors"), &self.policy)?;
        if let Some(prm) = &self.prm {
            let config = prm.engine.as_ref().map_or(&self.model_config, Engine::config);
            self.prompts.save_model(&folder.join("prm"), config, &prm.learner.weights)?;
            save_optimizer(&trainer.join("prm.safetensors"), &prm.learner)?;
        }
        if let Some(critic) = &self.critic {
            critic.save(folder, &self.prompts, (&self.model_config, &self.policy.weights))?;
        }
        save_state(folder, &self.state)
    }

    /// Takes up the run where a checkpoint left it.
    ///
    /// # Errors
    /// When the checkpoint is not one of this configuration.
    pub fn restore(&mut self, folder: &Path) -> Result<()> {
        self.state = load_state(folder)?;
        self.policy.weights.reload(&folder.join("policy"), &self.model_config)?;
        if let Some(critic) = &mut self.critic {
            let policy = (&self.model_config, &mut self.policy.weights);
            critic.restore(folder, policy, self.state.critic_updates)?;
        }
        let moments = folder.join("trainer").join("policy.safetensors");
        self.policy.optimizer_mut().restore(&moments, self.state.policy_updates)?;
        if let Some(prm) = &mut self.prm {
            let config = prm.engine.as_ref().map_or(&self.model_config, Engine::config);
            prm.learner.weights.reload(&folder.join("prm"), config)?;
            let moments = folder.join("trainer").join("prm.safetensors");
            prm.learner.optimizer_mut().restore(&moments, self.state.prm_updates)?;
        }
        Ok(())
    }
}

impl Config {
    /// Tokens of a micro-batch: as configured, and at least one sample of the greatest length.
    pub fn micro_batch_tokens(&self) -> usize {
        self.train
            .micro_batch_tokens
            .max(self.rollout.max_prompt_tokens + self.rollout.max_new_tokens)
    }

    /// What generation is planned for.
    pub fn generation_limits(&self) -> GenerationLimits {
        GenerationLimits {
            slots: self.rollout.slots,
            positions: self.rollout.max_prompt_tokens + self.rollout.max_new_tokens,
            step_tokens: self.rollout.pass_tokens,
        }
    }
}

/// Log-probabilities of samples' tokens.
fn score(
    engine: &mut Engine,
    weights: &Weights,
    samples: &[Sample<'_>],
    temperature: f32,
) -> Result<Vec<f32>> {
    let (mut log_probs, mut entropy) = (Vec::new(), Vec::new());
    engine.score(weights, samples, temperature, &mut log_probs, &mut entropy)?;
    Ok(log_probs)
}

/// When a batch began, by the clock and by what processors have worked for this process.
struct Began {
    clock: Instant,
    processor: Option<f64>,
}

impl Began {
    fn now() -> Began {
        Began { clock: Instant::now(), processor: processor_seconds() }
    }
}

fn finish(metrics: &mut Metrics, start: Began) {
    metrics.set("seconds/step", start.clock.elapsed().as_secs_f64());
    if let (Some(before), Some(after)) = (start.processor, processor_seconds()) {
        metrics.set("processor/seconds", after - before);
    }
    metrics.set("memory/peak_bytes", peak_memory_bytes() as f64);
}
