//! Process rewards without a process label: the log-ratio of the PRM and its reference, token by token.
//!
//! With q\[t\] = log pi_prm(y_t) - log pi_ref(y_t), the forms say
//! - `paper`: r\[t\] = beta q\[t\];
//! - `prime-repo`: r\[t\] = q\[t\]; beta acts through the PRM's loss alone;
//! - `verl`: r\[t\] = beta q\[t\], and 0 at the last token of a response, which is usually the stop token.
//!
//! These are the rewards of units: tokens, steps (the sum over a step, at its last token) or whole responses. Two settings of verl's act on a
//! response's units u\[1..n\] before rewards are given and normalised:
//! - `use_outcome` puts outcome - (sum of the others) in the place of the last, so that the rewards sum to the outcome;
//! - `lambda` makes u\[k\] + lambda r\[k + 1\] the reward r\[k\].
//!
//! The form `verl` gives no reward at the last token after that.
//!
//! Sources: arXiv 2502.01456 equation 3; PRIME-RL/PRIME `dp_prime.py`; verl `prime_dp_rm.py`.

use anyhow::{Result, ensure};

use super::{Form, Rollouts, reverse_scan};

named! {
    /// What process rewards are divided by.
    ProcessNorm, "process_norm" {
        /// The greatest magnitude, over the whole batch, of an undiscounted sum from a token to the end of its
        /// response, plus 1e-6. The sums then lie within -1 to 1, and beta cancels. There is no counterpart in the
        /// paper; both code bases do it, each worker for its own share of the batch, where this is the whole batch.
        BatchNorm = "batch_norm",
        /// Nothing.
        None = "none",
    }
}

named! {
    /// Where rewards are given.
    Granularity, "granularity" {
        /// At every token.
        Token = "token",
        /// At the last token of each step, the sum over the step; what follows the last marked end is a step too.
        Step = "step",
        /// At the last token, the sum over the response.
        Whole = "whole",
    }
}

/// How process rewards are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The published form.
    pub form: Form,
    /// The scale of the log-ratio.
    pub beta: f64,
    /// What the rewards are divided by.
    pub process_norm: ProcessNorm,
    /// Where they are given.
    pub granularity: Granularity,
    /// How much of the next unit's reward a unit's has; 0 is none.
    pub lambda: f64,
    /// Whether the last unit's reward is what the others lack of the outcome.
    pub use_outcome: bool,
}

/// The process reward of every token of a batch whose PRM and reference log-probabilities are known.
///
/// The last token's 0 of the form `verl` is a matter of rewards at every token; sums over steps and whole responses
/// take in all their tokens.
///
/// # Errors
/// When beta is not positive, a log-probability is missing or not finite, or steps are asked for and not marked.
pub fn process_rewards(batch: &Rollouts, settings: &Settings) -> Result<Vec<f32>> {
    let Settings { form, beta, process_norm, granularity, lambda, use_outcome } = *settings;
    ensure!(beta > 0.0 && beta.is_finite(), "beta is {beta}; it must be a positive number");
    ensure!((0.0..=1.0).contains(&lambda), "process_lambda is {lambda}; it must be within 0 to 1");
    let scale = if form == Form::PrimeRepo { 1.0 } else { beta };
    let q = log_ratios(batch)?;
    ensure!(
        granularity != Granularity::Step || batch.step_ends.len() == q.len(),
        "process rewards by step need the ends of steps marked: step_ends has {} values for {} tokens",
        batch.step_ends.len(),
        q.len()
    );

    let mut rewards = vec![0.0_f32; q.len()];
    // The last token of each unit of a response, and the unit's reward.
    let mut units: Vec<(usize, f64)> = Vec::new();
    for response in 0..batch.len() {
        let span = batch.span(response);
        let Some(last) = span.end.checked_sub(1).filter(|_| !span.is_empty()) else { continue };
        units.clear();
        let mut sum = 0.0;
        for t in span {
            sum += q[t];
            let ends = match granularity {
                Granularity::Token => true,
                Granularity::Step => batch.step_ends[t] || t == last,
                Granularity::Whole => t == last,
            };
            if ends {
                units.push((t, scale * sum));
                sum = 0.0;
            }
        }
        if let (true, Some((last, others))) = (use_outcome, units.split_last_mut()) {
            let others: f64 = others.iter().map(|(_, reward)| reward).sum();
            last.1 = f64::from(batch.outcomes[response]) - others;
        }
        let mut next = 0.0;
        for &(t, unit) in units.iter().rev() {
            next = unit + lambda * next;
            rewards[t] = next as f32;
        }
        if form == Form::Verl && granularity == Granularity::Token {
            rewards[last] = 0.0;
        }
    }

    batch.column("process_rewards", &rewards)?;
    if process_norm == ProcessNorm::BatchNorm {
        let returns = reverse_scan(batch, &rewards, 1.0)?;
        let greatest = returns.iter().fold(0.0_f32, |greatest, x| greatest.max(x.abs()));
        let divisor = f64::from(greatest) + 1e-6;
        for reward in &mut rewards {
            *reward = (f64::from(*reward) / divisor) as f32;
        }
    }
    Ok(rewards)
}

/// q\[t\] = log pi_prm(y_t) - log pi_ref(y_t).
///
/// # Errors
/// When a log-probability is missing or not finite.
pub fn log_ratios(batch: &Rollouts) -> Result<Vec<f64>> {
    let prm = batch.column("prm_log_probs", &batch.prm_log_probs)?;
    let reference = batch.column("ref_log_probs", &batch.ref_log_probs)?;
    Ok(prm.iter().zip(reference).map(|(&a, &b)| f64::from(a) - f64::from(b)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Response;
    use super::*;

    const TOKENS: Settings = Settings {
        form: Form::Paper,
        beta: 0.5,
        process_norm: ProcessNorm::None,
        granularity: Granularity::Token,
        lambda: 0.0,
        use_outcome: false,
    };

    /// Log-ratios 1, -2, 0.5 | nothing | 4. Every sum is exact in binary.
    fn batch() -> Rollouts {
        let mut batch = Rollouts::new();
        let response = |length: usize| Response {
            tokens: vec![1; length],
            old_log_probs: vec![-1.0; length],
            outcome: 1.0,
            finished: true,
        };
        batch.push_group("p", vec![1], &[3, 0, 1].map(response)).unwrap();
        batch.prm_log_probs = vec![-1.0, -4.0, -1.5, -4.0];
        batch.ref_log_probs = vec![-2.0, -2.0, -2.0, -8.0];
        batch
    }

    #[test]
    fn the_forms_differ_in_beta_and_in_the_last_token() {
        let rewards = |form| process_rewards(&batch(), &Settings { form, ..TOKENS }).unwrap();
        assert_eq!(rewards(Form::Paper), [0.5, -1.0, 0.25, 2.0]);
        assert_eq!(rewards(Form::PrimeRepo), [1.0, -2.0, 0.5, 4.0]);
        assert_eq!(rewards(Form::Verl), [0.5, -1.0, 0.0, 0.0]);
    }

    #[test]
    fn coarser_rewards_are_sums_at_the_last_token_they_cover_in_every_form() {
        let mut batch = batch();
        batch.step_ends = vec![false, true, false, false];
        for &form in Form::ALL {
            let scale = if form == Form::PrimeRepo { 1.0 } else { 0.5 };
            let rewards = |granularity| {
                process_rewards(&batch, &Settings { form, granularity, ..TOKENS }).unwrap()
            };
            assert_eq!(rewards(Granularity::Whole), [0.0, 0.0, -0.5, 4.0].map(|x: f32| x * scale));
            assert_eq!(rewards(Granularity::Step), [0.0, -1.0, 0.5, 4.0].map(|x: f32| x * scale));
        }
        batch.step_ends.clear();
        let steps = Settings { granularity: Granularity::Step, ..TOKENS };
        assert!(process_rewards(&batch, &steps).unwrap_err().to_string().contains("step_ends"));
    }

    #[test]
    fn lambda_and_the_outcome_act_on_units_before_they_are_given() {
        let mut batch = batch();
        batch.step_ends = vec![false, true, false, false];
        let rewards = |settings| process_rewards(&batch, &settings).unwrap();
        // Units 0.5, -1, 0.25 | 2.
        let half = Settings { lambda: 0.5, ..TOKENS };
        assert_eq!(rewards(half), [0.0625, -0.875, 0.25, 2.0]);
        assert_eq!(rewards(Settings { form: Form::Verl, ..half }), [0.0625, -0.875, 0.0, 0.0]);
        let filled = Settings { use_outcome: true, ..TOKENS };
        assert_eq!(rewards(filled), [0.5, -1.0, 1.5, 1.0]);
        let both = Settings { use_outcome: true, ..half };
        assert_eq!(rewards(both), [0.375, -0.25, 1.5, 1.0]);
        // Steps -0.5, 0.25 | 2.
        let steps = Settings { granularity: Granularity::Step, ..half };
        assert_eq!(rewards(steps), [0.0, -0.375, 0.25, 2.0]);
        assert!(process_rewards(&batch, &Settings { lambda: 1.5, ..TOKENS }).is_err());
    }

    #[test]
    fn normalisation_divides_by_the_greatest_sum_to_the_end_and_leaves_zeros_alone() {
        let norm = Settings { process_norm: ProcessNorm::BatchNorm, ..TOKENS };
        // Sums to the end: -0.25, -0.75, 0.25 | 2.
        let rewards = process_rewards(&batch(), &norm).unwrap();
        let expected = [0.5, -1.0, 0.25, 2.0].map(|x| (x / (2.0 + 1e-6)) as f32);
        assert_eq!(rewards, expected);

        let mut equal = batch();
        equal.ref_log_probs = equal.prm_log_probs.clone();
        assert_eq!(process_rewards(&equal, &norm).unwrap(), [0.0; 4]);
    }

    #[test]
    fn what_cannot_be_scored_is_refused() {
        let mut missing = batch();
        missing.ref_log_probs.clear();
        let message = process_rewards(&missing, &TOKENS).unwrap_err().to_string();
        assert!(message.contains("ref_log_probs has 0 values"), "{message}");
        let mut broken = batch();
        broken.prm_log_probs[3] = f32::NAN;
        let message = process_rewards(&broken, &TOKENS).unwrap_err().to_string();
        assert!(message.starts_with("response 3 to prompt `p`: prm_log_probs[0]"), "{message}");
        let large = Settings { form: Form::PrimeRepo, ..TOKENS };
        broken.prm_log_probs[3] = f32::MAX;
        broken.ref_log_probs[3] = f32::MIN;
        let message = process_rewards(&broken, &large).unwrap_err().to_string();
        assert!(message.contains("process_rewards[0] is inf"), "{message}");
        for beta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(process_rewards(&batch(), &Settings { beta, ..TOKENS }).is_err());
        }
    }
}
