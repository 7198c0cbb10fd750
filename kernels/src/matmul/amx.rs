//! The kernel for AMX: tile registers of 16 rows by 16 words, two of which one instruction multiplies.
//!
//! `tdpbf16ps` (Intel's manual, volume 2) multiplies a tile of A by a tile of B, whose rows are lines of a panel, and adds to 16 x 16 sums. A step of
//! a chain is 32 elements of k: those at even places are one chain from 0, those at odd places another, and their sum is added to the chain. The
//! instruction reads and writes subnormal numbers as zero. Chains begin their steps at multiples of 32 elements, and behind k there are zeros,
//! so that a sum's bits depend neither on how k is cut nor on the rows around it: every bfloat16 product of such a machine is computed here.
//!
//! A strip of up to 32 rows is two tiles of A. With the two tiles of a panel's columns it makes four tiles of sums, as many as give each
//! instruction time to finish before the next one adds to the same sums. Up to 16 rows make one tile; then two panels are read side by side.

use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::avx512::{elements, first, put, residual};
use super::cpu::{Kernel, Tile};
use super::cut::{PANEL, TILES_ROW, TILES_STRIP};
use super::pack::Ahead;

#[cfg(test)]
mod model;

#[cfg(not(test))]
use Machine as Registers;
#[cfg(test)]
use model::MachineOrModel as Registers;

/// Rows of a tile, and words of its rows.
const SIDE: usize = 16;
const SIDE_BYTES: usize = SIDE * size_of::<u32>();
const PANEL_BYTES: usize = PANEL * size_of::<u32>();
const ROW_BYTES: usize = TILES_ROW * size_of::<u32>();
/// Lines that each step asks for ahead.
const AHEAD: usize = 4;

/// Rows and bytes of each tile register, as `ldtilecfg` reads them.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// Shapes for strips of so many rows: of more than [`SIDE`], tiles 2, 3 and 5 hold the lower ones.
    fn new(rows: usize) -> Self {
        let all = SIDE as u8;
        let (upper, lower) = (rows.min(SIDE) as u8, rows.saturating_sub(SIDE) as u8);
        let rows = match lower {
            0 => [upper, upper, upper, upper, upper, all, all, all],
            _ => [upper, upper, lower, lower, upper, lower, all, all],
        };
        let mut configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        configuration.row_bytes[..8].fill(SIDE_BYTES as u16);
        configuration.rows[..8].copy_from_slice(&rows);
        configuration
    }
}

/// The eight tile registers of a thread.
///
/// # Safety
/// Of every function: the registers exist (and [`crate::simd`] has asked for them), they are configured, the shapes of factors and sums agree, and addresses
/// hold a tile's rows, so many bytes apart.
trait Tiles {
    unsafe fn configure(configuration: &Configuration);
    unsafe fn release();
    unsafe fn zero<const T: usize>();
    unsafe fn load<const T: usize>(from: *const u8, stride: usize);
    unsafe fn store<const T: usize>(to: *mut u8, stride: usize);
    /// Adds the product of tiles A and B to C.
    unsafe fn dot<const C: usize, const A: usize, const B: usize>();
}

/// Those of this machine. The compiler's own intrinsics are not stable.
struct Machine;

impl Tiles for Machine {
    #[inline(always)]
    unsafe fn configure(configuration: &Configuration) {
        // SAFETY: the caller's promise. This sets all tiles to zero.
        unsafe { asm!("ldtilecfg [{}]", in(reg) configuration, options(nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn release() {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn zero<const T: usize>() {
        // SAFETY: the caller's promise.
        unsafe { asm!("tilezero tmm{}", const T, options(nomem, nostack, preserves_flags)) }
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(from: *const u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("tileloadd tmm{}, [{} + {}]", const T, in(reg) from, in(reg) stride, options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(to: *mut u8, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("tilestored [{} + {}], tmm{}", in(reg) to, in(reg) stride, const T, options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn dot<const C: usize, const A: usize, const B: usize>() {
        // SAFETY: the caller's promise.
        unsafe {
            asm!("tdpbf16ps tmm{}, tmm{}, tmm{}", const C, const A, const B, options(nomem, nostack, preserves_flags));
        }
    }
}

/// The shapes of a thread's tile registers while it works on a task. Afterwards they are free, and a switch to another thread has nothing to save.
#[derive(Default)]
pub(super) struct Shapes {
    rows: usize,
}

impl Shapes {
    /// Makes them those for strips of so many rows.
    ///
    /// # Safety
    /// The level is [`crate::simd::Level::Amx`].
    pub(super) unsafe fn set(&mut self, rows: usize) {
        assert!((1..=TILES_STRIP).contains(&rows));
        if self.rows != rows {
            // SAFETY: the caller's promise.
            unsafe { Registers::configure(&Configuration::new(rows)) };
            self.rows = rows;
        }
    }
}

impl Drop for Shapes {
    fn drop(&mut self) {
        if self.rows > 0 {
            // SAFETY: they were configured.
            unsafe { Registers::release() };
        }
    }
}

/// The kernel for a strip of `rows` rows, for which the shapes were set, and up to `panels` panels, and how many panels it takes at once.
pub(super) fn kernel(rows: usize, panels: usize) -> (Kernel, usize) {
    match (rows <= SIDE, panels) {
        (true, 2..) => (flat::<Registers, 2>, 2),
        (true, _) => (flat::<Registers, 1>, 1),
        (false, _) => (tall::<Registers>, 1),
    }
}

/// Two tiles of rows by a panel.
///
/// # Safety
/// See [`Kernel`]; the shapes are those for the tile's rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn tall<T: Tiles>(
    count: usize,
    a: *const u32,
    b: *const u32,
    tile: &Tile,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's promise.
    unsafe {
        begin::<T, 0>(tile, 0, 0);
        begin::<T, 1>(tile, 0, SIDE);
        begin::<T, 2>(tile, SIDE, 0);
        begin::<T, 3>(tile, SIDE, SIDE);
        steps::<1>(count, a, [b], ahead, |a, [b]| {
            T::load::<4>(a, ROW_BYTES);
            T::load::<6>(b, PANEL_BYTES);
            T::dot::<0, 4, 6>();
            T::load::<7>(b.add(SIDE_BYTES), PANEL_BYTES);
            T::dot::<1, 4, 7>();
            T::load::<5>(a.add(SIDE * ROW_BYTES), ROW_BYTES);
            T::dot::<2, 5, 6>();
            T::dot::<3, 5, 7>();
        });
        end::<T, 0>(tile, 0, 0);
        end::<T, 1>(tile, 0, SIDE);
        end::<T, 2>(tile, SIDE, 0);
        end::<T, 3>(tile, SIDE, SIDE);
    }
}

/// One tile of rows by one or two panels.
///
/// # Safety
/// As for [`tall`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn flat<T: Tiles, const PANELS: usize>(
    count: usize,
    a: *const u32,
    b: *const u32,
    tile: &Tile,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's promise.
    unsafe {
        begin::<T, 0>(tile, 0, 0);
        begin::<T, 1>(tile, 0, SIDE);
        if PANELS == 2 {
            begin::<T, 2>(tile, 0, PANEL);
            begin::<T, 3>(tile, 0, PANEL + SIDE);
        }
        let panels: [_; PANELS] = std::array::from_fn(|panel| b.add(panel * tile.panel_stride));
        steps::<PANELS>(count, a, panels, ahead, |a, panels| {
            T::load::<4>(a, ROW_BYTES);
            T::load::<5>(panels[0], PANEL_BYTES);
            T::dot::<0, 4, 5>();
            T::load::<6>(panels[0].add(SIDE_BYTES), PANEL_BYTES);
            T::dot::<1, 4, 6>();
            if PANELS == 2 {
                T::load::<7>(panels[1], PANEL_BYTES);
                T::dot::<2, 4, 7>();
                T::load::<5>(panels[1].add(SIDE_BYTES), PANEL_BYTES);
                T::dot::<3, 4, 5>();
            }
        });
        end::<T, 0>(tile, 0, 0);
        end::<T, 1>(tile, 0, SIDE);
        if PANELS == 2 {
            end::<T, 2>(tile, 0, PANEL);
            end::<T, 3>(tile, 0, PANEL + SIDE);
        }
    }
}

/// Runs a step for every [`SIDE`] of `count` words, with the places of the strip and of the panels. A panel ends with k: the lines of its last, shorter step are copied
/// to where zeros follow them. A strip has its zeros.
///
/// # Safety
/// Strip and panels hold so many words.
#[inline(always)]
unsafe fn steps<const PANELS: usize>(
    count: usize,
    a: *const u32,
    panels: [*const u32; PANELS],
    ahead: &mut Ahead,
    mut step: impl FnMut(*const u8, [*const u8; PANELS]),
) {
    // SAFETY: the places are inside strip and panels by the caller's promise.
    unsafe {
        let whole = count / SIDE;
        for index in 0..whole {
            for _ in 0..AHEAD {
                _mm_prefetch::<_MM_HINT_T1>(ahead.next().cast());
            }
            let line = index * SIDE * PANEL;
            step(a.add(index * SIDE).cast(), panels.map(|panel| panel.add(line).cast()));
        }
        let rest = count % SIDE;
        if rest > 0 {
            let mut lines = [[0u32; SIDE * PANEL]; PANELS];
            for (lines, panel) in lines.iter_mut().zip(panels) {
                let from = panel.add(whole * SIDE * PANEL);
                std::ptr::copy_nonoverlapping(from, lines.as_mut_ptr(), rest * PANEL);
            }
            step(
                a.add(whole * SIDE).cast(),
                std::array::from_fn(|panel| lines[panel].as_ptr().cast()),
            );
        }
    }
}

/// Where the chains of sums of C start that a tile register holds, those from `row` and `column` on.
///
/// # Safety
/// As for [`tall`].
#[inline(always)]
unsafe fn begin<T: Tiles, const C: usize>(tile: &Tile, row: usize, column: usize) {
    let columns = tile.columns.saturating_sub(column).min(SIDE);
    // SAFETY: the masks keep loads inside the tile's columns; a whole tile's are all there.
    unsafe {
        if tile.start.is_null() || columns == 0 {
            return T::zero::<C>();
        }
        let start = tile.start.add(row * tile.start_stride + column);
        if columns == SIDE {
            return T::load::<C>(start.cast(), tile.start_stride * size_of::<f32>());
        }
        let mut sums = MaybeUninit::<[f32; SIDE * SIDE]>::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        for index in 0..(tile.rows - row).min(SIDE) {
            let line = _mm512_maskz_loadu_ps(first(columns), start.add(index * tile.start_stride));
            _mm512_storeu_ps(sums.add(index * SIDE), line);
        }
        T::load::<C>(sums.cast(), SIDE_BYTES);
    }
}

/// Puts the sums that a tile register holds where the chains end, and finishes them there.
///
/// # Safety
/// As for [`tall`].
#[inline(always)]
unsafe fn end<T: Tiles, const C: usize>(tile: &Tile, row: usize, column: usize) {
    let columns = tile.columns.saturating_sub(column).min(SIDE);
    if columns == 0 {
        return;
    }
    let bare = tile.bias.is_null() && tile.residual.is_null() && !tile.rounded;
    // SAFETY: the masks keep stores inside the tile's columns; a whole tile's are all there.
    unsafe {
        if bare && columns == SIDE {
            let end = tile.end.cast::<f32>().add(row * tile.end_stride + column);
            return T::store::<C>(end.cast(), tile.end_stride * size_of::<f32>());
        }
        let mut sums = MaybeUninit::<[f32; SIDE * SIDE]>::uninit();
        let sums = sums.as_mut_ptr().cast::<f32>();
        T::store::<C>(sums.cast(), SIDE_BYTES);
        let mask = first(columns);
        for index in 0..(tile.rows - row).min(SIDE) {
            let mut line = _mm512_loadu_ps(sums.add(index * SIDE));
            if !tile.bias.is_null() {
                line = _mm512_add_ps(line, elements(true, tile.bias, column, mask));
            }
            if !tile.residual.is_null() {
                line = _mm512_add_ps(line, residual::<true>(tile, row + index, column, mask));
            }
            put::<true>(tile, row + index, column, mask, line);
        }
    }
}

/// Products of tiles that stay in their registers, four a round: 32 is added to each of 1024 sums. The sum of all.
///
/// # Safety
/// The level is [`crate::simd::Level::Amx`].
pub(crate) unsafe fn products_of_ones(rounds: usize) -> f32 {
    let ones = [half::bf16::ONE; 2 * SIDE * SIDE];
    let mut sums = [[0f32; SIDE * SIDE]; 4];
    // SAFETY: the caller's promise; tiles are as large as the arrays.
    unsafe {
        Registers::configure(&Configuration::new(2 * SIDE));
        let ones = std::hint::black_box(ones.as_ptr()).cast();
        Registers::load::<4>(ones, SIDE_BYTES);
        Registers::load::<5>(ones, SIDE_BYTES);
        Registers::load::<6>(ones, SIDE_BYTES);
        Registers::load::<7>(ones, SIDE_BYTES);
        for _ in 0..rounds {
            Registers::dot::<0, 4, 6>();
            Registers::dot::<1, 4, 7>();
            Registers::dot::<2, 5, 6>();
            Registers::dot::<3, 5, 7>();
        }
        Registers::store::<0>(sums[0].as_mut_ptr().cast(), SIDE_BYTES);
        Registers::store::<1>(sums[1].as_mut_ptr().cast(), SIDE_BYTES);
        Registers::store::<2>(sums[2].as_mut_ptr().cast(), SIDE_BYTES);
        Registers::store::<3>(sums[3].as_mut_ptr().cast(), SIDE_BYTES);
        Registers::release();
    }
    sums.iter().flatten().sum()
}

/// Floating-point operations of a round of [`products_of_ones`].
pub(crate) const OPERATIONS: usize = 4 * SIDE * SIDE * 2 * SIDE * 2;
