//! One random case against the oracle.

use prime_runtime::{DType, Device};

use super::reference;
use crate::testing::{any_dtype, case, compare, roundoff, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let dtype = any_dtype(&mut random);
    // Now and then more rows than a device's block sums alone, or more columns.
    let (rows, columns) = match random.below(12) {
        0 => (400 + random.below(1200) as usize, random.columns(12)),
        1 => (random.below(20) as usize, random.columns(600)),
        _ => (random.below(80) as usize, random.columns(130)),
    };
    let x = random.rows(dtype, rows, columns, 1.0);
    let mut out = random.tensor(DType::F32, &[columns], 1.0);

    let mut expected = to_f64(&out);
    // What bounds a sum's error in every order: one roundoff of the sum of magnitudes for each addition.
    let mut magnitude: Vec<f64> = expected.iter().map(|x| x.abs()).collect();
    let values = x.to_f64();
    let sizes: Vec<f64> = values.iter().map(|x| x.abs()).collect();
    reference::columns(&mut expected, &values);
    reference::columns(&mut magnitude, &sizes);
    super::columns(out.view_mut(), x.view()).map_err(|error| error.to_string())?;
    let allowed = rows as f64 * roundoff(DType::F32) * 1.01;
    compare("out", &to_f64(&out), &expected, |i| allowed * magnitude[i])?;

    let sum = super::sum(x.view()).map_err(|error| error.to_string())?;
    let allowed = 2.0 * values.len() as f64 * f64::EPSILON * reference::sum(&sizes);
    compare("sum", &[sum], &[reference::sum(&values)], |_| allowed)
}
