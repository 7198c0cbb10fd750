//! One random case against the oracle.

use prime_runtime::{DType, Device, Tensor, f16};

use super::reference;
use crate::testing::{any_dtype, case, compare, normal, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let (from, to) = (any_dtype(&mut random), any_dtype(&mut random));
    let (rows, columns) = random.shape(20, 70);
    let x = random.rows(from, rows, columns, 3.0);
    let mut out = random.blank_rows(to, rows, columns);
    super::forward(out.view_mut(), x.view()).map_err(|error| error.to_string())?;
    // Rounding to nearest leaves no choice.
    let expected: Vec<f64> = x.to_f64().iter().map(|&x| reference::forward(x, to)).collect();
    compare("out", &out.to_f64(), &expected, |_| 0.0)?;
    out.untouched_beside("out")?;

    let values: Vec<f16> = to_f64(&normal(&mut random, DType::F32, &[rows * columns], 1e-4))
        .into_iter()
        .map(f16::from_f64)
        .collect();
    let x = Tensor::from_slice(&values, &[rows, columns]).map_err(|error| error.to_string())?;
    let x = random.place(x);
    let mut out = random.blank_rows(to, rows, columns);
    super::forward(out.view_mut(), x.view()).map_err(|error| error.to_string())?;
    let expected: Vec<f64> = to_f64(&x).iter().map(|&x| reference::forward(x, to)).collect();
    compare("out of float16", &out.to_f64(), &expected, |_| 0.0)
}
