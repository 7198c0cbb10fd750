//! One random case against the oracle, which is the rounding of [`crate::cast::reference`].

use prime_runtime::Device;

use crate::cast::reference;
use crate::testing::{any_dtype, case, compare};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let dtype = any_dtype(&mut random);
    let (rows, columns) = random.shape(20, 70);
    let mut out = random.blank_rows(dtype, rows, columns);
    let value = random.normal();
    super::forward(out.view_mut(), value).map_err(|error| error.to_string())?;
    let expected = vec![reference::forward(f64::from(value), dtype); rows * columns];
    compare("out", &out.to_f64(), &expected, |_| 0.0)?;
    out.untouched_beside("out")
}
