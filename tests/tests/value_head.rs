//! A decoder with a value head: values, their gradients by central differences, and how they join the policy's.

use prime_model::{
    Activations, Architecture, Config, Decoder, Gradients, Limits, Mode, OutputGradients, Pack,
    RopeScaling, Weights,
};
use prime_runtime::random::{Generator, Stream};
use prime_runtime::{DType, Device, Tensor};

fn config(architecture: Architecture) -> Config {
    Config {
        architecture,
        vocab_size: 29,
        hidden_size: 24,
        intermediate_size: 40,
        num_layers: 2,
        num_heads: 3,
        num_kv_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: false,
        qkv_bias: architecture == Architecture::Qwen2,
        output_bias: false,
        qk_norm: architecture == Architecture::Qwen3,
        max_position_embeddings: 64,
        dtype: DType::F32,
        bos_token_id: None,
        eos_token_ids: Vec::new(),
        pad_token_id: None,
        initializer_range: 0.2,
    }
}

/// Responses of 5, 0, 1 and 9 tokens behind prompts of 3, 4, 1 and 2.
fn pack() -> Pack {
    let mut pack = Pack::default();
    pack.clear();
    let text: Vec<u32> = (0..20).map(|i| i * 7 % 29).collect();
    for (prompt, response) in [(3, 5), (4, 0), (1, 1), (2, 9)] {
        pack.push_response(&text[..prompt], &text[prompt..prompt + response]);
    }
    pack
}

const PICKED: usize = 15;

struct Model {
    decoder: Decoder,
    weights: Weights,
    activations: Activations,
    pack: Pack,
    device: Device,
}

impl Model {
    /// Random weights, the head's too.
    fn new(architecture: Architecture, device: Device, dtype: DType, mode: Mode) -> Model {
        let config = config(architecture);
        let mut weights = Weights::random(&config, dtype, 3).unwrap().to(device).unwrap();
        weights.add_value_head(&config).unwrap();
        let head = weights.layout().value_head.clone().unwrap();
        let mut random = Generator::new(4, Stream::Test, 0);
        let folder = tempfile::tempdir().unwrap();
        let values: Vec<f32> = (0..head.weight.len()).map(|_| random.normal() * 0.3).collect();
        let tensors = [("score.weight", &values[..], 24), ("score.bias", &[0.25f32][..], 1)];
        let tensors: Vec<(&str, Tensor)> = tensors
            .map(|(name, values, columns)| {
                let dims: &[usize] = if columns == 1 { &[1] } else { &[1, columns] };
                (name, Tensor::from_slice(values, dims).unwrap())
            })
            .into();
        let sources = tensors
            .iter()
            .map(|(name, tensor)| prime_runtime::safetensors::Source::view(*name, tensor.view()));
        let path = folder.path().join(prime_model::VALUE_HEAD_FILE);
        prime_runtime::safetensors::write(&path, sources, &[]).unwrap();
        weights.load_value_head(folder.path()).unwrap();
        let limits = Limits { tokens: 64, picked: 64 };
        Model {
            decoder: Decoder::new(&config, device, 64).unwrap(),
            activations: Activations::new(&config, device, dtype, limits, mode).unwrap(),
            weights,
            pack: pack(),
            device,
        }
    }

    fn values(&mut self) -> Vec<f32> {
        self.decoder.forward_values(&self.weights, &self.pack, &mut self.activations).unwrap();
        self.activations.values(PICKED).to_f32_vec()
    }

    /// Gradients of the sum of `d_values * value + d_log_probs * log_prob`, where they are given.
    fn gradients(&mut self, log_probs: Option<&[f32]>, values: Option<&[f32]>) -> Vec<f32> {
        let place = |numbers: &[f32]| {
            Tensor::from_slice(numbers, &[PICKED]).unwrap().to(self.device).unwrap()
        };
        let (log_probs, values) = (log_probs.map(place), values.map(place));
        let mut gradients = Gradients::zeros(self.weights.layout().clone(), self.device).unwrap();
        self.decoder.forward(&self.weights, &self.pack, 1.0, &mut self.activations).unwrap();
        let d = OutputGradients {
            log_probs: log_probs.as_ref().map(Tensor::view),
            entropy: None,
            values: values.as_ref().map(Tensor::view),
        };
        let Model { decoder, weights, pack, activations, .. } = self;
        decoder.backward_from(weights, pack, 1.0, d, activations, &mut gradients).unwrap();
        gradients.data().to_f32_vec()
    }
}

fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut random = Generator::new(seed, Stream::Test, 0);
    (0..count).map(|_| random.normal()).collect()
}

#[test]
fn a_head_changes_nothing_of_the_log_probabilities_and_both_passes_give_one_value() {
    for architecture in Architecture::ALL {
        for dtype in [DType::F32, DType::BF16] {
            let mut model = Model::new(architecture, Device::Cpu, dtype, Mode::Score);
            let alone = model.values();
            let Model { decoder, weights, pack, activations, .. } = &mut model;
            decoder.forward(&*weights, pack, 0.7, activations).unwrap();
            assert_eq!(activations.values(PICKED).to_f32_vec(), alone);
            let with = activations.log_probs(PICKED).to_f32_vec();
            let plain = Weights::random(decoder.config(), dtype, 3).unwrap();
            decoder.forward(&plain, pack, 0.7, activations).unwrap();
            assert_eq!(activations.log_probs(PICKED).to_f32_vec(), with);
            assert!(alone.windows(2).any(|pair| pair[0] != pair[1]), "{alone:?}");
            let refused = decoder.forward_values(&plain, pack, activations).unwrap_err();
            assert!(refused.to_string().contains("has no value head"), "{refused}");
        }
    }
}

/// Along the gradient of each parameter, which is the direction in which a loss rises most, it rises by the gradient's length.
#[test]
fn the_gradient_of_values_is_their_slope() {
    for (architecture, mode) in [
        (Architecture::Qwen2, Mode::Train),
        (Architecture::Qwen3, Mode::TrainCheckpointed),
        (Architecture::Llama, Mode::Train),
    ] {
        let mut model = Model::new(architecture, Device::Cpu, DType::F32, mode);
        let d = random(7, PICKED);
        let gradient = model.gradients(None, Some(&d));
        let layout = model.weights.layout().clone();
        let head = layout.value_head.clone().unwrap();
        let mut parameters: Vec<(String, std::ops::Range<usize>)> =
            layout.tensors.iter().map(|t| (t.name.clone(), t.range.clone())).collect();
        parameters.push(("head weight".into(), head.weight));
        parameters.push(("head bias".into(), head.bias));
        for (name, range) in parameters {
            let part = &gradient[range.clone()];
            let length = part.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
            if name == "lm_head.weight" {
                assert_eq!(length, 0.0, "values do not depend on the final projection");
                continue;
            }
            let direction: Vec<f32> =
                part.iter().map(|&x| (f64::from(x) / length) as f32).collect();
            let before: Vec<f32> = model.weights.data().as_slice::<f32>()[range.clone()].to_vec();
            let mut loss_at = |step: f32| -> f64 {
                let moved = &mut model.weights.data_mut().as_mut_slice::<f32>()[range.clone()];
                for ((weight, start), direction) in moved.iter_mut().zip(&before).zip(&direction) {
                    *weight = start + step * direction;
                }
                let values = model.values();
                values.iter().zip(&d).map(|(&v, &d)| f64::from(v) * f64::from(d)).sum()
            };
            let slope = |loss_at: &mut dyn FnMut(f32) -> f64, step: f32| {
                (loss_at(step) - loss_at(-step)) / (2.0 * f64::from(step))
            };
            // Richardson's extrapolation: what is left of the truncation is of the fourth order.
            let (near, far) = (slope(&mut loss_at, 0.01), slope(&mut loss_at, 0.02));
            loss_at(0.0);
            let numeric = (4.0 * near - far) / 3.0;
            // 15 values below 8, each a chain of some hundred float32 operations whose roundings (2^-24) add as squares, at four standard
            // deviations, over the step; and the fourth order of steps, at most 2 % of a weight's scale, in a smooth function.
            let rounding = 4.0 * 8.0 * (15.0 * 400.0_f64).sqrt() * 2f64.powi(-24) / 0.01;
            let allowed = rounding + 1e-3 * length;
            assert!(
                (numeric - length).abs() <= allowed,
                "{architecture:?} {name}: the slope is {numeric}, the gradient {length}, within {allowed}"
            );
        }
    }
}

#[test]
fn gradients_of_values_and_log_probabilities_add_up() {
    for device in [Device::Cpu, Device::Emulated] {
        for dtype in [DType::F32, DType::BF16] {
            let mut model = Model::new(Architecture::Llama, device, dtype, Mode::Train);
            let (d_log_probs, d_values) = (random(8, PICKED), random(9, PICKED));
            let policy = model.gradients(Some(&d_log_probs), None);
            let critic = model.gradients(None, Some(&d_values));
            let both = model.gradients(Some(&d_log_probs), Some(&d_values));
            let most = policy.iter().chain(&critic).fold(0.0f32, |most, x| most.max(x.abs()));
            // Each gradient of an activation is rounded on its way, in both passes: some 20 times a layer, relative to the greatest.
            let unit = if dtype == DType::F32 { 2f32.powi(-24) } else { 2f32.powi(-8) };
            let allowed = 2.0 * 20.0 * unit * most;
            for (i, (both, (policy, critic))) in
                both.iter().zip(policy.iter().zip(&critic)).enumerate()
            {
                let apart = (both - (policy + critic)).abs();
                assert!(apart <= allowed, "{device} {dtype}: {i} is off by {apart} of {allowed}");
            }
            assert!(critic.iter().any(|&x| x != 0.0));
        }
    }
}

#[test]
fn values_and_their_gradients_on_the_emulated_device_are_those_of_the_host() {
    for dtype in [DType::F32, DType::BF16] {
        let mut host = Model::new(Architecture::Qwen3, Device::Cpu, dtype, Mode::Train);
        let mut device = Model::new(Architecture::Qwen3, Device::Emulated, dtype, Mode::Train);
        let (ours, theirs) = (device.values(), host.values());
        let unit = if dtype == DType::F32 { 2f32.powi(-24) } else { 2f32.powi(-8) };
        // Chains of some hundred operations in another order, at four standard deviations, on values below 4.
        let allowed = 4.0 * 4.0 * 400f32.sqrt() * unit;
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() <= allowed, "{dtype}: {ours} and {theirs}");
        }
        let d = random(10, PICKED);
        let (ours, theirs) = (device.gradients(None, Some(&d)), host.gradients(None, Some(&d)));
        let most = theirs.iter().fold(0.0f32, |most, x| most.max(x.abs()));
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert!((ours - theirs).abs() <= allowed * most, "{dtype}: {ours} and {theirs}");
        }
    }
}

#[test]
fn a_head_is_saved_and_read_and_one_of_another_model_is_refused() {
    let model = Model::new(Architecture::Llama, Device::Cpu, DType::F32, Mode::Score);
    let folder = tempfile::tempdir().unwrap();
    model.weights.save_value_head(folder.path()).unwrap();
    let config = config(Architecture::Llama);
    let mut again = Weights::random(&config, DType::F32, 3).unwrap();
    assert!(
        again.save_value_head(folder.path()).unwrap_err().to_string().contains("no value head")
    );
    assert!(again.load_value_head(folder.path()).unwrap_err().to_string().contains("no place"));
    again.add_value_head(&config).unwrap();
    again.load_value_head(folder.path()).unwrap();
    assert_eq!(again.data().as_slice::<f32>(), model.weights.data().as_slice::<f32>());
    let wider = Config { hidden_size: 32, ..config };
    let mut other = Weights::random(&wider, DType::F32, 3).unwrap();
    other.add_value_head(&wider).unwrap();
    let message = other.load_value_head(folder.path()).unwrap_err().to_string();
    assert!(message.contains("score.weight") && message.contains("[1, 24]"), "{message}");
}
