//! The program as a person meets it: what each command reads, writes and answers, and with which exit code.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use prime_model::Config;
use prime_runtime::safetensors;
use serde_json::{Value, json};

struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    fn lines(&self) -> Vec<Value> {
        self.out.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }
}

fn prime_in(folder: &Path, args: &[&str], input: &str) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_prime"))
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that refuses its flags does not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the program writes UTF-8");
    let ran = Ran {
        code: output.status.code().expect("no signal ends the program"),
        out: text(output.stdout),
        err: text(output.stderr),
    };
    assert!(!ran.err.contains("a fault in prime"), "{args:?}: {}", ran.err);
    ran
}

fn prime(args: &[&str], input: &str) -> Ran {
    prime_in(&repository(), args, input)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn fixture(name: &str) -> String {
    repository().join("tests/fixtures/models").join(name).to_str().unwrap().to_string()
}

fn qwen2() -> String {
    fixture("qwen2-tied")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// As the floats they were written from: the shortest text of a float32 is another float64.
fn floats(value: &Value) -> Vec<f64> {
    numbers(value).into_iter().map(|x| f64::from(x as f32)).collect()
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let help = prime(&["--help"], "").expect(0).out;
    assert!(help.contains("A first session"), "{help}");
    for command in
        ["train", "sft", "eval", "generate", "score", "grade", "replay", "plan", "doctor"]
    {
        assert!(help.contains(command));
        let ran = prime(&[command, "--help"], "").expect(0);
        assert!(ran.out.contains("Example") && ran.err.is_empty(), "{command}: {}", ran.out);
    }
}

#[test]
fn misuse_has_exit_code_2_and_a_sentence_that_helps() {
    let model = qwen2();
    for (args, sentence) in [
        (vec![], "Usage"),
        (vec!["trian"], "train"),
        (vec!["train", "--stes", "1"], "unexpected argument '--stes'"),
        (vec!["train", "--set", "policy.learning_rat=1"], "did you mean `learning_rate`?"),
        (vec!["train", "--set", "filter.lower=2"], "filter.lower is 2, expected 0 to 1"),
        (vec!["plan", "--set", "rollout.slots=99999999"], "rollout.slots is 99999999"),
        (vec!["sft", "--set", "sft.steps=0"], "there is nothing to train"),
        (vec!["plan", "--set", "seed"], "expected section.key=value"),
        (vec!["plan", "--config", "/no/such/file.toml"], "cannot read /no/such/file.toml"),
        (vec!["plan", "--threads", "many"], "--threads"),
        (vec!["grade", "--task", "gsm8", "--input", "-", "--output", "-"], "did you mean"),
        (vec!["grade", "--task", "gsm8k"], "--input"),
        (
            vec!["replay", "--input", "-", "--output", "-", "--set", "process_gama=1"],
            "process_gamma",
        ),
        (vec!["replay", "--input", "-", "--output", "-", "--form", "ppo"], "prime-repo"),
        (vec!["generate", "--model", &model], "--prompt"),
        (vec!["generate", "--model", &model, "--prompt", "x", "--temperature", "-1"], "0 to 100"),
        (vec!["generate", "--model", &model, "--prompt", "-x", "--top-p", "0"], "--top-p"),
        (vec!["score", "--model", &model, "--input", "-", "--output", "-", "--ref", "x"], "--prm"),
        (vec!["eval", "--model", &model, "--task", "weather"], "countdown"),
        (
            vec!["eval", "--model", &model, "--data", "x.jsonl", "--grader", "mat"],
            "did you mean \"math\"?",
        ),
    ] {
        let ran = prime(&args, "").expect(2);
        assert!(ran.err.contains(sentence), "{args:?}: {}", ran.err);
    }
}

#[test]
fn what_cannot_be_done_has_exit_code_1_and_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    std::fs::create_dir(at("empty")).unwrap();
    std::fs::write(at("file"), "x").unwrap();
    let (empty, file, absent, model) = (at("empty"), at("file"), at("absent"), qwen2());
    let text = "{\"text\":\"3 + 4\"}\n";
    let long = format!("{{\"text\":{:?}}}", "3 + 4 ".repeat(100));
    let score = |model: &str, more: &[&str], input: &str| {
        let args = [&["score", "--model", model, "--input", "-", "--output", "-"], more].concat();
        prime(&args, input)
    };
    let generate = |args: &[&str]| prime(&[&["generate", "--model", &model], args].concat(), "");
    for (ran, sentence) in [
        (score(&absent, &[], text), "there is no model folder"),
        (score(&empty, &[], text), "is not a model folder: it has no config.json"),
        (score(&file, &[], text), "is a file, expected a model folder"),
        (score(&model, &["--prm", &absent], text), "there is no model folder"),
        (score(&model, &[], "{\"text\":\"3\"}\n{\"text\":"), "line 2 of the input"),
        (score(&model, &[], "{\"text\":\"3\"}\n\n[1]"), "line 3 of the input"),
        (score(&model, &[], "{\"txt\":\"3\"}"), "no field \"text\""),
        (score(&model, &[], "{\"prompt\":\"3\"}"), "no field \"response\""),
        (score(&model, &[], "{\"prompt\":\"\",\"response\":\"3\"}"), "the prompt is empty"),
        (score(&model, &[], "{\"text\":\"\"}"), "line 1 of the input: the text is empty"),
        (score(&model, &[], "{\"text\":\"a\",\"prompt\":\"b\"}"), "has both `text` and `prompt`"),
        (score(&model, &[], &long), "sequences of up to 128"),
        (
            prime(&["score", "--model", &model, "--input", &absent, "--output", "-"], ""),
            "cannot read",
        ),
        (
            prime(&["score", "--model", &model, "--input", &empty, "--output", "-"], ""),
            "is a folder",
        ),
        (
            prime(&["score", "--model", &model, "--input", "-", "--output", &empty], text),
            "this is a folder",
        ),
        (
            prime(
                &["score", "--model", &model, "--input", "-", "--output", &at("no/such/file")],
                text,
            ),
            "cannot create",
        ),
        (generate(&["--prompt", ""]), "the prompt is empty"),
        (generate(&["--prompt", &"3 + 4 ".repeat(100)]), "leaves no room for a response"),
        (generate(&["--input", &absent]), "cannot read"),
        (prime(&["grade", "--task", "exact", "--input", "-", "--output", "-"], "{"), "line 1"),
        (prime(&["replay", "--input", "-", "--output", "-"], "{}"), "line 1"),
        (prime(&["replay", "--input", "-", "--output", "-"], ""), "has no rollouts"),
        (prime(&["train", "--resume", "--out", &absent], ""), "no run to resume"),
        (prime_in(folder.path(), &["train", "--resume"], ""), "no run to resume"),
        (prime(&["plan", "--model", &empty], ""), "is not a model folder"),
        (
            prime(&["train", "--out", &absent, "--set", "task.name=jsonl"], ""),
            "the jsonl task needs a file",
        ),
        (
            prime(&["train", "--out", &absent, "--set", "model.path=/no/such/model"], ""),
            "there is no model folder /no/such/model",
        ),
        (prime(&["eval", "--model", &model, "--data", &absent], ""), "cannot be opened"),
        (prime(&["eval", "--model", &model, "--data", &file], ""), "line 1"),
    ] {
        let ran = ran.expect(1);
        assert!(ran.err.contains(sentence), "{sentence}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
    assert!(!Path::new(&absent).exists(), "a run that cannot begin leaves no folder");
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer_config.json"] {
        std::fs::copy(Path::new(&qwen2()).join(name), folder.path().join(name)).unwrap();
    }
    let tokenizer = std::fs::read_to_string(Path::new(&qwen2()).join("tokenizer.json")).unwrap();
    let path = folder.path().join("tokenizer.json");
    let model = folder.path().to_str().unwrap();
    let score = |more: &[&str]| {
        let args = [&["score", "--input", "-", "--output", "-"], more].concat();
        prime(&args, "{\"text\":\"3\"}").expect(1).err
    };

    let swapped =
        tokenizer.replacen("\"!\": 3,", "\"!\": 4,", 1).replacen("\"\\\"\": 4,", "\"\\\"\": 3,", 1);
    assert_ne!(swapped, tokenizer);
    std::fs::write(&path, swapped).unwrap();
    let message = score(&["--model", &qwen2(), "--prm", model]);
    assert!(message.contains("the two models need the same tokenizer"), "{message}");

    let mut value: Value = serde_json::from_str(&tokenizer).unwrap();
    value["model"]["vocab"]["zebra"] = json!(5000);
    std::fs::write(&path, value.to_string()).unwrap();
    let message = score(&["--model", model]);
    assert!(message.contains("`zebra` with id 5000 has no embedding"), "{message}");

    std::fs::remove_file(&path).unwrap();
    assert!(score(&["--model", model]).contains("tokenizer.json"));
}

#[test]
fn an_output_file_is_whole_or_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.jsonl");
    let args = ["grade", "--task", "exact", "--input", "-", "--output", path.to_str().unwrap()];
    let good = "{\"response\":\"a\",\"answer\":\"a\"}\n";
    prime(&args, &format!("{good}nonsense\n")).expect(1);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");

    let ran = prime(&args, good).expect(0);
    assert!(ran.out.is_empty() && ran.err.is_empty());
    let written = std::fs::read_to_string(&path).unwrap();
    let line: Value = serde_json::from_str(written.trim_end()).unwrap();
    assert_eq!(line, json!({"response": "a", "answer": "a", "score": 1.0, "extracted": "a"}));

    prime(&args, "nonsense").expect(1);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), written, "the old file stays");
    if cfg!(unix) {
        prime(&[&args[..6], &["/dev/null"]].concat(), good).expect(0);
    }
}

#[test]
fn a_replay_writes_every_line_and_a_last_one_of_losses() {
    let line = |id: u32, outcome: u32, prm: f32| {
        json!({
            "prompt_id": id, "outcome": outcome, "note": "kept",
            "prm_log_probs": [prm], "ref_log_probs": [-1.0], "old_log_probs": [-1.0],
        })
        .to_string()
            + "\n"
    };
    let input = line(1, 1, -0.5) + &line(1, 0, -2.0);
    let args = ["replay", "--input", "-", "--output", "-", "--set", "beta=1"];
    let lines = prime(&args, &input).expect(0).lines();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0]["note"], "kept");
    assert_eq!(numbers(&lines[0]["process_rewards"]), [0.5]);
    assert_eq!(numbers(&lines[1]["process_rewards"]), [-1.0]);
    // Leave-one-out of outcomes (1 and 0) and of rewards (0.5 and -1).
    assert_eq!(numbers(&lines[0]["advantages"]), [2.5]);
    for key in ["prm_loss", "prm_accuracy", "policy_loss", "clip_fraction"] {
        assert!(lines[2][key].is_number(), "{}", lines[2]);
    }
}

#[test]
fn a_response_is_scored_as_the_same_tokens_of_a_text_are() {
    let input = concat!(
        "{\"id\":7,\"text\":\"3 + 4 = 7\"}\n\n",
        "{\"prompt\":\"3 + 4 =\",\"response\":\" 7\"}\n",
        "{\"text\":\"3\"}\n",
        "{\"prompt\":\"3\",\"response\":\"\"}\n",
    );
    let model = qwen2();
    let args = ["score", "--model", &model, "--input", "-", "--output", "-"];
    let lines = prime(&args, input).expect(0).lines();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[0]["id"], &lines[0]["text"]), (&json!(7), &json!("3 + 4 = 7")));
    let (text, response) = (numbers(&lines[0]["log_probs"]), numbers(&lines[1]["log_probs"]));
    assert_eq!(lines[0]["token_ids"], lines[1]["token_ids"]);
    assert_eq!(text[text.len() - response.len()..], response[..]);
    assert_eq!(numbers(&lines[0]["entropy"]).len(), text.len() + 1);
    assert_eq!(numbers(&lines[1]["entropy"]).len(), response.len());
    assert_eq!(numbers(&lines[2]["log_probs"]).len(), 0);
    assert_eq!(numbers(&lines[2]["entropy"]).len(), 1);
    assert_eq!(lines[3]["log_probs"], json!([]));

    // Alone, and when scored a second time: the same bits, and no field twice.
    let alone = prime(&args, "{\"prompt\":\"3 + 4 =\",\"response\":\" 7\"}\n").expect(0);
    assert_eq!(alone.lines()[0], lines[1]);
    assert_eq!(prime(&args, &alone.out).expect(0).out, alone.out);
}

#[test]
fn process_rewards_are_the_scaled_log_ratio() {
    let (policy, prm) = (qwen2(), fixture("qwen3-untied-bf16-sharded"));
    let input = "{\"prompt\":\"3 + 4 =\",\"response\":\" 7, so x = 3\"}\n";
    let score = |model: &str, more: &[&str]| {
        let args = [&["score", "--model", model, "--input", "-", "--output", "-"], more].concat();
        prime(&args, input)
    };
    let under_prm = score(&prm, &[]).expect(0).lines();
    let both = score(&policy, &["--prm", &prm, "--beta", "0.5"]).expect(0).lines();
    let (prm, reference) = (floats(&under_prm[0]["log_probs"]), floats(&both[0]["log_probs"]));
    let rewards = floats(&both[0]["process_rewards"]);
    let mut sum = 0.0;
    for ((reward, prm), reference) in rewards.iter().zip(&prm).zip(&reference) {
        let expected = 0.5 * (prm - reference);
        // Computed in double from the same floats, then rounded to a float.
        assert!((reward - expected).abs() <= expected.abs() * f64::from(f32::EPSILON));
        sum += expected;
    }
    let probability = both[0]["outcome_probability"].as_f64().unwrap();
    assert!((probability - 1.0 / (1.0 + (-sum).exp())).abs() < 1e-12);
}

#[test]
fn generated_samples_have_the_log_probs_that_scoring_gives_them() {
    let model = qwen2();
    let args = [
        "generate",
        "--model",
        &model,
        "--input",
        "-",
        "--json",
        "--max-new-tokens",
        "6",
        "--samples",
        "2",
        "--seed",
        "3",
        "--ignore-eos",
        "--top-k",
        "40",
    ];
    let input = "{\"prompt\":\"3 + 4 =\",\"id\":1}\n{\"prompt\":\"x = \"}\n";
    let lines = prime(&args, input).expect(0).lines();
    assert_eq!(lines.len(), 4);
    assert_eq!((&lines[1]["id"], &lines[1]["prompt"]), (&json!(1), &json!("3 + 4 =")));
    assert_ne!(lines[0]["token_ids"], lines[1]["token_ids"], "two samples of one prompt differ");
    for line in &lines {
        assert_eq!(line["finish_reason"], "length");
        assert_eq!(numbers(&line["token_ids"]).len(), 6);
        assert_eq!(numbers(&line["log_probs"]).len(), 6);
    }
    // A sample is its seed's and its place's, whatever is drawn beside it.
    let first = input.lines().next().unwrap();
    let fewer = prime(&args, first).expect(0).lines();
    assert_eq!(fewer[..2], lines[..2]);

    let greedy = ["--temperature", "0", "--max-new-tokens", "4", "--ignore-eos"];
    let plain = [&["generate", "--model", &model, "--prompt", "3 + 4 ="], &greedy[..]].concat();
    let text = prime(&plain, "").expect(0).out;
    let lines = prime(&[&plain[..], &["--json"]].concat(), "").expect(0).lines();
    assert_eq!(text.strip_suffix('\n').unwrap(), lines[0]["text"].as_str().unwrap());

    let chat = ["--chat", "--system", "Be brief."];
    let chatted = prime(&[&plain[..], &["--json"], &chat[..]].concat(), "").expect(0).lines();
    assert_eq!(chatted[0]["prompt"], "3 + 4 =");
    assert_ne!(chatted[0]["log_probs"], lines[0]["log_probs"]);
}

/// The folders with reference results: those committed, and the larger ones that may lie beside the repository.
fn references() -> Vec<(PathBuf, Vec<String>)> {
    let folders = |root: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(root).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut found = Vec::new();
    for folder in folders(&repository().join("tests/fixtures/models")) {
        let text = std::fs::read_to_string(folder.join("expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        let texts = expected["texts"].as_array().unwrap();
        let texts = texts[..3].iter().map(|entry| entry["text"].as_str().unwrap().to_string());
        found.push((folder, texts.collect()));
    }
    let vectors = match std::env::var_os("PRIME_VECTORS") {
        Some(root) => PathBuf::from(root),
        None => repository().join("../shared/vectors"),
    };
    if vectors.join("models").is_dir() {
        let texts = [
            "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
            "12 + 7 = 19",
            "Let x be a real number with x^2 - 5x + 6 = 0. Then x = 2 or x = 3.",
        ];
        let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
        let models = folders(&vectors.join("models"));
        found.extend(models.into_iter().map(|folder| (folder, texts.clone())));
    } else {
        println!("skipped: there are no reference models in {}", vectors.display());
    }
    found
}

#[test]
fn scores_and_greedy_texts_are_those_of_transformers() {
    for (folder, texts) in references() {
        let model = folder.to_str().unwrap();
        println!("{model}");
        let expected = safetensors::File::open(folder.join("expected.safetensors")).unwrap();
        let floats = |name: &str| expected.read_f32(name).unwrap();
        let ids = |name: &str| -> Vec<i64> {
            let bytes = expected.tensor(name).unwrap().bytes;
            bytes.chunks_exact(8).map(|x| i64::from_le_bytes(x.try_into().unwrap())).collect()
        };
        let lines = |key: &str| -> String {
            texts.iter().map(|text| json!({key: text}).to_string() + "\n").collect()
        };
        let args = ["score", "--model", model, "--input", "-", "--output", "-"];
        let scored = prime(&args, &lines("text")).expect(0).lines();
        let args = [
            "generate",
            "--model",
            model,
            "--input",
            "-",
            "--json",
            "--temperature",
            "0",
            "--ignore-eos",
            "--max-new-tokens",
            "24",
        ];
        let generated = prime(&args, &lines("prompt")).expect(0).lines();
        let config = Config::load(&folder).unwrap();
        // The numbers of this model were computed with rotary frequencies rounded to bfloat16, which neither transformers does when it
        // loads the folder nor we do: tests/tests/models.rs compares them through a decoder that rounds them, and a committed model of
        // the same shape and name, with transformers' own numbers, goes through this test whole.
        let rounded = folder.ends_with("vectors/models/qwen3-untied-bf16-sharded");
        for (i, (scored, generated)) in scored.iter().zip(&generated).enumerate() {
            let tokens: Vec<i64> =
                numbers(&scored["token_ids"]).iter().map(|&id| id as i64).collect();
            assert_eq!(tokens, ids(&format!("{i}.input_ids")));
            let tolerance = tolerance(&config, tokens.len());
            for (key, name) in [("log_probs", "token_log_probs"), ("entropy", "entropy")] {
                let (ours, theirs) = (numbers(&scored[key]), floats(&format!("{i}.{name}")));
                assert_eq!(ours.len(), theirs.len(), "{key}");
                if rounded {
                    continue;
                }
                for (ours, theirs) in ours.iter().zip(&theirs) {
                    let apart = (ours - f64::from(*theirs)).abs();
                    assert!(apart <= tolerance, "{key} of text {i}: {ours}, expected {theirs}");
                }
            }
            let drawn: Vec<i64> =
                numbers(&generated["token_ids"]).iter().map(|&id| id as i64).collect();
            assert_eq!(drawn, ids(&format!("{i}.greedy_ids")), "text {i}");
            assert_eq!(generated["finish_reason"], "length");
        }
    }
}

/// How far two float32 computations of a log-probability may be apart. Each is a chain of products, of which a sum of n terms is off by
/// about sqrt(n) roundings (half an ulp, 2^-24, each) of its magnitude; errors of independent steps add as squares. Logits and
/// log-probabilities of these models are below 16, and four standard deviations on both sides cover every number compared.
fn tolerance(config: &Config, tokens: usize) -> f64 {
    let q = config.num_heads * config.head_dim;
    let layer = 2 * config.hidden_size // into q, k, v and into gate, up
        + q // the output projection
        + config.intermediate_size
        + config.head_dim // scores
        + tokens // attended values
        + 2 * config.hidden_size; // the norms' sums of squares
    let terms = config.num_layers * layer + 2 * config.hidden_size + config.vocab_size;
    let roundings = (terms as f64).sqrt() * 2f64.powi(-24);
    2.0 * 4.0 * 16.0 * roundings
}

/// A run that takes a moment.
const TINY: [&str; 32] = [
    "--set",
    "model.hidden_size=16",
    "--set",
    "model.num_layers=1",
    "--set",
    "model.num_heads=2",
    "--set",
    "model.num_kv_heads=1",
    "--set",
    "model.head_dim=8",
    "--set",
    "model.intermediate_size=16",
    "--set",
    "sft.steps=2",
    "--set",
    "sft.batch_size=2",
    "--set",
    "train.steps=1",
    "--set",
    "prm.warmup_batches=1",
    "--set",
    "rollout.prompts=2",
    "--set",
    "rollout.max_new_tokens=8",
    "--set",
    "filter.lower=0",
    "--set",
    "filter.upper=1",
    "--set",
    "eval.problems=4",
    "--set",
    "train.compare=false",
];

#[test]
fn a_run_ends_with_its_table_and_its_folder_goes_on_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let train = |more: &[&str]| prime_in(folder.path(), &[&["train"], more].concat(), "");
    let dry = train(&[&TINY[..], &["--dry-run", "--seed", "9"]].concat()).expect(0).out;
    assert!(dry.contains("seed = 9") && dry.contains("parameters:"), "{dry}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a dry run writes nothing");

    let first = train(&TINY).expect(0);
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
fn sft_alone_leaves_its_model_and_train_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let out = out.to_str().unwrap();
    let sft = prime(&[&["sft", "--out", out], &TINY[..]].concat(), "").expect(0);
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
        prime(&[&["train", "--out", out, "--set", &device], &TINY[..]].concat(), "")
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
    let ran = train(&[&TINY[..], &device, &out].concat()).expect(0);
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
    let config = Config::load(&folder.path().join("run/sft/policy")).unwrap();
    let pairs = floats(&score("cpu")["log_probs"]);
    for (a, b) in pairs.iter().zip(floats(&score("emulated")["log_probs"])) {
        assert!((a - b).abs() <= tolerance(&config, 8), "{a} and {b}");
    }
    let args = ["eval", "--model", "run", "--device", "emulated", "--problems", "2", "--json"];
    let more = ["--max-new-tokens", "4"];
    let report = &prime_in(folder.path(), &[&args[..], &more].concat(), "").expect(0).lines()[0];
    assert_eq!(report["problems"], json!(2));
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_prime"))
        .args(["grade", "--task", "exact", "--input", "-", "--output", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let line = "{\"response\":\"a\",\"answer\":\"a\"}\n";
    child.stdin.take().unwrap().write_all(line.repeat(10).as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}
