//! Rows over cores going forward; columns over cores going back, so that tokens that share a row are added in order.

use prime_runtime::{Element, View, ViewMut};

use crate::parallel;
use crate::simd::multiversion;

/// Elements a task copies or adds at least.
const GRAIN: usize = 16384;

/// Columns are dealt out in pairs of cache lines of float32, so that tasks share none.
const BLOCK: usize = 32;

pub(crate) fn forward<E: Element>(out: ViewMut<'_>, tokens: &[u32], table: View<'_>) {
    let hidden = table.dim(1);
    let out = out.shared();
    parallel::ranges(tokens.len(), GRAIN / hidden.max(1), |positions| {
        for position in positions {
            let row = table.row::<E>(tokens[position] as usize);
            // SAFETY: a position's row belongs to one task.
            unsafe { out.row_mut(position) }.copy_from_slice(row);
        }
    });
}

pub(crate) fn backward<E: Element>(d_table: ViewMut<'_>, d_out: View<'_>, tokens: &[u32]) {
    let hidden = d_out.dim(1);
    let d_table = d_table.shared();
    let grain = GRAIN / (tokens.len() * BLOCK).max(1);
    parallel::ranges(hidden.div_ceil(BLOCK), grain, |blocks| {
        let columns = blocks.start * BLOCK..(blocks.end * BLOCK).min(hidden);
        for (position, &token) in tokens.iter().enumerate() {
            // SAFETY: ranges of blocks do not overlap, so neither do their columns.
            let sums = unsafe { d_table.part_mut::<f32>(token as usize, columns.clone()) };
            add(sums, &d_out.row::<E>(position)[columns.clone()]);
        }
    });
}

multiversion! {
    fn add<E: Element>(sums: &mut [f32], values: &[E]) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value.to_f32();
        }
    }
}
