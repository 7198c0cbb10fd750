//! Operands put into the order in which the kernel reads them.

use std::ops::Range;

use prime_runtime::{DType, View, bf16};

use super::cpu::{PANEL, STRIP, STRIP_ROW, Word};
use crate::simd::{Level, multiversion};

/// Fills one panel of B, `[words][PANEL]`, with the columns from `column` on and the words from `first` on; zero where B ends.
pub(super) fn panel(
    level: Level,
    panel: &mut [u32],
    b: View<'_>,
    transposed: bool,
    word: Word,
    column: usize,
    first: usize,
) {
    if !transposed {
        let end = b.dim(1).min(column + PANEL);
        return lines::<PANEL>(level, panel, b, word, column..end, first);
    }
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that this machine has these instructions.
        return unsafe { super::avx512::panel_of_columns(panel, b, word, column, first) };
    }
    panel_of_columns(panel, b, word, column, first);
}

/// Fills `[words][WIDTH]` with `columns` of a matrix whose rows run along k, from word `first` on; zero beside them.
fn lines<const WIDTH: usize>(
    level: Level,
    words: &mut [u32],
    x: View<'_>,
    word: Word,
    columns: Range<usize>,
    first: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that this machine has these instructions.
        return unsafe { super::avx512::lines::<WIDTH>(words, x, word, columns, first) };
    }
    let _ = level;
    for (index, line) in words.chunks_exact_mut(WIDTH).enumerate() {
        line[columns.len()..].fill(0);
        let line = &mut line[..columns.len()];
        let p = (first + index) * word.elements();
        match (x.dtype(), word) {
            (DType::BF16, Word::Pair) => {
                let low = &x.row::<bf16>(p)[columns.clone()];
                let high = (p + 1 < x.dim(0)).then(|| &x.row::<bf16>(p + 1)[columns.clone()]);
                for (c, word) in line.iter_mut().enumerate() {
                    *word = pair(low[c], high.map(|row| row[c]));
                }
            }
            (DType::BF16, Word::Float) => widen(line, &x.row::<bf16>(p)[columns.clone()]),
            _ => copy(line, &x.row::<f32>(p)[columns.clone()]),
        }
    }
}

/// Copies words `block` of rows `rows` of op(A): rows of [`STRIP_ROW`] words, or, transposed, columns of [`STRIP`] words.
///
/// # Safety
/// `strip` has room for [`STRIP`] rows of [`STRIP_ROW`] words, and the block has at most `BLOCK` words.
pub(super) unsafe fn strip(
    level: Level,
    strip: *mut u32,
    a: View<'_>,
    transposed: bool,
    word: Word,
    rows: Range<usize>,
    block: Range<usize>,
) {
    if transposed {
        // SAFETY: the caller's promise.
        let words = unsafe { std::slice::from_raw_parts_mut(strip, block.len() * STRIP) };
        return lines::<STRIP>(level, words, a, word, rows, block.start);
    }
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that this machine has these instructions; the rest is the caller's promise.
        return unsafe { super::avx512::rows::<STRIP_ROW>(strip, a, word, rows, block) };
    }
    let length = block.len();
    for (index, row) in rows.enumerate() {
        // SAFETY: the caller's promise.
        let words = unsafe { std::slice::from_raw_parts_mut(strip.add(index * STRIP_ROW), length) };
        match (a.dtype(), word) {
            (DType::BF16, Word::Pair) => pairs(words, &a.row::<bf16>(row)[2 * block.start..]),
            (DType::BF16, Word::Float) => widen(words, &a.row::<bf16>(row)[block.clone()]),
            _ => copy(words, &a.row::<f32>(row)[block.clone()]),
        }
    }
}

/// The address of an element.
pub(super) fn address(x: View<'_>, row: usize, column: usize) -> *const u8 {
    let start = match x.dtype() {
        DType::BF16 => x.as_ptr::<bf16>().cast::<u8>(),
        _ => x.as_ptr::<f32>().cast::<u8>(),
    };
    start.wrapping_add((row * x.row_stride() + column) * x.dtype().size())
}

/// The cache lines that [`strip`] will read for the next strip. The kernel asks for one every few words, so that they are on
/// their way while it computes.
pub(super) struct Ahead {
    at: *const u8,
    /// Bytes of the row at hand that have been asked for.
    column: usize,
    /// Bytes of a row, in whole cache lines.
    width: usize,
    /// From the last cache line of a row to the first of the next.
    skip: usize,
    rows: usize,
}

impl Ahead {
    pub(super) fn new(
        a: View<'_>,
        transposed: bool,
        word: Word,
        rows: Range<usize>,
        block: Range<usize>,
    ) -> Self {
        let size = a.dtype().size();
        let terms = block.start * word.elements()..block.end * word.elements();
        let (lines, columns) = if transposed { (terms, rows) } else { (rows, terms) };
        let at = address(a, lines.start, columns.start);
        // A row may begin anywhere in its first cache line.
        let begin = at as usize % 64;
        let width = (begin + columns.len() * size).next_multiple_of(64).max(64);
        let skip = (a.row_stride() * size).wrapping_sub(width - 64);
        Ahead { at, column: 0, width, skip, rows: lines.len() }
    }

    /// Words `block` of some panels, which are `panel` words each.
    pub(super) fn panels(
        words: &[u32],
        panels: Range<usize>,
        panel: usize,
        block: Range<usize>,
    ) -> Self {
        let at = words.as_ptr().wrapping_add(panels.start * panel + block.start * PANEL).cast();
        let width = (block.len() * PANEL * size_of::<u32>()).max(64);
        let skip = (panel * size_of::<u32>()).wrapping_sub(width - 64);
        Ahead { at, column: 0, width, skip, rows: panels.len() }
    }

    /// Whether all has been asked for.
    pub(super) fn is_done(&self) -> bool {
        self.rows == 0
    }

    /// Nothing to ask for.
    pub(super) fn nothing() -> Self {
        Ahead { at: std::ptr::null(), column: 0, width: 64, skip: 0, rows: 0 }
    }

    /// The next address; the last one again when all have been given.
    #[inline(always)]
    pub(super) fn next(&mut self) -> *const u8 {
        let at = self.at;
        let row_ends = self.column + 64 >= self.width;
        let step = if row_ends { self.skip } else { 64 };
        self.column = if row_ends { 0 } else { self.column + 64 };
        self.rows -= usize::from(row_ends && self.rows > 0);
        self.at = at.wrapping_add(if self.rows > 0 { step } else { 0 });
        at
    }
}

fn copy(words: &mut [u32], row: &[f32]) {
    for (word, x) in words.iter_mut().zip(row) {
        *word = x.to_bits();
    }
}

fn pair(low: bf16, high: Option<bf16>) -> u32 {
    u32::from(low.to_bits()) | high.map_or(0, |high| u32::from(high.to_bits()) << 16)
}

fn pairs(words: &mut [u32], row: &[bf16]) {
    for (word, pair) in words.iter_mut().zip(row.chunks(2)) {
        *word = self::pair(pair[0], pair.get(1).copied());
    }
}

multiversion! {
    fn widen(words: &mut [u32], row: &[bf16]) {
        for (word, x) in words.iter_mut().zip(row) {
            *word = x.to_f32().to_bits();
        }
    }
}

/// [`panel`] of an n x k matrix.
fn panel_of_columns(panel: &mut [u32], b: View<'_>, word: Word, column: usize, first: usize) {
    let (lines, _) = panel.as_chunks_mut::<PANEL>();
    for c in 0..PANEL {
        if column + c >= b.dim(0) {
            lines.iter_mut().for_each(|line| line[c] = 0);
            continue;
        }
        let elements = first * word.elements()..b.dim(1);
        match (b.dtype(), word) {
            (DType::BF16, Word::Pair) => {
                let row = &b.row::<bf16>(column + c)[elements];
                for (line, pair) in lines.iter_mut().zip(row.chunks(2)) {
                    line[c] = self::pair(pair[0], pair.get(1).copied());
                }
            }
            (DType::BF16, Word::Float) => {
                let row = &b.row::<bf16>(column + c)[elements];
                for (line, x) in lines.iter_mut().zip(row) {
                    line[c] = x.to_f32().to_bits();
                }
            }
            _ => {
                let row = &b.row::<f32>(column + c)[elements];
                for (line, x) in lines.iter_mut().zip(row) {
                    line[c] = x.to_bits();
                }
            }
        }
    }
}
