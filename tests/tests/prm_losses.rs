//! The PRM's update under each of its losses: how a batch is cut into micro-batches must not show.

use prime::config::Config;
use prime::engine::{Engine, Learner};
use prime::step::prm_targets::{Loss, PrmLoss};
use prime::step::prm_update::{Mismatched, Settings, prm_update};
use prime::step::{Response, Rollouts};
use prime_model::{Architecture, Config as ModelConfig, Mode, RopeScaling, Weights};
use prime_runtime::random::{Generator, Stream};
use prime_runtime::{DType, Device};

fn model() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        vocab_size: 13,
        hidden_size: 16,
        intermediate_size: 24,
        num_layers: 2,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: false,
        qkv_bias: false,
        output_bias: false,
        qk_norm: false,
        max_position_embeddings: 64,
        dtype: DType::F32,
        bos_token_id: None,
        eos_token_ids: vec![1],
        pad_token_id: None,
        initializer_range: 0.3,
    }
}

/// Groups of 5, 1, 4 and 2 responses of 1 to 9 tokens: one without a partner, one of right responses alone, one with a partial pass rate.
fn batch() -> Rollouts {
    let outcomes: [&[f32]; 4] =
        [&[1.0, 0.0, 1.0, 1.0, 0.0], &[1.0], &[0.0, 0.25, 1.0, 0.75], &[1.0, 1.0]];
    let mut random = Generator::new(7, Stream::Test, 0);
    let mut tokens = |least: u32, most: u32| -> Vec<u32> {
        let count = least + random.below(most - least + 1);
        (0..count).map(|_| random.below(13)).collect()
    };
    let mut batch = Rollouts::new();
    for (i, outcomes) in outcomes.into_iter().enumerate() {
        let prompt = tokens(2, 5);
        let responses: Vec<Response> = outcomes
            .iter()
            .map(|&outcome| {
                let tokens = tokens(1, 9);
                let old_log_probs = vec![-1.0; tokens.len()];
                Response { tokens, old_log_probs, outcome, finished: true }
            })
            .collect();
        batch.push_group(format!("prompt {i}"), prompt, &responses).unwrap();
    }
    batch
}

/// What two updates an epoch over two epochs make of a PRM in micro-batches of at most `tokens` tokens: the loss, the log-probabilities, the
/// weights.
fn update(name: PrmLoss, tokens: usize, minibatches: usize) -> (f64, Vec<f32>, Vec<f32>) {
    let config = Config::load(&[], &[]).unwrap();
    let model = model();
    let mut engine = Engine::new(&model, Device::Cpu, DType::F32, tokens, Mode::Train).unwrap();
    let weights = |seed| Weights::random(&model, DType::F32, seed).unwrap();
    let (prm, reference) = (weights(1), weights(2));
    let mut batch = batch();
    let score = |engine: &mut Engine, samples: &[prime::engine::Sample<'_>]| {
        let mut log_probs = Vec::new();
        engine.score(&reference, samples, 1.0, &mut log_probs, &mut Vec::new()).unwrap();
        log_probs
    };
    batch.ref_log_probs = score(&mut engine, &batch.samples());
    let mismatched = Mismatched::of(&batch, 14);
    let under_reference = score(&mut engine, mismatched.samples());
    let mut learner = Learner::new(prm, &config.prm.optimizer, 8, config.seed).unwrap();
    let loss = Loss { name, beta: 0.7, margin: 0.5, desirable: 1.5, undesirable: 0.5 };
    let settings = Settings { loss, minibatches, epochs: 2 };
    let mismatched = Some((&mismatched, &under_reference[..]));
    let outcome = prm_update(&mut engine, &mut learner, &batch, mismatched, &settings).unwrap();
    (outcome.loss, outcome.prm_log_probs, learner.weights.data().view().to_vec().unwrap())
}

#[test]
fn every_loss_gives_the_same_weights_in_micro_batches_of_any_size() {
    for &name in PrmLoss::ALL {
        for minibatches in [1, 2] {
            let (loss, log_probs, weights) = update(name, 256, minibatches);
            // A sample has at most 14 tokens: pairs lie apart in many micro-batches.
            for tokens in [14, 31] {
                let (cut_loss, cut_log_probs, cut_weights) = update(name, tokens, minibatches);
                assert_eq!(log_probs, cut_log_probs, "{name}");
                assert_eq!(weights, cut_weights, "{name}");
                // The same terms, fewer than 100 of them, added in another order.
                let allowed = 100.0 * f64::EPSILON * loss.abs().max(1.0);
                assert!((loss - cut_loss).abs() <= allowed, "{name}: {loss} {cut_loss}");
            }
        }
    }
}

#[test]
fn each_loss_moves_the_weights_in_its_own_way() {
    let (_, _, before) = update(PrmLoss::Ce, 256, 1);
    let mut seen = vec![before];
    for &name in &PrmLoss::ALL[1..] {
        let (_, _, weights) = update(name, 256, 1);
        assert!(!seen.contains(&weights), "{name} moved the weights as another loss does");
        seen.push(weights);
    }
}

#[test]
fn a_response_behind_another_prompt_is_left_out_where_it_does_not_fit() {
    let batch = batch();
    let all = Mismatched::of(&batch, 14).samples().len();
    assert_eq!(all, batch.len());
    let some = Mismatched::of(&batch, 8).samples().len();
    assert!(some > 0 && some < all, "{some}");
    assert!(Mismatched::of(&batch.select(&[0]), 14).samples().is_empty());
}
