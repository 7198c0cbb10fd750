//! Rotary position embedding, in place: the pair (x\[i\], x\[i + head_dim/2\]) of every head is turned by the angle of its
//! position and frequency (the half-split order of Hugging Face checkpoints).
//!
//! `x` is `[tokens, heads, head_dim]` (rows may be spread out), `positions` is `[tokens]` (u32), `cos` and `sin` are float32 tables
//! `[positions, head_dim / 2]`; frequency scaling is in the tables, which the model makes.
//!
//! Source: Su et al., arXiv 2104.09864.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// Turns `x` forward.
///
/// # Errors
/// When shapes or dtypes disagree, `head_dim` is odd, or a position is outside the table.
pub fn forward(_x: ViewMut<'_>, _positions: View<'_>, _cos: View<'_>, _sin: View<'_>) -> Result<()> {
    todo!()
}

/// Turns a gradient back: a rotation's transpose is its inverse.
///
/// # Errors
/// As for [`forward`].
pub fn backward(_d_x: ViewMut<'_>, _positions: View<'_>, _cos: View<'_>, _sin: View<'_>) -> Result<()> {
    todo!()
}
