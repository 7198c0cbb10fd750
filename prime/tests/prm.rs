//! An implicit PRM from graded responses to what it is used for, through the program.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{numbers, prime_in, tiny};

/// A model of some thousand parameters after two steps of SFT.
fn settings() -> Vec<&'static str> {
    tiny(&["rollout.max_new_tokens=16"])
}

/// Worked solutions of three steps: a step with an 8 in it is wrong. Every second one has such a step, and is otherwise the one before it: where
/// prompt or operands tell right from wrong, a PRM rightly gives rewards to them too.
fn steps(i: usize) -> (Vec<String>, i64) {
    let pair = i / 2;
    let wrong = if i.is_multiple_of(2) { None } else { Some(pair % 3) };
    let step = |k: usize| format!("{}+{}=7", (pair + k) % 5, (pair + 3 * k) % 4);
    let steps = (0..3).map(|k| if wrong == Some(k) { step(k).replace('7', "8") } else { step(k) });
    (steps.collect(), wrong.map_or(-1, |wrong| wrong as i64))
}

fn write(folder: &Path, name: &str, lines: impl Iterator<Item = Value>) {
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    std::fs::write(folder.join(name), text).unwrap();
}

/// Outcomes say which solution is wrong, never where.
fn graded(folder: &Path) {
    let lines = (0..240).map(|i| {
        let (steps, wrong) = steps(i);
        json!({
            "prompt": format!("{}+{}:", i / 2 % 40, i / 2 % 3),
            "response": steps.join(";"),
            "outcome": u8::from(wrong < 0),
        })
    });
    write(folder, "graded.jsonl", lines);
}

const TRAINING: [&str; 12] = [
    "--set",
    "prm.beta=1",
    "--set",
    "prm.learning_rate=1e-2",
    "--set",
    "offline.epochs=8",
    "--set",
    "offline.max_tokens=48",
    "--set",
    "offline.held_out_one_in=4",
    "--set",
    "offline.eval_every=20",
];

const TEMPLATE: &str = "task.jsonl.template={prompt}";

/// What a run said of its held-out responses.
fn evaluations(folder: &Path) -> Vec<Value> {
    let metrics = std::fs::read_to_string(folder.join("run/metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.filter(|line: &Value| line["stage"] == "eval").collect()
}

/// Unseen numbers, and the place of the mistake.
fn bench(folder: &Path) {
    let lines = (1000..1160).map(|i| {
        let (steps, label) = steps(i);
        json!({"id": i.to_string(), "problem": "3+4:", "steps": steps, "label": label})
    });
    write(folder, "bench.jsonl", lines);
}

fn signal(report: &Value, name: &str) -> Value {
    let found = report["found"].as_array().unwrap();
    found.iter().find(|found| found["signal"] == name).unwrap().clone()
}

#[test]
fn a_prm_learns_a_planted_mistake_from_outcomes_alone_and_finds_it_in_steps() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str], input: &str| prime_in(folder.path(), args, input);
    run(&[&["sft", "--out", "warm"], &settings()[..]].concat(), "").expect(0);
    let policy = "warm/sft/policy";

    graded(folder.path());
    let train =
        [&["prm", "--model", policy, "--data", "graded.jsonl", "--out", "run"], &TRAINING[..]]
            .concat();
    let trained = run(&train, "").expect(0);
    assert!(trained.out.contains("the PRM is run/prm"), "{}", trained.out);
    let evaluations = evaluations(folder.path());
    let [first, last] = [&evaluations[0], evaluations.last().unwrap()];
    // Before its first update the PRM is its reference, and knows nothing.
    assert_eq!((&first["prm/auc"], &first["prm/pairwise_accuracy"]), (&json!(0.5), &json!(0.5)));
    assert_eq!((&last["prm/auc"], &last["prm/pairwise_accuracy"]), (&json!(1.0), &json!(1.0)));
    assert!(evaluations.len() > 3);
    assert!(run(&train, "").expect(1).err.contains("--resume"));
    run(&["prm", "--resume", "--out", "run"], "").expect(0);

    bench(folder.path());
    let bench_of = |prm: &str, more: &[&str]| {
        let args = [
            "eval",
            "--processbench",
            "bench.jsonl",
            "--prm",
            prm,
            "--ref",
            policy,
            "--separator",
            ";",
            "--beta",
            "1",
            "--json",
            "--set",
            TEMPLATE,
        ];
        run(&[&args[..], more].concat(), "").expect(0).lines().remove(0)
    };
    let found = bench_of("run", &["--output", "found.jsonl"]);
    // Nothing but the mistake tells a wrong solution from its pair, so no other step has so low a reward.
    for name in ["step reward", "prefix value", "mean prefix value"] {
        assert_eq!(signal(&found, name)["f1"], json!(1.0), "{found}");
    }
    assert_eq!((&found["solutions"], &found["left_out"]), (&json!(160), &json!(0)));
    let details = std::fs::read_to_string(folder.path().join("found.jsonl")).unwrap();
    assert_eq!(details.lines().count(), 160);
    // A PRM that equals its reference has no signal.
    let nothing = bench_of(policy, &[]);
    for found in nothing["found"].as_array().unwrap() {
        assert_eq!(found["f1"], 0.0, "{found}");
    }

    // Step scores of a file of solutions agree with the token rewards that they are sums of.
    let given = json!({"prompt": "3+4:", "steps": ["3+4=7", "1+1=8"]}).to_string();
    let written = json!({"prompt": "3+4:", "response": "3+4=7;1+1=8"}).to_string();
    let score = [
        "score",
        "--model",
        policy,
        "--prm",
        "run",
        "--beta",
        "1",
        "--steps",
        "--separator",
        ";",
        "--input",
        "-",
        "--output",
        "-",
    ];
    let lines = run(&score, &format!("{given}\n{written}\n")).expect(0).lines();
    assert_eq!(lines[0]["step_rewards"], lines[1]["step_rewards"]);
    assert_eq!(lines[0]["step_ends"], json!([6, 11]));
    let (rewards, tokens) =
        (numbers(&lines[0]["step_rewards"]), numbers(&lines[0]["process_rewards"]));
    // Token rewards are written as float32.
    let sum: f64 = tokens[..6].iter().sum();
    assert!(
        (rewards[0] - sum).abs()
            <= 6.0 * f64::from(f32::EPSILON) * tokens.iter().map(|x| x.abs()).sum::<f64>()
    );
    assert!(rewards[1] < rewards[0], "{rewards:?}");
    let values = numbers(&lines[0]["prefix_values"]);
    assert_eq!(values, [rewards[0], rewards[0] + rewards[1]]);

    // Best of 4, with and without the reference, by two PRMs at once.
    let ranked = run(
        &[
            "eval",
            "--model",
            policy,
            "--best-of",
            "4",
            "--prm",
            "run",
            "--prm",
            policy,
            "--ref",
            policy,
            "--separator",
            ";",
            "--problems",
            "6",
            "--max-new-tokens",
            "16",
            "--json",
        ],
        "",
    )
    .expect(0)
    .lines();
    let rankings = ranked[0]["best_of"].as_array().unwrap();
    assert_eq!(rankings.len(), 2);
    for ranking in rankings {
        assert_eq!(
            (&ranking["samples"], ranking["rows"].as_array().unwrap().len()),
            (&json!(4), 12)
        );
        let oracle = ranking["baselines"]["oracle"]["mean"].as_f64().unwrap();
        for row in ranking["rows"].as_array().unwrap() {
            assert!(row["best"]["mean"].as_f64().unwrap() <= oracle);
        }
    }
    // What sampled them is graded in the form that a PRM is trained on.
    run(
        &[
            "eval",
            "--model",
            policy,
            "--split",
            "train",
            "--problems",
            "6",
            "--samples",
            "3",
            "--max-new-tokens",
            "16",
            "--output",
            "rollouts.jsonl",
        ],
        "",
    )
    .expect(0);
    let again = [
        "prm",
        "--model",
        policy,
        "--data",
        "rollouts.jsonl",
        "--out",
        "again",
        "--reference",
        "none",
        "--set",
        "offline.max_tokens=48",
        "--set",
        "offline.held_out_one_in=0",
        "--set",
        "prm.loss=kto",
    ];
    assert!(run(&again, "").expect(0).err.contains("18 responses to 6 prompts"));
}

#[test]
fn a_prm_of_an_adapter_is_saved_beside_its_model_and_serves_as_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str], input: &str| prime_in(folder.path(), args, input);
    run(&[&["sft", "--out", "warm"], &settings()[..]].concat(), "").expect(0);
    let policy = "warm/sft/policy";
    graded(folder.path());
    let train = [
        &["prm", "--model", policy, "--data", "graded.jsonl", "--out", "run"],
        &TRAINING[..],
        &["--set", "lora.rank=8"],
    ]
    .concat();
    run(&train, "").expect(0);
    let saved = folder.path().join("run/prm");
    assert!(saved.join("adapter_config.json").exists());
    assert!(saved.join("adapter_model.safetensors").exists());
    assert!(!saved.join("model.safetensors").exists());
    let evaluations = evaluations(folder.path());
    let [first, last] = [&evaluations[0], evaluations.last().unwrap()];
    // B begins at zero: the PRM is its reference, with which it shares its weights.
    assert_eq!((&first["prm/auc"], &last["prm/auc"]), (&json!(0.5), &json!(1.0)));
    run(&["prm", "--resume", "--out", "run"], "").expect(0);

    run(&["merge", "--model", "run", "--out", "merged"], "").expect(0);
    let written = json!({"prompt": "3+4:", "response": "3+4=7;1+1=8"}).to_string();
    let rewards = |prm: &str| {
        let score = ["score", "--model", policy, "--prm", prm, "--beta", "1"];
        let files = ["--input", "-", "--output", "-"];
        let lines = run(&[&score[..], &files].concat(), &written).expect(0).lines();
        numbers(&lines[0]["process_rewards"])
    };
    let (adapted, merged) = (rewards("run"), rewards("merged"));
    assert!(adapted.iter().any(|reward| reward.abs() > 0.1), "{adapted:?}");
    let model = prime_model::Config::load(&folder.path().join(policy)).unwrap();
    let tolerance = support::tolerance(&model, adapted.len() + 4);
    for (a, b) in adapted.iter().zip(&merged) {
        assert!((a - b).abs() <= tolerance, "{a} and {b}");
    }
    let best = ["eval", "--model", policy, "--best-of", "2", "--prm", "run", "--ref", policy];
    let few = ["--problems", "4", "--max-new-tokens", "8", "--json"];
    run(&[&best[..], &few].concat(), "").expect(0);
    bench(folder.path());
    let found = ["eval", "--processbench", "bench.jsonl", "--prm", "run", "--ref", policy];
    let how = ["--separator", ";", "--beta", "1", "--json", "--set", TEMPLATE];
    let found = run(&[&found[..], &how].concat(), "").expect(0).lines().remove(0);
    assert_eq!((&found["solutions"], &found["left_out"]), (&json!(160), &json!(0)));
}

#[test]
fn what_cannot_be_trained_or_judged_is_said_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "bad.jsonl", [json!({"prompt": "1", "response": "2"})].into_iter());
    write(
        folder.path(),
        "good.jsonl",
        [json!({"prompt": "1", "response": "2", "outcome": 1})].into_iter(),
    );
    write(
        folder.path(),
        "bench.jsonl",
        [json!({"problem": "1", "steps": ["2"], "label": -1})].into_iter(),
    );
    let model = support::qwen2();
    let run = |args: &[&str]| prime_in(folder.path(), args, "");
    for (args, code, sentence) in [
        (vec!["prm"], 1, "there are no graded responses to train on"),
        (vec!["prm", "--data", "good.jsonl"], 1, "name its folder with --model"),
        (
            vec!["prm", "--model", &model, "--data", "bad.jsonl"],
            1,
            "bad.jsonl, line 1: the line has no field \"outcome\"",
        ),
        (vec!["prm", "--model", &model, "--data", "none.jsonl"], 1, "none.jsonl cannot be opened"),
        (
            vec![
                "prm",
                "--model",
                &model,
                "--data",
                "good.jsonl",
                "--out",
                "a",
                "--set",
                "offline.held_out_one_in=0",
            ],
            1,
            "sequences of up to 128",
        ),
        (
            vec!["prm", "--model", &model, "--data", "good.jsonl", "--set", "prm.loss=dop"],
            2,
            "unknown PRM loss `dop`",
        ),
        (vec!["prm", "--set", "offline.batch_size=0"], 2, "offline.batch_size is 0"),
        (vec!["eval", "--model", &model, "--best-of", "4"], 2, "--prm"),
        (
            vec!["eval", "--processbench", "bench.jsonl", "--prm", &model],
            1,
            "F1 needs right and wrong ones",
        ),
    ] {
        let ran = run(&args).expect(code);
        assert!(ran.err.contains(sentence), "{args:?}: {}", ran.err);
    }
}
