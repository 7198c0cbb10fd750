use super::*;

pub(super) fn load(text: &str, overrides: &[&str]) -> Result<Config> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    Config::load(&[file.path().to_path_buf()], &overrides)
}

pub(super) fn message(text: &str, overrides: &[&str]) -> String {
    format!("{:#}", load(text, overrides).unwrap_err())
}

#[test]
fn files_lie_over_the_defaults_and_overrides_over_the_files() {
    let config =
        load("seed = 7\n[policy]\nlearning_rate = 1\n", &["policy.clip_low=0.1", "model.path=a b"])
            .unwrap();
    assert_eq!((config.seed, config.policy.optimizer.learning_rate), (7, 1.0));
    assert_eq!((config.policy.clip_low, config.model.path.as_str()), (0.1, "a b"));
    assert_eq!(config.policy.clip_high, 0.2);
}

#[test]
fn the_documented_settings_of_graders_are_their_defaults() {
    assert_eq!(load("", &[]).unwrap().grader, GraderSettings::default());
    assert!(
        message("", &["grader.code.threads=0"])
            .contains("grader.code.threads is 0, expected 1 to 10000")
    );
}

#[test]
fn a_resolved_configuration_loads_as_itself() {
    let config = load("", &["train.steps=3", "prm.update=before"]).unwrap();
    assert_eq!(load(&config.to_toml().unwrap(), &[]).unwrap(), config);
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_the_nearest_known_one() {
    let text = message("seed = 1\n[policy]\nlearning_rat = 1e-4\n", &[]);
    assert!(
        text.ends_with(
            "line 3: there is no setting `learning_rat` in [policy]; did you mean `learning_rate`?"
        ),
        "{text}"
    );
    assert!(message("", &["sfft.steps=1"]).contains("did you mean `sft`?"));
    assert!(message("", &["seed"]).contains("expected section.key=value"));
}

#[test]
fn values_of_another_kind_or_out_of_range_are_refused_by_name() {
    assert!(
        message("seed = \"x\"", &[]).contains("`seed` is a string `\"x\"`, expected an integer")
    );
    assert!(message("", &["filter.lower=2"]).contains("filter.lower is 2, expected 0 to 1"));
    let text = message("", &["rollout.slots=-1"]);
    assert!(text.contains("`-1`, expected a whole number from 0 in `rollout.slots`"), "{text}");
    assert!(message("", &["rollout.samples=1"]).contains("expected at least 2"));
    assert!(message("", &["rollout.slots=0"]).contains("rollout.slots is 0, expected 1 to 16384"));
    assert!(message("", &["train.steps=9223372036854775807"]).contains("train.steps is 9"));
    assert!(message("", &["policy.learning_rate=nan"]).contains("policy.learning_rate is NaN"));
    assert!(message("", &["advantage.form=ppo"]).contains("paper, prime-repo, verl"));
    let text = message("", &["study.teachings=[\"few-god\"]"]);
    assert!(text.contains("\"few-god\"; did you mean \"few-good\"?"), "{text}");
    assert!(message("", &["study.conditions=[\"ce\"]"]).contains("lacks \"online\""));
    assert!(message("seed = ", &[]).contains("line 1"));
}

#[test]
fn a_critic_that_would_not_do_what_is_said_of_it_is_refused() {
    let refused = |set: &[&str], what: &str| {
        let text = message("", set);
        assert!(text.contains(what), "{text}");
    };
    const GAE: &str = "advantage.estimator=gae";
    refused(&["critic.shared=true"], "advantage.estimator is \"rloo\", which has no critic");
    refused(&["critic.path=x"], "critic.path is given, but advantage.estimator");
    let shared = |more| [GAE, "critic.shared=true", more];
    refused(&shared("critic.path=x"), "leave the path empty");
    refused(&shared("critic.warmup_batches=2"), "critic.warmup_batches is 2, expected 0");
    refused(&shared("critic.epochs=3"), "critic.epochs is 3 and policy.epochs 1");
    refused(&[GAE, "critic.clip=-1"], "critic.clip is -1, expected 0");
    refused(&[GAE, "critic.coef=0"], "critic.coef is 0");
    refused(&[GAE, "advantage.gae_lambda=2"], "advantage.gae_lambda is 2, expected 0 to 1");
    refused(&["train.stop_after=2", "eval.every=0"], "there is nothing to stop for");
    load("", &shared("policy.epochs=3")).unwrap();
    load("", &[GAE, "critic.warmup_batches=2", "critic.epochs=3"]).unwrap();
}
