//! Every combination of reference, PRM update, epochs, minibatches and critic trains, goes on after a stop to the bits of an unbroken run, and
//! leaves rollouts from which a replay computes the same; its models are usable on their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use prime::config::Config;
use prime::replay::{ReplaySettings, replay};
use prime::run::{End, interrupt};
use prime::step::Estimator;
use prime_model::{Config as ModelConfig, VALUE_HEAD_FILE, Weights};
use prime_runtime::{DType, Device};
use prime_tests::runs;
use serde_json::Value;

/// Requests to stop are the process's: one run at a time.
static ONE_RUN: Mutex<()> = Mutex::new(());

fn one_run() -> MutexGuard<'static, ()> {
    let guard = ONE_RUN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    interrupt::withdraw();
    guard
}

/// 2 batches of warm-up and 2 steps on a small data set, without SFT.
fn settings(data: &Path, more: &[&str]) -> Vec<String> {
    let mut all = runs::parities(data);
    let short = ["sft.steps=0", "train.steps=2", "train.compare=false", "eval.every=1"];
    all.extend(short.iter().chain(more).map(|text| text.to_string()));
    all
}

fn complete(run: &Path, config: &Config) {
    let end = runs::begin_or_resume(run, config).unwrap();
    assert!(matches!(end, End::Complete(_)));
}

/// Runs it unbroken, and stopped after every `stops` steps; both end alike. Returns the results of one.
fn assert_goes_on(what: &str, settings: &[String], stops: u64) -> BTreeMap<String, Vec<u8>> {
    let config = runs::config(settings).unwrap();
    let whole = tempfile::tempdir().unwrap();
    complete(whole.path(), &config);
    let expected = runs::results(whole.path());
    let folder = tempfile::tempdir().unwrap();
    loop {
        interrupt::request_after(stops);
        if let End::Complete(_) = runs::begin_or_resume(folder.path(), &config).unwrap() {
            break;
        }
    }
    interrupt::withdraw();
    runs::assert_same_results(what, &runs::results(folder.path()), &expected);
    assert_replays(what, &config, &expected);
    expected
}

/// Rewards, returns and advantages of every recorded step come out of a replay as they were recorded.
fn assert_replays(what: &str, config: &Config, results: &BTreeMap<String, Vec<u8>>) {
    let mut replayed = 0;
    for (name, rollouts) in results.iter().filter(|(name, _)| name.starts_with("rollouts/")) {
        let recorded: Vec<Value> = String::from_utf8_lossy(rollouts)
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        if recorded[0].get("advantages").is_none() {
            assert!(name.contains("warmup"), "{what}: {name} has no advantages");
            continue;
        }
        let mut settings = ReplaySettings::published(config.advantage.form);
        let with_prm = recorded[0].get("prm_log_probs").is_some();
        for assignment in [
            format!("beta={}", config.prm.beta),
            format!("process_norm={}", config.advantage.process_norm),
            format!("granularity={}", config.advantage.granularity),
            format!("estimator={}", config.advantage.estimator),
            format!("gae_lambda={}", config.advantage.gae_lambda),
            format!("outcome_coef={}", config.advantage.outcome_coef),
            format!("process_coef={}", if with_prm { config.advantage.process_coef } else { 0.0 }),
            format!("process_gamma={}", config.advantage.process_gamma),
        ] {
            settings.set(&assignment).unwrap();
        }
        let mut out = Vec::new();
        replay(&rollouts[..], &settings).unwrap().write(&mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        for (line, recorded) in out.lines().zip(&recorded) {
            let line: Value = serde_json::from_str(line).unwrap();
            for column in ["process_rewards", "returns", "advantages"] {
                if column != "process_rewards" || with_prm {
                    assert_eq!(line[column], recorded[column], "{what}: {column} of {name}");
                }
            }
            replayed += 1;
        }
    }
    assert!(replayed > 0, "{what}: nothing was recorded");
}

#[test]
fn every_reference_update_and_number_of_passes_goes_on_and_replays() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    runs::parities(data.path());
    let other = runs::other_model(data.path(), &data.path().join("tokenizer"));
    let other = format!("prm.path={}", other.display());
    let once = ["prm.minibatches=1", "policy.minibatches=1"];
    let often = ["prm.minibatches=2", "prm.epochs=2", "policy.minibatches=2", "policy.epochs=2"];
    for (i, reference) in ["policy", "frozen"].into_iter().enumerate() {
        for (j, update) in ["after", "before", "reverse"].into_iter().enumerate() {
            for passes in [&once[..], &often] {
                let reference = format!("prm.reference={reference}");
                let update = format!("prm.update={update}");
                let mut more = vec![reference.as_str(), update.as_str()];
                more.extend(passes);
                // Half of them have a PRM that is another and smaller model than the policy.
                if (i + j + passes.len()) % 2 == 0 {
                    more.push(&other);
                }
                let what = more.join(" ");
                assert_goes_on(&what, &settings(data.path(), &more), 1);
            }
        }
    }
}

#[test]
fn every_estimator_goes_on_and_replays_with_process_rewards_and_without() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    for &estimator in Estimator::ALL {
        for outcome_only in [false, true] {
            let estimator = format!("advantage.estimator={estimator}");
            let outcome_only = format!("train.outcome_only={outcome_only}");
            let more = [estimator.as_str(), &outcome_only, "advantage.process_gamma=0.9"];
            assert_goes_on(&more.join(" "), &settings(data.path(), &more), 2);
        }
    }
}

const CRITIC: [&str; 3] =
    ["advantage.estimator=gae", "advantage.gae_lambda=0.75", "critic.clip=0.1"];

#[test]
fn a_critic_of_its_own_goes_on_and_is_kept_as_a_model_with_its_head_beside() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    for dtype in ["float32", "bfloat16"] {
        let dtype = format!("model.dtype={dtype}");
        let mut more = CRITIC.to_vec();
        more.extend(["critic.minibatches=2", "critic.epochs=2", "critic.warmup_batches=3", &dtype]);
        let results = assert_goes_on(&more.join(" "), &settings(data.path(), &more), 1);
        for name in [
            "checkpoints/step-2/critic/model.safetensors",
            "checkpoints/step-2/critic/config.json",
            "checkpoints/step-2/critic/tokenizer.json",
            "checkpoints/step-2/critic/value_head.safetensors",
            "checkpoints/step-2/trainer/critic.safetensors",
            "rollouts/prm_warmup-000003.jsonl",
        ] {
            assert!(results.contains_key(name), "{name}");
        }
        // The first of the 3 batches came before the PRM's own: its critic learned from outcomes alone.
        let first = String::from_utf8_lossy(&results["rollouts/prm_warmup-000001.jsonl"]);
        assert!(first.contains("\"values\"") && !first.contains("\"prm_log_probs\""), "{first}");
    }
}

#[test]
fn a_shared_critic_goes_on_and_leaves_the_policy_a_plain_model() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    for dtype in ["float32", "bfloat16"] {
        let dtype = format!("model.dtype={dtype}");
        let mut more = CRITIC.to_vec();
        more.extend(["critic.shared=true", "policy.minibatches=2", "policy.epochs=2", &dtype]);
        let results = assert_goes_on(&more.join(" "), &settings(data.path(), &more), 1);
        assert!(results.contains_key("checkpoints/step-2/critic/value_head.safetensors"));
        assert!(!results.contains_key("checkpoints/step-2/critic/model.safetensors"));
        assert!(!results.contains_key("checkpoints/step-2/trainer/critic.safetensors"));
        let policy = tempfile::tempdir().unwrap();
        for (name, bytes) in &results {
            if let Some(name) = name.strip_prefix("checkpoints/step-2/policy/") {
                std::fs::write(policy.path().join(name), bytes).unwrap();
            }
        }
        let config = ModelConfig::load(policy.path()).unwrap();
        Weights::load(policy.path(), &config, Device::Cpu, DType::F32).unwrap();
    }
}

#[test]
fn a_critic_begins_with_the_folder_of_another_run_and_its_head() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    let first = tempfile::tempdir().unwrap();
    complete(first.path(), &runs::config(&settings(data.path(), &CRITIC)).unwrap());
    let critic = first.path().join("checkpoints/step-2/critic");
    assert!(critic.join(VALUE_HEAD_FILE).is_file());

    let path = format!("critic.path={}", critic.display());
    let still = ["critic.learning_rate=0", "seed=2"];
    let values = |more: &[&str]| -> Vec<f64> {
        let run = tempfile::tempdir().unwrap();
        let more = [&CRITIC[..], &still, more].concat();
        complete(run.path(), &runs::config(&settings(data.path(), &more)).unwrap());
        let text = std::fs::read_to_string(run.path().join("rollouts/prime-000001.jsonl")).unwrap();
        let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        line["values"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
    };
    assert!(values(&[]).iter().all(|&value| value == 0.0), "a new head knows nothing");
    assert!(values(&[&path]).iter().all(|&value| value != 0.0), "one that was read does");

    // A model of another shape has buffers of its own, and a model without a head gets one.
    let other = runs::other_model(data.path(), &data.path().join("tokenizer"));
    let path = format!("critic.path={}", other.display());
    let more = [&CRITIC[..], &[path.as_str(), "critic.minibatches=2"]].concat();
    assert_goes_on(&path, &settings(data.path(), &more), 1);
}

/// Micro-batches of any size add up to the same critic.
#[test]
fn a_critic_does_not_depend_on_the_size_of_micro_batches() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    for shared in ["critic.shared=false", "critic.shared=true"] {
        let of_size = |tokens: &str| {
            let run = tempfile::tempdir().unwrap();
            let more = [&CRITIC[..], &[shared, tokens]].concat();
            complete(run.path(), &runs::config(&settings(data.path(), &more)).unwrap());
            runs::results(run.path())
        };
        let (large, small) =
            (of_size("train.micro_batch_tokens=4096"), of_size("train.micro_batch_tokens=1"));
        let models = large.iter().filter(|(name, _)| name.ends_with(".safetensors"));
        for (name, bytes) in models {
            assert!(&small[name] == bytes, "{shared}: {name} differs");
        }
    }
}

#[test]
fn a_critic_reports_what_it_learns() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    for (shared, stages) in [(false, &["prm_warmup", "prime"][..]), (true, &["prime"])] {
        let shared = format!("critic.shared={shared}");
        let mut more = CRITIC.to_vec();
        more.push(&shared);
        if stages.len() > 1 {
            more.push("critic.warmup_batches=2");
        }
        let run = tempfile::tempdir().unwrap();
        complete(run.path(), &runs::config(&settings(data.path(), &more)).unwrap());
        let text = std::fs::read_to_string(run.path().join("metrics.jsonl")).unwrap();
        let mut losses = 0.0;
        for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
            if !stages.contains(&line["stage"].as_str().unwrap()) {
                continue;
            }
            for name in ["critic/loss", "critic/clip_fraction", "critic/value", "critic/return"] {
                assert!(line[name].is_number(), "{shared}: {name} in {line}");
            }
            losses += line["critic/loss"].as_f64().unwrap();
            let share = line["critic/explained_variance"].as_f64();
            assert!(share.is_none_or(|share| share <= 1.0), "{line}");
        }
        assert!(losses > 0.0, "{shared}: some returns are not 0");
    }
}

#[test]
fn a_run_stops_when_no_evaluation_is_better_and_keeps_the_best_policy() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    // A policy that does not move is evaluated alike each time: the start stays the best.
    let still = ["policy.learning_rate=0", "train.stop_after=2", "train.steps=9", "train.keep=1"];
    let results = assert_goes_on("stopped early", &settings(data.path(), &still), 1);
    assert!(results.contains_key("checkpoints/step-2/policy/model.safetensors"));
    assert!(!results.contains_key("rollouts/prime-000003.jsonl"));
    let best: Value = serde_json::from_slice(&results["checkpoints/best/evaluation.json"]).unwrap();
    assert_eq!((&best["stage"], &best["step"]), (&"start".into(), &0.into()));
    let table: Value = serde_json::from_slice(&results["result.json"]).unwrap();
    assert_eq!(table["entries"].as_array().unwrap().last().unwrap()["step"], 2);
    assert_eq!(table["best"][0]["policy"], "checkpoints/best/policy");
    assert_eq!(table["best"][0]["step"], 0);
    // The start is what was kept, and the last step is the start too.
    assert_eq!(
        results["checkpoints/best/policy/model.safetensors"],
        results["checkpoints/step-2/policy/model.safetensors"]
    );
}

/// The best of a run that moves is the one with the highest of the recorded evaluations, whatever `keep` left of the others.
#[test]
fn the_best_policy_is_that_of_the_highest_evaluation() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    let more = ["policy.learning_rate=0.02", "train.steps=6", "train.keep=1", "eval.problems=3"];
    let more = [&more[..], &["eval.samples=8", "train.compare=true"]].concat();
    let settings = settings(data.path(), &more);
    let results = assert_goes_on("best", &settings, 3);
    let lines = results.iter().filter(|(name, _)| name.starts_with("metrics.jsonl"));
    let lines: Vec<Value> = lines.map(|(_, line)| serde_json::from_slice(line).unwrap()).collect();
    for (stage, folder) in [("prime", "checkpoints"), ("outcome_only", "outcome-only/checkpoints")]
    {
        let mut best = (0, f64::NEG_INFINITY);
        for line in &lines {
            for stage in ["start", stage] {
                if let Some(score) = line[format!("{stage}/mean_score")].as_f64()
                    && score > best.1
                {
                    best = (line["step"].as_u64().unwrap(), score);
                }
            }
        }
        let kept: Value =
            serde_json::from_slice(&results[&format!("{folder}/best/evaluation.json")]).unwrap();
        assert_eq!(kept["step"].as_u64().unwrap(), best.0, "{stage}");
        assert_eq!(kept["mean_score"].as_f64().unwrap(), best.1, "{stage}");
    }
}
