//! Picks rows: those that carry a loss, before the final projection.
//!
//! `out` is `[picked, columns]`, `x` is `[rows, columns]`, `picked` is `[picked]` (u32), strictly rising.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// out\[i\] = x\[picked\[i\]\].
///
/// # Errors
/// When shapes or dtypes disagree, or `picked` does not rise or leaves `x`.
pub fn forward(_out: ViewMut<'_>, _x: View<'_>, _picked: View<'_>) -> Result<()> {
    todo!()
}

/// d_x is overwritten: the gradient in picked rows, 0 in the others.
///
/// # Errors
/// As for [`forward`].
pub fn backward(_d_x: ViewMut<'_>, _d_out: View<'_>, _picked: View<'_>) -> Result<()> {
    todo!()
}
