//! Root-mean-square normalisation: out = weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + epsilon), over the last dimension.
//!
//! `x` is `[tokens, hidden]`, or `[tokens, heads, head_dim]` for QK-norm; `weight` is `[hidden]` or `[head_dim]`; `rstd`
//! (float32) has one value a normalised row: `[tokens]` or `[tokens, heads]`. All but `rstd` and the weight's gradient share one
//! dtype; rows of `x`, `out` and their gradients may be spread out. As in transformers, x * rstd is rounded to the storage dtype
//! before the weight is applied.
//!
//! Source: Zhang and Sennrich, arXiv 1910.07467.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// Normalises `x`.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward(_out: ViewMut<'_>, _rstd: ViewMut<'_>, _x: View<'_>, _weight: View<'_>, _epsilon: f32) -> Result<()> {
    todo!()
}

/// Adds `delta` to the residual stream and normalises the sum, in one pass: `sum` = x + delta rounded to the dtype, `out` = norm(`sum`).
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward_residual(
    _out: ViewMut<'_>,
    _sum: ViewMut<'_>,
    _rstd: ViewMut<'_>,
    _x: View<'_>,
    _delta: View<'_>,
    _weight: View<'_>,
    _epsilon: f32,
) -> Result<()> {
    todo!()
}

/// Gradients: `d_x` is overwritten with the gradient through the norm, plus `d_residual` where given (what reached `x` past the
/// norm); `d_weight` (float32) is added to, tokens in order.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn backward(
    _d_x: ViewMut<'_>,
    _d_weight: ViewMut<'_>,
    _d_out: View<'_>,
    _x: View<'_>,
    _weight: View<'_>,
    _rstd: View<'_>,
    _d_residual: Option<View<'_>>,
) -> Result<()> {
    todo!()
}
