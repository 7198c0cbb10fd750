//! One random case against the oracle.

use prime_runtime::{DType, Device};

use super::reference;
use crate::testing::{case, compare, cu_seqlens, roundoff, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let longest = if random.below(4) == 0 { 400 } else { 60 };
    let offsets = cu_seqlens(&mut random, 8, longest);
    let tokens = offsets[offsets.len() - 1] as usize;
    let discount = if random.below(2) == 0 { 1.0 } else { random.uniform() };
    let x = random.tensor(DType::F32, &[tokens], 1.0);
    let [mut out, mut d_x] = [(); 2].map(|()| random.blank(DType::F32, &[tokens]));
    let ids = random.indices(&offsets);
    super::forward(out.view_mut(), x.view(), ids.view(), discount)
        .map_err(|error| error.to_string())?;
    super::backward(d_x.view_mut(), x.view(), ids.view(), discount)
        .map_err(|error| error.to_string())?;

    // On the host a step rounds once, by a roundoff of its result, and carries the discounted error of the step before: at most the
    // scan of the magnitudes for each step before it. On a device a term reaches a token through powers of the discount, each a
    // product rounded as often as it has factors, and through sums: in each chunk of 128 tokens at most 4 of a lane's own, 5 of the
    // joined lanes, 1 of what enters, and 4 again.
    let sums = match device {
        Device::Cpu => 0,
        _ => 14 * (longest.div_ceil(128) + 1),
    };
    let roundings = f64::from(longest + sums);
    let (values, discount) = (to_f64(&x), f64::from(discount));
    let sizes: Vec<f64> = values.iter().map(|x| x.abs()).collect();
    let steps = |size: &[f64]| -> Vec<f64> {
        size.iter().map(|size| 1.01 * roundings * roundoff(DType::F32) * size).collect()
    };
    let expected = reference::forward(&values, &offsets, discount);
    let bound = steps(&reference::forward(&sizes, &offsets, discount));
    compare("out", &to_f64(&out), &expected, |i| bound[i])?;
    let expected = reference::backward(&values, &offsets, discount);
    let bound = steps(&reference::backward(&sizes, &offsets, discount));
    compare("d_x", &to_f64(&d_x), &expected, |i| bound[i])
}
