//! Copies between float32 and bfloat16 (rounded to nearest, ties to even) and from float16.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// out = x in `out`'s dtype, element by element; shapes agree.
///
/// # Errors
/// When shapes disagree or a dtype is not a float.
pub fn forward(_out: ViewMut<'_>, _x: View<'_>) -> Result<()> {
    todo!()
}

/// The gradient of a cast is a cast.
///
/// # Errors
/// As for [`forward`].
pub fn backward(d_x: ViewMut<'_>, d_out: View<'_>) -> Result<()> {
    forward(d_x, d_out)
}
