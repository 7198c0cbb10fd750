//! The kernel and the transposing packer for AVX-512.

use std::arch::x86_64::*;
use std::ops::Range;

use prime_runtime::{DType, View};

use super::cpu::{Kernel, Tile, Word};
use super::cut::{Form, PANEL, STRIP, STRIP_ROW};
use super::pack::{Ahead, address};

/// The kernel for a strip of `rows` rows and up to `panels` panels, and how many panels it takes at once.
pub(super) fn kernel(
    word: Word,
    transposed_a: bool,
    rows: usize,
    panels: usize,
) -> (Kernel, usize) {
    // Few rows make too few chains to fill the pipeline, unless several panels are read side by side.
    if let (1..=4, 2..) = (rows, panels) {
        let table = match (word, transposed_a) {
            (Word::Float, false) => const { wide!(floats, STRIP_ROW, 1) },
            (Word::Float, true) => const { wide!(floats, 1, STRIP) },
            (Word::Pair, false) => const { wide!(pairs, STRIP_ROW, 1) },
            (Word::Pair, true) => const { wide!(pairs, 1, STRIP) },
        };
        return match (rows, panels) {
            (1..=3, 4..) => (table[rows + 3], 4),
            _ => (table[rows - 1], 2),
        };
    }
    let table = match (word, transposed_a) {
        (Word::Float, false) => const { narrow!(floats, STRIP_ROW, 1) },
        (Word::Float, true) => const { narrow!(floats, 1, STRIP) },
        (Word::Pair, false) => const { narrow!(pairs, STRIP_ROW, 1) },
        (Word::Pair, true) => const { narrow!(pairs, 1, STRIP) },
    };
    (table[rows - 1], 1)
}

macro_rules! narrow {
    ($kernel:ident, $row:expr, $step:expr) => {
        &[
            $kernel::<1, 1, { $row }, { $step }> as Kernel,
            $kernel::<2, 1, { $row }, { $step }>,
            $kernel::<3, 1, { $row }, { $step }>,
            $kernel::<4, 1, { $row }, { $step }>,
            $kernel::<5, 1, { $row }, { $step }>,
            $kernel::<6, 1, { $row }, { $step }>,
            $kernel::<7, 1, { $row }, { $step }>,
            $kernel::<8, 1, { $row }, { $step }>,
            $kernel::<9, 1, { $row }, { $step }>,
            $kernel::<10, 1, { $row }, { $step }>,
            $kernel::<11, 1, { $row }, { $step }>,
            $kernel::<12, 1, { $row }, { $step }>,
        ]
    };
}
use narrow;

macro_rules! wide {
    ($kernel:ident, $row:expr, $step:expr) => {
        &[
            $kernel::<1, 2, { $row }, { $step }> as Kernel,
            $kernel::<2, 2, { $row }, { $step }>,
            $kernel::<3, 2, { $row }, { $step }>,
            $kernel::<4, 2, { $row }, { $step }>,
            $kernel::<1, 4, { $row }, { $step }>,
            $kernel::<2, 4, { $row }, { $step }>,
            $kernel::<3, 4, { $row }, { $step }>,
        ]
    };
}
use wide;

/// # Safety
/// See [`Kernel`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn floats<const N: usize, const PANELS: usize, const ROW: usize, const STEP: usize>(
    count: usize,
    a: *const u32,
    b: *const u32,
    tile: &Tile,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's promise.
    unsafe { chains::<false, N, PANELS, ROW, STEP>(count, a, b, tile, ahead) }
}

/// # Safety
/// See [`Kernel`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
unsafe fn pairs<const N: usize, const PANELS: usize, const ROW: usize, const STEP: usize>(
    count: usize,
    a: *const u32,
    b: *const u32,
    tile: &Tile,
    ahead: &mut Ahead,
) {
    // SAFETY: the caller's promise.
    unsafe { chains::<true, N, PANELS, ROW, STEP>(count, a, b, tile, ahead) }
}

/// The chains of N rows and some panels' columns, in 2 N PANELS registers.
///
/// # Safety
/// See [`Kernel`].
#[inline(always)]
unsafe fn chains<
    const PAIRS: bool,
    const N: usize,
    const PANELS: usize,
    const ROW: usize,
    const STEP: usize,
>(
    count: usize,
    mut a: *const u32,
    mut b: *const u32,
    tile: &Tile,
    ahead: &mut Ahead,
) {
    // SAFETY: the masks keep loads and stores inside the tile; strip and panels hold `count` words of N rows and of
    // `PANEL` columns.
    unsafe {
        let mut masks = [[0; 2]; PANELS];
        let mut sums = [[[_mm512_setzero_ps(); 2]; PANELS]; N];
        for panel in 0..PANELS {
            for half in 0..2 {
                masks[panel][half] = first(tile.columns.saturating_sub(32 * panel + 16 * half));
            }
        }
        if !tile.start.is_null() {
            for i in 0..N {
                let start = tile.start.add(i * tile.start_stride);
                for panel in 0..PANELS {
                    for half in 0..2 {
                        let start = start.wrapping_add(32 * panel + 16 * half);
                        sums[i][panel][half] = _mm512_maskz_loadu_ps(masks[panel][half], start);
                    }
                }
            }
        }
        // The next panel's tile of C, so that it is at hand when this one is done.
        let size = if tile.rounded { 2 } else { 4 };
        for i in 0..N {
            let next = tile.end.wrapping_add((i * tile.end_stride + PANELS * PANEL) * size);
            _mm_prefetch::<_MM_HINT_T0>(next.cast());
            _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(32 * size - 1).cast());
        }
        let mut left = count;
        while left > 0 {
            _mm_prefetch::<_MM_HINT_T1>(ahead.next().cast());
            for _ in 0..left.min(EVERY) {
                for panel in 0..PANELS {
                    let b = b.wrapping_add(panel * tile.panel_stride);
                    let right =
                        [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(16).cast())];
                    for i in 0..N {
                        let left = _mm512_set1_epi32(*a.add(i * ROW) as i32);
                        for half in 0..2 {
                            let sum = &mut sums[i][panel][half];
                            *sum = step::<PAIRS>(*sum, left, right[half]);
                        }
                    }
                }
                a = a.wrapping_add(STEP);
                b = b.wrapping_add(PANEL);
            }
            left = left.saturating_sub(EVERY);
        }
        // Each of these loops is unrolled, so that the sums stay in registers; one around all three would not be.
        if !tile.bias.is_null() {
            for panel in 0..PANELS {
                for half in 0..2 {
                    let place = 32 * panel + 16 * half;
                    let bias = elements(PAIRS, tile.bias, place, masks[panel][half]);
                    for i in 0..N {
                        sums[i][panel][half] = _mm512_add_ps(sums[i][panel][half], bias);
                    }
                }
            }
        }
        if !tile.residual.is_null() {
            for i in 0..N {
                for panel in 0..PANELS {
                    for half in 0..2 {
                        let residual =
                            residual::<PAIRS>(tile, i, 32 * panel + 16 * half, masks[panel][half]);
                        sums[i][panel][half] = _mm512_add_ps(sums[i][panel][half], residual);
                    }
                }
            }
        }
        for i in 0..N {
            for panel in 0..PANELS {
                for half in 0..2 {
                    let (sum, mask) = (sums[i][panel][half], masks[panel][half]);
                    put::<PAIRS>(tile, i, 32 * panel + 16 * half, mask, sum);
                }
            }
        }
    }
}

/// What is added to sixteen sums of a tile's row from `column` on; zero outside the mask.
///
/// # Safety
/// The machine has AVX-512 F, BW and VL; the tile has a residual, and the mask's columns.
#[inline(always)]
pub(super) unsafe fn residual<const PAIRS: bool>(
    tile: &Tile,
    row: usize,
    column: usize,
    mask: __mmask16,
) -> __m512 {
    let place = row * tile.residual_stride + column;
    // SAFETY: the caller's promise.
    unsafe { elements(PAIRS && tile.rounded, tile.residual, place, mask) }
}

/// Stores sixteen sums of a tile's row from `column` on where its chains end.
///
/// # Safety
/// The machine has AVX-512 F and VL, and BF16 for pairs; the mask's columns are the tile's.
#[inline(always)]
pub(super) unsafe fn put<const PAIRS: bool>(
    tile: &Tile,
    row: usize,
    column: usize,
    mask: __mmask16,
    sums: __m512,
) {
    let place = row * tile.end_stride + column;
    // SAFETY: the caller's promise; the types have the same bits.
    unsafe {
        if PAIRS && tile.rounded {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(sums));
            let end = tile.end.cast::<i16>().wrapping_add(place);
            _mm256_mask_storeu_epi16(end, mask, rounded);
        } else {
            _mm512_mask_storeu_ps(tile.end.cast::<f32>().wrapping_add(place), mask, sums);
        }
    }
}

/// Words from one request for a line of the next strip to the next.
const EVERY: usize = 2;

/// One step of sixteen chains.
///
/// # Safety
/// The machine has AVX-512 F, and BF16 for pairs.
#[inline(always)]
unsafe fn step<const PAIRS: bool>(sums: __m512, left: __m512i, right: __m512i) -> __m512 {
    // SAFETY: the caller's promise; the types have the same bits.
    unsafe {
        if PAIRS {
            let left = std::mem::transmute::<__m512i, __m512bh>(left);
            let right = std::mem::transmute::<__m512i, __m512bh>(right);
            _mm512_dpbf16_ps(sums, left, right)
        } else {
            _mm512_fmadd_ps(_mm512_castsi512_ps(left), _mm512_castsi512_ps(right), sums)
        }
    }
}

/// Elements from `place` on, bfloat16 where `narrow` and float32 elsewhere, zero outside the mask.
///
/// # Safety
/// The machine has AVX-512 F, BW and VL, and the mask's elements are readable.
#[inline(always)]
pub(super) unsafe fn elements(
    narrow: bool,
    from: *const u8,
    place: usize,
    mask: __mmask16,
) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        if narrow {
            let words = widened(mask, from.wrapping_add(2 * place));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words))
        } else {
            _mm512_maskz_loadu_ps(mask, from.wrapping_add(4 * place).cast())
        }
    }
}

/// A mask of the first `count` of 16 lanes, or of all.
#[inline(always)]
pub(super) fn first(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

/// Fills `[words][WIDTH]` with `columns` of a matrix whose rows run along k, from word `start` on; zero beside them.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn lines<const WIDTH: usize>(
    words: &mut [u32],
    x: View<'_>,
    word: Word,
    columns: Range<usize>,
    start: usize,
) {
    let k = x.dim(0);
    assert!(columns.len() <= WIDTH && columns.end <= x.dim(1));
    assert!(
        (start * word.elements() + words.len() / WIDTH * word.elements()) < k + word.elements()
    );
    let (origin, row) = (address(x, 0, columns.start), x.row_stride() * x.dtype().size());
    let (mut element, mut to) = (start * word.elements(), words.as_mut_ptr());
    for _ in 0..words.len() / WIDTH {
        // SAFETY: the rows exist, and the masks keep loads inside them and stores inside the line.
        unsafe {
            let from = origin.add(element * row);
            _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD * row).cast());
            for part in 0..WIDTH.div_ceil(16) {
                let valid = first(columns.len().saturating_sub(16 * part));
                let line = match (x.dtype(), word) {
                    (DType::BF16, Word::Pair) => {
                        pairs_of_rows(valid, from.wrapping_add(32 * part), row, element + 1 < k)
                    }
                    (DType::BF16, Word::Float) => {
                        _mm512_slli_epi32::<16>(widened(valid, from.wrapping_add(32 * part)))
                    }
                    _ => _mm512_maskz_loadu_epi32(valid, from.wrapping_add(64 * part).cast()),
                };
                let written = first(WIDTH - 16 * part);
                _mm512_mask_storeu_epi32(to.add(16 * part).cast(), written, line);
            }
            to = to.add(WIDTH);
        }
        element += word.elements();
    }
}

/// Copies words `block` of the rows `rows` of a matrix whose columns run along k, in that form.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL; `strip` has room for the rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn rows(
    strip: *mut u32,
    form: &Form,
    x: View<'_>,
    word: Word,
    rows: Range<usize>,
    block: Range<usize>,
) {
    let k = x.dim(1);
    assert!(rows.end <= x.dim(0) && block.end <= word.count(k));
    let origin = address(x, 0, block.start * word.elements());
    let row_bytes = x.row_stride() * x.dtype().size();
    let left = k - block.start * word.elements();
    let words = block.len().next_multiple_of(form.unit);
    for (index, row) in rows.enumerate() {
        for w in (0..words).step_by(16) {
            // SAFETY: the masks keep loads inside the rows and stores inside the strip.
            unsafe {
                let from = origin.add(row * row_bytes);
                let sixteen = sixteen_words(x.dtype(), word, from, w, left);
                let to = strip.add(index * form.row + w);
                _mm512_mask_storeu_epi32(to.cast(), first(words - w), sixteen);
            }
        }
    }
}

/// [`rows`] of a bfloat16 matrix whose rows run along k, in a form of whole units of pairs.
///
/// # Safety
/// As for [`rows`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn turned_rows(
    strip: *mut u32,
    form: &Form,
    x: View<'_>,
    word: Word,
    rows: Range<usize>,
    block: Range<usize>,
) {
    let k = x.dim(0);
    assert!(rows.end <= x.dim(1) && block.end <= word.count(k));
    assert!(word == Word::Pair && form.unit == 16 && x.dtype() == DType::BF16);
    let row_bytes = x.row_stride() * x.dtype().size();
    for w in (0..block.len()).step_by(16) {
        for r in (0..rows.len()).step_by(16) {
            let valid = first(rows.len() - r);
            let mut square = [_mm512_setzero_si512(); 16];
            for (pair, line) in (block.start + w..block.end).zip(&mut square) {
                let from = address(x, 2 * pair, rows.start + r);
                // SAFETY: the first of the two rows exists, and the mask keeps loads inside it.
                *line = unsafe { pairs_of_rows(valid, from, row_bytes, 2 * pair + 1 < k) };
            }
            for (index, row) in transpose(square).into_iter().take(rows.len() - r).enumerate() {
                // SAFETY: the strip has room for whole units of its rows.
                unsafe { _mm512_storeu_si512(strip.add((r + index) * form.row + w).cast(), row) };
            }
        }
    }
}

/// Pairs of elements that follow one another down the columns, those of the next row in the upper halves; zeros where there is no next row.
///
/// # Safety
/// The mask's elements are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pairs_of_rows(mask: __mmask16, from: *const u8, row: usize, next: bool) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let low = widened(mask, from);
        if !next {
            return low;
        }
        let high = widened(mask, from.wrapping_add(row));
        _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
    }
}

/// Words `w..` of a row that has `left` elements: sixteen, zero behind its end.
///
/// # Safety
/// The row has that many elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn sixteen_words(
    dtype: DType,
    word: Word,
    row: *const u8,
    w: usize,
    left: usize,
) -> __m512i {
    // SAFETY: the masks keep the loads inside the row.
    unsafe {
        match (dtype, word) {
            (DType::BF16, Word::Pair) => {
                let left = left - 2 * w;
                let mask = if left >= 32 { !0 } else { (1u32 << left) - 1 };
                _mm512_maskz_loadu_epi16(mask, row.wrapping_add(4 * w).cast())
            }
            (DType::BF16, Word::Float) => {
                _mm512_slli_epi32::<16>(widened(first(left - w), row.wrapping_add(2 * w)))
            }
            _ => _mm512_maskz_loadu_epi32(first(left - w), row.wrapping_add(4 * w).cast()),
        }
    }
}

/// Rows that a packer asks for ahead of their use.
const AHEAD: usize = 16;

/// Sixteen 16-bit values at most, each in the low half of a word.
///
/// # Safety
/// Those of the mask are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn widened(mask: __mmask16, from: *const u8) -> __m512i {
    // SAFETY: the caller's promise.
    _mm512_cvtepu16_epi32(unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) })
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
    let origin = address(b, 0, start * word.elements());
    let row_bytes = b.row_stride() * b.dtype().size();
    let left = k - start * word.elements();
    let words = panel.len() / PANEL;
    for w in (0..words).step_by(16) {
        for half in 0..2 {
            let mut block = [_mm512_setzero_si512(); 16];
            for (r, row) in block.iter_mut().enumerate() {
                let index = column + 16 * half + r;
                if index < n {
                    // SAFETY: the row exists and has `left` elements from `start` on.
                    *row = unsafe {
                        sixteen_words(b.dtype(), word, origin.add(index * row_bytes), w, left)
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
