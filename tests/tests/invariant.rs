//! What `numerics = "invariant"` promises of devices, and the host of itself: sampling and training give one token the same bits. In a program of its own,
//! since the choice is one for a process.

use std::sync::Arc;

use prime_kernels::numerics::{Numerics, choose};
use prime_kernels::working_memory;
use prime_model::{
    Activations, Config, Decoder, GenerationLimits, Generator, Limits, Mode, Pack, Request,
    Sampling, Weights,
};
use prime_runtime::safetensors::File;
use prime_runtime::{DType, Device};
use prime_tests::{model_folders, read_ids};

const DEVICE: Device = Device::Emulated;

#[test]
fn a_sampled_token_has_the_bits_of_the_trainer_s_log_prob_whatever_the_batch() {
    choose(Numerics::Invariant);
    let mut planned = 0;
    for folder in model_folders() {
        let config = Config::load(&folder).unwrap();
        let expected = File::open(folder.join("expected.safetensors")).unwrap();
        let prompts: Vec<Arc<[u32]>> =
            (0..2).map(|text| read_ids(&expected, &format!("{text}.input_ids")).into()).collect();
        for dtype in [DType::F32, DType::BF16] {
            let weights = Weights::load(&folder, &config, DEVICE, dtype).unwrap();
            let mut first = None;
            let memory = config.working_memory(dtype);
            planned += memory.training(5 * 64) + memory.decoding(5, 64);
            for (slots, mode) in [(1, Mode::Score), (5, Mode::Train)] {
                let sampling =
                    Sampling { temperature: 0.9, top_k: 0, top_p: 0.95, min_p: 0.0, seed: 3 };
                let requests: Vec<Request> = (0..5)
                    .map(|i| Request {
                        prompt: prompts[i / 3].clone(),
                        sequence: i as u64,
                        sampling,
                        max_new_tokens: 2 + i,
                    })
                    .collect();
                let limits = GenerationLimits { slots, positions: 64, step_tokens: 7 };
                let completions = Generator::new(&config, &weights, limits)
                    .unwrap()
                    .generate(&requests, &[], |_| ())
                    .unwrap();
                let what = format!("{} {dtype} in {slots} slots", folder.display());

                let tokens = 5 * 64;
                let decoder = Decoder::new(&config, DEVICE, tokens).unwrap();
                let limits = Limits { tokens, picked: tokens };
                let mut activations =
                    Activations::new(&config, DEVICE, dtype, limits, mode).unwrap();
                let mut pack = Pack::with_capacity(tokens, requests.len());
                for (request, completion) in requests.iter().zip(&completions) {
                    pack.push_response(&request.prompt, &completion.tokens);
                }
                decoder.forward(&weights, &pack, sampling.temperature, &mut activations).unwrap();
                let sampled: Vec<u32> = completions
                    .iter()
                    .flat_map(|completion| completion.log_probs.iter().map(|x| x.to_bits()))
                    .collect();
                let trained = activations.log_probs(pack.picked.len()).to_f32_vec();
                let trained: Vec<u32> = trained.iter().map(|x| x.to_bits()).collect();
                assert_eq!(sampled, trained, "{what}");
                // The draws themselves do not depend on the batch either.
                assert_eq!(
                    first.get_or_insert_with(|| completions.clone()),
                    &completions,
                    "{what}"
                );
            }
            // Nothing else runs in this program: what kernels have borrowed is what was planned for them.
            let reserved = working_memory::reserved();
            assert!(0 < reserved && reserved <= planned, "{reserved} of {planned} bytes");
        }
    }
}
