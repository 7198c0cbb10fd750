//! Rows over cores.

use prime_runtime::{Element, View, ViewMut};

use crate::parallel;

/// Elements a task copies at least.
const GRAIN: usize = 16384;

pub(crate) fn forward<E: Element>(out: ViewMut<'_>, x: View<'_>, picked: &[u32]) {
    let grain = GRAIN / x.dim(1).max(1);
    let out = out.shared();
    parallel::ranges(picked.len(), grain, |range| {
        for i in range {
            // SAFETY: an output row belongs to one task.
            unsafe { out.row_mut::<E>(i) }.copy_from_slice(x.row(picked[i] as usize));
        }
    });
}

pub(crate) fn backward<E: Element>(d_x: ViewMut<'_>, d_out: View<'_>, picked: &[u32]) {
    let (rows, grain) = (d_x.dim(0), GRAIN / d_x.dim(1).max(1));
    let d_x = d_x.shared();
    parallel::ranges(rows, grain, |rows| {
        // Picked rows rise: those of this range follow each other.
        let mut next = picked.partition_point(|&row| (row as usize) < rows.start);
        for row in rows {
            // SAFETY: a row belongs to one task.
            let d_x = unsafe { d_x.row_mut::<E>(row) };
            if picked.get(next).is_some_and(|&picked| picked as usize == row) {
                d_x.copy_from_slice(d_out.row(next));
                next += 1;
            } else {
                d_x.fill(E::zeroed());
            }
        }
    });
}
