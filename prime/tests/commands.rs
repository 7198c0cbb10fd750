//! The commands as a person meets them: what each reads, writes and answers, and with which exit code.

mod support;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use prime_model::Config;
use prime_runtime::safetensors;
use serde_json::{Value, json};
use support::{fixture, floats, numbers, prime, prime_in, qwen2, repository, tolerance};

#[test]
fn every_command_explains_itself_with_an_example() {
    let help = prime(&["--help"], "").expect(0).out;
    assert!(help.contains("A first session"), "{help}");
    for command in [
        "train", "sft", "prm", "eval", "generate", "score", "grade", "replay", "data", "report",
        "watch", "plan", "doctor",
    ] {
        assert!(help.contains(command));
        let ran = prime(&[command, "--help"], "").expect(0);
        assert!(ran.out.contains("Example") && ran.err.is_empty(), "{command}: {}", ran.out);
    }
    for command in ["report", "tune"] {
        let help = prime(&["bench", command, "--help"], "").expect(0).out;
        assert!(help.contains("Example"), "{help}");
    }
    let tune = prime(&["bench", "tune", "--help"], "").expect(0).out;
    assert!(
        tune.contains("Example") && tune.contains("--attention causal:8x512:14/2x64"),
        "{tune}"
    );
}

#[test]
fn a_page_of_results_never_takes_the_place_of_what_it_is_made_of() {
    let folder = tempfile::tempdir().unwrap();
    let record = repository().join("bench/results/2026-11-28-cpu-against-pytorch.json");
    let record = record.to_str().unwrap();
    let copy = folder.path().join("copy.json");
    std::fs::copy(record, &copy).unwrap();
    let before = std::fs::read(&copy).unwrap();
    let copy = copy.to_str().unwrap();
    let over = |args: &[&str]| prime_in(folder.path(), args, "").expect(2).err;
    let said = over(&["bench", "report", copy, "--output", "./copy.json"]);
    assert!(said.contains("would be replaced by the page"), "{said}");
    let said = over(&["bench", "report", record, "--against", copy, "--output", copy]);
    assert!(said.contains("would be replaced by the page"), "{said}");
    assert_eq!(std::fs::read(copy).unwrap(), before);
    let args = ["bench", "report", copy, "--against", record, "--output", "page.html"];
    let said = prime_in(folder.path(), &args, "").expect(0);
    assert!(said.out.contains("none became slower beyond noise"), "{}", said.out);
    assert!(folder.path().join("page.html").is_file());
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
        (vec!["bench", "tune"], "there is nothing to tune"),
        (vec!["bench", "tune", "--matmul", "NT:64"], "such as 64x37888x3584"),
        (vec!["bench", "tune", "--attention", "causal:8x512"], "such as causal:8x512:14/2x64"),
        (
            vec!["bench", "tune", "--attention", "causal:8x512:14/4x64"],
            "14 query heads cannot share 4 key/value heads",
        ),
        (vec!["bench", "tune", "--device", "cpu", "--model", &model], "the host has one way"),
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
fn scored_text_is_shown_as_one_page_with_or_without_lines_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (page, lines, model, prm) =
        (at("page.html"), at("lines.jsonl"), qwen2(), fixture("qwen3-untied-bf16-sharded"));
    let input = concat!(
        "{\"prompt\":\"3 + 4 =\",\"response\":\" 7 </script>\",\"score\":1}\n",
        "{\"prompt\":\"3 + 4 =\",\"response\":\" 8\",\"score\":0}\n",
        "{\"text\":\"\u{1f642}\"}\n",
    );
    let args = ["score", "--model", &model, "--prm", &prm, "--input", "-", "--html", &page];
    assert!(prime(&args, input).expect(0).out.is_empty());
    let html = std::fs::read_to_string(&page).unwrap();
    let data = html
        .split("<script type=\"application/json\">")
        .nth(1)
        .unwrap()
        .split("</script>")
        .next()
        .unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    let groups = data["steps"][0]["groups"].as_array().unwrap();
    assert_eq!(
        (groups.len(), groups[0]["answers"].as_array().unwrap().len()),
        (2, 2),
        "answers to one prompt stand together"
    );
    assert_eq!(groups[0]["answers"][1]["outcome"], 0);
    for column in ["old_log_probs", "entropies", "process_rewards"] {
        assert!(groups[0]["answers"][0]["columns"][column].is_string(), "{column}");
    }

    let with_lines = [&args[..], &["--output", &lines]].concat();
    prime(&with_lines, input).expect(0);
    assert_eq!(std::fs::read_to_string(&lines).unwrap().lines().count(), 3);
    assert_eq!(std::fs::read_to_string(&page).unwrap(), html);
    prime(&args, "nonsense").expect(1);
    assert_eq!(std::fs::read_to_string(&page).unwrap(), html, "the old page stays");
    let neither = prime(&["score", "--model", &model, "--input", "-"], "").expect(2);
    assert!(neither.err.contains("--output"), "{}", neither.err);
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

#[test]
fn data_are_shown_with_what_is_left_out_their_lengths_and_prompts_as_the_model_reads_them() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, questions: &[&str]| {
        let line =
            |question: &&str| format!("{}\n", json!({"question": question, "answer": "#### 7"}));
        let path = folder.path().join(name);
        std::fs::write(&path, questions.iter().map(line).collect::<String>()).unwrap();
        path.to_str().unwrap().to_string()
    };
    let train = write("train.jsonl", &["3 + 4?", "5 + 2?", "3  + 4?", "6 + 1?"]);
    let test = write("test.jsonl", &["5 + 2?"]);
    let settings = [
        "task.name=jsonl".to_string(),
        format!("task.jsonl.train={train}"),
        format!("task.jsonl.test={test}"),
        "task.jsonl.chat=true".into(),
        "task.jsonl.system_prompt=Be brief.".into(),
        "task.jsonl.template={prompt}".into(),
        "rollout.max_prompt_tokens=10".into(),
    ];
    let mut args = vec!["data", "--show", "1"];
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let plain = prime(&args, "").expect(0).out;
    assert!(plain.contains("characters of") && plain.contains("system: Be brief."), "{plain}");
    let (model, mut with_model) = (qwen2(), args.clone());
    with_model.extend(["--model", &model]);
    let shown = prime(&with_model, "").expect(0).out;
    for text in [
        "train: 2 problems to train on, 1 held out",
        "train      5         0         1        0      1            2               1  100.0 %  100.0 %",
        "train      gsm8k            2               1",
        "tokens of",
        "2 over rollout.max_prompt_tokens, 10",
        "train, graded by gsm8k; the answer is 7",
        "  | <|start|>system",
        "  | Be brief.<|end|>",
        "  | <|start|>assistant",
    ] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    let endless = prime(&["data", "--measure", "50"], "").expect(0).out;
    assert!(endless.contains("arithmetic: problems without end"), "{endless}");
}
