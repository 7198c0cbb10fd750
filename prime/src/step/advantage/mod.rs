//! Advantages from outcomes and process rewards: one estimator a file, one function for all.
//!
//! Process rewards join each estimator as appendix B of arXiv 2502.01456 joins them: each part has its coefficient and its discount. Process
//! rewards are summed from a token on, discounted by `process_gamma`; the outcome stands at the last token, so that token t receives
//! outcome_gamma^(last - t) of it (the paper's outcomes are not discounted: 1). The outcome may carry a length penalty and a KL penalty
//! (`source`). Without process rewards (`process_coef` 0) an estimator is the one published on
//! outcomes alone.

use anyhow::{Result, ensure};

use super::policy_loss::KlPenalty;
use super::{Form, Rollouts};

mod critic;
mod group;
mod rloo;
mod source;
#[cfg(test)]
mod tests;

use source::Source;
pub use source::{LengthPenalty, divergences};

named! {
    /// How advantages are estimated.
    Estimator, "estimator" {
        /// Leave-one-out baselines of the prompt's other responses: PRIME's own (equation 5).
        Rloo = "rloo",
        /// Plain returns, without a baseline (equation 8).
        Reinforce = "reinforce",
        /// Deviation from the prompt's mean in units of its standard deviation (equation 7; arXiv 2402.03300).
        Grpo = "grpo",
        /// Deviation from the prompt's mean (arXiv 2503.20783).
        DrGrpo = "dr-grpo",
        /// Returns whitened over the batch (arXiv 2501.03262).
        ReinforcePlusPlus = "reinforce++",
        /// Generalised advantage estimation with a critic's values, whitened over the batch (arXiv 1506.02438).
        Gae = "gae",
        /// The outcome minus the implicit PRM's value of the text before the token (section 5.4).
        PrmValue = "prm-value",
    }
}

/// How advantages are computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The estimator.
    pub estimator: Estimator,
    /// The published form; it matters to [`Estimator::Rloo`] alone.
    pub form: Form,
    /// The weight of the outcome part.
    pub outcome_coef: f64,
    /// The weight of the process part. At 0 the batch needs no process rewards.
    pub process_coef: f64,
    /// The discount of the process part; of [`Estimator::Gae`], of time.
    pub process_gamma: f64,
    /// The discount of the outcome part; [`Estimator::Gae`] has the other alone.
    pub outcome_gamma: f64,
    /// A penalty of long responses, in their outcomes.
    pub length_penalty: Option<LengthPenalty>,
    /// A penalty for leaving the policy's reference, in the rewards.
    pub kl: Option<KlPenalty>,
    /// Lambda of [`Estimator::Gae`].
    pub gae_lambda: f64,
}

impl Settings {
    /// # Errors
    /// When a coefficient is negative, or a discount or lambda is outside 0 to 1.
    pub fn check(&self) -> Result<()> {
        for (name, value) in
            [("outcome_coef", self.outcome_coef), ("process_coef", self.process_coef)]
        {
            ensure!(
                value >= 0.0 && value.is_finite(),
                "{name} is {value}; it must be a number that is not negative"
            );
        }
        for (name, value) in [
            ("process_gamma", self.process_gamma),
            ("outcome_gamma", self.outcome_gamma),
            ("gae_lambda", self.gae_lambda),
        ] {
            ensure!((0.0..=1.0).contains(&value), "{name} is {value}; it must be within 0 to 1");
        }
        if let Some(LengthPenalty { max_length, buffer, factor }) = self.length_penalty {
            ensure!(
                (1..=max_length).contains(&buffer),
                "overlong_buffer is {buffer}; it must be within 1 to the greatest length, {max_length}"
            );
            ensure!(
                factor >= 0.0 && factor.is_finite(),
                "overlong_factor is {factor}; it must be a number that is not negative"
            );
        }
        if let Some(kl) = self.kl {
            ensure!(kl.coef.is_finite(), "the KL's coefficient is {}; it must be finite", kl.coef);
        }
        Ok(())
    }

    /// Coefficient times discount of a score that stands at `last`, seen from token `t`.
    fn outcome_weight(&self, last: usize, t: usize) -> f64 {
        self.outcome_coef * self.outcome_gamma.powi((last - t) as i32)
    }
}

/// What the policy update needs of a batch: (tokens) each.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// Sums of rewards, less baselines where the estimator has them, before any whitening; a critic learns these.
    pub returns: Vec<f32>,
    /// What multiplies the ratio in the policy's loss.
    pub advantages: Vec<f32>,
}

/// Returns and advantages of a graded batch, with its process rewards where `process_coef` is not 0.
///
/// # Errors
/// When a prompt has too few responses for the estimator, a process reward or value is missing, a number is not finite, or a
/// setting is out of range.
pub fn advantages(batch: &Rollouts, settings: &Settings) -> Result<Advantages> {
    settings.check()?;
    let source = &Source::of(batch, settings)?;
    let advantages = match settings.estimator {
        Estimator::Rloo => rloo::rloo(batch, source, settings)?,
        Estimator::Reinforce => group::reinforce(batch, source, settings)?,
        Estimator::Grpo => group::grpo(batch, source, settings, group::Scale::Deviation)?,
        Estimator::DrGrpo => group::grpo(batch, source, settings, group::Scale::One)?,
        Estimator::ReinforcePlusPlus => group::reinforce_plus_plus(batch, source, settings)?,
        Estimator::Gae => critic::gae(batch, source, settings)?,
        Estimator::PrmValue => critic::prm_value(batch, source, settings)?,
    };
    batch.column("returns", &advantages.returns)?;
    batch.column("advantages", &advantages.advantages)?;
    Ok(advantages)
}

/// The mean process reward of a response's tokens; 0 for a response of no tokens.
fn mean_reward(batch: &Rollouts, rewards: &[f32], response: usize) -> f64 {
    let span = batch.span(response);
    let sum: f64 = rewards[span.clone()].iter().map(|&x| f64::from(x)).sum();
    sum / span.len().max(1) as f64
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
