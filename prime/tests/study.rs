//! Studies through the program, at sizes that show nothing but that all parts work.

mod support;

use serde_json::Value;
use support::{prime_in, tiny};

/// Models and runs of the smallest size.
fn settings() -> Vec<&'static str> {
    tiny(&["rollout.prompts=4", "filter.groups=4", "study.steps=[1]", "study.batches=[1]"])
}

fn found(folder: &std::path::Path, study: &str) -> Value {
    let text = std::fs::read_to_string(folder.join(study).join("result.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["found"].take()
}

#[test]
fn a_study_of_mistakes_ends_in_tables_a_page_and_numbers_and_is_not_made_twice() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        &["study", "mistakes", "--quick", "--out", "made"],
        &settings()[..],
        &["--set", "study.triples=8", "--set", "study.continuations=2"],
        &["--set", "prm.warmup_batches=1", "--set", "task.arithmetic.min_operations=3"],
    ]
    .concat();
    let made = prime_in(folder.path(), &args, "").expect(0);
    assert!(made.out.contains("| cross-entropy, offline | 1 |"), "{}", made.out);
    let seeds = found(folder.path(), "made");
    let seed = &seeds["seeds"][0];
    assert_eq!(seed["values"].as_array().unwrap().len(), 8);
    assert_eq!(seed["prm-prefix-value"]["checkpoints"][0]["all"]["triples"], 8);
    assert_eq!(seed["prm-online"]["habits"][1]["step"], 1);
    let page = std::fs::read_to_string(folder.path().join("made/report.html")).unwrap();
    assert!(page.contains("When a repair is worth making") && page.contains("wrong carry"));
    let refused = prime_in(folder.path(), &args, "").expect(1);
    assert!(refused.err.contains("go on with it with --resume"), "{}", refused.err);
    // What is finished is read, not made again: the same tables, at once.
    let again =
        prime_in(folder.path(), &["study", "mistakes", "--resume", "--out", "made"], "").expect(0);
    assert_eq!(again.out, made.out);
    let other =
        ["study", "mistakes", "--resume", "--out", "made", "--set", "study.continuations=3"];
    let other = prime_in(folder.path(), &other, "").expect(1);
    assert!(other.err.contains("begun with other settings"), "{}", other.err);
}

#[test]
fn mistakes_are_studied_in_every_task_that_can_be_spoilt_and_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        &["study", "mistakes", "--quick", "--out", "made", "--set", "task.name=columns"],
        &settings()[..],
        &["--set", "study.triples=9", "--set", "study.continuations=2"],
        &["--set", "prm.warmup_batches=1", "--set", "study.conditions=[\"ce\", \"online\"]"],
        &["--set", "study.teachings=[\"few-good\", \"many-bad\"]"],
    ]
    .concat();
    let made = prime_in(folder.path(), &args, "").expect(0);
    assert!(made.out.contains("| wrong copy |") && !made.out.contains("wrong operation"));
    let found = found(folder.path(), "made");
    let seed = &found["seeds"][0];
    assert_eq!(seed["prm-ce"]["checkpoints"][0]["by_mistake"].as_array().unwrap().len(), 3);
    // The start was taught few repairs that are right: it is not made twice.
    assert_eq!(seed["taught-few-good"], seed["prm-ce"]);
    assert!(seed["taught-many-bad"].is_object() && seed["taught-many-good"].is_null());
    assert!(seed["prm-dpo"].is_null());
    let other = ["study", "mistakes", "--out", "other", "--set", "task.name=countdown"];
    let other = prime_in(folder.path(), &other, "").expect(1);
    assert!(other.err.contains("task.name to one of arithmetic, columns"), "{}", other.err);
}

#[test]
fn a_study_of_efficiency_compares_the_two_runs_of_each_seed() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        &["study", "efficiency", "--quick", "--out", "made"],
        &settings()[..],
        &["--set", "train.steps=2", "--set", "prm.warmup_batches=1", "--set", "study.seeds=2"],
    ]
    .concat();
    let made = prime_in(folder.path(), &args, "").expect(0);
    assert!(made.out.contains("2 seeds"), "{}", made.out);
    let found = found(folder.path(), "made");
    for seed in found["seeds"].as_array().unwrap() {
        assert_eq!(seed["prime"]["reward"].as_array().unwrap().len(), 2);
        assert_eq!(seed["outcome_only"]["reward"].as_array().unwrap().len(), 3);
    }
    let file = |name: &str| folder.path().join("made").join(name);
    assert!(std::fs::read_to_string(file("reward.svg")).unwrap().starts_with("<svg"));
    assert!(std::fs::read_to_string(file("report.html")).unwrap().contains("15.1 points"));
}
