//! Layers of real models, forward and backward, on a device and on the host.
//!
//! The same weights, rounded to bfloat16, go through the host in float32 (the reference), the host in bfloat16, and the device in both.
//! Distances are relative Euclidean norms over all log-probabilities, and over all gradients. Float32 on the device may be away from the
//! reference by what roundings of its sums explain; bfloat16 by twice what the host's own bfloat16 is.

use anyhow::Result;
use prime_model::{
    Activations, Architecture, Config, Decoder, Gradients, Limits, Mode, Pack, RopeScaling, Weights,
};
use prime_runtime::random::{Generator, Stream};
use prime_runtime::{DType, Device, Tensor};
use serde_json::{Value, json};

/// Two layers of a published model, and the lengths of a pack.
pub struct Shape {
    /// What it is called.
    pub name: &'static str,
    config: Config,
    lengths: &'static [usize],
}

/// What is compared on a device.
pub fn shapes(device: Device) -> Vec<Shape> {
    let base = Config {
        architecture: Architecture::Qwen2,
        vocab_size: 32_768,
        hidden_size: 896,
        intermediate_size: 4864,
        num_layers: 2,
        num_heads: 14,
        num_kv_heads: 2,
        head_dim: 64,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        qkv_bias: true,
        output_bias: false,
        qk_norm: false,
        max_position_embeddings: 4096,
        dtype: DType::BF16,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        initializer_range: 0.02,
    };
    if device == Device::Emulated {
        let config = Config {
            vocab_size: 200,
            hidden_size: 64,
            intermediate_size: 96,
            num_heads: 4,
            head_dim: 16,
            ..base
        };
        return vec![Shape {
            name: "small, for the emulated device",
            config,
            lengths: &[21, 1, 10],
        }];
    }
    let qwen3 = Config {
        architecture: Architecture::Qwen3,
        hidden_size: 1024,
        intermediate_size: 3072,
        num_heads: 16,
        num_kv_heads: 8,
        head_dim: 128,
        qkv_bias: false,
        qk_norm: true,
        ..base.clone()
    };
    let llama = Config {
        architecture: Architecture::Llama,
        hidden_size: 2048,
        intermediate_size: 8192,
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 64,
        qkv_bias: false,
        tie_word_embeddings: false,
        ..base.clone()
    };
    vec![
        Shape { name: "Qwen2.5 0.5B", config: base, lengths: &[700, 1, 323] },
        Shape { name: "Qwen3 0.6B", config: qwen3, lengths: &[512, 64, 447, 1] },
        Shape { name: "Llama 3.2 1B", config: llama, lengths: &[1024] },
    ]
}

/// What a step gives: the log-probabilities of all tokens but each first, and all gradients of their sum.
struct Outcome {
    log_probs: Vec<f32>,
    gradients: Vec<f32>,
}

/// Compares a shape.
///
/// # Errors
/// When a device has no memory for it, or fails.
pub fn check(device: Device, shape: &Shape) -> Result<Value> {
    let narrow = Weights::random(&shape.config, DType::BF16, 11)?;
    let mut wide = Weights::zeros(&shape.config, Device::Cpu, DType::F32)?;
    wide.data_mut().as_mut_slice::<f32>().copy_from_slice(&narrow.data().view().to_f32_vec());
    let reference = step(&wide, shape)?;
    let host = step(&narrow, shape)?;
    let on_device_wide = step(&wide.to(device)?, shape)?;
    let on_device = step(&narrow.to(device)?, shape)?;

    // The longest chain of roundings that an element goes through: per layer the inner dimensions of four products, the norms and the
    // attended keys, forward and backward, and the vocabulary once each way; independent roundings add as squares. Sixteen standard
    // deviations leave room for sums whose terms cancel.
    let config = &shape.config;
    let longest = shape.lengths.iter().max().copied().unwrap_or(0);
    let layer = 6 * config.hidden_size + 2 * config.intermediate_size + config.head_dim + longest;
    let terms = 2 * config.num_layers * layer + 2 * (config.hidden_size + config.vocab_size);
    let float_bound = 16.0 * (terms as f64).sqrt() * 2f64.powi(-24);

    let mut figures = serde_json::Map::new();
    let mut passed = true;
    for (what, of) in [
        ("log_probs", (|outcome: &Outcome| &outcome.log_probs) as fn(&Outcome) -> &Vec<f32>),
        ("gradients", |outcome: &Outcome| &outcome.gradients),
    ] {
        let away = |outcome: &Outcome| distance(of(outcome), of(&reference));
        let (float, narrow, host) = (away(&on_device_wide), away(&on_device), away(&host));
        passed &= float <= float_bound && narrow <= 2.0 * host;
        figures.insert(
            what.to_owned(),
            json!({
                "float32_on_device": float,
                "float32_bound": float_bound,
                "bfloat16_on_device": narrow,
                "bfloat16_on_host": host,
            }),
        );
    }
    Ok(
        json!({ "passed": passed, "tokens": shape.lengths.iter().sum::<usize>(), "distances": figures }),
    )
}

fn step(weights: &Weights, shape: &Shape) -> Result<Outcome> {
    let device = weights.data().device();
    let mut random = Generator::new(3, Stream::Test, 0);
    let mut pack = Pack::default();
    pack.clear();
    for &length in shape.lengths {
        let tokens: Vec<u32> =
            (0..length).map(|_| random.below(shape.config.vocab_size as u32)).collect();
        pack.push(tokens.iter().copied());
        for (position, &target) in tokens.iter().skip(1).enumerate() {
            pack.pick(position, target);
        }
    }
    let picked = pack.picked.len();
    let limits = Limits { tokens: pack.tokens.len(), picked };
    let longest = shape.lengths.iter().max().copied().unwrap_or(1);
    let decoder = Decoder::new(&shape.config, device, longest)?;
    let mut activations =
        Activations::new(&shape.config, device, weights.dtype(), limits, Mode::Train)?;
    decoder.forward(weights, &pack, 1.0, &mut activations)?;
    let log_probs = activations.log_probs(picked).to_f32_vec();
    let ones = Tensor::from_slice(&vec![1.0f32 / picked as f32; picked], &[picked])?;
    let ones = if device == Device::Cpu { ones } else { ones.to(device)? };
    let mut gradients = Gradients::zeros(weights.layout().clone(), device)?;
    decoder.backward(weights, &pack, 1.0, ones.view(), None, &mut activations, &mut gradients)?;
    Ok(Outcome { log_probs, gradients: gradients.data().to_f32_vec() })
}

/// The Euclidean norm of the difference over that of the reference.
fn distance(values: &[f32], reference: &[f32]) -> f64 {
    let (mut apart, mut size) = (0.0, 0.0);
    for (&value, &exact) in values.iter().zip(reference) {
        apart += (f64::from(value) - f64::from(exact)).powi(2);
        size += f64::from(exact).powi(2);
    }
    (apart / size).sqrt()
}
