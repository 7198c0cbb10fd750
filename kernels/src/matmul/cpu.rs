//! The host version: operands in cache-sized blocks of 32-bit words, register tiles of 12 x 32 chains.
//!
//! Everything is counted in words of 32 bits along k: one float32, or two bfloat16 side by side where the machine multiplies
//! pairs. B is put into panels of [`PANEL`] columns, word after word (`[panels][words][PANEL]`). The work is cut into tiles
//! of C, one task each. A task walks over blocks of [`BLOCK`] words; in each it copies strips of up to [`STRIP`] rows
//! of A to its stack and runs the kernel of [`Tile`] over every panel. A chain that ends in one block continues in the next
//! from the float32 it had reached, so that cutting changes no bit.

use std::mem::MaybeUninit;
use std::ops::Range;

use prime_runtime::{DType, Element, Result, SharedMut, View, ViewMut, bf16};

use super::pack::{self, Ahead};
use super::{Activation, Epilogue, portable};
use crate::simd::{Level, multiversion};
use crate::{math, parallel, scratch};

/// Rows of a register tile.
pub(super) const STRIP: usize = 12;
/// Columns of a register tile.
pub(super) const PANEL: usize = 32;
/// Words along k that are in the cache at a time.
pub(super) const BLOCK: usize = 256;
/// Words from one row of a copied strip to the next: odd in cache lines, so that rows fall into different sets.
pub(super) const STRIP_ROW: usize = BLOCK + 16;

/// Most panels of a task: a block of them stays in the second-level cache.
const TASK_PANELS: usize = 16;
/// Most strips of a task, so that the sums of unfinished chains fit on its stack.
const TASK_STRIPS: usize = 8;
/// Up to so many rows, a task packs the panels it needs by itself, block by block, on its stack.
const FRESH_ROWS: usize = 48;
/// Panels of such a task.
const FRESH_PANELS: usize = 4;
/// Fewer multiply-adds than this are not worth waking another thread.
const SERIAL_WORK: usize = 1 << 19;

/// What a 32-bit word along k holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// A float32, possibly widened from bfloat16.
    Float,
    /// Two bfloat16, the first in the low half; zero behind an odd last one.
    Pair,
}

impl Word {
    /// How many words hold `k` elements.
    pub(super) fn count(self, k: usize) -> usize {
        match self {
            Word::Float => k,
            Word::Pair => k.div_ceil(2),
        }
    }

    /// How many elements a word holds.
    pub(super) fn elements(self) -> usize {
        match self {
            Word::Float => 1,
            Word::Pair => 2,
        }
    }
}

/// The words in which a machine of this level multiplies a dtype.
pub(super) fn word(level: Level, dtype: DType) -> Word {
    if dtype == DType::BF16 && level == Level::Avx512Bf16 { Word::Pair } else { Word::Float }
}

/// Words of a whole B in panels.
pub(super) fn panels_length(n: usize, k: usize, word: Word) -> usize {
    n.div_ceil(PANEL) * PANEL * word.count(k)
}

/// The right operand.
#[derive(Clone, Copy)]
pub(super) enum Right<'a> {
    /// As it is stored: k x n, or n x k where `transposed`.
    Plain { b: View<'a>, transposed: bool },
    /// In panels.
    Packed { words: &'a [u32], word: Word },
}

/// A product whose shapes and dtypes agree.
pub(super) struct Product<'a> {
    pub(super) k: usize,
    pub(super) a: View<'a>,
    /// A is k x m.
    pub(super) transposed_a: bool,
    pub(super) right: Right<'a>,
    pub(super) epilogue: Epilogue<'a>,
    /// Chains start from C, not from 0.
    pub(super) accumulate: bool,
}

/// Where the chains of one register tile start and end.
pub(super) struct Tile {
    /// Rows, at most [`STRIP`].
    pub(super) rows: usize,
    /// Columns, at most [`PANEL`].
    pub(super) columns: usize,
    /// Sums to continue; null to start from 0.
    pub(super) start: *const f32,
    pub(super) start_stride: usize,
    /// float32, or bfloat16 where `rounded`.
    pub(super) end: *mut u8,
    /// In elements.
    pub(super) end_stride: usize,
    pub(super) rounded: bool,
}

/// Continues the chains of a tile over `count` words of a strip of A and a panel of B.
///
/// The strip is rows of [`STRIP_ROW`] words, or, for a transposed A, columns of [`STRIP`] words.
///
/// # Safety
/// The machine has the kernel's instructions; `a` and `b` hold `count` words of a strip and a panel; `start` and `end`
/// hold the tile's rows and columns, and no other thread uses those of `end`.
pub(super) type Kernel =
    unsafe fn(count: usize, a: *const u32, b: *const u32, tile: &Tile, ahead: &mut Ahead);

fn kernel(level: Level, word: Word, transposed_a: bool, rows: usize) -> Kernel {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 => super::avx512::kernel(word, transposed_a, rows),
        _ => {
            assert!(word == Word::Float, "pairs are multiplied by avx512bf16 only");
            portable::kernel(level, transposed_a)
        }
    }
}

/// Part `index` of `0..length` cut into `parts` that differ by one at most.
fn part(length: usize, parts: usize, index: usize) -> Range<usize> {
    index * length / parts..(index + 1) * length / parts
}

/// Puts B into panels.
pub(super) fn pack(level: Level, words: &mut [u32], b: View<'_>, transposed: bool, word: Word) {
    let (n, k) = if transposed { (b.dim(0), b.dim(1)) } else { (b.dim(1), b.dim(0)) };
    let panel = word.count(k) * PANEL;
    if panel == 0 {
        return;
    }
    assert_eq!(words.len(), panels_length(n, k, word));
    let start = SendPtr(words.as_mut_ptr());
    let grain = (SERIAL_WORK / 4).div_ceil(panel);
    parallel::ranges(n.div_ceil(PANEL), grain, |range| {
        for index in range {
            // SAFETY: the panels cover the words without overlap, and each is written by one task.
            let panel =
                unsafe { std::slice::from_raw_parts_mut(start.get().add(index * panel), panel) };
            pack::panel(level, panel, b, transposed, word, index * PANEL, 0);
        }
    });
}

/// Computes a product on this machine, with the instructions of `level`.
pub(super) fn run(level: Level, mut out: ViewMut<'_>, product: &Product<'_>) -> Result<()> {
    let (m, n) = (out.dim(0), out.dim(1));
    if m == 0 || n == 0 {
        return Ok(());
    }
    let word = match product.right {
        Right::Plain { b, .. } => word(level, b.dtype()),
        Right::Packed { word, .. } => word,
    };
    let (rounded, stride) = (out.dtype() == DType::BF16, out.row_stride());
    let start = if rounded {
        out.as_mut_ptr::<bf16>().cast::<u8>()
    } else {
        out.as_mut_ptr::<f32>().cast::<u8>()
    };
    let job = Job {
        level,
        word,
        m,
        n,
        words: word.count(product.k),
        product,
        start: SendPtr(start),
        stride,
        rounded,
        out: out.shared(),
    };
    match product.right {
        Right::Packed { words, .. } => job.run(Panels::Packed(words)),
        Right::Plain { b, transposed } if m <= FRESH_ROWS => {
            job.run(Panels::Fresh { b, transposed });
        }
        Right::Plain { b, transposed } => {
            let mut words = scratch::take::<u32>(panels_length(n, product.k, word))?;
            pack(level, &mut words, b, transposed, word);
            job.run(Panels::Packed(&words));
        }
    }
    Ok(())
}

/// The address of memory that tasks write, each to places of its own.
#[derive(Clone, Copy)]
struct SendPtr<T>(*mut T);

// SAFETY: an address alone; whoever writes through it promises to write alone.
unsafe impl<T> Send for SendPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SendPtr<T> {}

impl<T> SendPtr<T> {
    fn get(self) -> *mut T {
        self.0
    }
}

/// Where a task finds its panels.
#[derive(Clone, Copy)]
enum Panels<'a> {
    Packed(&'a [u32]),
    Fresh { b: View<'a>, transposed: bool },
}

/// A product under way.
struct Job<'a> {
    level: Level,
    word: Word,
    m: usize,
    n: usize,
    /// Words along k.
    words: usize,
    product: &'a Product<'a>,
    start: SendPtr<u8>,
    stride: usize,
    rounded: bool,
    out: SharedMut<'a>,
}

/// A task's part of C.
struct Part {
    strips: Range<usize>,
    panels: Range<usize>,
}

impl Job<'_> {
    /// Cuts C into tasks and runs them.
    fn run(&self, panels: Panels<'_>) {
        let (strips, width) = (self.m.div_ceil(STRIP), self.n.div_ceil(PANEL));
        let threads = rayon::current_num_threads();
        let serial = threads == 1 || self.m * self.n * self.product.k < SERIAL_WORK;
        let most = match panels {
            Panels::Fresh { .. } => FRESH_PANELS,
            Panels::Packed(_) => TASK_PANELS,
        };
        // Enough tasks to level out uneven work; narrower ones only where there are too few rows to share.
        let wanted = if serial { 1 } else { 4 * threads };
        let across = width.div_ceil(most).max(wanted.div_ceil(strips).min(width));
        let down = wanted.div_ceil(across).max(strips.div_ceil(TASK_STRIPS)).min(strips);
        let task = |index: usize| Part {
            strips: part(strips, down, index % down),
            panels: part(width, across, index / down),
        };
        let work = |range: Range<usize>| range.for_each(|index| self.part(&task(index), panels));
        if serial {
            work(0..across * down);
        } else {
            parallel::ranges(across * down, 1, work);
        }
    }

    fn part(&self, part: &Part, panels: Panels<'_>) {
        match panels {
            Panels::Packed(words) => {
                let panel = |index: usize, first: usize| {
                    words[(index * self.words + first) * PANEL..].as_ptr()
                };
                self.sums(part, |_| {}, panel);
            }
            Panels::Fresh { b, transposed } => {
                let mut buffer = MaybeUninit::<[u32; FRESH_PANELS * BLOCK * PANEL]>::uninit();
                let start = SendPtr(buffer.as_mut_ptr().cast::<u32>());
                let prepare = |block: Range<usize>| {
                    let length = block.len() * PANEL;
                    for (slot, index) in part.panels.clone().enumerate() {
                        // SAFETY: the buffer has room for the part's panels; `u32` needs no initialisation to be
                        // written, and the packer writes every word.
                        let words = unsafe {
                            std::slice::from_raw_parts_mut(
                                start.get().add(slot * BLOCK * PANEL),
                                length,
                            )
                        };
                        pack::panel(
                            self.level,
                            words,
                            b,
                            transposed,
                            self.word,
                            index * PANEL,
                            block.start,
                        );
                    }
                };
                let panel = |index: usize, _| {
                    // SAFETY: inside the buffer, as above.
                    unsafe {
                        start.get().add((index - part.panels.start) * BLOCK * PANEL).cast_const()
                    }
                };
                self.sums(part, prepare, panel);
            }
        }
    }

    /// Gives the sums of chains that one block does not finish a place: C itself, or where C is too narrow, the stack.
    fn sums(
        &self,
        part: &Part,
        prepare: impl FnMut(Range<usize>),
        panel: impl Fn(usize, usize) -> *const u32,
    ) {
        if self.rounded && self.words > BLOCK {
            let mut sums =
                MaybeUninit::<[f32; TASK_STRIPS * STRIP * TASK_PANELS * PANEL]>::uninit();
            let first = (rows(self.m, part.strips.start).start, part.panels.start * PANEL);
            let stride = part.panels.len() * PANEL;
            let start = sums.as_mut_ptr().cast::<f32>();
            self.blocks(part, prepare, panel, |row, column| {
                // SAFETY: a part has at most `TASK_STRIPS` strips and `TASK_PANELS` panels.
                (unsafe { start.add((row - first.0) * stride + column - first.1) }, stride)
            });
        } else {
            self.blocks(part, prepare, panel, |row, column| {
                (self.place(row, column).cast::<f32>(), self.stride)
            });
        }
    }

    /// Where an element of C is.
    fn place(&self, row: usize, column: usize) -> *mut u8 {
        let size = if self.rounded { 2 } else { 4 };
        // SAFETY: the element is in bounds.
        unsafe { self.start.get().add((row * self.stride + column) * size) }
    }

    #[inline(always)]
    fn blocks(
        &self,
        part: &Part,
        mut prepare: impl FnMut(Range<usize>),
        panel: impl Fn(usize, usize) -> *const u32,
        sums: impl Fn(usize, usize) -> (*mut f32, usize),
    ) {
        let product = self.product;
        let epilogue = &product.epilogue;
        let plain = epilogue.bias.is_none()
            && epilogue.residual.is_none()
            && epilogue.activation == Activation::Identity
            && (!self.rounded || self.word == Word::Pair);
        let mut strip = MaybeUninit::<[u32; STRIP * STRIP_ROW]>::uninit();
        let strip = strip.as_mut_ptr().cast::<u32>();
        let mut finished = [0f32; STRIP * PANEL];
        let blocks = self.words.div_ceil(BLOCK).max(1);
        for index in 0..blocks {
            let block = self::part(self.words, blocks, index);
            prepare(block.clone());
            for strip_index in part.strips.clone() {
                let rows = rows(self.m, strip_index);
                // SAFETY: the strip has room for `STRIP` rows of `BLOCK` words; the packer writes all that the kernel reads.
                unsafe {
                    pack::strip(
                        self.level,
                        strip,
                        product.a,
                        product.transposed_a,
                        self.word,
                        rows.clone(),
                        block.clone(),
                    );
                }
                let kernel = kernel(self.level, self.word, product.transposed_a, rows.len());
                let mut ahead = if strip_index + 1 < part.strips.end {
                    let next = self::rows(self.m, strip_index + 1);
                    Ahead::new(product.a, product.transposed_a, self.word, next, block.clone())
                } else {
                    Ahead::nothing()
                };
                for panel_index in part.panels.clone() {
                    let columns = panel_index * PANEL..((panel_index + 1) * PANEL).min(self.n);
                    let (unfinished, unfinished_stride) = sums(rows.start, columns.start);
                    let (start, start_stride) = match index {
                        0 if product.accumulate => {
                            (self.place(rows.start, columns.start).cast::<f32>(), self.stride)
                        }
                        0 => (std::ptr::null_mut(), 0),
                        _ => (unfinished, unfinished_stride),
                    };
                    let last = index + 1 == blocks;
                    let (end, end_stride, rounded) = match (last, plain) {
                        (false, _) => (unfinished.cast::<u8>(), unfinished_stride, false),
                        (true, true) => {
                            (self.place(rows.start, columns.start), self.stride, self.rounded)
                        }
                        (true, false) => (finished.as_mut_ptr().cast::<u8>(), PANEL, false),
                    };
                    let tile = Tile {
                        rows: rows.len(),
                        columns: columns.len(),
                        start,
                        start_stride,
                        end,
                        end_stride,
                        rounded,
                    };
                    // SAFETY: strip and panel hold the block; start and end hold the tile, which is this task's alone.
                    unsafe {
                        kernel(
                            block.len(),
                            strip,
                            panel(panel_index, block.start),
                            &tile,
                            &mut ahead,
                        )
                    };
                    if last && !plain {
                        self.finish(&finished, rows.clone(), columns);
                    }
                }
            }
        }
    }

    /// The epilogue of one tile.
    fn finish(&self, sums: &[f32], rows: Range<usize>, columns: Range<usize>) {
        let epilogue = &self.product.epilogue;
        match (self.product.a.dtype(), self.rounded) {
            (DType::BF16, true) => finish::<bf16, bf16>(self.out, sums, rows, columns, epilogue),
            (DType::BF16, false) => finish::<bf16, f32>(self.out, sums, rows, columns, epilogue),
            _ => finish::<f32, f32>(self.out, sums, rows, columns, epilogue),
        }
    }
}

/// Rows of a strip: strips differ by one row at most.
fn rows(m: usize, strip: usize) -> Range<usize> {
    part(m, m.div_ceil(STRIP), strip)
}

multiversion! {
    fn finish<A: Element, C: Element>(
        out: SharedMut<'_>,
        sums: &[f32],
        rows: Range<usize>,
        columns: Range<usize>,
        epilogue: &Epilogue<'_>,
    ) {
        for (row, sums) in rows.zip(sums.chunks_exact(PANEL)) {
            let mut line = [0f32; PANEL];
            line.copy_from_slice(sums);
            if let Some(bias) = epilogue.bias {
                for (x, b) in line.iter_mut().zip(&bias.as_slice::<A>()[columns.clone()]) {
                    *x += b.to_f32();
                }
            }
            if epilogue.activation == Activation::Silu {
                for x in &mut line {
                    *x *= math::sigmoid(*x);
                }
            }
            if let Some(residual) = epilogue.residual {
                for (x, r) in line.iter_mut().zip(&residual.row::<C>(row)[columns.clone()]) {
                    *x += r.to_f32();
                }
            }
            // SAFETY: the tile belongs to this task alone.
            let out = unsafe { out.part_mut::<C>(row, columns.clone()) };
            for (out, x) in out.iter_mut().zip(line) {
                *out = C::from_f32(x);
            }
        }
    }
}
