//! Whole runs through the program: their folders, their tables, what they go on from, and where they compute.

mod support;

use std::path::PathBuf;

use serde_json::{Value, json};
use support::{fixture, numbers, prime, prime_in, qwen2, tiny};

/// A run that takes a moment.
fn settings() -> Vec<&'static str> {
    tiny(&[
        "sft.batch_size=2",
        "train.steps=1",
        "prm.warmup_batches=1",
        "rollout.prompts=2",
        "rollout.max_new_tokens=8",
        "filter.lower=0",
        "filter.upper=1",
        "train.compare=false",
    ])
}

#[test]
fn a_run_ends_with_its_table_and_its_folder_goes_on_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let train = |more: &[&str]| prime_in(folder.path(), &[&["train"], more].concat(), "");
    let dry = train(&[&settings()[..], &["--dry-run", "--seed", "9"]].concat()).expect(0).out;
    assert!(dry.contains("seed = 9") && dry.contains("parameters:"), "{dry}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a dry run writes nothing");

    let first = train(&settings()).expect(0);
    assert!(first.out.contains("PRIME") && first.out.contains("start"), "{}", first.out);
    let runs: Vec<PathBuf> = std::fs::read_dir(folder.path().join("runs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let [run] = &runs[..] else { panic!("one run: {runs:?}") };
    assert!(run.file_name().unwrap().to_str().unwrap().starts_with("arithmetic-20"));

    // A complete run goes on to its own end: the same table.
    assert_eq!(train(&["--resume"]).expect(0).out, first.out);
    let run = run.to_str().unwrap();
    let changed = train(&["--resume", "--out", run, "--set", "prm.beta=0.25"]).expect(1);
    assert!(changed.err.contains("prm.beta was 0.5, now 0.25"), "{}", changed.err);
    train(&["--resume", "--out", run, "--set", "train.keep=7"]).expect(0);
    let again = train(&["--out", run]).expect(1);
    assert!(again.err.contains("--resume"), "{}", again.err);

    // Its rollouts replay, and its model is found by the run's folder.
    let rollouts = format!("{run}/rollouts/prime-000001.jsonl");
    let replayed = prime(&["replay", "--input", &rollouts, "--output", "-"], "").expect(0).lines();
    assert!(replayed.last().unwrap()["policy_loss"].is_number());
    let details = folder.path().join("graded.jsonl");
    let args = [
        "eval",
        "--model",
        run,
        "--problems",
        "3",
        "--samples",
        "2",
        "--max-new-tokens",
        "8",
        "--json",
        "--output",
        details.to_str().unwrap(),
    ];
    let report = &prime(&args, "").expect(0).lines()[0];
    assert_eq!((&report["problems"], &report["samples"]), (&json!(3), &json!(2)));
    let graded = std::fs::read_to_string(details).unwrap();
    assert_eq!(graded.lines().count(), 3);
    let problem: Value = serde_json::from_str(graded.lines().next().unwrap()).unwrap();
    assert_eq!(numbers(&problem["scores"]).len(), 2);
    let generated = prime(
        &["generate", "--model", run, "--prompt", "1+2:", "--max-new-tokens", "2", "--json"],
        "",
    );
    assert_eq!(generated.expect(0).lines().len(), 1);
}

#[test]
fn every_model_of_a_checkpoint_is_usable_on_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    let more = ["--set", "advantage.estimator=gae", "--set", "sft.steps=0"];
    prime(&[&["train", "--out", out][..], &settings()[..], &more].concat(), "").expect(0);
    for model in ["step-1/policy", "step-1/critic", "best/policy"] {
        let model = format!("{out}/checkpoints/{model}");
        let short = ["--problems", "2", "--max-new-tokens", "4", "--json"];
        let report = prime(&[&["eval", "--model", &model][..], &short].concat(), "").expect(0);
        assert_eq!(report.lines()[0]["problems"], 2, "{model}");
    }
    let (policy, prm) =
        (format!("{out}/checkpoints/step-1/policy"), format!("{out}/checkpoints/step-1/prm"));
    let args = ["score", "--model", &policy, "--prm", &prm, "--input", "-", "--output", "-"];
    let text = "{\"prompt\": \"1+2:\", \"response\": \"3\"}\n";
    let scored = &prime(&args, text).expect(0).lines()[0];
    assert_eq!(numbers(&scored["process_rewards"]).len(), numbers(&scored["log_probs"]).len());
    // A critic goes on from the folder of another.
    let critic = format!("critic.path={out}/checkpoints/step-1/critic");
    let again = folder.path().join("again");
    let args = ["train", "--out", again.to_str().unwrap(), "--set", &critic];
    let model = format!("model.path={policy}");
    prime(&[&args[..], &settings()[..], &more, &["--set", &model]].concat(), "").expect(0);
}

#[test]
fn a_run_is_recorded_reported_and_watched() {
    let folder = tempfile::tempdir().unwrap();
    let here = |args: &[&str]| prime_in(folder.path(), args, "");
    let train = |out: &str, more: &[&str]| {
        here(&[&["train", "--out", out], &settings()[..], more].concat()).expect(0)
    };
    train("run", &["--set", "train.record_update_every=1"]);
    let read = |path: &str| std::fs::read_to_string(folder.path().join(path)).unwrap();
    let html = read("run/report.html");
    for part in ["plots", "stack", "bars", "tokens"] {
        assert!(html.contains(&format!("data-block=\"{part}\"")), "{part}");
    }
    for part in
        ["rollout.prompts", "policy/entropy", "prime 0.1.0", "95 % interval", "updated_log_probs"]
    {
        assert!(html.contains(part), "{part}");
    }
    let sessions: Value = serde_json::from_str(&read("run/run.json")).unwrap();
    assert_eq!(sessions["sessions"][0]["end"], "complete");
    assert_eq!(sessions["sessions"][0]["device"], "cpu");

    let mut moved = false;
    for line in read("run/rollouts/prime-000001.jsonl").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let texts = line["token_texts"].as_array().unwrap();
        assert_eq!(texts.len(), line["token_ids"].as_array().unwrap().len());
        // One token a character, but for those that pad and end.
        assert!(texts.iter().all(|text| matches!(text.as_str().unwrap().chars().count(), 1 | 5)));
        assert!(line["prompt"].as_str().unwrap().ends_with(':'), "{line}");
        let (old, updated) = (numbers(&line["old_log_probs"]), numbers(&line["updated_log_probs"]));
        assert_eq!(old.len(), updated.len());
        assert!(updated.iter().all(|value| *value < 0.0));
        moved |= old != updated;
    }
    assert!(moved, "the update changed nothing");
    let warm_up = read("run/rollouts/prm_warmup-000001.jsonl");
    assert!(!warm_up.contains("updated_log_probs"), "no update of the policy, nothing to record");

    train("other", &["--set", "train.report=false", "--seed", "2"]);
    assert!(!folder.path().join("other/report.html").exists());
    let unnamed = here(&["report", "run", "other"]).expect(2);
    assert!(unnamed.err.contains("--output"), "{}", unnamed.err);
    here(&["report", "run", "other", "--output", "both.html"]).expect(0);
    let both = read("both.html");
    assert!(both.contains("mean and range of 2 seeds") && both.len() < 10_000_000);
    assert_eq!(
        here(&["report", "run", "--output", "-"]).expect(0).out,
        html,
        "the same run, the same file"
    );
    assert!(here(&["report", "absent"]).expect(1).err.contains("there is no run folder absent"));

    let watched = here(&["watch", "run"]).expect(0);
    assert!(watched.out.starts_with("complete: PRIME 1/1 accuracy "), "{}", watched.out);
    assert!(here(&["watch", "."]).expect(1).err.contains("it has no config.toml"));
}

#[test]
fn sft_alone_leaves_its_model_and_train_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    let sft = prime(&[&["sft", "--out", out], &settings()[..]].concat(), "").expect(0);
    assert!(sft.out.contains("SFT"), "{}", sft.out);
    assert!(folder.path().join("run/sft/policy/config.json").exists());
    let trained = prime(&["train", "--resume", "--out", out], "").expect(0);
    assert!(trained.out.contains("PRIME"), "{}", trained.out);
}

#[test]
fn a_plan_and_the_doctor_say_what_there_is() {
    let plan = prime(&["plan"], "").expect(0).out;
    for word in ["parameters: 608,640", "activations", "GFLOP", "PRIME"] {
        assert!(plan.contains(word), "{plan}");
    }
    let model = fixture("qwen3-untied-bf16-sharded");
    let plan =
        prime(&["plan", "--model", &model, "--set", "model.dtype=bfloat16"], "").expect(0).out;
    assert!(plan.contains("qwen3") && plan.contains("master weights"), "{plan}");

    let doctor = prime(&["doctor", "--threads", "1"], "").expect(0).out;
    for word in ["cores", "1 in use", "instructions", "GFLOP/s", "GB/s", "devices           cpu"] {
        assert!(doctor.contains(word), "{doctor}");
    }
    for row in ["CUDA driver", "CUDA compiler", "kernel cache"] {
        assert!(doctor.contains(row), "{doctor}");
    }
}

#[test]
fn a_gpu_that_is_not_there_is_a_sentence() {
    if prime_runtime::cuda::device_count().is_ok() {
        return println!("skipped: there is a driver");
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    let train = |device: &str| {
        let device = format!("device={device}");
        prime(&[&["train", "--out", out, "--set", &device], &settings()[..]].concat(), "")
    };
    let refused = train("cuda").expect(1).err;
    let sentence = refused.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(sentence.contains("the NVIDIA driver is not here: libcuda.so.1"), "{refused}");
    let refused = train("cuda:x").err;
    assert!(refused.contains("there is no device `cuda:x`; devices are `cpu`"), "{refused}");
}

#[test]
fn a_device_that_there_is_not_is_refused_with_a_sentence() {
    let model = qwen2();
    let unknown = prime(&["train", "--device", "gpu"], "").expect(2);
    assert!(unknown.err.contains("there is no device `gpu`"), "{}", unknown.err);
    let unknown = prime(&["train", "--set", "device=cuda:x"], "").expect(2);
    assert!(unknown.err.contains("there is no device `cuda:x`"), "{}", unknown.err);

    // No machine has so many GPUs; one without any says what it looked for.
    let far = "cuda:4000000000";
    let plan = prime(&["plan", "--device", far], "").expect(0).out;
    assert!(plan.contains("float32 on cuda:4000000000"), "{plan}");
    assert!(plan.contains("activations") && plan.contains("the time is unknown: "), "{plan}");
    let folder = tempfile::tempdir().unwrap();
    let train = prime_in(folder.path(), &["train", "--device", far], "").expect(1);
    assert!(train.err.starts_with("error: ") && train.err.lines().count() == 1, "{}", train.err);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no run was begun");
    for args in [
        &["generate", "--model", &model, "--prompt", "x", "--device", far][..],
        &["score", "--model", &model, "--input", "-", "--output", "-", "--device", far],
        &["eval", "--model", &model, "--device", far],
    ] {
        let ran = prime(args, "").expect(1);
        assert!(ran.err.contains("error: ") && ran.out.is_empty(), "{args:?}: {}", ran.err);
    }
}

#[cfg(not(feature = "emulated"))]
#[test]
fn a_program_without_the_emulated_device_says_how_to_build_one_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let ran = prime_in(folder.path(), &["train", "--device", "emulated"], "").expect(1);
    assert!(ran.err.contains("build it with `--features emulated`"), "{}", ran.err);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no run was begun");
}

/// In bfloat16, with everything that a run has: SFT, the PRM's warm-up, PRIME, evaluations, checkpoints; then the models it left.
#[cfg(feature = "emulated")]
#[test]
fn a_run_on_the_emulated_device_ends_with_its_table_and_models_that_go_on_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let device = ["--device", "emulated", "--set", "model.dtype=bfloat16"];
    let out = ["--out", "run"];
    let train = |more: &[&str]| prime_in(folder.path(), &[&["train"], more].concat(), "");
    let ran = train(&[&settings()[..], &device, &out].concat()).expect(0);
    assert!(ran.out.contains("| start of RL |") && ran.out.contains("| PRIME |"), "{}", ran.out);
    assert_eq!(train(&["--resume", "--out", "run"]).expect(0).out, ran.out);
    let other = train(&["--resume", "--out", "run", "--device", "cpu"]).expect(1);
    assert!(other.err.contains("device was \"emulated\", now \"cpu\""), "{}", other.err);

    let greedy = |device: &str| {
        let args = ["generate", "--model", "run", "--prompt", "1+2:", "--temperature", "0"];
        let more = ["--max-new-tokens", "3", "--json", "--device", device];
        prime_in(folder.path(), &[&args[..], &more].concat(), "").expect(0).lines().remove(0)
    };
    let (here, there) = (greedy("cpu"), greedy("emulated"));
    assert_eq!(here["token_ids"], there["token_ids"]);
    let score = |device: &str| {
        let args = ["score", "--model", "run", "--input", "-", "--output", "-", "--device", device];
        let line = "{\"prompt\": \"1+2:\", \"response\": \"3\"}";
        prime_in(folder.path(), &args, line).expect(0).lines().remove(0)
    };
    let config = prime_model::Config::load(&folder.path().join("run/sft/policy")).unwrap();
    let pairs = support::floats(&score("cpu")["log_probs"]);
    for (a, b) in pairs.iter().zip(support::floats(&score("emulated")["log_probs"])) {
        assert!((a - b).abs() <= support::tolerance(&config, 8), "{a} and {b}");
    }
    let args = ["eval", "--model", "run", "--device", "emulated", "--problems", "2", "--json"];
    let more = ["--max-new-tokens", "4"];
    let report = &prime_in(folder.path(), &[&args[..], &more].concat(), "").expect(0).lines()[0];
    assert_eq!(report["problems"], json!(2));
}
