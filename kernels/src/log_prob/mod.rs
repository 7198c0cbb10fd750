//! The final projection fused with log-softmax, target gather and entropy: logits are never held whole.
//!
//! logits\[t\] = hidden\[t\] weight^T / temperature; log_probs\[t\] = logits\[t, targets\[t\]\] - lse\[t\]; entropy\[t\] = -sum p log p (nats).
//! `hidden` is `[tokens, hidden]`, `weight` `[vocabulary, hidden]` (same dtype), `targets` `[tokens]` (u32); `log_probs`, `entropy`, `lse` are
//! float32 `[tokens]`. A logit is the float32 sum of [`crate::matmul`] times 1/temperature. The vocabulary is visited in blocks of a fixed width, so a
//! token's numbers do not depend on the batch around it, and [`crate::sample`] reports the same bits for the tokens it draws.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// Log-probability of each target under the distribution at this temperature, whole (before any truncation by top-k, top-p or min-p).
///
/// # Errors
/// When shapes or dtypes disagree, a target is outside the vocabulary, or the temperature is not positive.
pub fn forward(
    _log_probs: ViewMut<'_>,
    _entropy: ViewMut<'_>,
    _lse: ViewMut<'_>,
    _hidden: View<'_>,
    _weight: View<'_>,
    _targets: View<'_>,
    _temperature: f32,
) -> Result<()> {
    todo!()
}

/// Gradients of the weighted sum of log-probs (weights `d_log_probs`, float32) and of entropies (weights `d_entropy`, float32, where given):
/// `d_hidden` is overwritten (dtype of `hidden`), `d_weight` (float32) is added to, tokens in order. Logits are computed again, a wave of tokens at a time.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    _d_hidden: ViewMut<'_>,
    _d_weight: ViewMut<'_>,
    _d_log_probs: View<'_>,
    _d_entropy: Option<View<'_>>,
    _hidden: View<'_>,
    _weight: View<'_>,
    _targets: View<'_>,
    _lse: View<'_>,
    _entropy: View<'_>,
    _temperature: f32,
) -> Result<()> {
    todo!()
}
