//! What goes wrong is refused with one sentence that says what and where, and nothing that was saved is lost.

use std::path::{Path, PathBuf};

use prime::run::folder::RunFolder;
use prime_model::{Config as ModelConfig, Tokenizer, Weights, folder};
use prime_runtime::{DType, Device, checkpoint};
use prime_tests::runs;

/// The test that a child process runs.
const CHILD: &str = "a_run_in_a_process_of_its_own";

#[test]
fn a_run_in_a_process_of_its_own() {
    runs::act_as_child();
}

/// Runs what must fail, and returns the sentence.
fn refusal<S: AsRef<str>>(run: &Path, settings: &[S]) -> String {
    let config = runs::config(settings).unwrap();
    match runs::begin_or_resume(run, &config) {
        Ok(_) => panic!("the run was not refused"),
        Err(error) => format!("{error:#}"),
    }
}

fn assert_contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/models").join(name)
}

#[test]
fn a_run_that_goes_on_with_other_settings_is_refused_with_both_values() {
    let run = tempfile::tempdir().unwrap();
    drop(RunFolder::create(run.path(), &runs::config::<&str>(&[]).unwrap()).unwrap());
    let sentence = refusal(run.path(), &["policy.learning_rate=0.5", "rollout.samples=4"]);
    assert_contains(
        &sentence,
        &["policy.learning_rate was 0.0003, now 0.5", "rollout.samples was 3, now 4", "--out"],
    );
}

#[test]
fn a_second_run_in_a_folder_is_refused_with_the_process_that_holds_it() {
    let run = tempfile::tempdir().unwrap();
    let config = runs::config::<&str>(&[]).unwrap();
    let first = RunFolder::create(run.path(), &config).unwrap();
    let said = runs::said(&mut runs::child::<&str>(CHILD, run.path(), &[]));
    let holder = format!("process {} is running in this folder", std::process::id());
    assert_contains(&said, &[&holder]);
    assert_eq!(run.path().join("metrics.jsonl").metadata().unwrap().len(), 0);
    drop(first);
    let sentence = RunFolder::create(run.path(), &config).err().unwrap().to_string();
    assert_contains(&sentence, &["there is a run in", "--resume"]);
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_checkpoints_before_and_the_run_goes_on_later() {
    let (whole, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = runs::config::<&str>(&[]).unwrap();
    runs::begin_or_resume(whole.path(), &config).unwrap();
    // 6 steps of SFT, 2 of warm-up, 2 of PRIME.
    let said = runs::said(&mut runs::child_stopped_after::<&str>(10, CHILD, run.path(), &[]));
    assert_contains(&said, &["stopped and saved"]);

    // No file of this process may be larger than 32 blocks: it is told so as it would be told of a full disk.
    let child = runs::child::<&str>(CHILD, run.path(), &[]);
    let mut limited = std::process::Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""]);
    limited.arg(child.get_program()).args(child.get_args());
    limited.envs(child.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let said = runs::said(&mut limited);
    assert_contains(
        &said,
        &["checkpoint step-3 was not saved; those saved before are as they were", "cannot write"],
    );
    let checkpoints = run.path().join("checkpoints");
    let newest = checkpoint::latest(&checkpoints).unwrap().unwrap();
    assert!(newest.ends_with("step-2"), "{}", newest.display());
    checkpoint::verify(&newest).unwrap();

    runs::begin_or_resume(run.path(), &config).unwrap();
    let (run, whole) = (runs::results(run.path()), runs::results(whole.path()));
    runs::assert_same_results("after a full disk", &run, &whole);
}

#[test]
fn something_in_the_place_of_the_checkpoints_is_named() {
    let run = tempfile::tempdir().unwrap();
    let settings = ["sft.steps=0", "train.outcome_only=true", "train.steps=2"];
    std::fs::write(run.path().join("checkpoints"), "a file").unwrap();
    let sentence = refusal(run.path(), &settings);
    assert_contains(&sentence, &["cannot", &run.path().join("checkpoints").display().to_string()]);
    assert_eq!(std::fs::read_to_string(run.path().join("checkpoints")).unwrap(), "a file");
}

#[test]
fn a_damaged_checkpoint_is_named_by_its_file() {
    let run = tempfile::tempdir().unwrap();
    let settings = ["train.outcome_only=true", "train.steps=2"];
    let config = runs::config(&settings).unwrap();
    runs::begin_or_resume(run.path(), &config).unwrap();
    for (folder, file) in
        [("checkpoints/step-2", "policy/model.safetensors"), ("sft", "trainer/policy.safetensors")]
    {
        let path = run.path().join(folder).join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let last = bytes.len() - 5;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let sentence = refusal(run.path(), &settings);
        assert_contains(&sentence, &[folder, file, "checksum", "damaged"]);
        std::fs::write(&path, &whole).unwrap();
    }
    runs::begin_or_resume(run.path(), &config).unwrap();
}

/// A copy of a fixture whose last weight is NaN.
fn broken_model(into: &Path) -> String {
    let source = fixture("qwen2-tied");
    let config = ModelConfig::load(&source).unwrap();
    let mut weights = Weights::load(&source, &config, Device::Cpu, DType::F32).unwrap();
    let last = weights.layout().final_norm.start;
    weights.data_mut().as_mut_slice::<f32>()[last] = f32::NAN;
    let path = into.join("broken");
    folder::save(&path, &config, &weights, folder::Companions::Of(&source)).unwrap();
    path.display().to_string()
}

#[test]
fn weights_that_are_nan_are_refused_with_the_step_s_name_and_a_checkpoint() {
    let models = tempfile::tempdir().unwrap();
    let broken = broken_model(models.path());
    let sound = fixture("qwen2-tied").display().to_string();
    let of = |key: &str, path: &str| format!("{key}={path}");
    let cases: [(&[String], &str, &str); 3] = [
        (&[of("model.path", &broken)], "sft step 1 was refused", "sft-checkpoints/step-0"),
        (
            &[of("model.path", &sound), of("prm.path", &broken), "sft.steps=0".into()],
            "prm warm-up batch 1 was refused",
            "checkpoints/step-0",
        ),
        (
            &[
                of("model.path", &sound),
                of("prm.path", &broken),
                "sft.steps=0".into(),
                "prm.warmup_batches=0".into(),
            ],
            "prime step 1 was refused",
            "checkpoints/step-0",
        ),
    ];
    for (settings, step, saved) in cases {
        let run = tempfile::tempdir().unwrap();
        let sentence = refusal(run.path(), settings);
        assert_contains(&sentence, &[step, saved, "NaN"]);
        checkpoint::verify(run.path().join(saved)).unwrap();
        // What is saved is the place before the step: a run that goes on comes to the same step, and says the same.
        assert_eq!(refusal(run.path(), settings), sentence);
    }
    let run = tempfile::tempdir().unwrap();
    let sentence = refusal(run.path(), &[of("model.path", &broken), "sft.steps=0".into()]);
    assert_contains(
        &sentence,
        &["the evaluation of the model at the start", "not a finite number"],
    );
}

/// Every update multiplies the weights by -9: after some of them they are too large to square.
fn diverging(epochs: u64) -> Vec<String> {
    let settings = [
        "sft.steps=0",
        "policy.learning_rate=1",
        "policy.weight_decay=10",
        "policy.warmup=0",
        "eval.every=1",
        &format!("policy.epochs={epochs}"),
    ];
    settings.map(String::from).to_vec()
}

#[test]
fn a_policy_that_diverges_within_a_step_is_not_taken_for_the_step_and_after_it_is_said_to_have() {
    let run = tempfile::tempdir().unwrap();
    let settings = diverging(200);
    let sentence = refusal(run.path(), &settings);
    assert_contains(&sentence, &["prime step 1 was refused", "refused-prime-step-1", "NaN"]);
    let checkpoints = run.path().join("checkpoints");
    checkpoint::verify(checkpoints.join("refused-prime-step-1")).unwrap();
    assert!(checkpoint::latest(&checkpoints).unwrap().unwrap().ends_with("step-0"));
    assert_eq!(refusal(run.path(), &settings), sentence);

    // As many updates as went well, of which one is the PRM's: then the step is made, and it is the evaluation that finds out.
    let updates = sentence.split("its first updates, ").nth(1).unwrap().split(',').next().unwrap();
    let run = tempfile::tempdir().unwrap();
    let sentence = refusal(run.path(), &diverging(updates.parse::<u64>().unwrap() - 1));
    assert_contains(&sentence, &["the evaluation after prime step 1 was refused", "not a finite"]);
    let checkpoints = run.path().join("checkpoints");
    assert!(checkpoint::latest(&checkpoints).unwrap().unwrap().ends_with("step-1"));
    checkpoint::verify(checkpoints.join("step-0")).unwrap();
}

/// Settings of a data set whose training file holds `text`.
fn data_set(folder: &Path, text: &str) -> Vec<String> {
    let settings = runs::parities(folder);
    std::fs::write(folder.join("train.jsonl"), text).unwrap();
    settings
}

#[test]
fn data_sets_that_cannot_be_used_are_refused_with_file_and_line() {
    let good = "{\"question\": \"01?\", \"answer\": \"1\"}\n";
    let cases: [(String, &[&str], &[&str]); 7] = [
        (String::new(), &[], &["train.jsonl is empty"]),
        (format!("{good}\n{{\"question\": \n"), &[], &["train.jsonl, line 3"]),
        (format!("{good}[1]\n"), &[], &["train.jsonl, line 2"]),
        (format!("{good}{{\"answer\": \"1\"}}\n"), &[], &["train.jsonl, line 2", "question"]),
        (good.into(), &["rollout.max_prompt_tokens=2"], &["rollout.max_prompt_tokens, 2"]),
        (good.into(), &["task.jsonl.solution_field="], &["no worked solutions", "sft.steps=0"]),
        (good.into(), &["task.jsonl.train="], &["no training problems"]),
    ];
    for (text, more, parts) in cases {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut settings = data_set(data.path(), &text);
        settings.extend(more.iter().map(|text| text.to_string()));
        assert_contains(&refusal(run.path(), &settings), parts);
    }
    let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut settings = data_set(data.path(), good);
    settings.extend(["task.jsonl.test=", "task.jsonl.held_out_one_in=1000"].map(String::from));
    assert_contains(&refusal(run.path(), &settings), &["no held-out problems"]);
}

/// Solutions, not prompts, over the limit: found while SFT draws.
#[test]
fn demonstrations_over_the_limit_are_refused_once_all_were_seen() {
    let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let line = format!("{{\"question\": \"01?\", \"answer\": \"{}\"}}\n", "1".repeat(300));
    let mut settings = data_set(data.path(), &line);
    settings.push("train.micro_batch_tokens=64".into());
    let sentence = refusal(run.path(), &settings);
    assert_contains(
        &sentence,
        &["sft step 1 was refused", "2 demonstrations in a row were too long"],
    );
}

#[test]
fn models_and_tokenizers_that_do_not_belong_together_are_refused_before_anything_is_trained() {
    let folder_of = |symbols: &str, into: &Path| {
        for (name, text) in Tokenizer::characters(symbols, "<pad>", "<eos>").unwrap().files() {
            std::fs::write(into.join(name), text).unwrap();
        }
    };
    // A tokenizer with more tokens than the model has embeddings.
    let models = tempfile::tempdir().unwrap();
    let path = models.path().join("model");
    let source = fixture("qwen2-tied");
    let model = ModelConfig::load(&source).unwrap();
    let weights = Weights::load(&source, &model, Device::Cpu, DType::F32).unwrap();
    folder::save(&path, &model, &weights, folder::Companions::None).unwrap();
    let many: String = (0..400).map(|i| char::from_u32(0x4e00 + i).unwrap()).collect();
    folder_of(&format!("0123456789+-*=()? \n;:,.abcdefghijklmnopqrstuvwxyz{many}"), &path);
    let run = tempfile::tempdir().unwrap();
    let sentence = refusal(run.path(), &[format!("model.path={}", path.display())]);
    assert_contains(&sentence, &["tokenizer.json", "`vocab_size` of 288", "another model"]);

    // A PRM, and a reference, with another tokenizer than the policy's.
    folder_of("01?x", &path);
    for settings in [
        vec![format!("prm.path={}", path.display())],
        vec![format!("prm.reference_path={}", path.display()), "prm.reference=frozen".to_string()],
    ] {
        let (data, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = settings[0].split('=').next().unwrap().to_string();
        let sentence = refusal(run.path(), &[runs::parities(data.path()), settings].concat());
        assert_contains(&sentence, &[&key, "the policy's tokenizer", "id 5 is `x` here"]);
        assert!(!run.path().join("sft").exists(), "it was trained before");
    }
    let run = tempfile::tempdir().unwrap();
    let sentence = refusal(run.path(), &[format!("prm.reference_path={}", path.display())]);
    assert_contains(&sentence, &["prm.reference_path", "prm.reference=frozen"]);
    let run = tempfile::tempdir().unwrap();
    let sentence = refusal(run.path(), &["prm.path=/no/such/folder"]);
    assert_contains(&sentence, &["prm.path", "there is no model folder /no/such/folder"]);
}
