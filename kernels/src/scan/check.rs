//! One random case against the oracle.

use prime_runtime::{DType, Device, Tensor};

use super::reference;
use crate::testing::{compare, cu_seqlens, generator, normal, roundoff, to_f64, zeros};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(_device: Device, seed: u64) -> Result<(), String> {
    let mut random = generator(seed);
    let offsets = cu_seqlens(&mut random, 8, 60);
    let tokens = offsets[offsets.len() - 1] as usize;
    let discount = if random.below(2) == 0 { 1.0 } else { random.uniform() };
    let x = normal(&mut random, DType::F32, &[tokens], 1.0);
    let [mut out, mut d_x] = [(); 2].map(|()| zeros(DType::F32, &[tokens]));
    let ids = Tensor::from_slice(&offsets, &[offsets.len()]).map_err(|error| error.to_string())?;
    super::forward(out.view_mut(), x.view(), ids.view(), discount)
        .map_err(|error| error.to_string())?;
    super::backward(d_x.view_mut(), x.view(), ids.view(), discount)
        .map_err(|error| error.to_string())?;

    // A step rounds once, by a roundoff of its result, and carries the discounted error of the step before: at most the
    // scan of the magnitudes for each step before it.
    let (values, discount) = (to_f64(&x), f64::from(discount));
    let sizes: Vec<f64> = values.iter().map(|x| x.abs()).collect();
    let steps = |size: &[f64]| -> Vec<f64> {
        size.iter().map(|size| 1.01 * 60.0 * roundoff(DType::F32) * size).collect()
    };
    let expected = reference::forward(&values, &offsets, discount);
    let bound = steps(&reference::forward(&sizes, &offsets, discount));
    compare("out", &to_f64(&out), &expected, |i| bound[i])?;
    let expected = reference::backward(&values, &offsets, discount);
    let bound = steps(&reference::backward(&sizes, &offsets, discount));
    compare("d_x", &to_f64(&d_x), &expected, |i| bound[i])
}
