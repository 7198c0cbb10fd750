//! The kernel in plain Rust, compiled for AVX2 and for whatever the target always has.

use super::cpu::{Kernel, Tile};
use super::cut::{PANEL, STRIP, STRIP_ROW};
use super::pack::Ahead;
use crate::simd::Level;

/// Rows and columns of what fits into sixteen registers of eight floats.
const ROWS: usize = 6;
const COLUMNS: usize = 16;

/// The kernel of a level below AVX-512.
pub(super) fn kernel(level: Level, transposed_a: bool) -> Kernel {
    match (level, transposed_a) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, false) => avx2::<STRIP_ROW, 1>,
        #[cfg(target_arch = "x86_64")]
        (Level::Avx2, true) => avx2::<1, STRIP>,
        (_, false) => tile::<STRIP_ROW, 1>,
        (_, true) => tile::<1, STRIP>,
    }
}

/// # Safety
/// See [`Kernel`].
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2<const ROW: usize, const STEP: usize>(
    count: usize,
    a: *const u32,
    b: *const u32,
    to: &Tile,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's promise.
    unsafe { tile::<ROW, STEP>(count, a, b, to, ahead) }
}

/// # Safety
/// See [`Kernel`].
#[inline(always)]
unsafe fn tile<const ROW: usize, const STEP: usize>(
    count: usize,
    a: *const u32,
    b: *const u32,
    to: &Tile,
    _ahead: &mut Ahead,
) {
    for row in (0..to.rows).step_by(ROWS) {
        for column in (0..to.columns).step_by(COLUMNS) {
            // SAFETY: the caller's promise; the corner is inside the tile.
            unsafe {
                let (a, b) = (a.add(row * ROW), b.add(column));
                match to.rows - row {
                    1 => chains::<1, ROW, STEP>(count, a, b, to, row, column),
                    2 => chains::<2, ROW, STEP>(count, a, b, to, row, column),
                    3 => chains::<3, ROW, STEP>(count, a, b, to, row, column),
                    4 => chains::<4, ROW, STEP>(count, a, b, to, row, column),
                    5 => chains::<5, ROW, STEP>(count, a, b, to, row, column),
                    _ => chains::<ROWS, ROW, STEP>(count, a, b, to, row, column),
                }
            }
        }
    }
}

/// The chains of the tile's corner at `row` and `column`.
///
/// # Safety
/// See [`Kernel`].
#[inline(always)]
unsafe fn chains<const N: usize, const ROW: usize, const STEP: usize>(
    count: usize,
    a: *const u32,
    b: *const u32,
    to: &Tile,
    row: usize,
    column: usize,
) {
    let columns = (to.columns - column).min(COLUMNS);
    let mut sums = [[0f32; COLUMNS]; N];
    if !to.start.is_null() {
        for i in 0..N {
            // SAFETY: `start` holds the tile.
            unsafe {
                let start = to.start.add((row + i) * to.start_stride + column);
                std::ptr::copy_nonoverlapping(start, sums[i].as_mut_ptr(), columns);
            }
        }
    }
    for p in 0..count {
        // SAFETY: a panel has `count` lines of `PANEL` words, a strip `count` words of each row.
        let b = unsafe { &*b.add(p * PANEL).cast::<[f32; COLUMNS]>() };
        for i in 0..N {
            // SAFETY: as above.
            let a = f32::from_bits(unsafe { *a.add(p * STEP + i * ROW) });
            for c in 0..COLUMNS {
                sums[i][c] = a.mul_add(b[c], sums[i][c]);
            }
        }
    }
    for i in 0..N {
        // SAFETY: `end` holds the tile in float32.
        unsafe {
            let end = to.end.cast::<f32>().add((row + i) * to.end_stride + column);
            std::ptr::copy_nonoverlapping(sums[i].as_ptr(), end, columns);
        }
    }
}
