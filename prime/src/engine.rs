//! A model shape ready to score responses and to differentiate losses of them, in micro-batches over planned buffers.

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use prime_kernels::{device, prm_loss};
use prime_model::{
    Activations, AdamW, Config as ModelConfig, Decoder, Gradients, Limits, Mode, OutputGradients,
    Pack, Parts, Schedule, Upload, Weights, on_host,
};
use prime_runtime::{DType, Device, Tensor, View, ViewMut, safetensors};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::OptimizerConfig;
use crate::step::prm_targets::Targets;

/// A prompt and a response to it, whose tokens are scored.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The prompt's tokens.
    pub prompt: &'a [u32],
    /// The response's tokens.
    pub response: &'a [u32],
}

impl Sample<'_> {
    /// Rows that the sample takes in a pack.
    fn rows(&self) -> usize {
        Pack::response_tokens(self.prompt.len(), self.response.len())
    }
}

/// What a loss says of one micro-batch: the gradient with respect to each response token's log-probability, and to the entropy there. Both
/// are float32 on the engine's device, and the loss writes all of them.
pub struct TokenGradients<'a> {
    /// (tokens)
    pub log_probs: ViewMut<'a>,
    /// (tokens), to be written only where `uses_entropy` is set.
    pub entropy: ViewMut<'a>,
    /// Whether the loss depends on the entropy.
    pub uses_entropy: bool,
    /// (tokens), to be written only where `uses_values` is set: with respect to the values of a model with a value head.
    pub values: ViewMut<'a>,
    /// Whether the loss depends on the values.
    pub uses_values: bool,
}

/// One micro-batch after its forward pass.
pub struct Scored<'a> {
    /// Which of the samples.
    pub samples: Range<usize>,
    /// Where their tokens lie among those of all samples.
    pub tokens: Range<usize>,
    /// Log-probability of each of these tokens, on the engine's device.
    pub log_probs: View<'a>,
    /// Entropy at each, nats, likewise.
    pub entropy: View<'a>,
    /// The value of the text before each, where the model has a value head, likewise.
    pub values: View<'a>,
    /// Where the loss puts what it reads besides.
    pub inputs: &'a mut LossInputs,
}

/// One micro-batch after the forward pass of a critic.
pub struct Valued<'a> {
    /// Where its tokens lie among those of all samples.
    pub tokens: Range<usize>,
    /// The value of the text before each of these tokens, on the engine's device.
    pub values: View<'a>,
    /// Where the loss puts what it reads besides.
    pub inputs: &'a mut LossInputs,
    /// The gradient with respect to each value, which the loss writes: (tokens).
    pub d_values: ViewMut<'a>,
}

/// What a forward pass takes at the responses' tokens.
#[derive(Clone, Copy)]
enum Pass {
    /// Log-probabilities and entropies at a temperature, and values where the model has a value head.
    Tokens(f32),
    /// Values alone.
    Values,
}

/// Memory on the engine's device for what a loss reads beside the scores, planned for the largest micro-batch.
pub struct LossInputs {
    /// Three columns of up to as many numbers as the micro-batch has tokens.
    pub columns: Upload<f32, 3>,
    /// Where responses begin and the end, and where the PRM's targets of each begin.
    pub cu_seqlens: Upload<u32, 2>,
    /// Labels, offsets and weights of the PRM's targets: (targets).
    targets: Upload<f32, 3>,
    /// How many targets are planned for.
    most_targets: usize,
    /// Three columns more, for penalties.
    pub penalty_columns: Upload<f32, 3>,
    /// (tokens): the penalty of each token.
    pub penalties: Tensor,
    device: Device,
}

impl LossInputs {
    fn new(device: Device, tokens: usize) -> Result<Self> {
        Ok(LossInputs {
            columns: Upload::new(device, [tokens; 3])?,
            cu_seqlens: Upload::new(device, [tokens + 1; 2])?,
            targets: Upload::new(device, [tokens; 3])?,
            most_targets: tokens,
            penalty_columns: Upload::new(device, [tokens; 3])?,
            penalties: Tensor::zeros(device, DType::F32, &[tokens])?,
            device,
        })
    }

    /// What a loss of the PRM reads of a micro-batch.
    ///
    /// # Errors
    /// When the device fails.
    pub fn of_prm<'a>(
        &'a mut self,
        prm_log_probs: View<'a>,
        reference: &'a [f32],
        cu_seqlens: &'a [u32],
        targets: &'a Targets,
    ) -> Result<prm_loss::Inputs<'a>> {
        if targets.labels.len() > self.most_targets {
            // Only where responses have hardly a token each and many partners.
            self.most_targets = targets.labels.len();
            self.targets = Upload::new(self.device, [self.most_targets; 3])?;
        }
        let [ref_log_probs, _, _] = self.columns.place([reference, &[], &[]])?;
        let [cu_seqlens, cu_targets] = self.cu_seqlens.place([cu_seqlens, &targets.cu_targets])?;
        let [labels, offsets, weights] =
            self.targets.place([&targets.labels, &targets.offsets, &targets.weights])?;
        let targets = prm_loss::Targets { labels, offsets, weights, cu_targets };
        Ok(prm_loss::Inputs { prm_log_probs, ref_log_probs, cu_seqlens, targets })
    }
}

/// A decoder with its buffers. The weights come with each call, so policy, PRM and reference of one shape share an engine.
pub struct Engine {
    decoder: Decoder,
    activations: Activations,
    pack: Pack,
    inputs: LossInputs,
    d_log_probs: Tensor, // (tokens)
    d_entropy: Tensor,   // (tokens)
    d_values: Tensor,    // (tokens)
    cold: Cold,
}

/// Passes whose kernels have yet to be made ready.
struct Cold {
    forward: bool,
    backward: bool,
}

impl Engine {
    /// Plans for micro-batches of up to `tokens` tokens and sequences of up to as many.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn new(
        config: &ModelConfig,
        device: Device,
        dtype: DType,
        tokens: usize,
        mode: Mode,
    ) -> Result<Self> {
        let limits = Limits { tokens, picked: tokens };
        Ok(Engine {
            decoder: Decoder::new(config, device, tokens)?,
            activations: Activations::new(config, device, dtype, limits, mode)?,
            pack: Pack::with_capacity(tokens, tokens),
            inputs: LossInputs::new(device, tokens)?,
            d_log_probs: Tensor::zeros(device, DType::F32, &[tokens])?,
            d_entropy: Tensor::zeros(device, DType::F32, &[tokens])?,
            d_values: Tensor::zeros(device, DType::F32, &[tokens])?,
            cold: Cold { forward: true, backward: true },
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        self.activations.bytes()
    }

    /// Appends the log-probability of every response token, and the entropy there, samples in order.
    ///
    /// # Errors
    /// When a sample is longer than a micro-batch. Results are not looked at: who uses them refuses those that are not finite.
    pub fn score<'a>(
        &mut self,
        weights: impl Into<Parts<'a>>,
        samples: &[Sample<'_>],
        temperature: f32,
        log_probs: &mut Vec<f32>,
        entropy: &mut Vec<f32>,
    ) -> Result<()> {
        let pass = Pass::Tokens(temperature);
        self.each_micro_batch(weights.into(), samples, pass, |engine, _, tokens| {
            log_probs.extend_from_slice(&on_host(engine.activations.log_probs(tokens.len()))?);
            entropy.extend_from_slice(&on_host(engine.activations.entropy(tokens.len()))?);
            Ok(())
        })
    }

    /// Appends a critic's value of the text before every response token, samples in order.
    ///
    /// # Errors
    /// When the model has no value head or a sample is longer than a micro-batch.
    pub fn values(
        &mut self,
        weights: &Weights,
        samples: &[Sample<'_>],
        values: &mut Vec<f32>,
    ) -> Result<()> {
        self.each_micro_batch(weights.into(), samples, Pass::Values, |engine, _, tokens| {
            values.extend_from_slice(&on_host(engine.activations.values(tokens.len()))?);
            Ok(())
        })
    }

    /// Adds to `gradients` those of a loss of a critic's values.
    ///
    /// # Errors
    /// As for [`Engine::values`], and when the loss fails.
    pub fn differentiate_values(
        &mut self,
        weights: &Weights,
        gradients: &mut Gradients,
        samples: &[Sample<'_>],
        mut loss: impl FnMut(Valued<'_>) -> Result<()>,
    ) -> Result<()> {
        self.each_micro_batch(weights.into(), samples, Pass::Values, |engine, _, tokens| {
            let Engine { decoder, activations, pack, inputs, d_values, .. } = engine;
            let count = tokens.len();
            loss(Valued {
                tokens,
                values: activations.values(count),
                inputs,
                d_values: d_values.head_mut(count),
            })?;
            let d = OutputGradients { values: Some(d_values.head(count)), ..Default::default() };
            decoder.backward_from(weights, pack, 1.0, d, activations, gradients)?;
            Ok(())
        })
    }

    /// Adds to `gradients` those of a loss, which says of each micro-batch how it depends on its log-probabilities and entropies.
    ///
    /// # Errors
    /// When a sample is longer than a micro-batch or the loss fails.
    pub fn differentiate(
        &mut self,
        weights: &Weights,
        gradients: &mut Gradients,
        samples: &[Sample<'_>],
        temperature: f32,
        mut loss: impl FnMut(Scored<'_>, &mut TokenGradients<'_>) -> Result<()>,
    ) -> Result<()> {
        let pass = Pass::Tokens(temperature);
        self.each_micro_batch(weights.into(), samples, pass, |engine, samples, tokens| {
            let Engine {
                decoder,
                activations,
                pack,
                inputs,
                d_log_probs,
                d_entropy,
                d_values,
                cold,
            } = engine;
            let count = tokens.len();
            let mut d = TokenGradients {
                log_probs: d_log_probs.head_mut(count),
                entropy: d_entropy.head_mut(count),
                uses_entropy: false,
                values: d_values.head_mut(count),
                uses_values: false,
            };
            let scored = Scored {
                samples,
                tokens,
                log_probs: activations.log_probs(count),
                entropy: activations.entropy(count),
                values: activations.values(count),
                inputs,
            };
            loss(scored, &mut d)?;
            let (uses_entropy, uses_values) = (d.uses_entropy, d.uses_values);
            let device = activations.device();
            let mut backward = || {
                let d = OutputGradients {
                    log_probs: Some(d_log_probs.head(count)),
                    entropy: uses_entropy.then(|| d_entropy.head(count)),
                    values: uses_values.then(|| d_values.head(count)),
                };
                decoder.backward_from(weights, pack, temperature, d, activations, gradients)
            };
            if std::mem::take(&mut cold.backward) {
                device::prepare(device, &mut backward)?;
            }
            Ok(backward()?)
        })
    }

    /// Runs samples forward, as many at a time as the plan holds, in order.
    fn each_micro_batch(
        &mut self,
        mut weights: Parts<'_>,
        samples: &[Sample<'_>],
        pass: Pass,
        mut then: impl FnMut(&mut Self, Range<usize>, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let limit = self.activations.limits().tokens;
        let (mut start, mut first_token) = (0, 0);
        while start < samples.len() {
            self.pack.clear();
            let mut end = start;
            while end < samples.len() && self.pack.tokens.len() + samples[end].rows() <= limit {
                self.pack.push_response(samples[end].prompt, samples[end].response);
                end += 1;
            }
            ensure!(
                end > start,
                "a prompt and response of {} tokens do not fit in a micro-batch of {limit}: raise train.micro_batch_tokens",
                samples[start].rows()
            );
            let Engine { decoder, activations, pack, cold, .. } = self;
            let device = activations.device();
            let mut forward = || match pass {
                Pass::Tokens(temperature) => {
                    decoder.forward(weights.reborrow(), pack, temperature, activations)
                }
                Pass::Values => decoder.forward_values(weights.reborrow(), pack, activations),
            };
            if std::mem::take(&mut cold.forward) {
                device::prepare(device, &mut forward)?;
            }
            forward()?;
            let tokens = first_token..first_token + self.pack.picked.len();
            first_token = tokens.end;
            then(self, start..end, tokens)?;
            start = end;
        }
        Ok(())
    }
}

/// Weights that learn: with their gradients, their optimiser and their learning rate.
pub struct Learner {
    /// The model's weights.
    pub weights: Weights,
    /// Gradients of the batch at hand.
    pub gradients: Gradients,
    optimizer: AdamW,
    schedule: Schedule,
}

/// What an update did.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// The learning rate.
    pub learning_rate: f64,
}

impl Learner {
    /// A learner of fresh optimiser state for a run of `total` updates; `seed` fixes how what is held in few bits is rounded.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn new(weights: Weights, config: &OptimizerConfig, total: u64, seed: u64) -> Result<Self> {
        let gradients = Gradients::of(&weights)?;
        let optimizer = AdamW::new(&weights, config.settings(seed))?;
        Ok(Learner { weights, gradients, optimizer, schedule: config.schedule(total) })
    }

    /// The optimiser's state, to be saved.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// The optimiser's state, to be restored.
    pub fn optimizer_mut(&mut self) -> &mut AdamW {
        &mut self.optimizer
    }

    /// Updates the weights by the gradients, and clears these.
    ///
    /// # Errors
    /// When a gradient is NaN or infinite: the weights stay as they were.
    pub fn update(&mut self) -> Result<Update> {
        let learning_rate = self.schedule.rate(self.optimizer.step() + 1);
        let gradient_norm =
            self.optimizer.update(&mut self.weights, &self.gradients, learning_rate)?;
        self.gradients.clear()?;
        Ok(Update { gradient_norm, learning_rate })
    }
}

/// Writes an optimiser's state as a safetensors file.
///
/// # Errors
/// When the disk refuses.
pub fn save_optimizer(path: &Path, learner: &Learner) -> Result<()> {
    let tensors =
        learner.optimizer().tensors().map(|(name, view)| safetensors::Source::view(name, view));
    Ok(safetensors::write(path, tensors, &[])?)
}

/// Writes where a training stands into a checkpoint's `trainer` folder.
///
/// # Errors
/// When the disk refuses.
pub fn save_state(folder: &Path, state: &impl Serialize) -> Result<()> {
    let path = folder.join("trainer").join("state.json");
    std::fs::write(&path, serde_json::to_string_pretty(state)?)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads what [`save_state`] wrote.
///
/// # Errors
/// When the file is missing or of another version.
pub fn load_state<T: DeserializeOwned>(folder: &Path) -> Result<T> {
    let path = folder.join("trainer").join("state.json");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}
