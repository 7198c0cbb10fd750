//! Flat ranges where the rows are contiguous, else row by row.

use prime_runtime::{Element, ViewMut};

use crate::parallel;

/// Elements a task sets at least.
const GRAIN: usize = 65536;

pub(crate) fn forward<E: Element>(out: ViewMut<'_>, value: f32) {
    let value = E::from_f32(value);
    let elements = out.as_view().elements();
    if elements == 0 {
        return;
    }
    if out.is_contiguous() {
        let out = out.into_shape(&[1, elements]).shared();
        parallel::ranges(elements, GRAIN, |range| {
            // SAFETY: the ranges of tasks do not overlap.
            unsafe { out.part_mut::<E>(0, range) }.fill(value);
        });
    } else {
        let rows = out.dim(0);
        let out = out.shared();
        parallel::ranges(rows, (GRAIN * rows / elements).max(1), |range| {
            for row in range {
                // SAFETY: a row belongs to one task.
                unsafe { out.row_mut::<E>(row) }.fill(value);
            }
        });
    }
}
