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
    let (tokens, width) = (random.below(9) as usize, 1 + random.below(150) as usize);
    let mut rows = |columns, scale| random.rows(dtype, tokens, columns, scale);
    let (gate_up, d_out) = (rows(2 * width, 2.0), rows(width, 1.0));
    let (mut out, mut d_gate_up) = (rows(width, 1.0), rows(2 * width, 1.0));
    super::forward(out.view_mut(), gate_up.view()).map_err(|error| error.to_string())?;
    super::backward(d_gate_up.view_mut(), d_out.view(), gate_up.view())
        .map_err(|error| error.to_string())?;

    let (f32_roundoff, rounding) = (roundoff(DType::F32), roundoff(dtype));
    let (gate_up, d_out) = (gate_up.to_f64(), d_out.to_f64());
    let (out_values, d_values) = (out.to_f64(), d_gate_up.to_f64());
    for token in 0..tokens {
        let (gate, up) = gate_up[token * 2 * width..][..2 * width].split_at(width);
        let d_out = &d_out[token * width..][..width];
        let (d_gate, d_up) = d_values[token * 2 * width..][..2 * width].split_at(width);
        // exp is within 4 roundoffs, so sigmoid is within 6; two products and the last rounding follow.
        let once = |exact: f64| 1.01 * (8.0 * f32_roundoff + rounding) * exact.abs();

        let expected = reference::forward(gate, up);
        compare("out", &out_values[token * width..][..width], &expected, |i| once(expected[i]))?;
        let (expected_gate, expected_up) = reference::backward(d_out, gate, up);
        compare("d_up", d_up, &expected_up, |i| once(expected_up[i]))?;
        // With s off by 6 roundoffs, s (1 + g (1 - s)) is off by at most: 6 in its factor s; |g| (6 + 1) from 1 - s; 1 of the
        // fused sum and 1 of the product, each of at most 1 + |g|.
        compare("d_gate", d_gate, &expected_gate, |i| {
            let s = 1.0 / (1.0 + (-gate[i]).exp());
            let size = (d_out[i] * up[i]).abs() * s * (1.0 + gate[i].abs());
            1.01 * (15.0 * f32_roundoff * size
                + (2.0 * f32_roundoff + rounding) * expected_gate[i].abs())
        })?;
    }
    out.untouched_beside("out")?;
    d_gate_up.untouched_beside("d_gate_up")
}
