//! The clipped policy-gradient surrogate, a token at a time.
//!
//! With ratio = exp(new - old): loss\[t\] = max(-A ratio, -A clamp(ratio, 1 - low, 1 + high)), and with dual clipping, where A < 0,
//! min(that, -A * dual). The whole loss is the sum over tokens of weight\[t\] * loss\[t\]: the weights are the aggregation (token-mean, sequence-mean, ...)
//! computed by the caller, so that micro-batches add up to the batch. All tensors are float32 `[tokens]`.
//!
//! Sources: Schulman et al., arXiv 1707.06347; asymmetric bounds: arXiv 2503.14476; dual clip: arXiv 1912.09729.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// Where the ratio is clipped.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    /// The ratio's lower bound is 1 - low.
    pub low: f32,
    /// The ratio's upper bound is 1 + high.
    pub high: f32,
    /// For negative advantages the loss is at most -A times this, where given (above 1).
    pub dual: Option<f32>,
}

/// What one batch's policy loss says of itself. Means over tokens are left as sums, so that micro-batches add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Sum of weight * loss.
    pub loss: f64,
    /// Tokens whose clipped branch was the greater one.
    pub clipped: f64,
    /// Tokens held by the dual clip.
    pub clipped_dual: f64,
    /// Sum of old - new over tokens: the plain estimate of KL(old, new).
    pub kl: f64,
    /// Tokens.
    pub tokens: f64,
}

/// The loss and what it says of itself, tokens added in order.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward(
    _new_log_probs: View<'_>,
    _old_log_probs: View<'_>,
    _advantages: View<'_>,
    _weights: View<'_>,
    _clip: Clip,
) -> Result<Statistics> {
    todo!()
}

/// Gradient of the weighted loss with respect to the new log-probs, overwritten.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn backward(
    _d_log_probs: ViewMut<'_>,
    _new_log_probs: View<'_>,
    _old_log_probs: View<'_>,
    _advantages: View<'_>,
    _weights: View<'_>,
    _clip: Clip,
) -> Result<()> {
    todo!()
}
