//! Column sums kept in registers, a block of columns at a time; whole sums as a fixed tree of chunks.

use std::ops::Range;

use prime_runtime::{Element, View, ViewMut};

use crate::parallel;
use crate::simd::multiversion;

/// Columns are dealt out in pairs of cache lines of float32, so that tasks share none.
const BLOCK: usize = 32;

/// Elements of a chunk of a whole sum.
const CHUNK: usize = 16384;

pub(crate) fn columns<E: Element>(out: &mut [f32], x: View<'_>) {
    let count = out.len();
    let out = ViewMut::from_slice(out, &[1, count]).shared();
    let grain = (CHUNK / (BLOCK * x.dim(0)).max(1)).max(1);
    parallel::ranges(count.div_ceil(BLOCK), grain, |blocks| {
        let range = blocks.start * BLOCK..(blocks.end * BLOCK).min(count);
        // SAFETY: ranges of blocks do not overlap, so neither do their columns.
        let sums = unsafe { out.part_mut::<f32>(0, range.clone()) };
        add_columns::<E>(sums, x, range.start);
    });
}

multiversion! {
    fn add_columns<E: Element>(out: &mut [f32], x: View<'_>, first: usize) {
        let mut start = first;
        // As many columns in registers as there are: the fewer passes over the rows, the better.
        let (wide, narrow) = out.as_chunks_mut::<64>();
        for sums in wide {
            add_rows::<E, 64>(sums, x, start);
            start += 64;
        }
        let (narrow, rest) = narrow.as_chunks_mut::<16>();
        for sums in narrow {
            add_rows::<E, 16>(sums, x, start);
            start += 16;
        }
        for sum in rest.as_chunks_mut::<1>().0 {
            add_rows::<E, 1>(sum, x, start);
            start += 1;
        }
    }
}

#[inline(always)]
fn add_rows<E: Element, const N: usize>(total: &mut [f32; N], x: View<'_>, start: usize) {
    let mut sums = *total;
    for row in 0..x.dim(0) {
        let values = &x.row::<E>(row)[start..][..N];
        for lane in 0..N {
            sums[lane] += values[lane].to_f32();
        }
    }
    *total = sums;
}

pub(crate) fn sum<E: Element>(x: View<'_>) -> f64 {
    chunks(x, |chunk: &[E]| add(chunk))
}

multiversion! {
    fn add<E: Element>(x: &[E]) -> f64 {
        lanes(x, |sum, value| sum + value)
    }
}

/// Folds elements into 32 lanes, element i into lane i mod 32, and adds the lanes as a fixed tree.
#[inline(always)]
pub(crate) fn lanes<E: Element>(x: &[E], fold: impl Fn(f64, f64) -> f64) -> f64 {
    const LANES: usize = 32;
    let mut sums = [0f64; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for lane in 0..LANES {
            sums[lane] = fold(sums[lane], f64::from(group[lane].to_f32()));
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum = fold(*sum, f64::from(value.to_f32()));
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Adds `of_chunk` over chunks of a fixed number of elements as a fixed tree: which core takes which branch changes nothing.
pub(crate) fn chunks<E: Element>(x: View<'_>, of_chunk: impl Fn(&[E]) -> f64 + Sync) -> f64 {
    let elements = x.elements();
    let count = elements.div_ceil(CHUNK);
    if count == 0 {
        return 0.0;
    }
    let one = |index: usize| {
        let range = index * CHUNK..((index + 1) * CHUNK).min(elements);
        if x.is_contiguous() {
            return of_chunk(&x.as_slice::<E>()[range]);
        }
        let mut copy = [E::zeroed(); CHUNK];
        copy_elements(&mut copy[..range.len()], x, range.start);
        of_chunk(&copy[..range.len()])
    };
    tree(0..count, &one)
}

fn tree(range: Range<usize>, one: &(impl Fn(usize) -> f64 + Sync)) -> f64 {
    if range.len() == 1 {
        return one(range.start);
    }
    let middle = range.start + range.len() / 2;
    let (left, right) =
        rayon::join(|| tree(range.start..middle, one), || tree(middle..range.end, one));
    left + right
}

/// Copies elements of a view whose rows are spread out, from the element `first` on.
fn copy_elements<E: Element>(mut out: &mut [E], x: View<'_>, first: usize) {
    let columns = x.elements() / x.dim(0);
    let (mut row, mut column) = (first / columns, first % columns);
    while !out.is_empty() {
        let source = &x.row::<E>(row)[column..];
        let (now, later) = out.split_at_mut(source.len().min(out.len()));
        now.copy_from_slice(&source[..now.len()]);
        out = later;
        (row, column) = (row + 1, 0);
    }
}
