//! Whole runs small enough for tests, in this process or in one that is stopped or killed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use prime::config::Config;
use prime::run::folder::RunFolder;
use prime::run::{End, interrupt};
use prime_model::folder::{self as model_folder, Companions};
use prime_model::{Architecture, Config as ModelConfig, RopeScaling, Tokenizer, Weights};
use prime_runtime::DType;
use serde_json::Value;

/// Where a child process finds its run; without it there is nothing for it to do.
const FOLDER: &str = "PRIME_TEST_RUN";
/// The settings of its run, a line each.
const SETTINGS: &str = "PRIME_TEST_SETTINGS";
/// After how many steps it stops, where it is to stop.
const STOP_AFTER: &str = "PRIME_TEST_STOP_AFTER";
/// What a child process says of a complete run, and of one that was stopped.
const COMPLETE: &str = "the run is complete";

/// A model of some thousand parameters, 6 steps of SFT, 2 batches that warm the PRM up, 4 steps of PRIME, 6 on outcomes alone.
const TINY: [&str; 24] = [
    "task.arithmetic.max_operations=2",
    "task.arithmetic.highest=9",
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.head_dim=16",
    "model.intermediate_size=48",
    "sft.steps=6",
    "sft.batch_size=5",
    "rollout.prompts=4",
    "rollout.samples=3",
    "rollout.max_new_tokens=10",
    "rollout.max_prompt_tokens=40",
    "rollout.slots=8",
    "rollout.pass_tokens=64",
    "filter.lower=0",
    "filter.upper=1",
    "filter.groups=3",
    "prm.warmup_batches=2",
    "train.steps=4",
    "train.save_every=1",
    "eval.problems=4",
    "eval.every=2",
];

/// The tiny run with `settings` over it.
///
/// # Errors
/// When a setting is wrong.
pub fn config<S: AsRef<str>>(settings: &[S]) -> Result<Config> {
    let tiny = TINY.iter().map(|text| text.to_string());
    let settings = settings.iter().map(|text| text.as_ref().to_string());
    Config::load(&[], &tiny.chain(settings).collect::<Vec<_>>())
}

/// As [`config`], with a configuration file below the settings.
///
/// # Errors
/// When a setting is wrong.
pub fn config_with<S: AsRef<str>>(file: &Path, settings: &[S]) -> Result<Config> {
    let tiny = TINY.iter().map(|text| text.to_string());
    let settings = settings.iter().map(|text| text.as_ref().to_string());
    Config::load(&[file.to_path_buf()], &tiny.chain(settings).collect::<Vec<_>>())
}

/// Begins the run of a folder, or goes on with the one that is there.
///
/// # Errors
/// What the run says.
pub fn begin_or_resume(path: &Path, config: &Config) -> Result<End> {
    let mut folder = if path.join("config.toml").exists() {
        RunFolder::resume(path, Some(config))?.0
    } else {
        RunFolder::create(path, config)?
    };
    prime::run::train(config, &mut folder)
}

/// Settings of a data set of 7 problems that an untrained model solves now and then: parities, with the tokenizer for them.
///
/// # Panics
/// When `folder` cannot be written.
pub fn parities(folder: &Path) -> Vec<String> {
    let line = |bits: &str| {
        let parity = bits.matches('1').count() % 2;
        format!("{{\"question\": \"{bits}?\", \"answer\": \"{parity}\"}}\n")
    };
    let write = |name: &str, problems: &[&str]| -> PathBuf {
        let text: String = problems.iter().map(|bits| line(bits)).collect();
        std::fs::write(folder.join(name), text).expect("the test's folder can be written");
        folder.join(name)
    };
    let train = write("train.jsonl", &["0", "1", "01", "10", "110", "0110", "111"]);
    let test = write("test.jsonl", &["00", "11", "100"]);
    let tokenizer = folder.join("tokenizer");
    std::fs::create_dir_all(&tokenizer).expect("the test's folder can be written");
    for (name, text) in Tokenizer::characters("01?", "<pad>", "<eos>").expect("symbols").files() {
        std::fs::write(tokenizer.join(name), text).expect("the test's folder can be written");
    }
    vec![
        "task.name=jsonl".to_string(),
        format!("task.jsonl.train={}", train.display()),
        format!("task.jsonl.test={}", test.display()),
        format!("model.tokenizer={}", tokenizer.display()),
        "task.jsonl.answer_after=".to_string(),
        "task.jsonl.template={prompt}".to_string(),
        "task.jsonl.grader=exact".to_string(),
        "rollout.max_new_tokens=2".to_string(),
        "sft.batch_size=3".to_string(),
    ]
}

/// A random model of another family and shape than the tiny run's, with the tokenizer of a folder.
///
/// # Panics
/// When it cannot be made or saved.
pub fn other_model(folder: &Path, tokenizer: &Path) -> PathBuf {
    let vocab_size = Tokenizer::load(tokenizer).expect("a tokenizer").vocab_size();
    let config = ModelConfig {
        architecture: Architecture::Qwen3,
        vocab_size,
        hidden_size: 24,
        intermediate_size: 40,
        num_layers: 3,
        num_heads: 3,
        num_kv_heads: 1,
        head_dim: 8,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        qkv_bias: false,
        output_bias: false,
        qk_norm: true,
        max_position_embeddings: 128,
        dtype: DType::F32,
        bos_token_id: None,
        eos_token_ids: vec![1],
        pad_token_id: Some(0),
        initializer_range: 0.1,
    };
    let weights = Weights::random(&config, DType::F32, 5).expect("a model's weights");
    let path = folder.join("other");
    model_folder::save(&path, &config, &weights, Companions::Of(tokenizer)).expect("a saved model");
    path
}

/// Everything that a run computed: its files but for events, and its metrics but for what was measured on the clock or the machine.
///
/// # Panics
/// When the folder cannot be read, or holds something that a killed process left half done.
pub fn results(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    collect(run, "", &mut found);
    let metrics = found.remove("metrics.jsonl").expect("a run has metrics");
    let text = String::from_utf8(metrics).expect("metrics are text");
    for (i, line) in text.lines().enumerate() {
        let mut line: Value = serde_json::from_str(line).expect("each line is JSON");
        let fields = line.as_object_mut().expect("each line is an object");
        let measured = ["seconds/", "processor/", "throughput/", "memory/"];
        fields.retain(|name, _| !measured.iter().any(|prefix| name.starts_with(prefix)));
        found.insert(format!("metrics.jsonl line {i:03}"), line.to_string().into_bytes());
    }
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(folder).expect("a run's folder can be listed") {
        let path = entry.expect("a run's folder can be listed").path();
        let name = path.file_name().expect("entries have names").to_string_lossy().into_owned();
        assert!(!name.starts_with(".tmp-") && !name.starts_with(".old-"), "{}", path.display());
        // How long the metrics were when a checkpoint was made depends on the digits of seconds.
        let varies = [".lock", "run.json", "manifest.json"].contains(&name.as_str())
            || name.starts_with("events.");
        let name = format!("{prefix}{name}");
        if path.is_dir() {
            collect(&path, &format!("{name}/"), found);
        } else if !varies {
            found.insert(name, std::fs::read(&path).expect("a run's files can be read"));
        }
    }
}

/// Asserts that two runs computed the same, and names the first thing in which they differ.
///
/// # Panics
/// When they differ.
pub fn assert_same_results(
    what: &str,
    actual: &BTreeMap<String, Vec<u8>>,
    expected: &BTreeMap<String, Vec<u8>>,
) {
    let names = |map: &BTreeMap<String, Vec<u8>>| map.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(actual), names(expected), "{what}");
    for (name, bytes) in expected {
        if &actual[name] != bytes {
            let show = |bytes: &[u8]| {
                String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned()
            };
            panic!("{what}: {name} differs:\n{}\n{}", show(&actual[name]), show(bytes));
        }
    }
}

/// A process that does the run of a folder by being this test program again, with `test` alone, which calls [`act_as_child`].
///
/// # Panics
/// When this program does not know itself.
pub fn child<S: AsRef<str>>(test: &str, folder: &Path, settings: &[S]) -> Command {
    let settings: Vec<&str> = settings.iter().map(S::as_ref).collect();
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(FOLDER, folder).env(SETTINGS, settings.join("\n"));
    command
}

/// As [`child`], to be stopped after some steps as Ctrl-C stops it.
pub fn child_stopped_after<S: AsRef<str>>(
    steps: u64,
    test: &str,
    folder: &Path,
    settings: &[S],
) -> Command {
    let mut command = child(test, folder, settings);
    command.env(STOP_AFTER, steps.to_string());
    command
}

/// What [`child`] runs: nothing in a process that is no child.
///
/// # Panics
/// With the run's sentence, when it fails.
pub fn act_as_child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let settings = std::env::var(SETTINGS).expect("a child is given its settings");
    let settings: Vec<&str> = settings.lines().collect();
    interrupt::catch().expect("a child catches signals");
    if let Ok(steps) = std::env::var(STOP_AFTER) {
        interrupt::request_after(steps.parse().expect("a number of steps"));
    }
    let config = config(&settings).expect("a child's settings are right");
    match begin_or_resume(Path::new(&folder), &config) {
        Ok(End::Complete(_)) => eprintln!("{COMPLETE}"),
        Ok(End::Interrupted(sentence)) => eprintln!("{sentence}"),
        Err(error) => panic!("{error:#}"),
    }
}

/// Runs a child to its end, and returns what it said.
///
/// # Panics
/// When it cannot be started.
pub fn said(command: &mut Command) -> String {
    let output = command.output().expect("a child can be started");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether what a child said is that of a complete run.
pub fn is_complete(said: &str) -> bool {
    said.contains(COMPLETE)
}
