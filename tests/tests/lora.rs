//! Whole runs with low-rank adapters: what they share, what they save, how they resume, and that devices agree.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use prime::adapters::{self, Owner};
use prime::run::{End, interrupt};
use prime::setup;
use prime::trainer::Trainer;
use prime_model::{Config as ModelConfig, Tokenizer, Weights, lora};
use prime_runtime::Device;
use prime_tests::runs;

/// Requests to stop are the process's: one run at a time.
static ONE_RUN: Mutex<()> = Mutex::new(());

fn one_run() -> MutexGuard<'static, ()> {
    let guard = ONE_RUN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    interrupt::withdraw();
    guard
}

/// A run of a model from a folder, all of whose stages train adapters.
fn settings(data: &Path) -> Vec<String> {
    let mut settings = runs::parities(data);
    let model = runs::other_model(data, &data.join("tokenizer"));
    settings.push(format!("model.path={}", model.display()));
    let more = ["lora.rank=3", "lora.alpha=6", "sft.steps=2", "policy.learning_rate=0.01"];
    settings.extend(more.map(String::from));
    settings
}

#[test]
fn a_run_with_adapters_that_is_stopped_after_each_step_ends_with_the_bits_of_an_unbroken_one() {
    let _guard = one_run();
    let data = tempfile::tempdir().unwrap();
    for extra in [
        &["prm.reference=frozen"][..],
        &[
            "model.dtype=bfloat16",
            "lora.targets=[\"q_proj\", \"down_proj\"]",
            "sft.steps=0",
            "lora.prm_rank=2",
        ],
    ] {
        let mut settings = settings(data.path());
        settings.extend(extra.iter().map(|text| text.to_string()));
        let config = runs::config(&settings).unwrap();
        let unbroken = tempfile::tempdir().unwrap();
        let end = runs::begin_or_resume(unbroken.path(), &config).unwrap();
        assert!(matches!(end, End::Complete(_)));
        let expected = runs::results(unbroken.path());
        for name in [
            "checkpoints/step-4/policy/adapter_config.json",
            "checkpoints/step-4/policy/adapter_model.safetensors",
            "checkpoints/step-4/policy/tokenizer.json",
            "checkpoints/step-4/prm/adapter_model.safetensors",
            "checkpoints/step-4/trainer/policy.safetensors",
        ] {
            assert!(expected.contains_key(name), "{name}");
        }
        assert!(!expected.keys().any(|name| name.ends_with("/model.safetensors")));

        let stopped = tempfile::tempdir().unwrap();
        let mut stops = 0;
        loop {
            interrupt::request_after(1);
            match runs::begin_or_resume(stopped.path(), &config).unwrap() {
                End::Complete(_) => break,
                End::Interrupted(_) => stops += 1,
            }
        }
        interrupt::withdraw();
        assert!(stops >= 11, "{stops}");
        runs::assert_same_results("stopped", &runs::results(stopped.path()), &expected);

        // What was saved loads by its folder alone, and is another model than the base.
        let saved = unbroken.path().join("checkpoints/step-4/policy");
        let tokenizer = Tokenizer::load(&saved).unwrap();
        let model = adapters::load(&saved, None, &tokenizer, Device::Cpu, config.dtype()).unwrap();
        let merged = lora::merge(&model.config, &model.weights).unwrap();
        let values = |weights: &Weights| weights.data().view().to_f32_vec();
        assert_ne!(values(&merged), values(&model.weights));
    }
}

#[test]
fn a_new_model_is_kept_beside_its_adapters_and_one_that_sft_trained_is_their_base() {
    let _guard = one_run();
    let base_of = |settings: &[&str]| -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let config = runs::config(settings).unwrap();
        runs::begin_or_resume(folder.path(), &config).unwrap();
        let base = lora::base_of(&folder.path().join("checkpoints/step-4/prm")).unwrap().unwrap();
        assert!(base.join("model.safetensors").exists());
        (folder, base)
    };
    let (folder, base) = base_of(&["lora.rank=2", "sft.steps=0", "train.compare=false"]);
    assert!(base.ends_with("base") && base.starts_with(folder.path()), "{}", base.display());
    let (_folder, base) = base_of(&["lora.rank=2", "lora.sft=false", "train.compare=false"]);
    assert!(base.ends_with("sft/policy"), "{}", base.display());

    let folder = tempfile::tempdir().unwrap();
    let config = runs::config(&["lora.rank=2"]).unwrap();
    let message = runs::begin_or_resume(folder.path(), &config).unwrap_err().to_string();
    assert!(message.contains("lora.sft=false"), "{message}");
}

#[test]
fn an_adapter_of_another_kind_than_asked_for_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let config = runs::config(&settings(data.path())).unwrap();
    let prompts = setup::prompts(&config, None).unwrap();
    let model = setup::base_model(&config, &prompts).unwrap();
    let policy = config.lora.policy().unwrap();
    let base = Path::new("base");
    let adapted = adapters::attach(&model, &policy, base, 1, Owner::Policy).unwrap();
    let mut other = policy.clone();
    other.rank = 5;
    let message =
        adapters::attach(&adapted, &other, base, 1, Owner::Prm).err().unwrap().to_string();
    assert!(message.contains("rank 3") && message.contains("prime merge"), "{message}");
}

/// One PRIME step of three models that share their weights.
fn step(device: Device, dtype: &str, data: &Path) -> (Vec<f32>, Vec<f32>, Vec<f32>, ModelConfig) {
    let mut settings = settings(data);
    let more = [
        "prm.warmup_batches=0",
        "prm.reference=frozen",
        "rollout.prompts=4",
        "rollout.samples=4",
        "filter.groups=4",
        "prm.learning_rate=0.1",
        "prm.epsilon=1",
        "prm.max_gradient_norm=0",
        "policy.learning_rate=0.1",
        "policy.epsilon=1",
        "policy.warmup=0",
        "train.micro_batch_tokens=64",
    ];
    settings.extend(more.map(String::from));
    settings.push(format!("device={device}"));
    settings.push(format!("model.dtype={dtype}"));
    let config = runs::config(&settings).unwrap();
    let prompts = setup::prompts(&config, None).unwrap();
    let base = setup::base_model(&config, &prompts).unwrap();
    let attach = |owner| {
        let lora = config.lora.policy().unwrap();
        adapters::attach(&base, &lora, Path::new("base"), 1, owner).unwrap()
    };
    let (policy, prm) = (attach(Owner::Policy), attach(Owner::Prm));
    let reference = adapters::frozen(&config, &base).unwrap();
    assert!(policy.weights.shares_with(&prm.weights));
    assert!(policy.weights.shares_with(&reference.weights));
    let model = base.config.clone();
    drop(base);
    let mut trainer = Trainer::new(&config, prompts, policy, Some((prm, Some(reference)))).unwrap();
    let (_, batch) = trainer.step(&mut |_| ()).unwrap();
    let values = |weights: &Weights| weights.adapter().unwrap().data().view().to_f32_vec();
    let of_device = |weights: &Weights| match device {
        Device::Cpu => values(weights),
        _ => weights.trainable().view().to_f32_vec(),
    };
    (
        batch.old_log_probs.clone(),
        of_device(trainer.policy()),
        of_device(trainer.prm().unwrap()),
        model,
    )
}

#[test]
fn a_step_with_adapters_on_the_emulated_device_is_that_of_the_host() {
    let data = tempfile::tempdir().unwrap();
    let (sampled, policy, prm, model) = step(Device::Cpu, "float32", data.path());
    let (on_device, policy_there, prm_there, _) = step(Device::Emulated, "float32", data.path());
    // As in `devices.rs`: chains of so many terms, each off by half an ulp of 16, four deviations on both sides.
    let terms = model.num_layers * 8 * model.hidden_size.max(model.intermediate_size);
    let tolerance = 2.0 * 4.0 * 16.0 * (terms as f64).sqrt() * 2f64.powi(-24);
    let close = |what: &str, a: &[f32], b: &[f32], tolerance: f64| {
        assert_eq!(a.len(), b.len(), "{what}");
        for (i, (&x, &y)) in a.iter().zip(b).enumerate() {
            assert!(f64::from((x - y).abs()) <= tolerance, "{what}[{i}] is {x}, expected {y}");
        }
    };
    close("old_log_probs", &on_device, &sampled, tolerance);
    close("policy", &policy_there, &policy, tolerance);
    close("prm", &prm_there, &prm, tolerance);
    // B begins at zero: what is not zero there has learned.
    assert!(policy.iter().zip(&prm).any(|(a, b)| a != b));
    let (_, narrow, _, _) = step(Device::Emulated, "bfloat16", data.path());
    assert!(narrow.iter().all(|x| x.is_finite()));
}
