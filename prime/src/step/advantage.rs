//! Leave-one-out returns and advantages from outcomes and process rewards.
//!
//! With n responses to a prompt, r\[i, t\] the process reward of token t of response i, and m\[i\] the mean of r over the
//! tokens of response i (0 for a response of no tokens):
//! - the outcome part is the same in all forms and is not discounted:
//!   o\[i\] = outcome\[i\] - mean over the others of outcome\[j\], at every token of response i;
//! - the process part of the paper's equation 5 subtracts the others' mean:
//!   r~\[i, t\] = r\[i, t\] - mean over j != i of m\[j\];
//! - the process part of both code bases multiplies the token where the paper would multiply the mean:
//!   r~\[i, t\] = r\[i, t\] n/(n - 1) - (sum over all j of m\[j\]) / (n - 1),
//!   which is the paper's plus (r\[i, t\] - m\[i\]) / (n - 1);
//! - return\[i, t\] = process_coef * (sum over s >= t of process_gamma^(s - t) r~\[i, s\]) + outcome_coef * o\[i\].
//!
//! In the form `paper` the advantages are the returns; in the code forms they are the returns whitened over all tokens
//! of the batch. After whitening only the ratio of the coefficients matters. Without process rewards (`process_coef` 0)
//! the same is RLOO on outcomes (arXiv 2402.14740).

use anyhow::{Result, ensure};

use super::{Form, Rollouts, reverse_scan};

/// How returns are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The published form.
    pub form: Form,
    /// The weight of the outcome part.
    pub outcome_coef: f64,
    /// The weight of the process part. At 0 the batch needs no process rewards.
    pub process_coef: f64,
    /// The discount of the process part. The outcome part has none.
    pub process_gamma: f64,
}

impl Settings {
    /// # Errors
    /// When a coefficient is negative or the discount is outside 0 to 1.
    pub fn check(&self) -> Result<()> {
        for (name, value) in
            [("outcome_coef", self.outcome_coef), ("process_coef", self.process_coef)]
        {
            ensure!(
                value >= 0.0 && value.is_finite(),
                "{name} is {value}; it must be a number that is not negative"
            );
        }
        ensure!(
            (0.0..=1.0).contains(&self.process_gamma),
            "process_gamma is {}; it must be within 0 to 1",
            self.process_gamma
        );
        Ok(())
    }
}

/// What the policy update needs of a batch: (tokens) each.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// Leave-one-out returns.
    pub returns: Vec<f32>,
    /// The returns as the form uses them in the loss: whitened, or as they are.
    pub advantages: Vec<f32>,
}

/// Leave-one-out returns and advantages of a graded batch with its process rewards.
///
/// # Errors
/// When a prompt has fewer than 2 responses, a process reward is missing, a reward or a return is not finite, or a
/// setting is out of range.
pub fn rloo(batch: &Rollouts, settings: &Settings) -> Result<Advantages> {
    settings.check()?;
    let mut returns = if settings.process_coef == 0.0 {
        vec![0.0; batch.token_count()]
    } else {
        process_returns(batch, settings)?
    };
    for group in &batch.groups {
        let others = others(group)?;
        let total: f64 =
            batch.outcomes[group.responses.clone()].iter().map(|&x| f64::from(x)).sum();
        for i in group.responses.clone() {
            let outcome = f64::from(batch.outcomes[i]);
            let part = settings.outcome_coef * (outcome - (total - outcome) / others);
            for value in &mut returns[batch.span(i)] {
                *value = (settings.process_coef * f64::from(*value) + part) as f32;
            }
        }
    }
    batch.column("returns", &returns)?;
    let advantages = match settings.form {
        Form::Paper => returns.clone(),
        Form::PrimeRepo | Form::Verl => whiten(&returns),
    };
    Ok(Advantages { returns, advantages })
}

/// The discounted sums of r~, without their coefficient.
fn process_returns(batch: &Rollouts, settings: &Settings) -> Result<Vec<f32>> {
    let rewards = batch.column("process_rewards", &batch.process_rewards)?;
    let mut centred = vec![0.0_f32; rewards.len()];
    let mean = |i: usize| {
        let span = batch.span(i);
        let sum: f64 = rewards[span.clone()].iter().map(|&x| f64::from(x)).sum();
        sum / span.len().max(1) as f64
    };
    for group in &batch.groups {
        let others = others(group)?;
        let total: f64 = group.responses.clone().map(mean).sum();
        for i in group.responses.clone() {
            let (scale, baseline) = match settings.form {
                Form::Paper => (1.0, (total - mean(i)) / others),
                Form::PrimeRepo | Form::Verl => ((others + 1.0) / others, total / others),
            };
            for t in batch.span(i) {
                centred[t] = (scale * f64::from(rewards[t]) - baseline) as f32;
            }
        }
    }
    reverse_scan(&centred, &batch.cu_seqlens, settings.process_gamma)
}

/// How many other responses the baseline of each response of a group is a mean of.
fn others(group: &super::Group) -> Result<f64> {
    ensure!(
        group.responses.len() >= 2,
        "prompt `{}` has {} response; a leave-one-out baseline needs at least 2",
        group.prompt_id,
        group.responses.len()
    );
    Ok((group.responses.len() - 1) as f64)
}

/// (x - mean) / sqrt(variance + 1e-8) over all values, the variance with Bessel's correction. A single value has no
/// variance, and becomes 0.
pub fn whiten(values: &[f32]) -> Vec<f32> {
    let count = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / count;
    let squares: f64 = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum();
    let scale = (squares / (count - 1.0).max(1.0) + 1e-8).sqrt().recip();
    values.iter().map(|&x| ((f64::from(x) - mean) * scale) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Response;
    use super::super::implicit_reward::{self, Granularity, ProcessNorm};
    use super::*;

    const PLAIN: Settings =
        Settings { form: Form::Paper, outcome_coef: 1.0, process_coef: 1.0, process_gamma: 1.0 };

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
            };
            batch.process_rewards = implicit_reward::process_rewards(&batch, &rewards).unwrap();
            let settings = Settings { form, outcome_coef: coef, process_coef: coef, ..PLAIN };
            rloo(&batch, &settings).unwrap()
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
    fn the_outcome_part_leaves_one_out_of_each_group_by_its_own_size_and_needs_no_process_rewards()
    {
        let none: &[f32] = &[];
        let two: &[f32] = &[9.0, 9.0];
        let mut batch =
            batch(&[&[(1.0, two), (0.0, &[9.0])], &[(1.0, &[9.0]), (1.0, none), (0.25, two)]]);
        batch.process_rewards.clear();
        let settings = Settings { outcome_coef: 2.0, process_coef: 0.0, ..PLAIN };
        let out = rloo(&batch, &settings).unwrap();
        assert_eq!(out.returns, [2.0, 2.0, -2.0, 0.75, -1.5, -1.5]);
        let whitened = rloo(&batch, &Settings { form: Form::Verl, ..settings }).unwrap();
        assert_eq!(whitened.returns, out.returns);
        assert_eq!(whitened.advantages, whiten(&out.returns));
    }

    #[test]
    fn the_discount_acts_on_the_process_part_alone() {
        let batch = batch(&[&[(1.0, &[1.0, 1.0, 1.0]), (0.0, &[0.0])]]);
        let settings = Settings { process_gamma: 0.5, ..PLAIN };
        // The others' means are 0 and 1: r~ is 1, 1, 1 | -1.
        assert_eq!(rloo(&batch, &settings).unwrap().returns, [2.75, 2.5, 2.0, -2.0]);
    }

    #[test]
    fn a_response_of_no_tokens_counts_as_a_mean_of_nothing_in_the_others_baseline() {
        let none: &[f32] = &[];
        let batch = batch(&[&[(0.0, &[3.0]), (0.0, none), (0.0, &[1.0])]]);
        assert_eq!(rloo(&batch, &PLAIN).unwrap().returns, [2.5, -0.5]);
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
        let refused = |batch: &Rollouts, settings| rloo(batch, &settings).unwrap_err().to_string();
        let mut pair = batch(&[&[(1.0, &[1.0]), (0.0, &[1.0])]]);
        let single = batch(&[&[(1.0, &[1.0]), (0.0, &[1.0])], &[(1.0, &[1.0])]]);
        let message = refused(&single, PLAIN);
        assert_eq!(
            message,
            "prompt `p1` has 1 response; a leave-one-out baseline needs at least 2"
        );
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
}
