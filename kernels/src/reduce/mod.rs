//! Sums in a fixed order.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// Adds to each element of `out` (float32 `[columns]`) the sum of its column of `x` (`[rows, columns]`), rows in order: a bias's gradient.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn columns(_out: ViewMut<'_>, _x: View<'_>) -> Result<()> {
    todo!()
}

/// The sum of all elements, in float64 over fixed chunks.
///
/// # Errors
/// When the dtype is not a float.
pub fn sum(_x: View<'_>) -> Result<f64> {
    todo!()
}
