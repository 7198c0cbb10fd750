//! The configuration files that come with the program: every one of them is a configuration.

use std::path::{Path, PathBuf};

use prime::config::{Config, Refill};
use prime::step::{Aggregation, Estimator, Form};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn load(name: &str) -> Config {
    let file = files().into_iter().find(|file| file.ends_with(name)).unwrap();
    Config::load(&[file], &[]).unwrap()
}

#[test]
fn every_file_loads_over_the_defaults_and_resolves_to_itself() {
    let files = files();
    assert!(files.len() >= 5, "{files:?}");
    let resolved = tempfile::NamedTempFile::new().unwrap();
    for file in files {
        let config = Config::load(std::slice::from_ref(&file), &[])
            .unwrap_or_else(|error| panic!("{}: {error:#}", file.display()));
        std::fs::write(resolved.path(), config.to_toml().unwrap()).unwrap();
        let again = Config::load(&[resolved.path().to_path_buf()], &[]).unwrap();
        assert_eq!(again, config, "{}", file.display());
    }
}

#[test]
fn the_defaults_file_is_the_defaults() {
    assert_eq!(load("default.toml"), Config::load(&[], &[]).unwrap());
}

#[test]
fn dapo_is_laid_over_a_task_and_keeps_its_bounds_penalty_and_filter() {
    let config = load("dapo.toml");
    assert_eq!(config.advantage.estimator, Estimator::Grpo);
    assert_eq!((config.policy.clip_low, config.policy.clip_high), (0.2, 0.28));
    assert_eq!(config.policy.aggregation(), Aggregation::TokenMean);
    assert!(config.filter.lower > 0.0 && config.filter.upper < 1.0);
    assert_eq!(config.filter.refill, Refill::Resample);
    let penalty = config.returns().length_penalty.unwrap();
    let longest = config.rollout.max_new_tokens;
    assert_eq!((penalty.of(longest - longest / 5), penalty.of(longest)), (0.0, -0.5));
    let gsm8k = files().into_iter().find(|file| file.ends_with("gsm8k.toml")).unwrap();
    let dapo = files().into_iter().find(|file| file.ends_with("dapo.toml")).unwrap();
    Config::load(&[gsm8k, dapo], &[]).unwrap();
}

/// The figures are those of the published script; the defaults, which are for another model, must not show through.
#[test]
fn the_published_run_keeps_its_batch_sizes_rates_and_form() {
    let config = load("published.toml");
    let sequences = config.filter.groups * config.rollout.samples;
    assert_eq!(sequences / config.policy.minibatches, 256);
    assert_eq!(sequences / config.prm.minibatches, 256);
    assert_eq!(config.filter.refill, Refill::Resample);
    let (policy, prm) = (&config.policy.optimizer, &config.prm.optimizer);
    assert_eq!((policy.learning_rate, policy.warmup, policy.beta2), (5e-7, 0, 0.999));
    assert_eq!((prm.learning_rate, prm.warmup, prm.beta2), (1e-6, 0, 0.999));
    assert_eq!((policy.max_gradient_norm, prm.max_gradient_norm), (1.0, 10.0));
    assert_eq!((config.prm.beta, config.prm.warmup_batches), (0.05, 0));
    assert_eq!(config.advantage.form, Form::PrimeRepo);
    assert_eq!(config.policy.aggregation, Some(Aggregation::SeqMeanTokenMean));
    assert_eq!((config.sft.steps, config.train.steps), (0, 592));
}
