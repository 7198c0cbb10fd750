//! The implicit PRM's cross-entropy on outcomes: s\[i\] = sigmoid(beta * sum over the tokens of response i of (prm - ref)),
//! loss = mean over responses of the binary cross-entropy of s\[i\] against outcome\[i\] (which may be fractional).
//!
//! `prm_log_probs`, `ref_log_probs` are float32 `[tokens]`, `outcomes` float32 `[sequences]`, `cu_seqlens` u32 `[sequences + 1]`. `responses` is the number of responses of the
//! whole batch, so that micro-batches add up to it. A response of no tokens has s = 1/2.
//!
//! Source: arXiv 2502.01456, algorithm 1 line 8; arXiv 2412.01981.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// `probabilities[i]` = s\[i\] (float32 `[sequences]`); returns this micro-batch's share of the loss.
///
/// # Errors
/// When shapes or dtypes disagree, or an outcome is outside 0 to 1.
pub fn forward(
    _probabilities: ViewMut<'_>,
    _prm_log_probs: View<'_>,
    _ref_log_probs: View<'_>,
    _outcomes: View<'_>,
    _cu_seqlens: View<'_>,
    _beta: f32,
    _responses: usize,
) -> Result<f64> {
    todo!()
}

/// Gradient with respect to `prm_log_probs`, overwritten: (s\[i\] - outcome\[i\]) * beta / responses on every token of response i.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn backward(
    _d_prm_log_probs: ViewMut<'_>,
    _probabilities: View<'_>,
    _outcomes: View<'_>,
    _cu_seqlens: View<'_>,
    _beta: f32,
    _responses: usize,
) -> Result<()> {
    todo!()
}
