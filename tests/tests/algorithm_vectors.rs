//! The algorithm against the programs it was published with: rewards, advantages, losses and gradients, through the
//! functions of a step and through a replay.
//!
//! The vectors are looked for in the folder that PRIME_VECTORS names, or in `../shared/vectors` beside the repository.
//! A small file of the same form is part of the repository, so that a clone alone tests the same paths.

use std::path::{Path, PathBuf};

use prime::replay::{ReplaySettings, replay};
use prime::step::policy_loss::{Columns, Covariance, LossSettings, random_of, weights};
use prime::step::prm_targets::{self, Graded, Loss};
use prime::step::{
    Aggregation, Estimator, Form, Granularity, KlKind, PolicyLoss, PrmLoss, Response, Rollouts,
    accuracy, advantage, implicit_reward,
};
use prime_kernels::policy_loss::Clip;
use prime_kernels::{kl_penalty, policy_loss, prm_loss};
use prime_runtime::{View, ViewMut};
use serde_json::{Value, json};

/// One batch of rollouts with what is expected of it.
struct Case {
    name: String,
    json: Value,
}

fn cases() -> Vec<Case> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = std::env::var_os("PRIME_VECTORS")
        .map_or_else(|| root.with_file_name("shared").join("vectors"), PathBuf::from);
    let mut files = vec![root.join("tests/fixtures/algorithm_small.json")];
    let vectors = folder.join("algorithm.json");
    if vectors.exists() {
        files.push(vectors);
    } else {
        println!(
            "{} is not there: only the repository's own cases are run. \
             PRIME_VECTORS may name another folder.",
            vectors.display()
        );
    }
    let mut cases = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        for case in json["cases"].as_array().unwrap() {
            let name = format!("{}, seed {}", file.file_name().unwrap().display(), case["seed"]);
            cases.push(Case { name, json: case.clone() });
        }
    }
    assert!(cases.len() >= 2);
    cases
}

impl Case {
    fn number(&self, key: &str) -> f64 {
        self.json[key].as_f64().unwrap()
    }

    fn input(&self, key: &str) -> &Value {
        &self.json["input"][key]
    }

    fn expect(&self, pointer: &str) -> &Value {
        self.json["expect"].pointer(pointer).unwrap_or_else(|| panic!("{}: {pointer}", self.name))
    }

    /// The rollouts, without what a step computes.
    fn batch(&self) -> Rollouts {
        let group = self.json["samples_per_prompt"].as_u64().unwrap() as usize;
        let outcomes = flatten(self.input("outcome"));
        let old = self.input("old_log_prob").as_array().unwrap();
        let responses: Vec<_> = outcomes
            .iter()
            .zip(old)
            .map(|(&outcome, old)| Response {
                tokens: Vec::new(),
                old_log_probs: floats(&flatten(old)),
                outcome: outcome as f32,
                finished: true,
            })
            .collect();
        let mut batch = Rollouts::new();
        for (i, responses) in responses.chunks(group).enumerate() {
            batch.push_group(format!("prompt {i}"), Vec::new(), responses).unwrap();
        }
        batch.prm_log_probs = floats(&flatten(self.input("prm_log_prob")));
        batch.ref_log_probs = floats(&flatten(self.input("ref_log_prob")));
        batch.new_log_probs = floats(&flatten(self.input("new_log_prob")));
        batch.check().unwrap();
        batch
    }

    fn rewards(&self, form: Form) -> implicit_reward::Settings {
        implicit_reward::Settings {
            form,
            beta: self.number("beta"),
            // Equation 5 knows no normalisation.
            process_norm: match form {
                Form::Paper => implicit_reward::ProcessNorm::None,
                _ => self.json["process_norm"].as_str().unwrap().parse().unwrap(),
            },
            granularity: Granularity::Token,
            lambda: 0.0,
            use_outcome: false,
        }
    }

    fn returns(&self, form: Form) -> advantage::Settings {
        let (outcome_coef, process_coef) = match form {
            Form::Verl => (self.number("outcome_coef"), self.number("process_coef")),
            _ => (1.0, 1.0),
        };
        let gamma = |name: &str| self.expect(&format!("/{name}/process_gamma")).as_f64().unwrap();
        let process_gamma = match form {
            Form::Paper => gamma("prime_rloo_paper_eq5"),
            Form::PrimeRepo => gamma("prime_rloo_prime_repo"),
            Form::Verl => 1.0,
        };
        advantage::Settings {
            estimator: Estimator::Rloo,
            form,
            outcome_coef,
            process_coef,
            process_gamma,
            outcome_gamma: 1.0,
            length_penalty: None,
            kl: None,
            gae_lambda: 0.95,
        }
    }

    /// The batch with rewards and advantages.
    fn scored(&self, form: Form) -> Rollouts {
        let mut batch = self.batch();
        batch.process_rewards =
            implicit_reward::process_rewards(&batch, &self.rewards(form)).unwrap();
        let computed = advantage::advantages(&batch, &self.returns(form)).unwrap();
        (batch.returns, batch.advantages) = (computed.returns, computed.advantages);
        batch
    }

    /// The same settings as text, as the command line gives them.
    fn assignments(&self, form: Form) -> Vec<String> {
        let (rewards, returns) = (self.rewards(form), self.returns(form));
        vec![
            format!("beta={}", rewards.beta),
            format!("process_norm={}", rewards.process_norm),
            format!("outcome_coef={}", returns.outcome_coef),
            format!("process_coef={}", returns.process_coef),
            format!("process_gamma={}", returns.process_gamma),
            format!("clip={}", self.number("clip")),
        ]
    }

    fn loss(&self, loss: PolicyLoss, dual: Option<f32>) -> LossSettings {
        let bound = self.number("clip") as f32;
        let clip = Clip { low: bound, high: bound, dual };
        LossSettings { loss, clip, covariance: Covariance::PUBLISHED }
    }
}

/// The numbers of nested arrays, in order.
fn flatten(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(values) => values.iter().flat_map(flatten).collect(),
        number => vec![number.as_f64().unwrap()],
    }
}

fn floats(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

/// The references ran in float32: 1e-4 relative, or 1e-5 absolute where the value is small.
fn assert_close(what: &str, actual: &[f64], expected: &Value) {
    let expected = flatten(expected);
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        assert!((a - e).abs() <= 1e-5_f64.max(1e-4 * e.abs()), "{what}[{i}]: {a}, expected {e}");
    }
}

fn assert_column(what: &str, actual: &[f32], expected: &Value) {
    let actual: Vec<f64> = actual.iter().map(|&x| f64::from(x)).collect();
    assert_close(what, &actual, expected);
}

/// Where a form's rewards, returns and advantages stand among the expectations.
fn expectations(form: Form) -> [&'static str; 3] {
    match form {
        Form::Verl => [
            "/process_reward_verl",
            "/prime_rloo_verl/returns",
            "/prime_rloo_verl/advantages_whitened",
        ],
        Form::PrimeRepo => [
            "/process_reward_prime_repo",
            "/prime_rloo_prime_repo/returns",
            "/prime_rloo_prime_repo/advantages_whitened",
        ],
        Form::Paper => ["", "/prime_rloo_paper_eq5/advantages", "/prime_rloo_paper_eq5/advantages"],
    }
}

#[test]
fn rewards_returns_and_advantages_agree_with_the_published_programs_in_every_form() {
    for case in cases() {
        for &form in Form::ALL {
            let batch = case.scored(form);
            let columns = [&batch.process_rewards, &batch.returns, &batch.advantages];
            for (column, pointer) in columns.into_iter().zip(expectations(form)) {
                if !pointer.is_empty() {
                    assert_column(
                        &format!("{}: {pointer}", case.name),
                        column,
                        case.expect(pointer),
                    );
                }
            }
        }
    }
}

/// Estimators other than PRIME's own: where their expectations stand, and whether process rewards are joined.
const ESTIMATORS: [(Estimator, &str, &str, bool); 5] = [
    (Estimator::Rloo, "/rloo_outcome", "/rloo_outcome", false),
    (Estimator::Grpo, "/grpo_outcome", "/grpo_outcome", false),
    (Estimator::DrGrpo, "/dr_grpo_outcome", "/dr_grpo_outcome", false),
    (
        Estimator::ReinforcePlusPlus,
        "/reinforce_plus_plus/returns",
        "/reinforce_plus_plus/advantages_whitened",
        true,
    ),
    (Estimator::Gae, "/gae_lambda_0.95/returns", "/gae_lambda_0.95/advantages_whitened", true),
];

#[test]
fn the_other_estimators_agree_with_the_published_programs_in_a_step_and_in_a_replay() {
    for case in cases() {
        let mut batch = case.scored(Form::Verl);
        batch.values = floats(&flatten(case.input("values")));
        let (lines, order) = rollout_file(&batch);
        for (estimator, returns, advantages, with_process) in ESTIMATORS {
            let what = format!("{}: {estimator}", case.name);
            // On outcomes alone the published programs know neither coefficients nor whitening.
            let settings = if with_process {
                advantage::Settings { estimator, ..case.returns(Form::Verl) }
            } else {
                let form = Form::Paper;
                let plain = case.returns(form);
                advantage::Settings { estimator, process_coef: 0.0, outcome_coef: 1.0, ..plain }
            };
            let computed = advantage::advantages(&batch, &settings).unwrap();
            assert_column(&what, &computed.returns, case.expect(returns));
            assert_column(&what, &computed.advantages, case.expect(advantages));

            let mut replayed = ReplaySettings::published(settings.form);
            let mut assignments = case.assignments(settings.form);
            assignments.push(format!("estimator={estimator}"));
            assignments.push("gae_lambda=0.95".to_owned());
            if !with_process {
                assignments.push("process_coef=0".to_owned());
            }
            for assignment in assignments {
                replayed.set(&assignment).unwrap();
            }
            let mut out = Vec::new();
            replay(lines.as_bytes(), &replayed).unwrap().write(&mut out).unwrap();
            let out = std::str::from_utf8(&out).unwrap().lines();
            for (line, &response) in out.zip(&order) {
                let line: Value = serde_json::from_str(line).unwrap();
                let expected = &case.expect(advantages)[response];
                assert_close(&format!("{what}, replayed"), &flatten(&line["advantages"]), expected);
            }
        }
    }
}

/// Losses of the PRM, by where their expectations stand.
const PRM_LOSSES: [(PrmLoss, &str); 8] = [
    (PrmLoss::Ce, "/prm_ce"),
    (PrmLoss::Dpo, "/prm_dpo_detached/none"),
    (PrmLoss::BonAcc, "/prm_dpo_detached/bon_acc"),
    (PrmLoss::BonRm, "/prm_dpo_detached/bon_rm"),
    (PrmLoss::DpoPairs, "/prm_dpo_pairs"),
    (PrmLoss::Nca, "/prm_nca"),
    (PrmLoss::Kto, "/prm_kto"),
    (PrmLoss::PrefixValue, "/prm_prefix_value"),
];

/// The settings that the small file's expectations of KTO and prefix values were made with, besides beta.
const KTO_DESIRABLE: f64 = 1.5;
const KTO_UNDESIRABLE: f64 = 0.75;
const KTO_KL: f64 = 0.125;
const PRM_MARGIN: f64 = 0.25;

/// The loss on a whole batch, and its gradient by the PRM's log-probabilities.
fn prm_loss_of(case: &Case, name: PrmLoss) -> (f64, Vec<f32>) {
    let batch = case.batch();
    let (tokens, responses) = (batch.token_count(), batch.len());
    let loss = Loss {
        name,
        beta: case.number("beta"),
        margin: PRM_MARGIN,
        desirable: KTO_DESIRABLE,
        undesirable: KTO_UNDESIRABLE,
    };
    let groups: Vec<_> = batch.groups.iter().map(|group| group.responses.clone()).collect();
    let graded =
        Graded { groups: &groups, outcomes: &batch.outcomes, cu_seqlens: &batch.cu_seqlens };
    let logits = prm_targets::logits(
        &batch.prm_log_probs,
        &batch.ref_log_probs,
        &batch.cu_seqlens,
        loss.beta,
    );
    let targets = loss.targets(&graded, 0..responses, &logits, KTO_KL);
    let count = [targets.labels.len()];
    let inputs = prm_loss::Inputs {
        prm_log_probs: View::from_slice(&batch.prm_log_probs, &[tokens]),
        ref_log_probs: View::from_slice(&batch.ref_log_probs, &[tokens]),
        cu_seqlens: View::from_slice(&batch.cu_seqlens, &[responses + 1]),
        targets: prm_loss::Targets {
            labels: View::from_slice(&targets.labels, &count),
            offsets: View::from_slice(&targets.offsets, &count),
            weights: View::from_slice(&targets.weights, &count),
            cu_targets: View::from_slice(&targets.cu_targets, &[responses + 1]),
        },
    };
    let mut gradient = vec![0.0_f32; tokens];
    let value = targets.share * prm_loss::forward(inputs, targets.settings).unwrap();
    prm_loss::backward(ViewMut::from_slice(&mut gradient, &[tokens]), inputs, targets.settings)
        .unwrap();
    (value, gradient)
}

#[test]
fn every_loss_of_the_prm_agrees_with_its_expectations_in_a_step_and_in_a_replay() {
    let mut compared = 0;
    for case in cases() {
        let (lines, _) = rollout_file(&case.batch());
        for (name, pointer) in PRM_LOSSES {
            // The published programs know some of them; the repository's own small file holds all.
            let Some(expected) = case.json["expect"].pointer(pointer) else { continue };
            let what = format!("{}: {name}", case.name);
            let (loss, gradient) = prm_loss_of(&case, name);
            assert_close(&what, &[loss], &expected["loss"]);
            assert_column(&format!("{what}, gradient"), &gradient, &expected["grad_q"]);
            compared += 1;

            let mut settings = ReplaySettings::published(Form::Paper);
            for assignment in [
                format!("beta={}", case.number("beta")),
                format!("prm_loss={name}"),
                format!("prm_margin={PRM_MARGIN}"),
                format!("kto_desirable={KTO_DESIRABLE}"),
                format!("kto_undesirable={KTO_UNDESIRABLE}"),
                format!("kto_kl={KTO_KL}"),
            ] {
                settings.set(&assignment).unwrap();
            }
            // Pairs go by the order of the responses, which is another one in that file.
            let ordered = matches!(name, PrmLoss::DpoPairs | PrmLoss::Nca);
            let mut in_order = Vec::new();
            case.batch().write_json_lines(&mut in_order).unwrap();
            let input = if ordered { &in_order[..] } else { lines.as_bytes() };
            let replayed = replay(input, &settings).unwrap().summary.prm_loss.unwrap();
            assert_close(&format!("{what}, replayed"), &[replayed], &expected["loss"]);
        }
    }
    assert!(compared >= 2 * PRM_LOSSES.len(), "{compared}");
}

#[test]
fn the_prm_s_accuracies_agree_with_the_published_programs() {
    for case in cases() {
        let batch = case.batch();
        for (name, value) in [
            ("/prm_pairwise_accuracy", accuracy::pairwise(&batch).unwrap()),
            ("/prm_sign_accuracy", accuracy::sign(&batch).unwrap()),
        ] {
            assert_close(&format!("{}: {name}", case.name), &[value], case.expect(name));
        }
    }
}

/// The policy's losses whose numbers are known: the form of the rewards, the loss, the dual clip, and where its expectations stand.
const LOSSES: [(Form, PolicyLoss, Option<f32>, &str, &str); 4] = [
    (Form::PrimeRepo, PolicyLoss::Ppo, None, "/prime_rloo_prime_repo", "policy_loss"),
    (Form::Verl, PolicyLoss::Ppo, Some(3.0), "/policy_loss/vanilla", "loss"),
    // Neither has a dual clip, whatever is set.
    (Form::Verl, PolicyLoss::Gspo, Some(3.0), "/policy_loss/gspo", "loss"),
    (Form::Verl, PolicyLoss::Cispo, Some(3.0), "/policy_loss/cispo", "loss"),
];

#[test]
fn the_policy_s_losses_and_gradients_agree_with_the_published_programs() {
    for case in cases() {
        for (form, loss, dual, pointer, loss_name) in LOSSES {
            let batch = case.scored(form);
            let tokens = batch.token_count();
            let aggregation = loss.aggregation().weights(&batch.lengths(), 0).unwrap();
            let settings = case.loss(loss, dual);
            let columns = Columns {
                new: &batch.new_log_probs,
                old: &batch.old_log_probs,
                advantages: &batch.advantages,
                weights: &aggregation,
            };
            let weighed = weights(&settings, columns, &mut random_of(1, 0));
            let column = |values| View::from_slice::<f32>(values, &[tokens]);
            let cu_seqlens = View::from_slice(&batch.cu_seqlens, &[batch.cu_seqlens.len()]);
            let mut gradient = vec![0.0_f32; tokens];
            let statistics = policy_loss::forward(
                column(&batch.new_log_probs),
                column(&batch.old_log_probs),
                column(&batch.advantages),
                column(&weighed.surrogate),
                settings.objective(cu_seqlens),
            )
            .unwrap();
            policy_loss::backward(
                ViewMut::from_slice(&mut gradient, &[tokens]),
                column(&batch.new_log_probs),
                column(&batch.old_log_probs),
                column(&batch.advantages),
                column(&weighed.surrogate),
                settings.objective(cu_seqlens),
            )
            .unwrap();
            let expected = case.expect(pointer);
            for (name, value) in [
                (loss_name, statistics.loss),
                ("clip_fraction", statistics.clipped / statistics.tokens),
                ("approx_kl", statistics.kl / statistics.tokens),
            ] {
                assert_close(
                    &format!("{}: {pointer}/{name}", case.name),
                    &[value],
                    &expected[name],
                );
            }
            let what = format!("{}: {pointer}/grad_log_prob", case.name);
            assert_column(&what, &gradient, &expected["grad_log_prob"]);
        }
    }
}

/// What a replay of a case writes under these settings: its lines in the batch's order, and the summary.
fn replayed(case: &Case, form: Form, set: &[String]) -> (Vec<Value>, Value) {
    let (lines, order) = rollout_file(&case.batch());
    let mut settings = ReplaySettings::published(form);
    for assignment in case.assignments(form).iter().chain(set) {
        settings.set(assignment).unwrap();
    }
    let mut out = Vec::new();
    replay(lines.as_bytes(), &settings).unwrap().write(&mut out).unwrap();
    let mut out: Vec<Value> = std::str::from_utf8(&out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let summary = out.pop().unwrap();
    assert_eq!(out.len(), order.len());
    let mut sorted = vec![Value::Null; out.len()];
    for (line, response) in out.into_iter().zip(order) {
        sorted[response] = line;
    }
    (sorted, summary)
}

#[test]
fn a_replay_gives_the_losses_and_gradients_of_the_published_programs() {
    for case in cases() {
        for (form, loss, _, pointer, loss_name) in LOSSES {
            let set = [format!("loss={loss}"), "gradients=true".to_string()];
            let (lines, summary) = replayed(&case, form, &set);
            let expected = case.expect(pointer);
            for (key, name) in [
                ("policy_loss", loss_name),
                ("clip_fraction", "clip_fraction"),
                ("approx_kl", "approx_kl"),
            ] {
                let what = format!("{}: {pointer}/{name}, replayed", case.name);
                assert_close(&what, &flatten(&summary[key]), &expected[name]);
            }
            for (line, expected) in lines.iter().zip(expected["grad_log_prob"].as_array().unwrap())
            {
                let what = format!("{}: {pointer}/grad_log_prob, replayed", case.name);
                assert_close(&what, &flatten(&line["grad_log_prob"]), expected);
            }
        }
    }
}

#[test]
fn divergences_from_a_reference_are_those_of_the_published_program() {
    for case in cases() {
        let batch = case.batch();
        let tokens = batch.token_count();
        let column = |values| View::from_slice::<f32>(values, &[tokens]);
        for &kind in KlKind::ALL {
            let what = format!("{}: {kind}", case.name);
            let expected = &case.expect("/kl_new_vs_ref")[kind.name()];
            let mut penalties = vec![0.0_f32; tokens];
            kl_penalty::forward(
                ViewMut::from_slice(&mut penalties, &[tokens]),
                column(&batch.new_log_probs),
                column(&batch.ref_log_probs),
                column(&batch.ref_log_probs),
                kind.into(),
            )
            .unwrap();
            assert_column(&what, &penalties, expected);

            let (lines, summary) = replayed(&case, Form::Verl, &[format!("kl={kind}")]);
            for (line, expected) in lines.iter().zip(expected.as_array().unwrap()) {
                assert_close(&format!("{what}, replayed"), &flatten(&line["kl"]), expected);
            }
            let mean = flatten(expected).iter().sum::<f64>() / tokens as f64;
            assert_close(&format!("{what}, kl_loss"), &flatten(&summary["kl_loss"]), &json!(mean));
        }
    }
}

/// The total loss of a replay, with one new log-probability moved.
fn total_loss(case: &Case, set: &[String], moved: (usize, f32)) -> f64 {
    let mut batch = case.batch();
    batch.new_log_probs[moved.0] += moved.1;
    let mut settings = ReplaySettings::published(Form::PrimeRepo);
    for assignment in set {
        settings.set(assignment).unwrap();
    }
    let mut lines = Vec::new();
    batch.write_json_lines(&mut lines).unwrap();
    replay(lines.as_slice(), &settings).unwrap().summary.policy.total_loss.unwrap()
}

/// The penalties' part of the gradient, which no published number covers: by central differences, through a replay.
#[test]
fn the_replayed_gradient_is_the_slope_of_the_total_loss() {
    let case = &cases()[1];
    for (loss, kl) in [("ppo", "mse"), ("kl-cov", "low_var_kl"), ("ppo", "abs"), ("kl-cov", "kl")] {
        let set = [
            format!("loss={loss}"),
            format!("kl={kl}"),
            "kl_coef=0.5".into(),
            "cov_share=0.3".into(),
            "clip=0.9".into(),
            "aggregation=seq-mean-token-mean".into(),
            "gradients=true".into(),
        ];
        let (lines, _) = replayed(case, Form::PrimeRepo, &[]);
        assert!(lines[0].get("grad_log_prob").is_none());
        let mut settings = ReplaySettings::published(Form::PrimeRepo);
        for assignment in &set {
            settings.set(assignment).unwrap();
        }
        let mut lines = Vec::new();
        case.batch().write_json_lines(&mut lines).unwrap();
        let gradient = replay(lines.as_slice(), &settings).unwrap().gradient.unwrap();
        for (t, &slope) in gradient.iter().enumerate() {
            const STEP: f32 = 1.0 / 256.0;
            let numeric = (total_loss(case, &set, (t, STEP)) - total_loss(case, &set, (t, -STEP)))
                / f64::from(2.0 * STEP);
            // A third derivative below 30 leaves STEP^2 / 6 times that; losses of about 1 are rounded to float32.
            let allowed = 30.0 / 6.0 / 65536.0 + 8.0 * 2f64.powi(-24) / f64::from(STEP);
            let apart = (f64::from(slope) - numeric).abs();
            assert!(apart <= allowed, "{loss} {kl}, token {t}: {slope}, expected {numeric}");
        }
    }
}

#[test]
fn token_weights_aggregate_a_loss_as_the_published_programs_do() {
    for case in cases() {
        let losses = case.input("loss_matrix");
        let lengths: Vec<_> =
            losses.as_array().unwrap().iter().map(|row| row.as_array().unwrap().len()).collect();
        let longest = *lengths.iter().max().unwrap();
        for (name, expected) in case.expect("/loss_aggregation").as_object().unwrap() {
            let weights = name.parse::<Aggregation>().unwrap().weights(&lengths, longest).unwrap();
            let loss = flatten(losses);
            let sum = loss.iter().zip(&weights).map(|(x, &w)| x * f64::from(w)).sum();
            assert_close(&format!("{}: {name}", case.name), &[sum], expected);
        }
    }
}

/// The case as a rollout file whose lines are not in order: the last response to every prompt comes first.
fn rollout_file(batch: &Rollouts) -> (String, Vec<usize>) {
    let largest = batch.groups.iter().map(|group| group.responses.len()).max().unwrap();
    let order: Vec<usize> = (0..largest)
        .rev()
        .flat_map(|k| batch.groups.iter().filter_map(move |group| group.responses.clone().nth(k)))
        .collect();
    let mut lines = String::new();
    for &response in &order {
        let line = serde_json::to_string(&batch.record(response)).unwrap();
        lines.push_str(&line);
        lines.push('\n');
    }
    (lines, order)
}

#[test]
fn a_replay_of_recorded_rollouts_agrees_with_the_published_programs_in_every_form() {
    for case in cases() {
        let (lines, order) = rollout_file(&case.batch());
        for &form in Form::ALL {
            let mut settings = ReplaySettings::published(form);
            for assignment in case.assignments(form) {
                settings.set(&assignment).unwrap();
            }
            let mut out = Vec::new();
            replay(lines.as_bytes(), &settings).unwrap().write(&mut out).unwrap();
            let out: Vec<Value> = std::str::from_utf8(&out)
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            assert_eq!(out.len(), order.len() + 1);

            let keys = ["process_rewards", "returns", "advantages"];
            for (key, pointer) in keys.into_iter().zip(expectations(form)) {
                for (line, &response) in out.iter().zip(&order) {
                    if !pointer.is_empty() {
                        let what = format!("{} {form}: {key} of response {response}", case.name);
                        assert_close(&what, &flatten(&line[key]), &case.expect(pointer)[response]);
                    }
                }
            }

            let mut expected = vec![
                ("prm_loss", case.expect("/prm_ce/loss")),
                ("prm_accuracy", case.expect("/prm_pairwise_accuracy")),
                ("prm_sign_accuracy", case.expect("/prm_sign_accuracy")),
            ];
            let policy = match form {
                Form::Paper => None,
                Form::PrimeRepo => Some(("/prime_rloo_prime_repo", "policy_loss")),
                Form::Verl => Some(("/policy_loss/vanilla", "loss")),
            };
            if let Some((pointer, loss)) = policy {
                let policy = case.expect(pointer);
                expected.push(("policy_loss", &policy[loss]));
                expected.push(("clip_fraction", &policy["clip_fraction"]));
                expected.push(("approx_kl", &policy["approx_kl"]));
            }
            let summary = out.last().unwrap();
            for (key, expected) in expected {
                let what = format!("{} {form}: {key}", case.name);
                assert_close(&what, &flatten(&summary[key]), expected);
            }
        }
    }
}

#[test]
fn a_recorded_batch_comes_back_from_its_file_to_the_bit() {
    for case in cases() {
        let batch = case.batch();
        let mut lines = Vec::new();
        batch.write_json_lines(&mut lines).unwrap();
        let settings = ReplaySettings::published(Form::PrimeRepo);
        let read = replay(lines.as_slice(), &settings).unwrap().batch;
        for (written, read) in [
            (&batch.old_log_probs, &read.old_log_probs),
            (&batch.new_log_probs, &read.new_log_probs),
            (&batch.prm_log_probs, &read.prm_log_probs),
            (&batch.ref_log_probs, &read.ref_log_probs),
            (&batch.outcomes, &read.outcomes),
        ] {
            assert_eq!(written, read, "{}", case.name);
        }
        assert_eq!(json!(batch.lengths()), json!(read.lengths()));
    }
}
