//! The policy's update under every loss and aggregation: what it does not depend on, and what the losses have in common.

use prime::engine::{Engine, Learner};
use prime::setup;
use prime::step::policy_loss::{Covariance, KlPenalty, LossSettings};
use prime::step::policy_update::{Outcome, Settings, policy_update};
use prime::step::{Aggregation, KlKind, PolicyLoss, Response, Rollouts};
use prime::trainer::Model;
use prime_kernels::policy_loss::Clip;
use prime_model::Mode;
use prime_runtime::random::{Generator, Stream};
use prime_runtime::{DType, Device};
use prime_tests::runs;

/// Tokens of the longest prompt and response: the least that a micro-batch may hold.
const LONGEST: usize = 3 + 12;

fn settings(loss: PolicyLoss, aggregation: Aggregation) -> Settings {
    Settings {
        loss: LossSettings {
            loss,
            clip: Clip { low: 0.2, high: 0.3, dual: (loss == PolicyLoss::Ppo).then_some(2.0) },
            covariance: Covariance { share: 0.3, low: -1.0, high: 5.0, penalty: 0.5 },
        },
        entropy_coef: 0.01,
        kl: Some(KlPenalty { coef: 0.1, kind: KlKind::LowVarKl }),
        aggregation,
        mask_truncated: true,
        max_new_tokens: 12,
        temperature: 0.9,
        minibatches: 2,
        epochs: 2,
        seed: 3,
        step: 5,
        critic: None,
    }
}

struct Bench {
    model: Model,
    batch: Rollouts,
}

impl Bench {
    /// Responses of many lengths, one of them empty and some cut off. `spread` is how far the policy has moved since it sampled them, and from its
    /// reference.
    fn new(settings: &Settings, spread: f32) -> Bench {
        let config = runs::config(&["model.initializer_range=0.2"]).unwrap();
        let prompts = setup::prompts(&config, None).unwrap();
        let model = setup::base_model(&config, &prompts).unwrap();
        let mut random = Generator::new(7, Stream::Test, 0);
        let mut batch = Rollouts::new();
        for (group, lengths) in [[5, 1, 12, 0], [7, 3, 9, 12], [2, 12, 4, 6]].iter().enumerate() {
            let mut response = |&length: &usize| Response {
                tokens: (0..length).map(|_| 2 + random.below(9)).collect(),
                old_log_probs: vec![0.0; length],
                outcome: 0.5,
                finished: length < 12,
            };
            let responses: Vec<_> = lengths.iter().map(&mut response).collect();
            let prompt = vec![2 + random.below(9); 1 + group];
            batch.push_group(format!("p{group}"), prompt, &responses).unwrap();
        }
        let mut engine = engine(&model, LONGEST);
        let mut scores = Vec::new();
        let temperature = settings.temperature;
        engine
            .score(&model.weights, &batch.samples(), temperature, &mut scores, &mut Vec::new())
            .unwrap();
        let mut away = || scores.iter().map(|x| x + spread * random.normal()).collect::<Vec<f32>>();
        (batch.old_log_probs, batch.kl_ref_log_probs) = (away(), away());
        batch.advantages = scores.iter().map(|_| random.normal()).collect();
        Bench { model, batch }
    }

    /// The update in micro-batches of at most `tokens` tokens, and the bits of the weights after it.
    fn update(&self, settings: &Settings, tokens: usize) -> (Outcome, Vec<u32>) {
        let config = runs::config(&["policy.learning_rate=0.01", "policy.warmup=0"]).unwrap();
        let weights = self.model.duplicate().unwrap().weights;
        let mut learner = Learner::new(weights, &config.policy.optimizer, 10, 1).unwrap();
        let mut engine = engine(&self.model, tokens);
        let outcome = policy_update(&mut engine, &mut learner, &self.batch, settings).unwrap();
        let bits = learner.weights.data().view().to_f32_vec().iter().map(|x| x.to_bits()).collect();
        (outcome, bits)
    }
}

fn engine(model: &Model, tokens: usize) -> Engine {
    Engine::new(&model.config, Device::Cpu, DType::F32, tokens, Mode::Train).unwrap()
}

#[test]
fn loss_and_gradient_do_not_depend_on_how_minibatches_are_cut() {
    for &loss in PolicyLoss::ALL {
        let mut seen = Vec::new();
        for &aggregation in Aggregation::ALL {
            let settings = settings(loss, aggregation);
            let bench = Bench::new(&settings, 0.4);
            let (whole, weights) = bench.update(&settings, 4096);
            let (cut, same) = bench.update(&settings, LONGEST);
            let what = format!("{loss} {aggregation}");
            // Four updates, each of the gradient of its minibatch: the same weights, to the bit.
            assert_eq!(weights, same, "{what}");
            assert_eq!(whole.new_log_probs, cut.new_log_probs, "{what}");
            for (name, a, b) in [
                ("clip_fraction", whole.clip_fraction, cut.clip_fraction),
                ("dual_clip_fraction", whole.dual_clip_fraction, cut.dual_clip_fraction),
                ("selected", whole.selected, cut.selected),
                ("masked", whole.masked, cut.masked),
                ("gradient_norm", whole.gradient_norm, cut.gradient_norm),
            ] {
                assert_eq!(a, b, "{what}: {name}");
            }
            // Sums of at most 146 tokens' losses in another order. Each loss is below 100.
            for (name, a, b) in [
                ("loss", whole.loss, cut.loss),
                ("kl", whole.kl, cut.kl),
                ("kl_reference", whole.kl_reference.unwrap(), cut.kl_reference.unwrap()),
                ("entropy", whole.entropy, cut.entropy),
            ] {
                assert!((a - b).abs() <= 146.0 * 100.0 * f64::EPSILON, "{what}: {name} {a} {b}");
            }
            // The case is one that shows something: clips hold, tokens are chosen, responses are masked.
            assert!(whole.clip_fraction > 0.0 || loss == PolicyLoss::KlCov, "{what}");
            assert_eq!(whole.selected > 0.0, settings.loss.selects(), "{what}");
            assert_eq!(whole.masked, 3.0 / 12.0, "{what}");
            seen.push(weights);
        }
        // And the aggregations are not one and the same.
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), Aggregation::ALL.len(), "{loss}");
    }
}

/// Before its first update a policy is the one that sampled: every ratio is 1, and nothing is clipped or penalised.
#[test]
fn the_losses_agree_on_the_first_update() {
    let first =
        |loss| Settings { minibatches: 1, epochs: 1, ..settings(loss, Aggregation::TokenMean) };
    let bench = Bench::new(&first(PolicyLoss::Ppo), 0.0);
    let (outcome, expected) = bench.update(&first(PolicyLoss::Ppo), 4096);
    assert_eq!((outcome.clip_fraction, outcome.kl), (0.0, 0.0));
    for loss in [PolicyLoss::Gspo, PolicyLoss::Cispo, PolicyLoss::KlCov] {
        assert_eq!(bench.update(&first(loss), 4096).1, expected, "{loss}");
    }
    // Clip-Cov leaves tokens out.
    assert_ne!(bench.update(&first(PolicyLoss::ClipCov), 4096).1, expected);
}

#[test]
fn a_masked_response_has_no_part_in_the_update() {
    for &loss in PolicyLoss::ALL {
        let one =
            Settings { minibatches: 1, epochs: 1, ..settings(loss, Aggregation::SeqMeanTokenMean) };
        let mut bench = Bench::new(&one, 0.4);
        let (_, expected) = bench.update(&one, 4096);
        for response in (0..bench.batch.len()).filter(|&i| !bench.batch.finished[i]) {
            for t in bench.batch.span(response) {
                bench.batch.advantages[t] = 100.0;
                bench.batch.kl_ref_log_probs[t] = -9.0;
            }
        }
        assert_eq!(bench.update(&one, 4096).1, expected, "{loss}");
        let unmasked = Settings { mask_truncated: false, ..one };
        assert_ne!(bench.update(&unmasked, 4096).1, expected, "{loss}");
    }
}

#[test]
fn a_penalty_without_its_reference_is_refused() {
    let settings = settings(PolicyLoss::Ppo, Aggregation::TokenMean);
    let mut bench = Bench::new(&settings, 0.1);
    bench.batch.kl_ref_log_probs.clear();
    let config = runs::config::<&str>(&[]).unwrap();
    let weights = bench.model.duplicate().unwrap().weights;
    let mut learner = Learner::new(weights, &config.policy.optimizer, 10, 1).unwrap();
    let refused =
        policy_update(&mut engine(&bench.model, 64), &mut learner, &bench.batch, &settings);
    assert!(refused.unwrap_err().to_string().contains("kl_ref_log_probs has 0 values"));
}
