//! Worked examples, and what is refused.

use super::*;
use crate::step::Response;
use crate::step::implicit_reward::{self, Granularity, ProcessNorm};

const PLAIN: Settings = Settings {
    estimator: Estimator::Rloo,
    form: Form::Paper,
    outcome_coef: 1.0,
    process_coef: 1.0,
    process_gamma: 1.0,
    outcome_gamma: 1.0,
    length_penalty: None,
    kl: None,
    gae_lambda: 1.0,
};

fn batch(groups: &[&[(f32, &[f32])]]) -> Rollouts {
    let mut batch = Rollouts::new();
    for (i, group) in groups.iter().enumerate() {
        let response = |&(outcome, rewards): &(f32, &[f32])| Response {
            tokens: vec![1; rewards.len()],
            old_log_probs: vec![-1.0; rewards.len()],
            outcome,
            finished: true,
        };
        let responses: Vec<_> = group.iter().map(response).collect();
        batch.push_group(format!("p{i}"), vec![1], &responses).unwrap();
        batch.process_rewards.extend(group.iter().flat_map(|(_, rewards)| rewards.iter()));
    }
    batch
}

/// The published figures have six decimals; on our side at most 16 roundings of values below 2 come on top.
fn assert_close(actual: &[f32], expected: &[f64]) {
    let tolerance = 5e-7 + 16.0 * 2.0 * 2.0_f64.powi(-24);
    assert_eq!(actual.len(), expected.len());
    for (t, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        assert!((f64::from(a) - e).abs() <= tolerance, "token {t}: {a}, expected {e}");
    }
}

#[test]
fn a_batch_worked_by_hand_comes_out_in_all_three_forms() {
    let q: [&[f32]; 4] = [
        &[0.5, -0.25, 1.0],
        &[-0.5, 0.25, 0.75, -1.0, 0.5],
        &[0.125, -0.375],
        &[1.5, -0.5, 0.25, -0.75],
    ];
    let mut batch = batch(&[&[(1.0, q[0]), (0.0, q[1]), (0.0, q[2]), (1.0, q[3])]]);
    batch.prm_log_probs = q.concat();
    batch.ref_log_probs = vec![0.0; batch.token_count()];
    // The figures normalise log-ratios that only in the form `verl` were multiplied by a beta of 0.05.
    let mut run = |form, beta, coef| {
        let rewards = implicit_reward::Settings {
            form,
            beta,
            process_norm: ProcessNorm::BatchNorm,
            granularity: Granularity::Token,
            lambda: 0.0,
            use_outcome: false,
        };
        batch.process_rewards = implicit_reward::process_rewards(&batch, &rewards).unwrap();
        let settings = Settings { form, outcome_coef: coef, process_coef: coef, ..PLAIN };
        advantages(&batch, &settings).unwrap()
    };

    let code = run(Form::PrimeRepo, 0.05, 1.0);
    #[rustfmt::skip]
    assert_close(&code.returns, &[
        1.666666, 1.244444, 1.622221, -1.222222, -0.577778, -0.733333, -1.422222, -0.244445,
        -1.155555, -1.177777, 0.755555, -0.733332, -0.088888, -0.244444,
    ]);
    #[rustfmt::skip]
    assert_close(&code.advantages, &[
        1.709646, 1.315569, 1.668164, -0.986677, -0.385189, -0.530376, -1.173345, -0.074075,
        -0.924454, -0.945195, 0.859268, -0.530375, 0.071112, -0.074074,
    ]);
    #[rustfmt::skip]
    assert_close(&run(Form::Verl, 0.05, 5.0).advantages, &[
        0.870027, 0.450239, 0.797576, -1.358917, -0.755872, -0.919951, -1.595447, -0.480985,
        -0.44476, -0.480985, 1.801231, 0.358611, 0.961656, 0.797576,
    ]);
    let paper = run(Form::Paper, 1.0, 1.0);
    #[rustfmt::skip]
    assert_close(&paper.returns, &[
        1.666666, 1.266666, 1.466666, -1.222222, -0.711111, -0.8, -1.288888, -0.377778,
        -1.155555, -1.111111, 0.755555, -0.366666, 0.111112, -0.011111,
    ]);
    assert_eq!(paper.advantages, paper.returns);
}

#[test]
fn the_outcome_part_leaves_one_out_of_each_group_by_its_own_size_and_needs_no_process_rewards() {
    let none: &[f32] = &[];
    let two: &[f32] = &[9.0, 9.0];
    let mut batch =
        batch(&[&[(1.0, two), (0.0, &[9.0])], &[(1.0, &[9.0]), (1.0, none), (0.25, two)]]);
    batch.process_rewards.clear();
    let settings = Settings { outcome_coef: 2.0, process_coef: 0.0, ..PLAIN };
    let out = advantages(&batch, &settings).unwrap();
    assert_eq!(out.returns, [2.0, 2.0, -2.0, 0.75, -1.5, -1.5]);
    let whitened = advantages(&batch, &Settings { form: Form::Verl, ..settings }).unwrap();
    assert_eq!(whitened.returns, out.returns);
    assert_eq!(whitened.advantages, whiten(&out.returns));
}

#[test]
fn the_discount_acts_on_the_process_part_alone() {
    let batch = batch(&[&[(1.0, &[1.0, 1.0, 1.0]), (0.0, &[0.0])]]);
    let settings = Settings { process_gamma: 0.5, ..PLAIN };
    // The others' means are 0 and 1: r~ is 1, 1, 1 | -1.
    assert_eq!(advantages(&batch, &settings).unwrap().returns, [2.75, 2.5, 2.0, -2.0]);
}

#[test]
fn a_response_of_no_tokens_counts_as_a_mean_of_nothing_in_the_others_baseline() {
    let none: &[f32] = &[];
    let batch = batch(&[&[(0.0, &[3.0]), (0.0, none), (0.0, &[1.0])]]);
    assert_eq!(advantages(&batch, &PLAIN).unwrap().returns, [2.5, -0.5]);
}

#[test]
fn whitening_gives_mean_0_and_sample_variance_1_and_a_single_token_0() {
    assert_eq!(whiten(&[3.5]), [0.0]);
    assert!(whiten(&[]).is_empty());
    assert_eq!(whiten(&[2.0, 2.0]), [0.0, 0.0]);
    // The sample variance is 2; 1e-8 under the root moves the result by less than a rounding.
    let half = std::f32::consts::FRAC_1_SQRT_2;
    assert_close(&whiten(&[1.0, 3.0]), &[f64::from(-half), f64::from(half)]);
}

#[test]
fn what_has_no_advantage_is_refused_by_name() {
    let refused =
        |batch: &Rollouts, settings| advantages(batch, &settings).unwrap_err().to_string();
    let mut pair = batch(&[&[(1.0, &[1.0]), (0.0, &[1.0])]]);
    let single = batch(&[&[(1.0, &[1.0]), (0.0, &[1.0])], &[(1.0, &[1.0])]]);
    let message = refused(&single, PLAIN);
    assert_eq!(message, "prompt `p1` has 1 response; a leave-one-out baseline needs at least 2");
    assert_eq!(refused(&single, Settings { process_coef: 0.0, ..PLAIN }), message);
    assert!(refused(&pair, Settings { process_gamma: 1.5, ..PLAIN }).contains("process_gamma"));
    assert!(refused(&pair, Settings { outcome_coef: -1.0, ..PLAIN }).contains("outcome_coef"));
    pair.process_rewards[1] = f32::NAN;
    let message = refused(&pair, PLAIN);
    assert!(message.starts_with("response 2 to prompt `p0`: process_rewards[0]"), "{message}");
    let large = batch(&[&[(1.0, &[3e38, 3e38]), (0.0, &[1.0])]]);
    let message = refused(&large, PLAIN);
    assert!(message.starts_with("response 1 to prompt `p0`: returns[0] is inf"), "{message}");
}

#[test]
fn grpo_measures_in_standard_deviations_of_the_prompt_s_outcomes_and_mean_rewards() {
    // Outcomes 1, 0: mean 1/2, deviation sqrt(1/2). Means of rewards 2, 0: mean 1, deviation sqrt(2).
    let batch = batch(&[&[(1.0, &[1.0, 3.0]), (0.0, &[0.0])]]);
    let settings = Settings { estimator: Estimator::Grpo, ..PLAIN };
    let (outcome, process) = (0.5 / (0.5_f64.sqrt() + 1e-6), 1.0 / (2.0_f64.sqrt() + 1e-6));
    let expected = [outcome + (0.0 + 2.0) * process, outcome + 2.0 * process, -outcome - process];
    assert_close(&advantages(&batch, &settings).unwrap().advantages, &expected);
    let plain = Settings { estimator: Estimator::DrGrpo, ..settings };
    assert_eq!(advantages(&batch, &plain).unwrap().advantages, [2.5, 2.5, -1.5]);
}

#[test]
fn a_prompt_s_only_response_keeps_its_return_where_no_others_are_needed() {
    let batch = batch(&[&[(0.5, &[0.25, 0.5])]]);
    for estimator in [Estimator::Reinforce, Estimator::Grpo, Estimator::DrGrpo] {
        let out = advantages(&batch, &Settings { estimator, ..PLAIN }).unwrap();
        assert_eq!(out.advantages, [1.25, 1.0], "{estimator}");
    }
}

#[test]
fn reinforce_discounts_process_rewards_and_not_outcomes_and_its_plus_plus_whitens() {
    let batch = batch(&[&[(1.0, &[1.0, 2.0]), (0.0, &[4.0])]]);
    let settings = Settings { estimator: Estimator::Reinforce, process_gamma: 0.5, ..PLAIN };
    let out = advantages(&batch, &settings).unwrap();
    assert_eq!(out.returns, [3.0, 3.0, 4.0]);
    let plus = Settings { estimator: Estimator::ReinforcePlusPlus, ..settings };
    let plus = advantages(&batch, &plus).unwrap();
    assert_eq!((plus.returns, plus.advantages), (out.returns.clone(), whiten(&out.returns)));
}

#[test]
fn the_value_of_the_text_before_a_token_is_what_its_process_rewards_sum_to() {
    let batch = batch(&[&[(1.0, &[0.25, 0.5, 1.0])]]);
    let settings = Settings { estimator: Estimator::PrmValue, ..PLAIN };
    assert_eq!(advantages(&batch, &settings).unwrap().advantages, [1.0, 0.75, 0.25]);
}

#[test]
fn gae_with_exact_values_is_all_zero_and_with_lambda_1_is_return_minus_value() {
    let mut batch = batch(&[&[(1.0, &[0.0, 0.0]), (0.0, &[0.5])]]);
    let settings = Settings { estimator: Estimator::Gae, gae_lambda: 0.5, ..PLAIN };
    let refused = advantages(&batch, &settings).unwrap_err().to_string();
    assert!(refused.contains("values has 0 values"), "{refused}");
    batch.values = vec![1.0, 1.0, 0.5];
    let exact = advantages(&batch, &settings).unwrap();
    assert_eq!((exact.returns, exact.advantages), (vec![1.0, 1.0, 0.5], vec![0.0; 3]));
    batch.values = vec![0.5, 0.25, 0.0];
    let whole = advantages(&batch, &Settings { gae_lambda: 1.0, ..settings }).unwrap();
    assert_eq!(whole.returns, [1.0, 1.0, 0.5]);
    assert_eq!(whole.advantages, whiten(&[0.5, 0.75, 0.5]));
}

#[test]
fn each_source_has_a_discount_of_its_own() {
    let batch = batch(&[&[(1.0, &[0.0, 4.0]), (0.0, &[0.0])]]);
    let settings = Settings { process_gamma: 0.25, outcome_gamma: 0.5, ..PLAIN };
    let run = |estimator| advantages(&batch, &Settings { estimator, ..settings }).unwrap().returns;
    // Outcomes 1/2 and 1 at the first response's tokens; process rewards 1 and 4.
    assert_eq!(run(Estimator::Reinforce), [1.5, 5.0, 0.0]);
    // Outcome part 1 | -1; the others' means of rewards 0 and 2: rewards 0, 4 | -2.
    assert_eq!(run(Estimator::Rloo), [1.5, 5.0, -3.0]);
    // Means 1/2 and 1: outcomes 1/2 | -1/2, rewards -1, 3 | -1.
    assert_eq!(run(Estimator::DrGrpo), [0.25 - 1.0 + 0.75, 0.5 + 3.0, -1.5]);
    assert_eq!(run(Estimator::PrmValue), [0.5, 1.0, 0.0]);
    let refused = advantages(&batch, &Settings { outcome_gamma: -0.1, ..PLAIN });
    assert!(refused.unwrap_err().to_string().contains("outcome_gamma"));
}

#[test]
fn the_length_penalty_falls_in_a_straight_line_from_where_the_buffer_begins() {
    let penalty = LengthPenalty { max_length: 10, buffer: 4, factor: 1.0 };
    let of: Vec<f64> = [0, 6, 7, 8, 9, 10, 11, 1000].map(|length| penalty.of(length)).into();
    assert_eq!(of, [0.0, 0.0, -0.25, -0.5, -0.75, -1.0, -1.0, -1.0]);
    assert_eq!(LengthPenalty { factor: 0.5, ..penalty }.of(8), -0.25);

    // Lengths 3 and 1 of at most 4: scores 1 - 1/2 and 0.
    let batch = batch(&[&[(1.0, &[0.0; 3]), (0.0, &[0.0])]]);
    let penalty = LengthPenalty { max_length: 4, buffer: 2, factor: 1.0 };
    let settings = Settings { length_penalty: Some(penalty), process_coef: 0.0, ..PLAIN };
    for (estimator, expected) in [
        (Estimator::Reinforce, [0.5, 0.5, 0.5, 0.0]),
        (Estimator::Rloo, [0.5, 0.5, 0.5, -0.5]),
        (Estimator::DrGrpo, [0.25, 0.25, 0.25, -0.25]),
        (Estimator::PrmValue, [0.5, 0.5, 0.5, 0.0]),
    ] {
        let out = advantages(&batch, &Settings { estimator, ..settings }).unwrap();
        assert_eq!(out.advantages, expected, "{estimator}");
    }
    for buffer in [0, 5] {
        let penalty = Some(LengthPenalty { buffer, ..penalty });
        let refused = advantages(&batch, &Settings { length_penalty: penalty, ..settings });
        assert!(refused.unwrap_err().to_string().contains("overlong_buffer"));
    }
}

#[test]
fn a_kl_penalty_comes_off_each_token_s_reward_or_off_the_response_s_score() {
    use crate::step::KlKind;
    use crate::step::policy_loss::KlPenalty;

    let mut batch = batch(&[&[(1.0, &[0.0, 0.0]), (0.0, &[0.0])]]);
    let kl = Some(KlPenalty { coef: 0.5, kind: KlKind::Kl });
    let settings = Settings { kl, process_coef: 0.0, process_gamma: 0.5, ..PLAIN };
    let refused = advantages(&batch, &settings).unwrap_err().to_string();
    assert!(refused.contains("kl_ref_log_probs has 0 values"), "{refused}");
    // Divergences 1, 2 | -2: penalties 0.5, 1 | -1.
    batch.kl_ref_log_probs = vec![-2.0, -3.0, 1.0];
    let run = |estimator| advantages(&batch, &Settings { estimator, ..settings }).unwrap();
    assert_eq!(run(Estimator::Reinforce).returns, [1.0 - 0.5 - 0.5, 0.0, 1.0]);
    // Scores 1 - 1.5 and 0 + 1.
    assert_eq!(run(Estimator::Rloo).returns, [-1.5, -1.5, 1.5]);
    assert_eq!(run(Estimator::DrGrpo).returns, [-0.75, -0.75, 0.75]);
    assert_eq!(run(Estimator::PrmValue).returns, [-0.5, -0.5, 1.0]);
    let plus = run(Estimator::ReinforcePlusPlus);
    assert_eq!(plus.advantages, whiten(&[0.0, 0.0, 1.0]));
    // With a critic of zeros and no discount of sums, the sum from each token on.
    batch.values = vec![0.0; 3];
    let gae = Settings { estimator: Estimator::Gae, process_gamma: 1.0, ..settings };
    assert_eq!(advantages(&batch, &gae).unwrap().returns, [-0.5, 0.0, 1.0]);
    // Without a coefficient no reference is needed.
    batch.kl_ref_log_probs.clear();
    let none = Settings { kl: Some(KlPenalty { coef: 0.0, kind: KlKind::Abs }), ..settings };
    assert_eq!(advantages(&batch, &none).unwrap().returns, [1.0, 1.0, -1.0]);
}

#[test]
fn groups_of_unequal_size_are_compared_within_themselves_by_every_estimator() {
    // A prompt with two responses left, and one with three; each pair of outcomes and rewards as if its group stood alone.
    let small: &[(f32, &[f32])] = &[(1.0, &[1.0, 0.5]), (0.0, &[-1.0])];
    let large: &[(f32, &[f32])] = &[(1.0, &[0.25]), (0.5, &[2.0, -1.0]), (0.0, &[0.75])];
    let both = batch(&[small, large]);
    for estimator in [
        Estimator::Rloo,
        Estimator::Grpo,
        Estimator::DrGrpo,
        Estimator::Reinforce,
        Estimator::PrmValue,
    ] {
        let settings = Settings { estimator, process_gamma: 0.5, ..PLAIN };
        let alone = |group| advantages(&batch(&[group]), &settings).unwrap().returns;
        let together = advantages(&both, &settings).unwrap().returns;
        assert_eq!(together, [alone(small), alone(large)].concat(), "{estimator}");
    }
}
