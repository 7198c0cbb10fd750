//! The kernel and the transposing packer for AVX-512.

use std::arch::x86_64::*;

use prime_runtime::{DType, View, bf16};

use super::cpu::{Kernel, PANEL, STRIP, STRIP_ROW, Tile, Word};

/// The kernel for a strip of `rows` rows.
pub(super) fn kernel(word: Word, transposed_a: bool, rows: usize) -> Kernel {
    let table = match (word, transposed_a) {
        (Word::Float, false) => const { &table!(floats, STRIP_ROW, 1) },
        (Word::Float, true) => const { &table!(floats, 1, STRIP) },
        (Word::Pair, false) => const { &table!(pairs, STRIP_ROW, 1) },
        (Word::Pair, true) => const { &table!(pairs, 1, STRIP) },
    };
    table[rows - 1]
}

macro_rules! table {
    ($kernel:ident, $row:expr, $step:expr) => {
        [
            $kernel::<1, { $row }, { $step }> as Kernel,
            $kernel::<2, { $row }, { $step }>,
            $kernel::<3, { $row }, { $step }>,
            $kernel::<4, { $row }, { $step }>,
            $kernel::<5, { $row }, { $step }>,
            $kernel::<6, { $row }, { $step }>,
            $kernel::<7, { $row }, { $step }>,
            $kernel::<8, { $row }, { $step }>,
            $kernel::<9, { $row }, { $step }>,
            $kernel::<10, { $row }, { $step }>,
            $kernel::<11, { $row }, { $step }>,
            $kernel::<12, { $row }, { $step }>,
        ]
    };
}
use table;

/// # Safety
/// See [`Kernel`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn floats<const N: usize, const ROW: usize, const STEP: usize>(
    count: usize,
    a: *const u32,
    b: *const u32,
    tile: &Tile,
) {
    // SAFETY: the caller's promise.
    unsafe { chains::<false, N, ROW, STEP>(count, a, b, tile) }
}

/// # Safety
/// See [`Kernel`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pairs<const N: usize, const ROW: usize, const STEP: usize>(
    count: usize,
    a: *const u32,
    b: *const u32,
    tile: &Tile,
) {
    // SAFETY: the caller's promise.
    unsafe { chains::<true, N, ROW, STEP>(count, a, b, tile) }
}

/// The chains of N rows and [`PANEL`] columns, in 2 N registers.
///
/// # Safety
/// See [`Kernel`].
#[inline(always)]
unsafe fn chains<const PAIRS: bool, const N: usize, const ROW: usize, const STEP: usize>(
    count: usize,
    mut a: *const u32,
    mut b: *const u32,
    tile: &Tile,
) {
    // SAFETY: the masks keep loads and stores inside the tile; strip and panel hold `count` words of N rows and of
    // `PANEL` columns.
    unsafe {
        let masks = [first(tile.columns), first(tile.columns.saturating_sub(16))];
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        if !tile.start.is_null() {
            for i in 0..N {
                let start = tile.start.add(i * tile.start_stride);
                for half in 0..2 {
                    sums[i][half] =
                        _mm512_maskz_loadu_ps(masks[half], start.wrapping_add(16 * half));
                }
            }
        }
        for _ in 0..count {
            let right = [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(16).cast())];
            for i in 0..N {
                let left = _mm512_set1_epi32(*a.add(i * ROW) as i32);
                for half in 0..2 {
                    sums[i][half] = if PAIRS {
                        let left = std::mem::transmute::<__m512i, __m512bh>(left);
                        let right = std::mem::transmute::<__m512i, __m512bh>(right[half]);
                        _mm512_dpbf16_ps(sums[i][half], left, right)
                    } else {
                        let (left, right) =
                            (_mm512_castsi512_ps(left), _mm512_castsi512_ps(right[half]));
                        _mm512_fmadd_ps(left, right, sums[i][half])
                    };
                }
            }
            a = a.wrapping_add(STEP);
            b = b.wrapping_add(PANEL);
        }
        if PAIRS && tile.rounded {
            for i in 0..N {
                let end = tile.end.cast::<u16>().add(i * tile.end_stride);
                for half in 0..2 {
                    let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(sums[i][half]));
                    let end = end.wrapping_add(16 * half).cast();
                    _mm256_mask_storeu_epi16(end, masks[half], rounded);
                }
            }
        } else {
            for i in 0..N {
                let end = tile.end.cast::<f32>().add(i * tile.end_stride);
                for half in 0..2 {
                    _mm512_mask_storeu_ps(end.wrapping_add(16 * half), masks[half], sums[i][half]);
                }
            }
        }
    }
}

/// A mask of the first `count` of 16 lanes, or of all.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

/// Fills a panel, `[words][PANEL]`, with rows `column..` of an n x k matrix from word `start` on, zero where it ends.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn panel_of_columns(
    panel: &mut [u32],
    b: View<'_>,
    word: Word,
    column: usize,
    start: usize,
) {
    let (n, k) = (b.dim(0), b.dim(1));
    let size = b.dtype().size();
    let origin = match b.dtype() {
        DType::BF16 => b.as_ptr::<bf16>().cast::<u8>(),
        _ => b.as_ptr::<f32>().cast::<u8>(),
    };
    let words = panel.len() / PANEL;
    for w in (0..words).step_by(16) {
        let element = (start + w) * word.elements();
        let left = k - element;
        for half in 0..2 {
            let mut block = [_mm512_setzero_si512(); 16];
            for (r, row) in block.iter_mut().enumerate() {
                let index = column + 16 * half + r;
                if index < n {
                    // SAFETY: the row exists, and the masks keep the load inside it.
                    *row = unsafe {
                        let from = origin.add((index * b.row_stride() + element) * size);
                        match (b.dtype(), word) {
                            (DType::BF16, Word::Pair) => {
                                let mask = if left >= 32 { !0 } else { (1u32 << left) - 1 };
                                _mm512_maskz_loadu_epi16(mask, from.cast())
                            }
                            (DType::BF16, Word::Float) => {
                                let narrow = _mm256_maskz_loadu_epi16(first(left), from.cast());
                                _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(narrow))
                            }
                            _ => _mm512_maskz_loadu_epi32(first(left), from.cast()),
                        }
                    };
                }
            }
            let columns = transpose(block);
            for (line, column) in columns.iter().enumerate().take(words - w) {
                let to = &mut panel[(w + line) * PANEL + 16 * half..][..16];
                // SAFETY: sixteen words.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), *column) };
            }
        }
    }
}

/// Transposes 16 x 16 words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut x = rows;
    // Within each 128-bit lane: pairs of words of two rows, then quadruples of four.
    for i in (0..16).step_by(4) {
        let low =
            [_mm512_unpacklo_epi32(x[i], x[i + 1]), _mm512_unpacklo_epi32(x[i + 2], x[i + 3])];
        let high =
            [_mm512_unpackhi_epi32(x[i], x[i + 1]), _mm512_unpackhi_epi32(x[i + 2], x[i + 3])];
        x[i] = _mm512_unpacklo_epi64(low[0], low[1]);
        x[i + 1] = _mm512_unpackhi_epi64(low[0], low[1]);
        x[i + 2] = _mm512_unpacklo_epi64(high[0], high[1]);
        x[i + 3] = _mm512_unpackhi_epi64(high[0], high[1]);
    }
    // x[4 g + j] holds, in lane l, column 4 l + j of rows 4 g to 4 g + 3; gather the lanes of the four groups.
    let mut out = rows;
    for j in 0..4 {
        let [a, b, c, d] = [x[j], x[4 + j], x[8 + j], x[12 + j]];
        let even = [
            _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_i32x4::<0b10_00_10_00>(c, d),
        ];
        let odd = [
            _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(c, d),
        ];
        out[j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(even[0], even[1]);
        out[8 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(even[0], even[1]);
        out[4 + j] = _mm512_shuffle_i32x4::<0b10_00_10_00>(odd[0], odd[1]);
        out[12 + j] = _mm512_shuffle_i32x4::<0b11_01_11_01>(odd[0], odd[1]);
    }
    out
}
