//! One random case against the oracle.

use prime_runtime::{DType, Device};

use super::reference;
use crate::testing::{Rows, any_dtype, compare, generator, normal, roundoff, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(_device: Device, seed: u64) -> Result<(), String> {
    let mut random = generator(seed);
    let dtype = any_dtype(&mut random);
    let (rows, columns) = (random.below(80) as usize, 1 + random.below(130) as usize);
    let x = Rows::normal(&mut random, dtype, rows, columns, 1.0);
    let mut out = normal(&mut random, DType::F32, &[columns], 1.0);

    let mut expected = to_f64(&out);
    // What bounds a sum's error: one roundoff of the sum of magnitudes for each addition.
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
