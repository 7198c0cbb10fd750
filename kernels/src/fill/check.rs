//! One random case against the oracle, which is the rounding of [`crate::cast::reference`].

use prime_runtime::Device;

use crate::cast::reference;
use crate::testing::{Rows, any_dtype, compare, generator};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(_device: Device, seed: u64) -> Result<(), String> {
    let mut random = generator(seed);
    let dtype = any_dtype(&mut random);
    let (rows, columns) = (random.below(20) as usize, 1 + random.below(70) as usize);
    let mut out = Rows::normal(&mut random, dtype, rows, columns, 1.0);
    let value = random.normal();
    super::forward(out.view_mut(), value).map_err(|error| error.to_string())?;
    let expected = vec![reference::forward(f64::from(value), dtype); rows * columns];
    compare("out", &out.to_f64(), &expected, |_| 0.0)?;
    out.untouched_beside("out")
}
