//! The policy's losses of a replayed batch, and their gradient.

use anyhow::{Result, ensure};
use prime_kernels::{kl_penalty, policy_loss as kernel};
use prime_runtime::{View, ViewMut};
use serde::Serialize;

use super::ReplaySettings;
use crate::step::Rollouts;
use crate::step::policy_loss::{self, Columns};

/// What the policy's side of a step comes to. What was not asked for is left out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct PolicyLosses {
    /// The surrogate under the aggregation, with the penalty of `kl-cov`.
    pub policy_loss: f64,
    /// The share of tokens whose clipped branch was the greater one, or whose weight was clipped.
    pub clip_fraction: f64,
    /// The share of tokens held by the dual clip.
    pub dual_clip_fraction: f64,
    /// The mean of old - new over tokens.
    pub approx_kl: f64,
    /// The share of tokens chosen by their covariance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selected_fraction: Option<f64>,
    /// The divergence from the policy's reference under the aggregation, without its coefficient.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_loss: Option<f64>,
    /// policy_loss + kl_coef * kl_loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_loss: Option<f64>,
}

/// [`PolicyLosses`] with what they say of each token.
pub(super) struct Policy {
    pub(super) losses: PolicyLosses,
    pub(super) kl: Option<Vec<f32>>,
    pub(super) gradient: Option<Vec<f32>>,
}

pub(super) fn losses(
    batch: &Rollouts,
    settings: &ReplaySettings,
    longest: usize,
) -> Result<Policy> {
    let (tokens, lengths) = (batch.token_count(), batch.lengths());
    let max_length = settings.max_response_length.unwrap_or(longest);
    let carries: Vec<bool> =
        batch.finished.iter().map(|&finished| finished || !settings.mask_truncated).collect();
    let weights = settings.aggregation().weights_of_some(&lengths, &carries, max_length)?;
    let loss = settings.loss();
    let columns = Columns {
        new: &batch.new_log_probs,
        old: &batch.old_log_probs,
        advantages: &batch.advantages,
        weights: &weights,
    };
    let mut random = policy_loss::random_of(settings.seed, 0);
    let weighed = policy_loss::weights(&loss, columns, &mut random);

    let column = |values| View::from_slice::<f32>(values, &[tokens]);
    let (new, old) = (column(&batch.new_log_probs), column(&batch.old_log_probs));
    let (advantages, surrogate) = (column(&batch.advantages), column(&weighed.surrogate));
    let objective = loss.objective(View::from_slice(&batch.cu_seqlens, &[batch.cu_seqlens.len()]));
    let policy = kernel::forward(new, old, advantages, surrogate, objective)?;
    let (mut scratch, mut gradient) = (vec![0.0_f32; tokens], vec![0.0_f32; tokens]);
    let mut gradient_view = ViewMut::from_slice(&mut gradient, &[tokens]);
    kernel::backward(gradient_view.reborrow(), new, old, advantages, surrogate, objective)?;
    let mut policy_loss = policy.loss;
    if !weighed.penalty.is_empty() {
        let (chosen, kind) = (column(&weighed.penalty), kl_penalty::Kind::Abs);
        let penalties = ViewMut::from_slice(&mut scratch, &[tokens]);
        policy_loss += kl_penalty::forward(penalties, new, old, chosen, kind)?.loss;
        kl_penalty::backward(gradient_view.reborrow(), new, old, chosen, kind)?;
    }
    ensure!(
        policy_loss.is_finite(),
        "the policy loss is {policy_loss}: advantages times ratios of probabilities are beyond float32"
    );
    let kl_loss = match settings.kl {
        None => None,
        Some(kind) => {
            let (reference, kind) = (column(&batch.kl_ref_log_probs), kind.into());
            let penalties = ViewMut::from_slice(&mut scratch, &[tokens]);
            let loss = kl_penalty::forward(penalties, new, reference, column(&weights), kind)?.loss;
            ensure!(loss.is_finite(), "the KL to the reference is {loss}: it is beyond float32");
            let scale = |w: &f32| (settings.kl_coef * f64::from(*w)) as f32;
            let scaled: Vec<f32> = weights.iter().map(scale).collect();
            kl_penalty::backward(gradient_view.reborrow(), new, reference, column(&scaled), kind)?;
            Some(loss)
        }
    };
    let share = |sum: f64| sum / policy.tokens.max(1.0);
    let losses = PolicyLosses {
        policy_loss,
        clip_fraction: share(policy.clipped),
        dual_clip_fraction: share(policy.clipped_dual),
        approx_kl: share(policy.kl),
        selected_fraction: loss.selects().then_some(share(weighed.selected as f64)),
        kl_loss,
        total_loss: kl_loss.map(|kl_loss| policy_loss + settings.kl_coef * kl_loss),
    };
    Ok(Policy {
        losses,
        kl: settings.kl.map(|_| scratch),
        gradient: settings.gradients.then_some(gradient),
    })
}
