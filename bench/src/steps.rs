//! Whole steps, ready to run again and again: training, prefill and decoding of models, a step of PRIME, and single products.
//!
//! The suite measures them with criterion, `examples/step.rs` beside other programs (`tools/peers`).

use std::path::Path;

use prime::config::Config as RunConfig;
use prime::setup;
use prime::trainer::Trainer;

use prime_kernels::matmul::{self, Epilogue, Layout as Product, Packed};
use prime_kernels::testing::{generator, normal};
use prime_model::{
    Activations, AdamW, AdamWSettings, Architecture, Config, Decoder, Error, GenerationLimits,
    Generator, Gradients, Limits, Mode, Pack, Request, Result, RopeScaling, Sampling, Weights,
};
use prime_runtime::random::{self, Stream};
use prime_runtime::{DType, Device, Tensor};

/// A model and the batch that it is trained on.
#[derive(Clone, Debug)]
pub struct Shape {
    /// The name on command lines and in results.
    pub name: &'static str,
    /// The model.
    pub config: Config,
    /// Sequences of a training batch.
    pub sequences: usize,
    /// Tokens of each.
    pub length: usize,
}

impl Shape {
    /// A model of reasoning with digits: 1.5 million parameters.
    pub fn small() -> Self {
        let config = config(192, 4, 6, 512, 64);
        Shape { name: "small", config, sequences: 64, length: 64 }
    }

    /// 26 million parameters.
    pub fn medium() -> Self {
        let config = config(512, 8, 8, 1408, 6400);
        Shape { name: "medium", config, sequences: 8, length: 256 }
    }

    /// The shape of a name.
    pub fn named(name: &str) -> Option<Self> {
        [Shape::small(), Shape::medium(), Shape::billions()]
            .into_iter()
            .find(|shape| shape.name == name)
    }

    /// The sizes of Qwen2.5 1.5B, and one sequence of 4096 tokens: for GPUs.
    pub fn billions() -> Self {
        let config = config(1536, 28, 12, 8960, 151_936);
        Shape { name: "1.5B", config, sequences: 1, length: 4096 }
    }

    /// For the emulated device.
    pub fn tiny() -> Self {
        Shape { name: "tiny", config: config(64, 2, 4, 96, 200), sequences: 2, length: 12 }
    }
}

/// A Qwen2 with two key/value heads and a tied embedding.
fn config(
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
) -> Config {
    Config {
        architecture: Architecture::Qwen2,
        vocab_size,
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        num_kv_heads: 2,
        head_dim: hidden_size / num_heads,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        qkv_bias: true,
        output_bias: false,
        qk_norm: false,
        max_position_embeddings: 4096,
        dtype: DType::F32,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        initializer_range: 0.02,
    }
}

/// The random tokens of a sequence's number.
fn tokens(config: &Config, sequence: u64, count: usize) -> Vec<u32> {
    let mut numbers = random::Generator::new(7, Stream::Test, sequence);
    (0..count).map(|_| numbers.below(config.vocab_size as u32)).collect()
}

/// Forward, backward and update of one batch, whose every next token is a target.
pub struct TrainStep {
    decoder: Decoder,
    weights: Weights,
    gradients: Gradients,
    optimizer: AdamW,
    activations: Activations,
    pack: Pack,
    d_log_probs: Tensor,
}

impl TrainStep {
    /// Random weights and their optimiser, and a random batch. bfloat16 weights have float32 masters.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn new(shape: &Shape, dtype: DType, device: Device) -> Result<Self> {
        let Shape { config, sequences, length, .. } = shape;
        let mut pack = Pack::with_capacity(sequences * length, *sequences);
        for sequence in 0..*sequences {
            let tokens = tokens(config, sequence as u64, *length);
            pack.push(tokens.iter().copied());
            for (position, &target) in tokens[1..].iter().enumerate() {
                pack.pick(position, target);
            }
        }
        let limits = Limits { tokens: pack.tokens.len(), picked: pack.picked.len() };
        let weights = Weights::random(config, dtype, 1)?.to(device)?;
        let d_log_probs = vec![-1.0 / limits.picked as f32; limits.picked];
        let d_log_probs = Tensor::from_slice(&d_log_probs, &[limits.picked])?;
        let settings = AdamWSettings {
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.01,
            max_gradient_norm: 0.0,
            state: Default::default(),
        };
        Ok(TrainStep {
            decoder: Decoder::new(config, device, *length)?,
            gradients: Gradients::zeros(weights.layout().clone(), device)?,
            optimizer: AdamW::new(&weights, settings)?,
            activations: Activations::new(config, device, dtype, limits, Mode::Train)?,
            d_log_probs: if device == Device::Cpu {
                d_log_probs
            } else {
                d_log_probs.to(device)?
            },
            weights,
            pack,
        })
    }

    /// Tokens of the batch.
    pub fn tokens(&self) -> usize {
        self.pack.tokens.len()
    }

    /// One step; returns the mean negative log-probability before it.
    ///
    /// # Errors
    /// When the loss or a gradient is not finite.
    pub fn run(&mut self) -> Result<f64> {
        self.decoder.forward(&self.weights, &self.pack, 1.0, &mut self.activations)?;
        let picked = self.pack.picked.len();
        let log_probs = self.activations.log_probs(picked).to_f32_vec();
        let loss = -log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() / log_probs.len() as f64;
        self.decoder.backward(
            &self.weights,
            &self.pack,
            1.0,
            self.d_log_probs.view(),
            None,
            &mut self.activations,
            &mut self.gradients,
        )?;
        self.optimizer.update(&mut self.weights, &self.gradients, 1e-4)?;
        self.gradients.clear()?;
        Ok(loss)
    }
}

/// Greedy generation for a batch of different prompts.
pub struct Generation {
    generator: Generator,
    config: Config,
    batch: usize,
    prompt: usize,
    new_tokens: usize,
    runs: u64,
}

impl Generation {
    /// A model of random weights, to continue `batch` prompts of `prompt` tokens by `new_tokens` each.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn new(
        shape: &Shape,
        dtype: DType,
        device: Device,
        [batch, prompt, new_tokens]: [usize; 3],
    ) -> Result<Self> {
        let config = shape.config.clone();
        let weights = Weights::random(&config, dtype, 1)?.to(device)?;
        let limits = GenerationLimits {
            slots: batch,
            positions: prompt + new_tokens,
            step_tokens: batch * prompt,
        };
        let generator = Generator::new(&config, &weights, limits)?;
        Ok(Generation { generator, config, batch, prompt, new_tokens, runs: 0 })
    }

    /// Prompt tokens that one run feeds.
    pub fn prompt_tokens(&self) -> usize {
        self.batch * self.prompt
    }

    /// Tokens that one run draws.
    pub fn tokens(&self) -> usize {
        self.batch * self.new_tokens
    }

    /// Prefill and draws. Each run has prompts of its own: the keys and values of known ones would be found in the cache.
    ///
    /// # Errors
    /// When generation fails, or a sequence has not all its tokens.
    pub fn run(&mut self) -> Result<()> {
        let first = self.runs * self.batch as u64;
        self.runs += 1;
        let sampling = Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };
        let requests: Vec<Request> = (first..first + self.batch as u64)
            .map(|sequence| Request {
                prompt: tokens(&self.config, sequence, self.prompt).into(),
                sequence,
                sampling,
                max_new_tokens: self.new_tokens,
            })
            .collect();
        let drawn = self.generator.generate(&requests, &[], |_| {})?;
        match drawn.iter().find(|completion| completion.tokens.len() != self.new_tokens) {
            None => Ok(()),
            Some(short) => Err(Error::Value(format!(
                "a sequence ended after {} of {} tokens",
                short.tokens.len(),
                self.new_tokens
            ))),
        }
    }
}

/// A step of PRIME: rollouts of a new model, graded, scored, and both models updated.
pub struct PrimeStep {
    trainer: Trainer,
    tokens: usize,
}

impl PrimeStep {
    /// A new model of the built-in task, of the default run's size or a tiny one, in float32. Nothing is filtered away: a model that knows
    /// nothing would leave nothing to train on.
    ///
    /// # Errors
    /// When the settings or the memory are not to be had.
    pub fn new(device: Device, tiny: bool) -> anyhow::Result<Self> {
        let mut settings: Vec<String> = [
            "filter.lower=0",
            "filter.upper=1",
            "prm.warmup_batches=0",
            "rollout.prompts=16",
            "rollout.samples=4",
            "filter.groups=16",
        ]
        .map(str::to_owned)
        .into();
        if tiny {
            let small = [
                "model.hidden_size=32",
                "model.num_layers=1",
                "model.num_heads=2",
                "model.num_kv_heads=1",
                "model.head_dim=16",
                "model.intermediate_size=48",
                "rollout.prompts=2",
                "rollout.samples=2",
                "filter.groups=2",
                "rollout.max_new_tokens=4",
                "rollout.slots=4",
                "rollout.pass_tokens=64",
            ];
            settings.extend(small.map(str::to_owned));
        }
        settings.push(format!("device={device}"));
        let config = RunConfig::load(&[], &settings)?;
        let prompts = setup::prompts(&config, None::<&Path>)?;
        let policy = setup::base_model(&config, &prompts)?;
        let (prm, reference) = (policy.duplicate()?, config.needs_kl_reference());
        let reference = reference.then(|| policy.duplicate()).transpose()?;
        let trainer = Trainer::new(&config, prompts, policy, Some((prm, None)))?;
        Ok(PrimeStep { trainer: trainer.with_kl_reference(reference)?, tokens: 0 })
    }

    /// One step; returns the gradient norm of the PRM, which learns from outcomes of one kind too: the advantages of a policy that solves nothing may
    /// all be 0.
    ///
    /// # Errors
    /// When the step fails.
    pub fn run(&mut self) -> anyhow::Result<f64> {
        let (metrics, batch) = self.trainer.step(&mut |_| ())?;
        self.tokens = batch.tokens.len();
        let norm = metrics.get("prm/gradient_norm");
        norm.ok_or_else(|| anyhow::anyhow!("the PRM was not updated"))
    }

    /// Tokens of the last step's responses.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// A linear layer: `[m, k]` by a weight `[n, k]`.
pub struct Linear {
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    packed: Packed,
}

impl Linear {
    /// Random operands.
    ///
    /// # Errors
    /// When the memory is not to be had.
    pub fn new(m: usize, k: usize, n: usize, dtype: DType) -> Result<Self> {
        let mut random = generator(1);
        let weight = normal(&mut random, dtype, &[n, k], 1.0);
        Ok(Linear {
            out: Tensor::zeros(Device::Cpu, dtype, &[m, n])?,
            input: normal(&mut random, dtype, &[m, k], 1.0),
            packed: Packed::new(weight.view(), Product::NT)?,
            weight,
        })
    }

    /// Floating point operations of one run.
    pub fn flops(&self) -> usize {
        2 * self.input.dims()[0] * self.weight.dims().iter().product::<usize>()
    }

    /// The product with the weight as it lies, as in training.
    ///
    /// # Errors
    /// When working memory is not to be had.
    pub fn run(&mut self) -> Result<()> {
        let (a, b) = (self.input.view(), self.weight.view());
        Ok(matmul::forward(self.out.view_mut(), a, b, Product::NT, Epilogue::default())?)
    }

    /// The product with the weight packed once, as in generation.
    ///
    /// # Errors
    /// When working memory is not to be had.
    pub fn run_packed(&mut self) -> Result<()> {
        let (a, b) = (self.input.view(), &self.packed);
        Ok(matmul::forward_packed(self.out.view_mut(), a, b, Epilogue::default())?)
    }
}
