use prime_kernels::testing::{check_gradient, compare, generator, roundoff};
use prime_runtime::{DType, Device, Tensor};

use super::*;
use crate::config::tests::{llama, qwen2, qwen3};
use crate::{
    Activations, Decoder, GenerationLimits, Generator, Limits, Mode, Pack, Request, Sampling,
};

fn settings(rank: usize, targets: &[&str]) -> LoraSettings {
    let targets = targets.iter().map(|name| name.to_string()).collect();
    LoraSettings { rank, alpha: 1.5 * rank as f64, targets }
}

fn set(tensor: &mut Tensor, values: &[f32]) {
    match tensor.dtype() {
        DType::F32 => tensor.as_mut_slice::<f32>().copy_from_slice(values),
        _ => {
            for (out, &value) in tensor.as_mut_slice::<bf16>().iter_mut().zip(values) {
                *out = <bf16 as Element>::from_f32(value);
            }
        }
    }
}

/// Random weights and an adapter of random A and B.
fn adapted(config: &Config, dtype: DType, settings: &LoraSettings, scale: f32) -> Weights {
    let weights = Weights::random(config, dtype, 1).unwrap();
    let mut adapter = Adapter::new(config, settings, &weights, Path::new("base"), 1, 0).unwrap();
    let mut random = generator(7);
    let values: Vec<f32> =
        (0..adapter.layout().elements).map(|_| random.normal() * scale).collect();
    set(adapter.data_mut(), &values);
    weights.with_adapter(adapter)
}

fn pack(config: &Config) -> Pack {
    let mut pack = Pack::default();
    pack.clear();
    let token = |index: usize| (index * 7 % config.vocab_size) as u32;
    for (first, prompt, response) in [(1, 3, 4), (20, 1, 1), (30, 5, 6)] {
        let tokens: Vec<u32> = (first..first + prompt + response).map(token).collect();
        pack.push_response(&tokens[..prompt], &tokens[prompt..]);
    }
    pack
}

/// Log-probabilities, and the gradients of a sum of them.
fn pass(
    config: &Config,
    weights: &Weights,
    mode: Mode,
    device: Device,
) -> (Vec<f32>, Option<Gradients>) {
    let pack = pack(config);
    let limits = Limits { tokens: pack.tokens.len() + 3, picked: pack.tokens.len() };
    let decoder = Decoder::new(config, device, 16).unwrap();
    let mut activations = Activations::new(config, device, weights.dtype(), limits, mode).unwrap();
    decoder.forward(weights, &pack, 0.9, &mut activations).unwrap();
    let log_probs = activations.log_probs(pack.picked.len()).to_vec::<f32>().unwrap();
    if mode == Mode::Score {
        return (log_probs, None);
    }
    let d: Vec<f32> = (0..log_probs.len()).map(|i| 0.5 - 0.1 * i as f32).collect();
    let d = Tensor::from_slice(&d, &[d.len()]).unwrap().to(device).unwrap();
    let mut gradients = Gradients::of(weights).unwrap();
    decoder
        .backward(weights, &pack, 0.9, d.view(), None, &mut activations, &mut gradients)
        .unwrap();
    (log_probs, Some(gradients))
}

/// One projection in float64: y = y + scale (x A^T) B^T.
struct Oracle {
    tokens: usize,
    inputs: usize,
    rank: usize,
    outputs: usize,
    scale: f64,
}

impl Oracle {
    /// row-major `[m, k]` times the transpose of `[n, k]`
    fn product(a: &[f64], b: &[f64], [m, n, k]: [usize; 3]) -> Vec<f64> {
        let element = |i: usize, j: usize| (0..k).map(|p| a[i * k + p] * b[j * k + p]).sum();
        (0..m * n).map(|index| element(index / n, index % n)).collect()
    }

    fn transposed(a: &[f64], rows: usize) -> Vec<f64> {
        let columns = a.len() / rows;
        (0..a.len()).map(|index| a[index % rows * columns + index / rows]).collect()
    }

    fn forward(&self, x: &[f64], a: &[f64], b: &[f64]) -> Vec<f64> {
        let &Oracle { tokens, inputs, rank, outputs, scale } = self;
        let u = Self::product(x, a, [tokens, rank, inputs]);
        let y = Self::product(&u, b, [tokens, outputs, rank]);
        y.into_iter().map(|y| scale * y).collect()
    }

    /// Gradients by x, A and B of the sum of d_out * out.
    fn backward(&self, d_out: &[f64], x: &[f64], a: &[f64], b: &[f64]) -> [Vec<f64>; 3] {
        let &Oracle { tokens, inputs, rank, outputs, scale } = self;
        let times = |values: Vec<f64>| values.into_iter().map(|x| x * scale).collect::<Vec<_>>();
        let u = times(Self::product(x, a, [tokens, rank, inputs]));
        let (d_out_t, u_t) = (Self::transposed(d_out, tokens), Self::transposed(&u, tokens));
        let d_b = Self::product(&d_out_t, &u_t, [outputs, rank, tokens]);
        let b_t = Self::transposed(b, outputs);
        let d_u = times(Self::product(d_out, &b_t, [tokens, rank, outputs]));
        let (d_u_t, x_t) = (Self::transposed(&d_u, tokens), Self::transposed(x, tokens));
        let d_a = Self::product(&d_u_t, &x_t, [rank, inputs, tokens]);
        let a_t = Self::transposed(a, rank);
        [Self::product(&d_u, &a_t, [tokens, inputs, rank]), d_a, d_b]
    }
}

fn wide(view: View<'_>) -> Vec<f64> {
    view.to_f32_vec().into_iter().map(f64::from).collect()
}

#[test]
fn the_oracle_of_a_projection_has_the_gradient_of_central_differences() {
    let oracle = Oracle { tokens: 3, inputs: 4, rank: 2, outputs: 5, scale: 0.7 };
    let mut random = generator(3);
    let mut draw =
        |count: usize| -> Vec<f64> { (0..count).map(|_| f64::from(random.normal())).collect() };
    let (x, a, b, d_out) = (draw(12), draw(8), draw(10), draw(15));
    let loss = |x: &[f64], a: &[f64], b: &[f64]| -> f64 {
        oracle.forward(x, a, b).iter().zip(&d_out).map(|(y, d)| y * d).sum()
    };
    let [d_x, d_a, d_b] = oracle.backward(&d_out, &x, &a, &b);
    check_gradient("d_x", &x, &d_x, |x| loss(x, &a, &b)).unwrap();
    check_gradient("d_a", &a, &d_a, |a| loss(&x, a, &b)).unwrap();
    check_gradient("d_b", &b, &d_b, |b| loss(&x, &a, b)).unwrap();
}

#[test]
fn each_projection_of_a_product_is_the_oracles_forward_and_backward() {
    let config = qwen2();
    let sizes = crate::decoder::Sizes::new(&config, 6);
    let (tokens, rank) = (6, 3);
    let settings = settings(rank, &["q_proj", "v_proj", "down_proj"]);
    for dtype in [DType::F32, DType::BF16] {
        let weights = adapted(&config, dtype, &settings, 0.5);
        let adapter = weights.adapter().unwrap();
        let mut random = generator(11);
        let mut draw = |rows: usize, columns: usize| {
            prime_kernels::testing::normal(&mut random, dtype, &[rows, columns], 1.0)
        };
        let x = draw(tokens, sizes.hidden);
        let (mut out, d_out) = (draw(tokens, sizes.qkv()), draw(tokens, sizes.qkv()));
        let mut d_x = draw(tokens, sizes.hidden);
        let (before, d_before) = (wide(out.view()), wide(d_x.view()));
        let mut gradients = Gradients::of(&weights).unwrap();
        let mut buffers = LowRankBuffers::new(&weights, tokens, true).unwrap();
        forward(&weights, 1, Place::Qkv, out.view_mut(), x.view(), buffers.as_mut()).unwrap();
        backward(
            &weights,
            1,
            Place::Qkv,
            d_x.view_mut(),
            &mut gradients,
            d_out.view(),
            x.view(),
            buffers.as_mut(),
        )
        .unwrap();

        let low_rank = adapter.layout.low_rank(1, Place::Qkv).unwrap();
        let columns = [0..sizes.q(), sizes.q() + sizes.kv()..sizes.qkv()];
        assert_eq!(low_rank.parts.iter().map(|p| p.columns.clone()).collect::<Vec<_>>(), columns);
        let (mut expected, mut d_expected) = (before, d_before);
        // All numbers are of the order of their inputs; a sum of n terms of magnitude M is off by n roundoffs of M, and what is kept in the dtype
        // by one of its roundoffs more: x A^T twice (its rounding and the scale's), the output, and the input's gradient once a part.
        let magnitude = |terms: usize| terms as f64 * 16.0;
        let error = |terms: usize| {
            magnitude(terms) * (terms as f64 * roundoff(DType::F32) + 4.0 * roundoff(dtype))
        };
        for (index, part) in low_rank.parts.iter().enumerate() {
            let a = adapter.view(&low_rank.a, &[2 * rank, sizes.hidden]);
            let a = wide(a.rows(index * rank..(index + 1) * rank));
            let b = wide(adapter.view(&part.b, &[part.columns.len(), rank]));
            let outputs = part.columns.len();
            let oracle = Oracle { tokens, inputs: sizes.hidden, rank, outputs, scale: 1.5 };
            let of_part = wide(d_out.view().columns(part.columns.clone()));
            let y = oracle.forward(&wide(x.view()), &a, &b);
            for (place, y) in y.into_iter().enumerate() {
                let (row, column) = (place / outputs, place % outputs);
                expected[row * sizes.qkv() + part.columns.start + column] += y;
            }
            let [d_x, d_a, d_b] = oracle.backward(&of_part, &wide(x.view()), &a, &b);
            d_expected.iter_mut().zip(d_x).for_each(|(sum, d)| *sum += d);
            let found = gradients.view(&low_rank.a, &[2 * rank, sizes.hidden]);
            let found = wide(found.rows(index * rank..(index + 1) * rank));
            compare("d_a", &found, &d_a, |_| error(sizes.hidden.max(outputs))).unwrap();
            let found = wide(gradients.view(&part.b, &[outputs, rank]));
            compare("d_b", &found, &d_b, |_| error(sizes.hidden)).unwrap();
        }
        compare("out", &wide(out.view()), &expected, |_| error(sizes.hidden)).unwrap();
        compare("d_x", &wide(d_x.view()), &d_expected, |_| error(sizes.qkv())).unwrap();
        // k has no adapter: not a bit of it changed.
        let k = sizes.q()..sizes.q() + sizes.kv();
        assert_eq!(
            wide(out.view().columns(k.clone())),
            (0..tokens)
                .flat_map(|row| expected[row * sizes.qkv()..][k.clone()].to_vec())
                .collect::<Vec<_>>()
        );
    }
}

#[test]
fn with_b_zero_the_numbers_are_the_bases_to_the_bit() {
    for config in [qwen2(), qwen3(), llama()] {
        for dtype in [DType::F32, DType::BF16] {
            let base = Weights::random(&config, dtype, 1).unwrap();
            let (expected, _) = pass(&config, &base, Mode::Score, Device::Cpu);
            let adapter =
                Adapter::new(&config, &settings(4, &TARGETS), &base, Path::new(""), 1, 0).unwrap();
            assert!(adapter.data().view().to_f32_vec().iter().any(|&x| x != 0.0));
            let weights = base.share().with_adapter(adapter);
            assert!(weights.shares_with(&base));
            for mode in [Mode::Score, Mode::Train] {
                assert_eq!(pass(&config, &weights, mode, Device::Cpu).0, expected);
            }
        }
    }
}

/// By the chain rule the gradients of A and B are s B^T dW and s dW A^T, where dW is the gradient of the merged weights. `transformers` was
/// the judge of dW.
#[test]
fn gradients_of_adapters_are_those_of_the_merged_weights_seen_through_them() {
    for config in [qwen2(), qwen3(), llama()] {
        let settings = settings(4, &TARGETS);
        let weights = adapted(&config, DType::F32, &settings, 0.05);
        let merged = merge(&config, &weights).unwrap();
        let (ours, gradients) = pass(&config, &weights, Mode::Train, Device::Cpu);
        let (theirs, full) = pass(&config, &merged, Mode::Train, Device::Cpu);
        // Log-probabilities of magnitude below 16 through layers of a few hundred terms: 2^-24 * 16 * sqrt(terms), with room for four deviations.
        for (a, b) in ours.iter().zip(&theirs) {
            assert!((a - b).abs() < 2e-4, "{a} beside {b}");
        }
        let base = Weights::random(&config, DType::F32, 1).unwrap();
        let (apart, _) = pass(&config, &base, Mode::Score, Device::Cpu);
        assert!(
            ours.iter().zip(&apart).any(|(a, b)| (a - b).abs() > 1e-2),
            "the adapter does nothing"
        );
        let (gradients, full) = (gradients.unwrap(), full.unwrap());
        let adapter = weights.adapter().unwrap();
        let mut compared = 0;
        for pair in &adapter.layout().tensors {
            let Some(stem) = pair.name.strip_suffix("lora_B.weight") else { continue };
            let find = |name: &str| {
                adapter.layout().tensors.iter().find(|tensor| tensor.name == name).unwrap().clone()
            };
            let (a, b) = (find(&format!("{stem}lora_A.weight")), pair.clone());
            let name = stem.strip_prefix("base_model.model.").unwrap().trim_end_matches('.');
            let target =
                merged.layout().tensors.iter().find(|t| t.name == format!("{name}.weight"));
            let target = target.unwrap();
            let (outputs, inputs) = (target.dims[0], target.dims[1]);
            let d_w = wide(full.view(&target.range, &target.dims));
            let values = |t: &NamedTensor| wide(adapter.view(&t.range, &t.dims));
            let scale = 1.5;
            let times = |v: Vec<f64>| v.into_iter().map(|x| scale * x).collect::<Vec<_>>();
            let d_w_t = Oracle::transposed(&d_w, outputs);
            let b_t = Oracle::transposed(&values(&b), outputs);
            let d_a = times(Oracle::product(&b_t, &d_w_t, [4, inputs, outputs]));
            let d_b = times(Oracle::product(&d_w, &values(&a), [outputs, 4, inputs]));
            for (what, tensor, expected) in [("A", &a, d_a), ("B", &b, d_b)] {
                let found = wide(gradients.view(&tensor.range, &tensor.dims));
                let largest = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
                assert!(largest > 0.0);
                compare(&format!("{name} {what}"), &found, &expected, |_| 2e-4 * largest).unwrap();
                compared += 1;
            }
        }
        assert_eq!(compared, 14 * config.num_layers);
    }
}

#[test]
fn checkpointed_activations_give_the_same_gradients_to_the_bit() {
    let config = qwen3();
    let weights = adapted(&config, DType::F32, &settings(2, &TARGETS), 0.1);
    let (kept, of_kept) = pass(&config, &weights, Mode::Train, Device::Cpu);
    let (again, of_again) = pass(&config, &weights, Mode::TrainCheckpointed, Device::Cpu);
    assert_eq!(kept, again);
    assert_eq!(of_kept.unwrap().data().to_f32_vec(), of_again.unwrap().data().to_f32_vec());
}

#[test]
fn the_sampler_is_the_trainer_with_adapters_too() {
    for config in [qwen2(), qwen3(), llama()] {
        for dtype in [DType::F32, DType::BF16] {
            let weights = adapted(
                &config,
                dtype,
                &settings(5, &["q_proj", "o_proj", "up_proj", "down_proj"]),
                0.1,
            );
            let limits = GenerationLimits { slots: 3, positions: 16, step_tokens: 5 };
            // Made for other numbers, and then given these.
            let other = adapted(
                &config,
                dtype,
                &settings(5, &["q_proj", "o_proj", "up_proj", "down_proj"]),
                0.3,
            );
            let adapter = other.adapter().unwrap().duplicate().unwrap();
            let mut generator =
                Generator::new(&config, &weights.share().with_adapter(adapter), limits).unwrap();
            generator.load_weights(&weights).unwrap();
            let prompts: [&[u32]; 3] = [&[1, 2, 3], &[4], &[1, 2, 3]];
            let requests: Vec<Request> = prompts
                .iter()
                .enumerate()
                .map(|(sequence, prompt)| Request {
                    prompt: (*prompt).into(),
                    sequence: sequence as u64,
                    sampling: Sampling {
                        temperature: 0.9,
                        top_k: 0,
                        top_p: 1.0,
                        min_p: 0.0,
                        seed: 3,
                    },
                    max_new_tokens: 6,
                })
                .collect();
            let completions = generator.generate(&requests, &[], |_| ()).unwrap();
            let mut pack = Pack::default();
            pack.clear();
            for (prompt, completion) in prompts.iter().zip(&completions) {
                pack.push_response(prompt, &completion.tokens);
            }
            let limits = Limits { tokens: pack.tokens.len(), picked: pack.tokens.len() };
            let decoder = Decoder::new(&config, Device::Cpu, 16).unwrap();
            let mut activations =
                Activations::new(&config, Device::Cpu, dtype, limits, Mode::Score).unwrap();
            decoder.forward(&weights, &pack, 0.9, &mut activations).unwrap();
            let sampled: Vec<f32> = completions.into_iter().flat_map(|c| c.log_probs).collect();
            assert_eq!(activations.log_probs(pack.picked.len()).to_f32_vec(), sampled);
        }
    }
}

#[test]
fn an_adapter_is_saved_as_peft_does_and_read_again_to_the_bit() {
    let config = llama();
    let folder = tempfile::tempdir().unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let weights = adapted(&config, dtype, &settings(3, &["k_proj", "down_proj"]), 0.1);
        let dir = folder.path().join(dtype.name());
        crate::folder::write(&dir, &config, &weights, crate::folder::Companions::None).unwrap();
        assert!(!dir.join("config.json").exists() && !dir.join("model.safetensors").exists());
        assert_eq!(base_of(&dir).unwrap().unwrap(), Path::new("base"));
        let file =
            prime_runtime::safetensors::File::open(dir.join("adapter_model.safetensors")).unwrap();
        let name = "base_model.model.model.layers.1.self_attn.k_proj.lora_A.weight";
        assert_eq!(file.tensor(name).unwrap().dims, [3, config.hidden_size]);
        assert_eq!(file.names().len(), 4 * config.num_layers);

        let read = Adapter::load(&dir, &config, &weights, Path::new("base")).unwrap();
        let own = weights.adapter().unwrap();
        assert_eq!(read.layout(), own.layout());
        for tensor in &own.layout().tensors {
            let values = |of: &Adapter| of.view(&tensor.range, &tensor.dims).to_f32_vec();
            assert!(values(&read) == values(own), "{}", tensor.name);
        }
    }
}

#[test]
fn adapters_that_cannot_be_computed_are_refused_with_a_sentence() {
    let refusal = |change: &str| read_settings_of(change).unwrap_err();
    assert_eq!(
        refusal("\"use_dora\": true"),
        "`use_dora` is true, which this program does not compute"
    );
    assert!(refusal("\"bias\": \"all\"").contains("only adapters of matrices"));
    assert!(refusal("\"modules_to_save\": [\"lm_head\"]").contains("expected none"));
    assert!(refusal("\"peft_type\": \"IA3\"").contains("expected LORA"));
    let roots = read_settings_of("\"use_rslora\": true").unwrap();
    assert_eq!(roots.alpha, 16.0 * 2.0);

    let config = llama();
    let weights = Weights::random(&config, DType::F32, 1).unwrap();
    let new = |settings: LoraSettings| {
        Adapter::new(&config, &settings, &weights, Path::new(""), 1, 0).unwrap_err().to_string()
    };
    assert!(new(settings(0, &["q_proj"])).contains("rank is 0"));
    assert!(new(settings(1, &["lm_head"])).contains("`lm_head` is no target"));
    assert!(new(settings(1, &["q_proj", "q_proj"])).contains("named twice"));
    assert!(new(settings(1, &[])).contains("no target"));

    let folder = tempfile::tempdir().unwrap();
    let message = Adapter::load(folder.path(), &config, &weights, Path::new("")).unwrap_err();
    assert!(message.to_string().contains("no adapter_config.json"));
    let wide = adapted(&config, DType::F32, &settings(3, &["k_proj"]), 0.1);
    crate::folder::write(folder.path(), &config, &wide, crate::folder::Companions::None).unwrap();
    let narrow = Config { hidden_size: config.hidden_size / 2, ..config.clone() };
    let other = Weights::random(&narrow, DType::F32, 1).unwrap();
    let message = Adapter::load(folder.path(), &narrow, &other, Path::new("")).unwrap_err();
    assert!(message.to_string().contains("but model and adapter make it"), "{message}");
}

fn read_settings_of(change: &str) -> std::result::Result<LoraSettings, String> {
    peft::read_settings(&format!("{{\"r\": 4, \"lora_alpha\": 16, {change}}}"))
}

#[test]
fn shared_weights_are_counted_once_and_copies_are_of_adapters_alone() {
    let config = llama();
    let policy = adapted(&config, DType::F32, &settings(3, &TARGETS), 0.1);
    let copy = policy.duplicate().unwrap();
    assert!(copy.shares_with(&policy));
    let values = |weights: &Weights| weights.adapter().unwrap().data().view().to_f32_vec();
    assert_eq!(values(&copy), values(&policy));
    let gradients = Gradients::of(&policy).unwrap();
    assert_eq!(gradients.data().dim(0), policy.adapter().unwrap().layout().elements);
}
