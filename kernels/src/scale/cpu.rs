//! Row by row; contiguous rows as one.

use prime_runtime::{Element, ViewMut};

use crate::parallel;
use crate::simd::multiversion;

/// Elements a task multiplies at least.
const GRAIN: usize = 32768;

pub(super) fn forward<E: Element>(x: ViewMut<'_>, factor: f32) {
    let elements = x.as_view().elements();
    if elements == 0 {
        return;
    }
    if x.is_contiguous() {
        let x = x.into_shape(&[1, elements]).shared();
        parallel::ranges(elements, GRAIN, |range| {
            // SAFETY: the ranges of tasks do not overlap.
            multiply(unsafe { x.part_mut::<E>(0, range) }, factor);
        });
    } else {
        let rows = x.dim(0);
        let x = x.shared();
        parallel::ranges(rows, (GRAIN * rows / elements).max(1), |range| {
            for row in range {
                // SAFETY: a row belongs to one task.
                multiply(unsafe { x.row_mut::<E>(row) }, factor);
            }
        });
    }
}

multiversion! {
    fn multiply<E: Element>(x: &mut [E], factor: f32) {
        for x in x {
            *x = E::from_f32(x.to_f32() * factor);
        }
    }
}
