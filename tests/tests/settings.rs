//! Every way in which a run can be set up runs, and says of itself what it is documented to say.

use std::path::Path;

use prime::prompts::Prompts;
use prime::run::End;
use prime::setup;
use prime::sft::Sft;
use prime_tests::runs;
use serde_json::Value;

/// What every step of RL reports, whatever the settings.
const OF_SAMPLING: [&str; 15] = [
    "reward/accuracy",
    "reward/batch_accuracy",
    "filter/kept",
    "filter/too_easy",
    "filter/too_hard",
    "filter/truncated",
    "filter/too_long",
    "filter/groups",
    "filter/rounds",
    "response/length",
    "response/truncated",
    "seconds/rollout",
    "seconds/grade",
    "seconds/step",
    "throughput/rollout_tokens_per_second",
];

/// What a batch that trains the PRM adds.
const OF_THE_PRM: [&str; 9] = [
    "seconds/reference",
    "seconds/prm",
    "throughput/prm_tokens_per_second",
    "prm/loss",
    "prm/gradient_norm",
    "prm/learning_rate",
    "prm/pairwise_accuracy",
    "process_reward/mean",
    "process_reward/std",
];

/// What a batch that trains the policy adds.
const OF_THE_POLICY: [&str; 8] = [
    "seconds/policy",
    "throughput/policy_tokens_per_second",
    "policy/loss",
    "policy/clip_fraction",
    "policy/kl",
    "policy/entropy",
    "policy/gradient_norm",
    "policy/learning_rate",
];

/// Runs 2 steps on the small data set and returns the metrics of a stage, a line a step.
fn stage_of(run: &Path, settings: &[&str], stage: &str) -> Vec<Value> {
    let data = tempfile::tempdir().unwrap();
    let mut all = runs::parities(data.path());
    let short = ["train.steps=2", "train.compare=false", "sft.steps=2", "prm.warmup_batches=1"];
    all.extend(short.iter().chain(settings).map(|text| text.to_string()));
    let end = runs::begin_or_resume(run, &runs::config(&all).unwrap()).unwrap();
    assert!(matches!(end, End::Complete(_)), "{settings:?}");
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["stage"] == stage).collect()
}

fn assert_reports(lines: &[Value], names: &[&[&str]], settings: &[&str]) {
    for line in lines {
        for name in names.iter().copied().flatten().chain(&["memory/peak_bytes"]) {
            assert!(line[name].is_number(), "{settings:?}: {name} in {line}");
        }
    }
}

#[test]
fn every_setting_of_the_algorithm_completes_a_run_and_reports_it() {
    let cases: [&[&str]; 32] = [
        &["advantage.form=paper"],
        &["advantage.form=prime-repo"],
        &["advantage.form=verl"],
        &["advantage.process_norm=none", "advantage.granularity=whole"],
        &["advantage.process_gamma=0.9", "policy.aggregation=seq-mean-token-sum-norm"],
        &["prm.update=before", "policy.aggregation=seq-mean-token-mean"],
        &["prm.update=reverse", "policy.entropy_coef=0.01"],
        &["prm.update=after", "prm.minibatches=3", "prm.epochs=2"],
        &["policy.minibatches=3", "policy.epochs=2", "policy.dual_clip=3"],
        &["prm.reference=frozen"],
        &["rollout.temperature=0.7", "rollout.top_k=3", "rollout.top_p=0.95", "rollout.min_p=0.01"],
        &["model.dtype=bfloat16"],
        &["train.checkpoint_activations=true", "model.tie_word_embeddings=true"],
        &["filter.refill=resample", "filter.groups=6", "filter.lower=0.1", "filter.upper=0.9"],
        &["filter.refill=oversample", "filter.groups=3", "filter.lower=0.1", "filter.upper=0.9"],
        &["policy.loss=gspo", "policy.minibatches=2"],
        &["policy.loss=cispo", "policy.clip_low=1", "policy.epochs=2"],
        &["policy.loss=clip-cov", "policy.cov_low=-9", "policy.epochs=2"],
        &["policy.loss=kl-cov", "policy.cov_share=0.2", "policy.minibatches=2"],
        &["policy.kl_coef=0.1", "advantage.kl_coef=0.1", "rollout.temperature=0.8"],
        &["policy.kl_coef=0.1", "policy.kl_kind=mse", "policy.mask_truncated=true"],
        &["advantage.overlong_buffer=1", "advantage.overlong_factor=0.5"],
        &["advantage.granularity=step", "advantage.step_separator=\"0\""],
        &["advantage.process_lambda=0.5", "advantage.process_use_outcome=true"],
        &["advantage.estimator=reinforce", "advantage.outcome_gamma=0.9"],
        &["advantage.estimator=grpo"],
        &["advantage.estimator=dr-grpo"],
        &["advantage.estimator=reinforce++", "advantage.kl_coef=0.1", "advantage.kl_kind=abs"],
        &["advantage.estimator=prm-value"],
        &["advantage.process_coef=0", "policy.aggregation=seq-mean-token-sum"],
        &["policy.loss=kl-cov", "policy.kl_coef=0.01", "policy.entropy_coef=0.01"],
        // More minibatches than responses.
        &["policy.minibatches=100", "prm.minibatches=100"],
    ];
    for settings in cases {
        let run = tempfile::tempdir().unwrap();
        let lines = stage_of(run.path(), settings, "prime");
        assert_eq!(lines.len(), 2, "{settings:?}");
        assert_reports(&lines, &[&OF_SAMPLING, &OF_THE_PRM, &OF_THE_POLICY], settings);
        // Only against a frozen reference does the sign of a score mean something.
        let is_frozen = settings.contains(&"prm.reference=frozen");
        assert_eq!(lines[0]["prm/sign_accuracy"].is_number(), is_frozen, "{settings:?}");
        // What a setting adds is reported where it is set, and nowhere else.
        for (name, keys) in [
            ("policy/kl_reference", &["policy.kl_coef"][..]),
            ("seconds/kl_reference", &["policy.kl_coef", "advantage.kl_coef"]),
            ("reward/kl", &["advantage.kl_coef"]),
            ("reward/length_penalty", &["advantage.overlong_buffer"]),
            ("policy/masked_responses", &["policy.mask_truncated"]),
            ("policy/dual_clip_fraction", &["policy.dual_clip"]),
            ("policy/selected_fraction", &["policy.loss=clip-cov", "policy.loss=kl-cov"]),
        ] {
            let is_set = settings.iter().any(|set| keys.iter().any(|key| set.starts_with(key)));
            assert_eq!(lines[0][name].is_number(), is_set, "{settings:?}: {name}");
        }
        for line in &lines {
            let within = |name: &str, low: f64, high: f64| {
                let value = line[name].as_f64().unwrap();
                assert!(value >= low && value <= high, "{settings:?}: {name} is {value}");
            };
            within("reward/accuracy", 0.0, 1.0);
            within("policy/clip_fraction", 0.0, 1.0);
            within("prm/pairwise_accuracy", 0.0, 1.0);
            within("response/length", 1.0, 2.0);
            // Nats over a vocabulary of 5.
            within("policy/entropy", 0.0, 5.0_f64.ln() * 1.000_001);
            within("filter/groups", 1.0, 6.0);
        }
    }
}

#[test]
fn warm_up_and_outcome_only_steps_report_what_they_do() {
    let run = tempfile::tempdir().unwrap();
    let lines = stage_of(run.path(), &[], "prm_warmup");
    assert_eq!(lines.len(), 1);
    assert_reports(&lines, &[&OF_SAMPLING, &OF_THE_PRM], &[]);
    assert!(lines[0]["policy/loss"].is_null());

    let run = tempfile::tempdir().unwrap();
    let settings = ["train.outcome_only=true"];
    let lines = stage_of(run.path(), &settings, "outcome_only");
    assert_eq!(lines.len(), 2);
    assert_reports(&lines, &[&OF_SAMPLING, &OF_THE_POLICY], &settings);
    assert!(lines[0]["prm/loss"].is_null());
}

#[test]
fn a_filter_that_lets_nothing_pass_makes_steps_without_updates() {
    // No group of 3 outcomes has a mean so near to one half.
    let bounds = ["filter.lower=0.4", "filter.upper=0.6"];
    for (refill, rounds) in [("once", 1.0), ("resample", 3.0)] {
        let run = tempfile::tempdir().unwrap();
        let refill = format!("filter.refill={refill}");
        let settings = [&bounds[..], &[&refill, "filter.max_rounds=3"]].concat();
        for line in stage_of(run.path(), &settings, "prime") {
            assert_eq!(line["filter/kept"], 0.0);
            assert_eq!(line["filter/rounds"], rounds);
            assert_eq!(line["filter/groups"], 0.0);
            assert!(line["policy/loss"].is_null());
        }
        let state = run.path().join("checkpoints/step-2/trainer/state.json");
        let state: Value = serde_json::from_slice(&std::fs::read(state).unwrap()).unwrap();
        assert_eq!((&state["policy_updates"], &state["step"]), (&0.into(), &2.into()));
    }
    // One that fills up with what failed trains all the same.
    let run = tempfile::tempdir().unwrap();
    let settings = [&bounds[..], &["filter.refill=oversample", "filter.groups=2"]].concat();
    for line in stage_of(run.path(), &settings, "prime") {
        assert_eq!((&line["filter/kept"], &line["filter/groups"]), (&0.0.into(), &2.0.into()));
        assert!(line["policy/loss"].is_number());
    }
}

/// Without a PRM's warm-up the outcome-only run has as many steps as PRIME: one row of the table, not two alike.
#[test]
fn the_table_has_a_row_for_equal_steps_and_one_for_equal_rollouts() {
    for (warmup, expected) in [
        (1, vec![("start", 0), ("prime", 2), ("outcome_only", 2), ("outcome_only", 3)]),
        (0, vec![("start", 0), ("prime", 2), ("outcome_only", 2)]),
    ] {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut settings = runs::parities(data.path());
        let more = ["train.steps=2", "sft.steps=1", "eval.every=0"].map(String::from);
        settings.extend(more.into_iter().chain([format!("prm.warmup_batches={warmup}")]));
        let config = runs::config(&settings).unwrap();
        let End::Complete(table) = runs::begin_or_resume(run.path(), &config).unwrap() else {
            panic!("the run was stopped");
        };
        let rows: Vec<(&str, u64)> =
            table.entries.iter().map(|entry| (entry.stage.as_str(), entry.step)).collect();
        assert_eq!(rows, expected);
        assert!(run.path().join("result.json").is_file());
    }
}

/// Losses and weights of 3 steps of SFT over micro-batches of at most `tokens` tokens.
fn sft_in_micro_batches(tokens: usize, dtype: &str) -> (Vec<f64>, Vec<u32>, usize) {
    let settings = [
        format!("train.micro_batch_tokens={tokens}"),
        format!("model.dtype={dtype}"),
        "sft.batch_size=32".into(),
        "rollout.max_new_tokens=80".into(),
    ];
    let config = runs::config(&settings).unwrap();
    let prompts: Prompts = setup::prompts(&config, None).unwrap();
    let model = setup::base_model(&config, &prompts).unwrap();
    let mut sft = Sft::new(&config, prompts, model).unwrap();
    let losses = (0..3).map(|_| sft.step().unwrap().get("sft/loss").unwrap()).collect();
    let weights = sft.into_model().weights;
    let bits = weights.data().view().to_f32_vec().iter().map(|x| x.to_bits()).collect();
    (losses, bits, config.micro_batch_tokens())
}

#[test]
fn micro_batches_of_any_size_give_the_same_losses_and_the_same_weights() {
    for dtype in ["float32", "bfloat16"] {
        let (losses, weights, large) = sft_in_micro_batches(4096, dtype);
        let (again, same, small) = sft_in_micro_batches(1, dtype);
        // A sample has 10 to 120 tokens: many micro-batches beside one.
        assert!(small == 120 && large == 4096);
        assert_eq!(weights, same, "{dtype}");
        for (a, b) in losses.iter().zip(again) {
            // At most 32 x 120 terms are added in another order, each with at most half an ulp of the sum.
            assert!((a - b).abs() <= 3840.0 * f64::EPSILON * a, "{dtype}: {a} and {b}");
        }
    }
}
