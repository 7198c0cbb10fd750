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
    let (rows, columns) = (1 + random.below(60), 1 + random.below(100) as usize);
    let mut places: Vec<u32> = (0..rows).collect();
    random.shuffle(&mut places);
    places.truncate(random.below(rows + 1) as usize);
    let x = random.rows(dtype, places.len(), columns, 1.0);
    let mut out = random.rows(dtype, rows as usize, columns, 1.0);
    let expected = reference::forward(&out.to_f64(), &x.to_f64(), &places, columns);
    let places = random.indices(&places);
    super::forward(out.view_mut(), x.view(), places.view()).map_err(|error| error.to_string())?;
    compare("out", &out.to_f64(), &expected, |_| 0.0)?;
    out.untouched_beside("out")
}
