//! What estimators are given of each response beside its process rewards: its outcome with what is taken off it, and KL penalties.
//!
//! The score of response i is outcome\[i\] + the soft length penalty of its length (arXiv 2503.14476 equation 13): 0 up to max_length - buffer
//! tokens, falling in a straight line to -factor at max_length, and -factor beyond.
//!
//! A KL penalty in the reward takes `kl.coef` times the divergence of the sampling policy from the policy's reference off the reward of each token.
//! Estimators that weigh whole responses (`rloo`, `grpo`, `dr-grpo`, `prm-value`) take the sum over a response off its score, as verl's
//! `apply_kl_penalty` does for them; those of sums of rewards (`reinforce`, `reinforce++`, `gae`) take it token by token, discounted as process
//! rewards are.

use anyhow::Result;
use prime_kernels::kl_penalty;
use prime_model::{Upload, on_host};
use prime_runtime::{DType, Tensor};

use super::{Estimator, Settings};
use crate::step::Rollouts;
use crate::step::policy_loss::KlPenalty;

/// A penalty for coming near the greatest length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthPenalty {
    /// The greatest length of a response, tokens.
    pub max_length: usize,
    /// How many tokens before it the penalty begins.
    pub buffer: usize,
    /// The penalty at the greatest length.
    pub factor: f64,
}

impl LengthPenalty {
    /// The penalty of a length; never above 0.
    pub fn of(&self, length: usize) -> f64 {
        let free = self.max_length.saturating_sub(self.buffer);
        let over = length.saturating_sub(free) as f64;
        -self.factor * (over / self.buffer.max(1) as f64).min(1.0)
    }
}

/// What the outcome part of an estimator is made of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Source {
    /// (responses)
    pub(super) scores: Vec<f64>,
    /// What is taken off the reward of each token: (tokens), or empty.
    pub(super) penalties: Vec<f32>,
}

impl Source {
    pub(super) fn of(batch: &Rollouts, settings: &Settings) -> Result<Source> {
        let mut scores: Vec<f64> = batch.outcomes.iter().map(|&x| f64::from(x)).collect();
        if let Some(penalty) = settings.length_penalty {
            for (score, length) in scores.iter_mut().zip(batch.lengths()) {
                *score += penalty.of(length);
            }
        }
        let mut penalties = match settings.kl {
            Some(kl) if kl.coef != 0.0 => kl_penalties(batch, kl)?,
            _ => Vec::new(),
        };
        let by_token = matches!(
            settings.estimator,
            Estimator::Reinforce | Estimator::ReinforcePlusPlus | Estimator::Gae
        );
        if !by_token && !penalties.is_empty() {
            for (i, score) in scores.iter_mut().enumerate() {
                *score -= penalties[batch.span(i)].iter().map(|&x| f64::from(x)).sum::<f64>();
            }
            penalties.clear();
        }
        Ok(Source { scores, penalties })
    }
}

/// `coef` times the divergence of the sampling policy from the policy's reference at each token.
fn kl_penalties(batch: &Rollouts, kl: KlPenalty) -> Result<Vec<f32>> {
    let mut penalties = divergences(batch, &batch.old_log_probs, kl)?;
    for penalty in &mut penalties {
        *penalty = (f64::from(*penalty) * kl.coef) as f32;
    }
    Ok(penalties)
}

/// The divergence at each token of a policy with these log-probs from the policy's reference, without the coefficient.
///
/// # Errors
/// When a log-prob is missing or not finite.
pub fn divergences(batch: &Rollouts, log_probs: &[f32], kl: KlPenalty) -> Result<Vec<f32>> {
    let log_probs = batch.column("log_probs", log_probs)?;
    let reference = batch.column("kl_ref_log_probs", &batch.kl_ref_log_probs)?;
    let tokens = log_probs.len();
    let mut columns = Upload::new(batch.device, [tokens; 2])?;
    let [log_probs, reference] = columns.place([log_probs, reference])?;
    let mut out = Tensor::zeros(batch.device, DType::F32, &[tokens])?;
    kl_penalty::forward(out.view_mut(), log_probs, reference, reference, kl.kind.into())?;
    Ok(on_host::<f32>(out.view())?.into_owned())
}
