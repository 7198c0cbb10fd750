//! A run that was stopped or killed, anywhere and as often as may be, ends with the bits of one that was not.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use prime::run::{End, interrupt};
use prime_runtime::random::{Generator, Stream};
use prime_tests::runs;

/// Requests to stop are the process's: one run at a time.
static ONE_RUN: Mutex<()> = Mutex::new(());

/// The test that a child process runs.
const CHILD: &str = "a_run_in_a_process_of_its_own";

#[test]
fn a_run_in_a_process_of_its_own() {
    runs::act_as_child();
}

fn one_run() -> MutexGuard<'static, ()> {
    let guard = ONE_RUN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    interrupt::withdraw();
    guard
}

fn unbroken<S: AsRef<str>>(settings: &[S]) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let end = runs::begin_or_resume(folder.path(), &runs::config(settings).unwrap()).unwrap();
    assert!(matches!(end, End::Complete(_)));
    runs::results(folder.path())
}

/// Stops a run after every single step, and resumes it, until it is complete. Returns how often it was stopped.
fn stop_after_every_step<S: AsRef<str>>(folder: &Path, settings: &[S]) -> usize {
    let config = runs::config(settings).unwrap();
    let mut stops = 0;
    loop {
        interrupt::request_after(1);
        match runs::begin_or_resume(folder, &config).unwrap() {
            End::Complete(_) => break,
            End::Interrupted(sentence) => {
                assert!(sentence.contains("prime train --resume --out"), "{sentence}");
                stops += 1;
            }
        }
    }
    interrupt::withdraw();
    stops
}

#[test]
fn a_run_stopped_after_each_of_its_steps_ends_with_the_bits_of_an_unbroken_one() {
    let _guard = one_run();
    let expected = unbroken::<&str>(&[]);
    for name in [
        "sft/policy/model.safetensors",
        "checkpoints/step-4/policy/model.safetensors",
        "checkpoints/step-4/prm/model.safetensors",
        "checkpoints/step-4/trainer/policy.safetensors",
        "checkpoints/step-4/trainer/prm.safetensors",
        "checkpoints/step-4/trainer/state.json",
        "outcome-only/checkpoints/step-6/trainer/state.json",
        "rollouts/outcome_only-000006.jsonl",
        "result.json",
    ] {
        assert!(expected.contains_key(name), "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    // 6 of SFT, 2 of the PRM's warm-up, 4 of PRIME, 6 on outcomes alone; the last ends the run.
    assert_eq!(stop_after_every_step::<&str>(folder.path(), &[]), 17);
    runs::assert_same_results("stopped 17 times", &runs::results(folder.path()), &expected);
}

/// 7 problems, of which SFT takes 3 a step and PRIME 4: epochs end within steps, and prompts wait in the buffer. The PRM is a model of
/// another shape than the policy.
#[test]
fn a_small_data_set_goes_on_where_it_was_across_epochs_minibatches_and_waiting_prompts() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    let mut settings = runs::parities(data.path());
    let prm = runs::other_model(data.path(), &data.path().join("tokenizer"));
    settings.push(format!("prm.path={}", prm.display()));
    settings.extend(
        [
            "model.dtype=bfloat16",
            "filter.refill=resample",
            "filter.groups=3",
            "policy.minibatches=2",
            "policy.epochs=2",
            "prm.minibatches=2",
            "prm.reference=frozen",
            "train.checkpoint_activations=true",
            "policy.decay=cosine",
            "seed=3",
        ]
        .map(String::from),
    );
    let expected = unbroken(&settings);
    let state = String::from_utf8_lossy(&expected["checkpoints/step-4/trainer/state.json"]);
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    assert!(state["prompts"].as_u64().unwrap() > 14, "more than two epochs: {state}");
    assert!(!state["buffer"].as_array().unwrap().is_empty(), "prompts wait: {state}");
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(stop_after_every_step(folder.path(), &settings), 17);
    runs::assert_same_results("stopped 17 times", &runs::results(folder.path()), &expected);
}

/// What a run remembers of its prompts is a part of its state: the same ones are left out after a resumption.
#[test]
fn prompts_that_were_solved_stay_left_out_when_a_run_goes_on() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    let mut settings = runs::parities(data.path());
    // Nearly always 1, which is soon learned.
    let answers = ["0", "1", "1", "1", "1", "1", "1"];
    let lines = ["0", "1", "01", "10", "110", "0110", "111"]
        .into_iter()
        .zip(answers)
        .map(|(bits, answer)| format!("{{\"question\": \"{bits}?\", \"answer\": \"{answer}\"}}\n"));
    std::fs::write(data.path().join("train.jsonl"), lines.collect::<String>()).unwrap();
    let own = ["filter.skip_solved=true", "rollout.samples=2", "train.compare=false"];
    let sft = ["sft.steps=40", "sft.warmup=0", "train.steps=8", "prm.warmup_batches=0"];
    settings.extend(own.into_iter().chain(sft).map(String::from));
    let expected = unbroken(&settings);
    let state = String::from_utf8_lossy(&expected["checkpoints/step-8/trainer/state.json"]);
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let means = state["curriculum"].as_object().unwrap();
    assert!(means.values().any(|mean| mean == 1.0), "some are solved: {state}");
    let skipped: f64 = expected
        .iter()
        .filter(|(name, _)| name.starts_with("metrics.jsonl"))
        .filter_map(|(_, line)| {
            let line: serde_json::Value = serde_json::from_slice(line).ok()?;
            line["filter/skipped_as_solved"].as_f64()
        })
        .sum();
    assert!(skipped > 0.0, "some are left out: {state}");
    let folder = tempfile::tempdir().unwrap();
    stop_after_every_step(folder.path(), &settings);
    runs::assert_same_results("stopped", &runs::results(folder.path()), &expected);
}

#[test]
fn a_run_killed_at_20_random_moments_ends_with_the_bits_of_an_unbroken_one() {
    let whole = tempfile::tempdir().unwrap();
    let started = Instant::now();
    let said = runs::said(&mut runs::child::<&str>(CHILD, whole.path(), &[]));
    assert!(runs::is_complete(&said), "{said}");
    let duration = started.elapsed();
    let expected = runs::results(whole.path());

    let mut moments = Generator::new(u64::from(std::process::id()), Stream::Test, 0);
    let mut folder = tempfile::tempdir().unwrap();
    let (mut kills, mut completed) = (0, 0);
    while kills < 20 || completed == 0 {
        let mut child = runs::child::<&str>(CHILD, folder.path(), &[])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // After the last kill the run is left to end.
        let moment = if kills < 20 { duration.mul_f32(moments.uniform()) } else { Duration::MAX };
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if started.elapsed() >= moment {
                break None;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        match status {
            None => {
                child.kill().unwrap();
                child.wait().unwrap();
                kills += 1;
            }
            Some(status) => {
                assert!(status.success(), "a resumed run failed after {kills} kills");
                let what = format!("after {kills} kills");
                runs::assert_same_results(&what, &runs::results(folder.path()), &expected);
                completed += 1;
                folder = tempfile::tempdir().unwrap();
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn the_signal_of_ctrl_c_saves_and_stops_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let child = runs::child::<&str>(CHILD, folder.path(), &[])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = folder.path().join("metrics.jsonl");
    let started = Instant::now();
    while std::fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "the run does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = std::process::Command::new("sh")
        .args(["-c", &format!("kill -INT {}", child.id())])
        .status()
        .unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("stopping after this step, then saving"), "{said}");
    assert!(said.contains("stopped and saved; go on with: prime train --resume"), "{said}");
    let said = runs::said(&mut runs::child::<&str>(CHILD, folder.path(), &[]));
    assert!(runs::is_complete(&said), "{said}");
}
