//! Sets every element of a tensor.

use prime_runtime::{Result, ViewMut};

pub mod check;

/// out = value, rounded to the dtype.
///
/// # Errors
/// When the dtype is not a float.
pub fn forward(_out: ViewMut<'_>, _value: f32) -> Result<()> {
    todo!()
}
