//! One random case against the oracle.

use prime_runtime::Device;

use super::reference;
use crate::testing::{any_dtype, case, compare};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let dtype = any_dtype(&mut random);
    let (rows, columns) = random.shape(60, 100);
    let rows = rows as u32;
    let picked: Vec<u32> = (0..rows).filter(|_| random.below(3) == 0).collect();
    let mut draw = |count: usize| random.rows(dtype, count, columns, 1.0);
    let (x, d_out) = (draw(rows as usize), draw(picked.len()));
    let mut blank = |count: usize| random.blank_rows(dtype, count, columns);
    let (mut out, mut d_x) = (blank(picked.len()), blank(rows as usize));
    let ids = random.indices(&picked);

    super::forward(out.view_mut(), x.view(), ids.view()).map_err(|error| error.to_string())?;
    let expected = reference::forward(&x.to_f64(), &picked, columns);
    compare("out", &out.to_f64(), &expected, |_| 0.0)?;
    out.untouched_beside("out")?;

    super::backward(d_x.view_mut(), d_out.view(), ids.view()).map_err(|error| error.to_string())?;
    let expected = reference::backward(&d_out.to_f64(), &picked, rows as usize, columns);
    compare("d_x", &d_x.to_f64(), &expected, |_| 0.0)?;
    d_x.untouched_beside("d_x")
}
