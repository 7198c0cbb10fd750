//! Operands put into the order in which the kernel reads them.

use std::ops::Range;

use prime_runtime::{DType, Element, View, bf16};

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
        return panel_of_rows(panel, b, word, column, first);
    }
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 {
        // SAFETY: the level says that this machine has these instructions.
        return unsafe { super::avx512::panel_of_columns(panel, b, word, column, first) };
    }
    let _ = level;
    panel_of_columns(panel, b, word, column, first);
}

/// Copies words `block` of rows `rows` of op(A): rows of [`STRIP_ROW`] words, or, transposed, columns of [`STRIP`] words.
///
/// # Safety
/// `strip` has room for [`STRIP`] rows of [`STRIP_ROW`] words, and the block has at most `BLOCK` words.
pub(super) unsafe fn strip(
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
        return strip_of_rows(words, a, word, rows, block.start);
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

fn copy(words: &mut [u32], row: &[f32]) {
    for (word, x) in words.iter_mut().zip(row) {
        *word = x.to_bits();
    }
}

fn pairs(words: &mut [u32], row: &[bf16]) {
    for (word, pair) in words.iter_mut().zip(row.chunks(2)) {
        let high = pair.get(1).map_or(0, |x| u32::from(x.to_bits()));
        *word = u32::from(pair[0].to_bits()) | high << 16;
    }
}

multiversion! {
    fn widen(words: &mut [u32], row: &[bf16]) {
        for (word, x) in words.iter_mut().zip(row) {
            *word = x.to_f32().to_bits();
        }
    }
}

multiversion! {
    fn panel_of_rows(panel: &mut [u32], b: View<'_>, word: Word, column: usize, first: usize) {
        let end = b.dim(1).min(column + PANEL);
        lines::<PANEL>(panel, b, word, column..end, first);
    }
}

multiversion! {
    fn strip_of_rows(strip: &mut [u32], a: View<'_>, word: Word, columns: Range<usize>, first: usize) {
        lines::<STRIP>(strip, a, word, columns, first);
    }
}

/// Fills `[words][WIDTH]` with `columns` of a matrix whose rows run along k, zero beside them.
#[inline(always)]
fn lines<const WIDTH: usize>(
    words: &mut [u32],
    x: View<'_>,
    word: Word,
    columns: Range<usize>,
    first: usize,
) {
    let (lines, _) = words.as_chunks_mut::<WIDTH>();
    match (x.dtype(), word) {
        (DType::BF16, Word::Pair) => {
            for (index, line) in lines.iter_mut().enumerate() {
                let p = 2 * (first + index);
                let low = fixed::<bf16, WIDTH>(&x.row(p)[columns.clone()]);
                let high = if p + 1 < x.dim(0) {
                    fixed::<bf16, WIDTH>(&x.row(p + 1)[columns.clone()])
                } else {
                    [bf16::ZERO; WIDTH]
                };
                for c in 0..WIDTH {
                    line[c] = u32::from(low[c].to_bits()) | u32::from(high[c].to_bits()) << 16;
                }
            }
        }
        (DType::BF16, Word::Float) => {
            for (index, line) in lines.iter_mut().enumerate() {
                let row = fixed::<bf16, WIDTH>(&x.row(first + index)[columns.clone()]);
                *line = row.map(|x| x.to_f32().to_bits());
            }
        }
        _ => {
            for (index, line) in lines.iter_mut().enumerate() {
                let row = fixed::<f32, WIDTH>(&x.row(first + index)[columns.clone()]);
                *line = row.map(f32::to_bits);
            }
        }
    }
}

/// A row as an array, zero behind its end: a fixed width becomes a few vector instructions.
#[inline(always)]
fn fixed<E: Element, const WIDTH: usize>(row: &[E]) -> [E; WIDTH] {
    match row.first_chunk::<WIDTH>() {
        Some(row) => *row,
        None => std::array::from_fn(|c| row.get(c).copied().unwrap_or(E::from_f32(0.0))),
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
                    let high = pair.get(1).map_or(0, |x| u32::from(x.to_bits()));
                    line[c] = u32::from(pair[0].to_bits()) | high << 16;
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
