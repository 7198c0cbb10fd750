//! One pass over memory: a block's five arrays are updated, and its weights rounded for computing while they are in cache.

use prime_runtime::{DType, View, ViewMut, bf16};

use super::Factors;
use crate::simd::multiversion;
use crate::{cast, parallel, reduce};

/// Parameters a task takes at least.
const GRAIN: usize = 16384;

/// Parameters updated before they are rounded: five arrays of this length fit a first-level cache.
const BLOCK: usize = 1024;

pub(super) fn update(
    master: &mut [f32],
    compute: Option<ViewMut<'_>>,
    m: &mut [f32],
    v: &mut [f32],
    gradient: &[f32],
    factors: Factors,
) {
    let count = gradient.len();
    let [master, m, v] =
        [master, m, v].map(|slice| ViewMut::from_slice(slice, &[1, count]).shared());
    let dtype = compute.as_ref().map(ViewMut::dtype);
    let compute = compute.map(|compute| compute.into_shape(&[1, count]).shared());
    parallel::ranges(count, GRAIN, |range| {
        for start in range.clone().step_by(BLOCK) {
            let block = start..(start + BLOCK).min(range.end);
            // SAFETY: the ranges of tasks do not overlap.
            let [w, m, v] =
                [&master, &m, &v].map(|whole| unsafe { whole.part_mut::<f32>(0, block.clone()) });
            update_block(w, m, v, &gradient[block.clone()], factors);
            let Some(compute) = compute else { continue };
            if dtype == Some(DType::BF16) {
                // SAFETY: as above.
                cast::cpu::convert(unsafe { compute.part_mut::<bf16>(0, block) }, w);
            } else {
                // SAFETY: as above.
                unsafe { compute.part_mut::<f32>(0, block) }.copy_from_slice(w);
            }
        }
    });
}

multiversion! {
    fn update_block(w: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], factors: Factors) {
        let count = gradient.len();
        let (w, m, v) = (&mut w[..count], &mut m[..count], &mut v[..count]);
        let Factors { scale, new_m, b2, new_v, keep, rate, root, epsilon } = factors;
        for i in 0..count {
            let g = gradient[i] * scale;
            m[i] = new_m.mul_add(g - m[i], m[i]);
            v[i] = b2.mul_add(v[i], new_v * g * g);
            let denominator = v[i].sqrt() / root + epsilon;
            w[i] = w[i] * keep - rate * m[i] / denominator;
        }
    }
}

pub(crate) fn norm(gradient: View<'_>) -> f64 {
    reduce::cpu::chunks(gradient, add_squares).sqrt()
}

multiversion! {
    fn add_squares(x: &[f32]) -> f64 {
        reduce::cpu::lanes(x, |sum, value| value.mul_add(value, sum))
    }
}
