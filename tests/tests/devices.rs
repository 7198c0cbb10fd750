//! A PRIME step on the emulated device, kernel for kernel that of a GPU, against the same step on the host.

use std::path::Path;

use prime::config::Config;
use prime::setup;
use prime::step::Rollouts;
use prime::trainer::{Model, Trainer};
use prime_model::Config as ModelConfig;
use prime_runtime::Device;
use prime_tests::runs;

/// Two layers, hidden size 64, and a whole step's settings. An epsilon of 1 makes updates nearly proportional to gradients: with a small
/// one the sign of a gradient that is all rounding would decide about a whole step.
const SETTINGS: [&str; 29] = [
    "model.hidden_size=64",
    "model.num_layers=2",
    "model.num_heads=4",
    "model.num_kv_heads=2",
    "model.head_dim=16",
    "model.intermediate_size=128",
    "model.initializer_range=0.1",
    "rollout.prompts=6",
    "rollout.samples=8",
    "rollout.max_new_tokens=5",
    "rollout.slots=16",
    "rollout.pass_tokens=64",
    "filter.lower=0",
    "filter.upper=1",
    "filter.groups=6",
    "train.micro_batch_tokens=128",
    "advantage.form=paper",
    "advantage.process_norm=none",
    "prm.update=before",
    "prm.warmup_batches=0",
    "prm.learning_rate=0.1",
    "prm.epsilon=1",
    "prm.max_gradient_norm=0",
    "policy.learning_rate=0.1",
    "policy.warmup=0",
    "policy.epsilon=1",
    "policy.minibatches=2",
    "policy.entropy_coef=0.01",
    "seed=2",
];

/// What a step made of its models.
struct Step {
    config: Config,
    model: ModelConfig,
    batch: Rollouts,
    start: Vec<f32>,
    policy: Vec<f32>,
    prm: Vec<f32>,
    critic: Vec<f32>,
    numbers: Vec<(&'static str, f64)>,
}

fn step(device: Device, data: &Path, more: &[&str]) -> Step {
    let mut settings = runs::parities(data);
    settings.extend(SETTINGS.iter().chain(more).map(|text| text.to_string()));
    settings.push(format!("device={device}"));
    let config = runs::config(&settings).unwrap();
    let prompts = setup::prompts(&config, None).unwrap();
    let policy = setup::base_model(&config, &prompts).unwrap();
    let (model, start) = (policy.config.clone(), policy.weights.data().view().to_f32_vec());
    let prm: Model = policy.duplicate().unwrap();
    let reference = config.needs_kl_reference().then(|| policy.duplicate().unwrap());
    let mut trainer = Trainer::new(&config, prompts, policy, Some((prm, None)))
        .unwrap()
        .with_kl_reference(reference)
        .unwrap();
    let (metrics, batch) = trainer.step(&mut |_| ()).unwrap();
    let names = [
        "prm/loss",
        "prm/gradient_norm",
        "policy/loss",
        "policy/entropy",
        "policy/kl",
        "policy/gradient_norm",
    ];
    Step {
        config,
        model,
        batch,
        start,
        policy: trainer.policy().data().view().to_f32_vec(),
        prm: trainer.prm().unwrap().data().view().to_f32_vec(),
        critic: trainer.critic().map_or(Vec::new(), |critic| critic.data().view().to_f32_vec()),
        numbers: names.map(|name| (name, metrics.get(name).unwrap())).to_vec(),
    }
}

/// How far two float32 computations of a log-probability may be apart. Each is a chain of sums, of which one of n terms is off by about
/// sqrt(n) roundings (half an ulp, 2^-24, each) of its magnitude; errors of independent sums add as squares. Log-probabilities and
/// the logits under them are below 16 here, and four standard deviations on both sides cover every number compared.
fn tolerance(model: &ModelConfig, tokens: usize) -> f64 {
    let layer = 2 * model.hidden_size // into q, k, v and into gate, up
        + model.num_heads * model.head_dim // the output projection
        + model.intermediate_size
        + model.head_dim // scores
        + tokens // attended values
        + 2 * model.hidden_size; // the norms' sums of squares
    let terms = model.num_layers * layer + 2 * model.hidden_size + model.vocab_size;
    2.0 * 4.0 * 16.0 * (terms as f64).sqrt() * 2f64.powi(-24)
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let apart = (f64::from(a) - f64::from(e)).abs();
        assert!(apart <= tolerance, "{what}[{i}] is {a}, expected {e} within {tolerance:e}");
    }
}

#[test]
fn the_prm_learns_on_the_emulated_device_as_on_the_host_by_losses_of_every_kind() {
    let data = tempfile::tempdir().unwrap();
    // Targets of other responses, targets of a KL with another cost, targets of prefixes.
    for loss in ["prm.loss=dpo-pairs", "prm.loss=kto", "prm.loss=prefix-value"] {
        let settings = [loss, "prm.minibatches=2"];
        let expected = step(Device::Cpu, data.path(), &settings);
        let actual = step(Device::Emulated, data.path(), &settings);
        assert_eq!(actual.batch.tokens, expected.batch.tokens, "{loss}");
        let tolerance = tolerance(&expected.model, expected.config.rollout.max_prompt_tokens + 5);
        let moved = |i: usize| (f64::from(expected.prm[i]) - f64::from(expected.start[i])).abs();
        let most = (0..expected.prm.len()).map(moved).fold(0.0, f64::max);
        assert!(most > 0.0, "{loss} moves nothing");
        // As below; of two updates the second begins where the first left the weights.
        let allowed = 2.0 * 4.0 * tolerance * most + 2.0 * 2f64.powi(-24);
        assert_close(loss, &actual.prm, &expected.prm, allowed);
        let (name, wanted) = expected.numbers[0];
        let value = actual.numbers[0].1;
        let allowed = 4.0 * tolerance * wanted.abs().max(1.0);
        assert!((value - wanted).abs() <= allowed, "{loss}: {name} is {value}, expected {wanted}");
    }
}

#[test]
fn a_prime_step_on_the_emulated_device_is_that_of_the_host() {
    assert_same_step(&[]);
}

#[test]
fn so_is_one_whose_policy_is_clipped_by_responses_and_held_to_its_reference() {
    assert_same_step(&["policy.loss=gspo", "policy.kl_coef=0.1", "advantage.kl_coef=0.1"]);
}

fn assert_same_step(more: &[&str]) {
    let data = tempfile::tempdir().unwrap();
    let expected = step(Device::Cpu, data.path(), more);
    let actual = step(Device::Emulated, data.path(), more);
    let (batch, wanted) = (&actual.batch, &expected.batch);
    let right = wanted.outcomes.iter().filter(|&&outcome| outcome == 1.0).count();
    assert!(right > 0 && right < wanted.len(), "{right} of {} are right", wanted.len());

    // A draw differs only where the random number falls within rounding of a boundary, which none of this seed does.
    assert_eq!((&batch.tokens, &batch.cu_seqlens), (&wanted.tokens, &wanted.cu_seqlens));
    assert_eq!(batch.outcomes, wanted.outcomes);

    let longest = expected.config.rollout.max_prompt_tokens + 5;
    let tolerance = tolerance(&expected.model, longest);
    // The models that score after an update have its errors besides, which are as large.
    assert_close("old_log_probs", &batch.old_log_probs, &wanted.old_log_probs, tolerance);
    assert_close("entropies", &batch.entropies, &wanted.entropies, tolerance);
    assert_close("ref_log_probs", &batch.ref_log_probs, &wanted.ref_log_probs, tolerance);
    assert_close("prm_log_probs", &batch.prm_log_probs, &wanted.prm_log_probs, 2.0 * tolerance);
    assert_close("new_log_probs", &batch.new_log_probs, &wanted.new_log_probs, 2.0 * tolerance);
    // beta (prm - ref), summed over at most 5 tokens, less a mean of such sums.
    let reward = expected.config.prm.beta * 3.0 * tolerance;
    assert_close("process_rewards", &batch.process_rewards, &wanted.process_rewards, reward);
    assert_close("returns", &batch.returns, &wanted.returns, 2.0 * 5.0 * reward);
    assert_close("advantages", &batch.advantages, &wanted.advantages, 2.0 * 5.0 * reward);

    // A gradient is a sum along the same chains, there and back, with the losses' own errors: 4 times as much, relative to the
    // greatest. An update is no steeper than its gradient.
    for (name, after, wanted) in
        [("PRM", &actual.prm, &expected.prm), ("policy", &actual.policy, &expected.policy)]
    {
        let moved = |i: usize| (f64::from(wanted[i]) - f64::from(expected.start[i])).abs();
        let most = (0..wanted.len()).map(moved).fold(0.0, f64::max);
        assert!(most > 1e-3, "the {name} has learned: {most}");
        // And the weights themselves are rounded.
        let rounding = 2f64.powi(-24);
        assert_close(name, after, wanted, 4.0 * tolerance * most + 2.0 * rounding);
    }
    for (&(name, value), &(_, wanted)) in actual.numbers.iter().zip(&expected.numbers) {
        let allowed = 4.0 * tolerance * wanted.abs().max(1.0);
        assert!((value - wanted).abs() <= allowed, "{name} is {value}, expected {wanted}");
    }
}

/// Two updates of a critic, of its own or on the policy, so that the second has values to be clipped and a trunk to move.
#[test]
fn a_step_with_a_critic_on_the_emulated_device_is_that_of_the_host() {
    let data = tempfile::tempdir().unwrap();
    for shared in [false, true] {
        let shared = format!("critic.shared={shared}");
        let critic = [
            "advantage.estimator=gae",
            "advantage.gae_lambda=0.9",
            "critic.learning_rate=0.1",
            "critic.epsilon=1",
            "critic.epochs=2",
            "policy.epochs=2",
            &shared,
        ];
        let critic = match shared.ends_with("true") {
            true => [&critic[..], &["critic.epochs=1"]].concat(),
            false => critic.to_vec(),
        };
        let expected = step(Device::Cpu, data.path(), &critic);
        let actual = step(Device::Emulated, data.path(), &critic);
        let (batch, wanted) = (&actual.batch, &expected.batch);
        assert_eq!(batch.tokens, wanted.tokens);
        let longest = expected.config.rollout.max_prompt_tokens + 5;
        let tolerance = tolerance(&expected.model, longest);
        // A new head says 0 of every text on every device.
        assert_eq!(batch.values, vec![0.0; wanted.values.len()]);
        // The rewards of at most 5 tokens, as above.
        let reward = expected.config.prm.beta * 3.0 * tolerance;
        assert_close("returns", &batch.returns, &wanted.returns, 5.0 * reward);
        let models = [
            ("critic", &actual.critic, &expected.critic),
            ("policy", &actual.policy, &expected.policy),
        ];
        for (name, after, wanted) in models {
            let elements = expected.start.len();
            assert_eq!(wanted.is_empty(), name == "critic" && shared.ends_with("true"));
            let moved = |i: usize| {
                let start = expected.start.get(i).copied().unwrap_or(0.0);
                (f64::from(wanted[i]) - f64::from(start)).abs()
            };
            let most = (0..wanted.len()).map(moved).fold(0.0, f64::max);
            assert!(wanted.is_empty() || most > 1e-3, "the {name} has learned: {most}");
            let has_head = wanted.len() > elements;
            assert!(
                wanted.is_empty() || has_head == (name == "critic" || shared.ends_with("true"))
            );
            // Advantages are whitened: errors of returns are divided by their deviation, which is above a tenth here. Two updates err twice.
            assert_close(name, after, wanted, 2.0 * 10.0 * 4.0 * tolerance * most);
        }
    }
}
