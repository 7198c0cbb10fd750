//! Segmented reverse scan: returns. out\[t\] = x\[t\] + discount * out\[t + 1\] within each sequence.
//!
//! `out` and `x` are float32 `[tokens]`, `cu_seqlens` u32 `[sequences + 1]`.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// Discounted sums from each token to the end of its sequence.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward(_out: ViewMut<'_>, _x: View<'_>, _cu_seqlens: View<'_>, _discount: f32) -> Result<()> {
    todo!()
}

/// d_x\[t\] = d_out\[t\] + discount * d_x\[t - 1\] within each sequence.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn backward(_d_x: ViewMut<'_>, _d_out: View<'_>, _cu_seqlens: View<'_>, _discount: f32) -> Result<()> {
    todo!()
}
