//! Decoders against transformers: log-probs, entropies, losses, every gradient, greedy continuations; and the promise that
//! sampling and training give one token the same bits.

use std::sync::Arc;

use prime_model::{
    Activations, Config, Decoder, GenerationLimits, Generator, Gradients, Limits, Mode, Pack,
    Request, Sampling, Weights,
};
use prime_runtime::safetensors::File;
use prime_runtime::{DType, Device, Tensor, View};
use prime_tests::{model_folders, read_ids};

/// The references ran in float32, as we do: sums of up to some hundred terms through a few layers agree to 1e-4, or 1e-5 where small.
fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= 1e-5 + 1e-4 * e.abs(), "{what}[{i}] is {a}, expected {e}");
    }
}

struct Case {
    name: String,
    expected: File,
    config: Config,
    weights: Weights,
}

fn cases(device: Device) -> Vec<Case> {
    model_folders()
        .into_iter()
        .map(|folder| {
            let config = Config::load(&folder).unwrap();
            let weights = Weights::load(&folder, &config, device, DType::F32).unwrap();
            let expected = File::open(folder.join("expected.safetensors")).unwrap();
            Case { name: folder.display().to_string(), expected, config, weights }
        })
        .collect()
}

/// Every token after the first, and the entropy at the last too.
fn pack_text(pack: &mut Pack, ids: &[u32]) {
    pack.push(ids.iter().copied());
    for (position, &target) in ids[1..].iter().enumerate() {
        pack.pick(position, target);
    }
    pack.pick(ids.len() - 1, 0);
}

/// The decoder whose numbers are beside a model. Those of the published bfloat16 model were computed by a program that had cast the
/// whole model to bfloat16 and back, its rotary frequencies too; transformers loads the folder with exact ones, as we do. To compare
/// with that program, the frequencies are rounded here as it rounded them.
fn reference_decoder(name: &str, config: &Config, device: Device, positions: usize) -> Decoder {
    if !name.ends_with("vectors/models/qwen3-untied-bf16-sharded") {
        return Decoder::new(config, device, positions).unwrap();
    }
    let half = config.head_dim / 2;
    let angle = |position: usize, i: usize| {
        let frequency = config.rope_theta.powf(-2.0 * i as f64 / config.head_dim as f64) as f32;
        position as f64
            * f64::from(
                <prime_runtime::bf16 as prime_runtime::Element>::from_f32(frequency).to_f32(),
            )
    };
    let table = |function: fn(f64) -> f64| {
        let values: Vec<f32> =
            (0..positions * half).map(|at| function(angle(at / half, at % half)) as f32).collect();
        Tensor::from_slice(&values, &[positions, half]).unwrap().to(device).unwrap()
    };
    Decoder::with_tables(config, table(f64::cos), table(f64::sin))
}

#[test]
fn log_probs_entropies_losses_and_gradients_are_those_of_transformers() {
    compare_with_transformers(Device::Cpu);
}

#[test]
fn log_probs_entropies_losses_and_gradients_are_those_of_transformers_on_the_emulated_device() {
    compare_with_transformers(Device::Emulated);
}

fn compare_with_transformers(device: Device) {
    for Case { name, expected, config, weights } in cases(device) {
        for (text, mode) in [(0, Mode::Train), (1, Mode::TrainCheckpointed), (2, Mode::Train)] {
            let ids = read_ids(&expected, &format!("{text}.input_ids"));
            let count = ids.len();
            let read = |what: &str| expected.read_f32(&format!("{text}.{what}")).unwrap();
            let limits = Limits { tokens: count, picked: count };
            let decoder = reference_decoder(&name, &config, device, count);
            let mut activations =
                Activations::new(&config, device, DType::F32, limits, mode).unwrap();
            let mut pack = Pack::default();
            pack.clear();
            pack_text(&mut pack, &ids);
            decoder.forward(&weights, &pack, 1.0, &mut activations).unwrap();
            let log_probs = activations.log_probs(count - 1).to_f32_vec();
            assert_close(
                &format!("{name}: log-probs of text {text}"),
                &log_probs,
                &read("token_log_probs"),
            );
            assert_close(
                &format!("{name}: entropy of text {text}"),
                &activations.entropy(count).to_f32_vec(),
                &read("entropy"),
            );
            let loss = -log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() / (count - 1) as f64;
            assert_close(&format!("{name}: loss of text {text}"), &[loss as f32], &read("loss"));

            let mut d_log_probs = vec![-1.0 / (count - 1) as f32; count];
            d_log_probs[count - 1] = 0.0;
            let d_log_probs =
                Tensor::from_slice(&d_log_probs, &[count]).unwrap().to(device).unwrap();
            let mut gradients = Gradients::zeros(weights.layout().clone(), device).unwrap();
            decoder
                .backward(
                    &weights,
                    &pack,
                    1.0,
                    d_log_probs.view(),
                    None,
                    &mut activations,
                    &mut gradients,
                )
                .unwrap();
            let mut compared = 0;
            for tensor in &weights.layout().tensors {
                let Ok(wanted) = expected.read_f32(&format!("{text}.grad.{}", tensor.name)) else {
                    continue;
                };
                let found = gradients.view(&tensor.range, &tensor.dims).to_f32_vec();
                let what = format!("{name}: gradient of {} for text {text}", tensor.name);
                if wanted.len() == 1 && found.len() > 1 {
                    let norm = found.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                    assert_close(&what, &[norm as f32], &wanted);
                } else {
                    assert_close(&what, &found, &wanted);
                }
                compared += 1;
            }
            assert!(
                compared == weights.layout().tensors.len() || text > 0,
                "{name}: {compared} gradients compared"
            );
        }
    }
}

fn generator(config: &Config, weights: &Weights, slots: usize, positions: usize) -> Generator {
    Generator::new(
        config,
        weights,
        GenerationLimits { slots, positions, step_tokens: slots.max(7) },
    )
    .unwrap()
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    compare_greedy_continuations(Device::Cpu, 24);
}

#[test]
fn greedy_continuations_are_those_of_transformers_on_the_emulated_device() {
    compare_greedy_continuations(Device::Emulated, 6);
}

/// In two slots, so that the third text waits and takes over a cache.
fn compare_greedy_continuations(device: Device, count: usize) {
    for Case { name, expected, config, weights } in cases(device) {
        let requests: Vec<Request> = (0..3)
            .map(|text| Request {
                prompt: read_ids(&expected, &format!("{text}.input_ids")).into(),
                sequence: text,
                sampling: Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 },
                max_new_tokens: count,
            })
            .collect();
        let completions =
            generator(&config, &weights, 2, 80).generate(&requests, &[], |_| ()).unwrap();
        for (text, completion) in completions.iter().enumerate() {
            let wanted = read_ids(&expected, &format!("{text}.greedy_ids"));
            assert_eq!(completion.tokens, wanted[..count], "{name}: text {text}");
        }
    }
}

#[test]
fn a_sampled_token_has_the_bits_of_the_trainer_s_log_prob_whatever_the_batch() {
    for Case { name, expected, config, .. } in cases(Device::Cpu) {
        for dtype in [DType::F32, DType::BF16] {
            let folder = std::path::Path::new(&name);
            let weights = Weights::load(folder, &config, Device::Cpu, dtype).unwrap();
            let prompts: Vec<Arc<[u32]>> = (0..3)
                .map(|text| read_ids(&expected, &format!("{text}.input_ids")).into())
                .collect();
            for (slots, temperature, top_k, top_p) in
                [(1, 1.0, 0, 1.0), (3, 0.7, 0, 0.9), (5, 1.3, 20, 1.0), (12, 2.0, 5, 0.8)]
            {
                let requests: Vec<Request> = (0..9)
                    .map(|i| Request {
                        prompt: prompts[i / 3].clone(),
                        sequence: i as u64,
                        sampling: Sampling { temperature, top_k, top_p, min_p: 0.0, seed: 3 },
                        max_new_tokens: 3 + i,
                    })
                    .collect();
                let completions = generator(&config, &weights, slots, 64)
                    .generate(&requests, &[], |_| ())
                    .unwrap();
                // The draws themselves do not depend on the batch either.
                let alone = generator(&config, &weights, 1, 64)
                    .generate(&requests[4..5], &[], |_| ())
                    .unwrap();
                assert_eq!(alone[0], completions[4], "{name} {dtype} in {slots} slots");

                let tokens = 600;
                let decoder = Decoder::new(&config, Device::Cpu, tokens).unwrap();
                let limits = Limits { tokens, picked: tokens };
                let mut activations =
                    Activations::new(&config, Device::Cpu, dtype, limits, Mode::TrainCheckpointed)
                        .unwrap();
                let mut pack = Pack::with_capacity(tokens, 9);
                for (request, completion) in requests.iter().zip(&completions) {
                    pack.push_response(&request.prompt, &completion.tokens);
                }
                decoder.forward(&weights, &pack, temperature, &mut activations).unwrap();
                let sampled: Vec<u32> = completions
                    .iter()
                    .flat_map(|c| c.log_probs.iter().map(|x| x.to_bits()))
                    .collect();
                let trained = activations.log_probs(pack.picked.len()).to_f32_vec();
                let trained: Vec<u32> = trained.iter().map(|x| x.to_bits()).collect();
                assert_eq!(
                    sampled, trained,
                    "{name} {dtype} in {slots} slots at temperature {temperature}"
                );
            }
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_bits_of_one_batch() {
    for Case { name, expected, config, weights } in cases(Device::Cpu) {
        let texts: Vec<Vec<u32>> =
            (0..3).map(|text| read_ids(&expected, &format!("{text}.input_ids"))).collect();
        let total: usize = texts.iter().map(|ids| ids.len() - 1).sum();
        let tokens: usize = texts.iter().map(Vec::len).sum();
        let limits = Limits { tokens, picked: tokens };
        let decoder = Decoder::new(&config, Device::Cpu, tokens).unwrap();
        let gradients_of = |batches: &[&[usize]]| {
            let mut activations =
                Activations::new(&config, Device::Cpu, DType::F32, limits, Mode::Train).unwrap();
            let mut gradients = Gradients::zeros(weights.layout().clone(), Device::Cpu).unwrap();
            for batch in batches {
                let mut pack = Pack::with_capacity(tokens, 3);
                for &text in *batch {
                    pack.push_response(&texts[text][..1], &texts[text][1..]);
                }
                decoder.forward(&weights, &pack, 1.0, &mut activations).unwrap();
                let d_log_probs = vec![-1.0 / total as f32; pack.picked.len()];
                decoder
                    .backward(
                        &weights,
                        &pack,
                        1.0,
                        View::from_slice(&d_log_probs, &[d_log_probs.len()]),
                        None,
                        &mut activations,
                        &mut gradients,
                    )
                    .unwrap();
            }
            gradients.data().to_f32_vec()
        };
        let whole = gradients_of(&[&[0, 1, 2]]);
        let parts = gradients_of(&[&[0], &[1], &[2]]);
        for tensor in &weights.layout().tensors {
            let (whole, parts) = (&whole[tensor.range.clone()], &parts[tensor.range.clone()]);
            let mut pairs = whole.iter().zip(parts);
            let same = if weights.layout().tied && tensor.range == weights.layout().embedding {
                // Both ends of a tied model add to one gradient, first the projection's tokens, then the embedding's: micro-batches
                // interleave the two, which reorders a sum of as many terms as there are tokens, each at most the gradient's scale.
                let scale = whole.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                pairs.all(|(a, b)| (a - b).abs() <= total as f32 * f32::EPSILON * scale)
            } else {
                pairs.all(|(a, b)| a.to_bits() == b.to_bits())
            };
            assert!(same, "{name}: the gradient of {} differs", tensor.name);
        }
    }
}
