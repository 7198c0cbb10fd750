//! One random case against the oracle.

use prime_runtime::{DType, Device};

use super::reference;
use crate::testing::{any_dtype, case, compare, roundoff};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let dtype = any_dtype(&mut random);
    let (rows, columns) = random.shape(20, 70);
    let mut x = random.rows(dtype, rows, columns, 1.0);
    let before = x.to_f64();
    let factor = random.normal();
    super::forward(x.view_mut(), factor).map_err(|error| error.to_string())?;
    let expected: Vec<f64> =
        before.iter().map(|&x| reference::forward(x, f64::from(factor))).collect();
    // The product rounds to float32, and again to a narrower dtype.
    let narrow = if dtype == DType::F32 { 0.0 } else { roundoff(dtype) };
    let relative = roundoff(DType::F32) + narrow * (1.0 + roundoff(DType::F32));
    compare("x", &x.to_f64(), &expected, |i| {
        relative * expected[i].abs() + f64::from(f32::MIN_POSITIVE)
    })?;
    x.untouched_beside("x")
}
