//! Operands put into the order in which the kernel reads them.

use std::ops::Range;

use prime_runtime::{DType, View, bf16};

use super::cpu::{Word, panels_length};
use super::cut::{Cut, Form, PANEL, SERIAL_WORDS, STRIP, STRIP_ROW};
use crate::parallel;
use crate::simd::{Level, multiversion};

/// The left operand, and the form of its strips.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) level: Level,
    pub(super) a: View<'a>,
    /// A is k x m.
    pub(super) transposed: bool,
    pub(super) word: Word,
    pub(super) form: Form,
}

/// Words of a transposed A whose rows are read for one strip after another: few, so that they stay in the first-level cache.
const CHUNK: usize = 8;

/// Puts B into panels.
pub(super) fn panels(level: Level, words: &mut [u32], b: View<'_>, transposed: bool, word: Word) {
    let (n, k) = if transposed { (b.dim(0), b.dim(1)) } else { (b.dim(1), b.dim(0)) };
    let panel = word.count(k) * PANEL;
    if panel == 0 {
        return;
    }
    assert_eq!(words.len(), panels_length(n, k, word));
    let start = SendPtr(words.as_mut_ptr());
    let grain = (SERIAL_WORDS / 2).div_ceil(panel);
    parallel::ranges(n.div_ceil(PANEL), grain, |range| {
        for index in range {
            // SAFETY: the panels cover the words without overlap, and each is written by one task.
            let panel =
                unsafe { std::slice::from_raw_parts_mut(start.get().add(index * panel), panel) };
            self::panel(level, panel, b, transposed, word, index * PANEL, 0);
        }
    });
}

/// Copies all strips of op(A): `[blocks][strips][slot]`, each as [`strip`] has it and as far from the next as [`Form::slot`] says.
pub(super) fn strips(words: &mut [u32], left: &Left<'_>, cut: &Cut) {
    let (length, strips) =
        (left.word.count(left.a.dim(usize::from(!left.transposed))), cut.strips());
    let slot = left.form.slot(cut.longest());
    assert_eq!(words.len(), cut.blocks * strips * slot);
    let start = SendPtr(words.as_mut_ptr());
    let grain = |words: usize| (SERIAL_WORDS / 2).div_ceil(words.max(1));
    let copy = |index: usize, strip: usize, block: Range<usize>, skipped: usize| {
        // SAFETY: the slots cover the words without overlap, and each of their words is written by one task.
        unsafe {
            let to = start.get().add((index * strips + strip) * slot + skipped * left.form.step);
            self::strip(to, left, cut.rows(strip), block);
        }
    };
    if left.transposed {
        // A strip takes less than a cache line of each of its rows: all strips of a few words.
        let chunk = CHUNK.max(left.form.unit);
        let (chunks, m) = (cut.longest().div_ceil(chunk), left.a.dim(1));
        parallel::ranges(cut.blocks * chunks, grain(chunk * m), |range| {
            for index in range {
                let block = cut.block(index / chunks);
                let first = (block.start + index % chunks * chunk).min(block.end);
                let words = first..block.end.min(first + chunk);
                for strip in 0..strips {
                    copy(index / chunks, strip, words.clone(), first - block.start);
                }
            }
        });
    } else {
        parallel::ranges(strips, grain(left.form.strip * length), |range| {
            for strip in range {
                for index in 0..cut.blocks {
                    copy(index, strip, cut.block(index), 0);
                }
            }
        });
    }
}

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

/// Copies words `block` of rows `rows` of op(A), in their form.
///
/// # Safety
/// `strip` has room for the words of a slot, and the block fits into it.
pub(super) unsafe fn strip(
    strip: *mut u32,
    left: &Left<'_>,
    rows: Range<usize>,
    block: Range<usize>,
) {
    let Left { level, a, transposed, word, form } = *left;
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 && form.step == 1 {
        // SAFETY: the level says that this machine has these instructions; the rest is the caller's promise.
        return unsafe {
            if transposed {
                super::avx512::turned_rows(strip, &form, a, word, rows, block);
            } else {
                super::avx512::rows(strip, &form, a, word, rows, block);
            }
        };
    }
    if transposed {
        // SAFETY: the caller's promise.
        let words = unsafe { std::slice::from_raw_parts_mut(strip, block.len() * STRIP) };
        return lines::<STRIP>(level, words, a, word, rows, block.start);
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
    /// What [`strip`] will read.
    pub(super) fn new(left: &Left<'_>, rows: Range<usize>, block: Range<usize>) -> Self {
        let Left { a, transposed, word, .. } = *left;
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

    /// Rows of `words` words, `stride` words apart.
    pub(super) fn lines(at: *const u32, rows: usize, words: usize, stride: usize) -> Self {
        let width = (words * size_of::<u32>()).max(64);
        let skip = (stride * size_of::<u32>()).wrapping_sub(width - 64);
        Ahead { at: at.cast(), column: 0, width, skip, rows }
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

/// The address of memory that tasks write, each to places of its own.
#[derive(Clone, Copy)]
pub(super) struct SendPtr<T>(pub(super) *mut T);

// SAFETY: an address alone; whoever writes through it promises to write alone.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    pub(super) fn get(self) -> *mut T {
        self.0
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
