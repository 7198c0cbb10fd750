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
    let (vocabulary, hidden) = (1 + random.below(40), random.columns(100));
    // Now and then rows longer than a device's block adds at once.
    let hidden = if random.below(40) == 0 { random.columns(5000) } else { hidden };
    // Now and then more tokens than a device's block looks at together.
    let count = if random.below(40) == 0 { 1000 + random.below(200) } else { random.below(70) };
    let tokens: Vec<u32> = (0..count).map(|_| random.below(vocabulary)).collect();
    let mut rows = |dtype, count: usize| random.rows(dtype, count, hidden, 1.0);
    let (table, d_out) = (rows(dtype, vocabulary as usize), rows(dtype, tokens.len()));
    let mut d_table = rows(DType::F32, vocabulary as usize);
    let mut out = random.blank_rows(dtype, tokens.len(), hidden);
    let ids = random.indices(&tokens);

    super::forward(out.view_mut(), ids.view(), table.view()).map_err(|error| error.to_string())?;
    let expected = reference::forward(&tokens, &table.to_f64(), hidden);
    compare("out", &out.to_f64(), &expected, |_| 0.0)?;
    out.untouched_beside("out")?;

    let mut expected = d_table.to_f64();
    let mut size: Vec<f64> = expected.iter().map(|x| x.abs()).collect();
    let d_out_sizes: Vec<f64> = d_out.to_f64().iter().map(|x| x.abs()).collect();
    reference::backward(&mut expected, &d_out.to_f64(), &tokens, hidden);
    reference::backward(&mut size, &d_out_sizes, &tokens, hidden);
    super::backward(d_table.view_mut(), d_out.view(), ids.view())
        .map_err(|error| error.to_string())?;
    // An addition rounds once, by at most a roundoff of the sum of magnitudes so far.
    let additions = 1.01 * tokens.len() as f64 * roundoff(DType::F32);
    compare("d_table", &d_table.to_f64(), &expected, |i| additions * size[i])?;
    d_table.untouched_beside("d_table")
}
