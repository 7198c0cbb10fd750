//! The host version: operands in cache-sized blocks of 32-bit words, register tiles of 12 x 32 chains (32 x 32 with AMX).
//!
//! Everything is counted in words of 32 bits along k: one float32, or two bfloat16 side by side where the machine multiplies
//! pairs. B is put into panels of [`PANEL`] columns, word after word (`[panels][words][PANEL]`), A into strips of up to 12
//! rows, or 32 where there are tile registers ([`Form`](super::cut::Form)). The work is cut into tiles of C, one task each. A task walks over blocks of words; in each it runs the kernel of [`Tile`] on
//! every strip and every panel. A chain that ends in one block continues in the next from the float32 it had reached, so that
//! cutting changes no bit.
//!
//! A block of a task's panels stays in the second-level cache while its strips pass. A task copies its strips to its stack. Of large products the
//! tasks are narrower and their blocks longer, and all strips are copied before; so are those of a transposed A whose rows collide in the cache ([`Cut`]).

use std::mem::MaybeUninit;
use std::ops::Range;

use prime_runtime::{DType, Element, Result, SharedMut, View, ViewMut, bf16};

use super::cut::{
    BLOCK, Cut, FRESH_PANELS, FRESH_ROWS, PANEL, Part, STRIP_WORDS, TASK_SUMS, TILES_STRIP,
};
use super::pack::{self, Ahead, Left, SendPtr, address};
use super::{Activation, Epilogue, portable};
use crate::simd::{Level, multiversion};
use crate::{math, scratch};

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
    if dtype == DType::BF16 && level >= Level::Avx512Bf16 { Word::Pair } else { Word::Float }
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
    /// Rows, at most those of a strip.
    pub(super) rows: usize,
    /// Columns, at most those of the kernel's panels.
    pub(super) columns: usize,
    /// Words from one panel to the next.
    pub(super) panel_stride: usize,
    /// Sums to continue; null to start from 0.
    pub(super) start: *const f32,
    pub(super) start_stride: usize,
    /// Added to every row of the sums where not null, in the dtype of A; only kernels for AVX-512 do it.
    pub(super) bias: *const u8,
    /// Added to the sums where not null, in the dtype of `end`; as above.
    pub(super) residual: *const u8,
    pub(super) residual_stride: usize,
    /// float32, or bfloat16 where `rounded`.
    pub(super) end: *mut u8,
    /// In elements.
    pub(super) end_stride: usize,
    pub(super) rounded: bool,
}

/// Continues the chains of a tile over `count` words of a strip of A, in its [`Form`](super::cut::Form), and a panel of B.
///
/// # Safety
/// The machine has the kernel's instructions; `a` and `b` hold `count` words of a strip and a panel; `start` and `end`
/// hold the tile's rows and columns, and no other thread uses those of `end`.
pub(super) type Kernel =
    unsafe fn(count: usize, a: *const u32, b: *const u32, tile: &Tile, ahead: &mut Ahead);

/// The kernel for `rows` rows and up to `panels` panels, and how many panels it takes at once.
fn kernel(
    level: Level,
    word: Word,
    transposed_a: bool,
    rows: usize,
    panels: usize,
) -> (Kernel, usize) {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Amx if word == Word::Pair => super::amx::kernel(rows, panels),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => {
            super::avx512::kernel(word, transposed_a, rows, panels)
        }
        _ => {
            assert!(word == Word::Float, "pairs are multiplied by avx512bf16 and amx only");
            (portable::kernel(level, transposed_a), 1)
        }
    }
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
    let Epilogue { bias, activation, residual } = product.epilogue;
    // Kernels for AVX-512 add in the words' own dtype, and round pairs.
    let own = word == Word::Pair || product.a.dtype() == DType::F32;
    let bare = bias.is_none() && residual.is_none() && !rounded;
    let plain = activation == Activation::Identity && (bare || own && level >= Level::Avx512);
    let cut = Cut::new(level, m, n, product, word);
    let Product { a, transposed_a: transposed, .. } = *product;
    let left = Left { level, a, transposed, word, form: cut.form };
    let mut job = Job {
        left,
        n,
        words: word.count(product.k),
        product,
        cut,
        start: SendPtr(start),
        stride,
        rounded,
        out: out.shared(),
        plain,
        strips: None,
    };
    let strips = if job.cut.copies {
        let slot = left.form.slot(job.cut.longest());
        let mut room = scratch::take::<u32>(job.cut.blocks * job.cut.strips() * slot)?;
        pack::strips(&mut room, &left, &job.cut);
        Some(room)
    } else {
        None
    };
    job.strips = strips.as_deref();
    match product.right {
        Right::Packed { words, .. } => job.run(Panels::Packed(words)),
        Right::Plain { b, transposed } if m <= FRESH_ROWS => {
            job.run(Panels::Fresh { b, transposed });
        }
        Right::Plain { b, transposed } => {
            let mut words = scratch::take::<u32>(panels_length(n, product.k, word))?;
            pack::panels(level, &mut words, b, transposed, word);
            job.run(Panels::Packed(&words));
        }
    }
    Ok(())
}

/// Where a task finds its panels.
#[derive(Clone, Copy)]
enum Panels<'a> {
    Packed(&'a [u32]),
    Fresh { b: View<'a>, transposed: bool },
}

/// A product under way.
struct Job<'a> {
    left: Left<'a>,
    n: usize,
    /// Words along k.
    words: usize,
    product: &'a Product<'a>,
    cut: Cut,
    start: SendPtr<u8>,
    stride: usize,
    rounded: bool,
    out: SharedMut<'a>,
    /// The kernel does all that happens to a sum.
    plain: bool,
    /// All strips of A, where they were copied before: see [`pack::strips`].
    strips: Option<&'a [u32]>,
}

/// One block of a part: whether it is the first or last of its chains, and where unfinished sums and panels are.
struct Stage {
    first: bool,
    last: bool,
    /// Null where C itself holds them.
    sums: *mut f32,
    panel_stride: usize,
}

impl Job<'_> {
    /// Computes C.
    fn run(&self, panels: Panels<'_>) {
        self.cut.for_each_part(|part| self.part(part, panels));
    }

    /// Computes a part of C. What needs room on the stack is never inlined, so that only calls that use it pay for it, and the
    /// frames that split the work stay small.
    fn part(&self, part: &Part, panels: Panels<'_>) {
        match panels {
            Panels::Packed(_) => self.part_with(part, panels, std::ptr::null_mut()),
            Panels::Fresh { .. } => self.fresh_part(part, panels),
        }
    }

    /// With room for panels that are not packed yet.
    #[inline(never)]
    fn fresh_part(&self, part: &Part, panels: Panels<'_>) {
        let mut fresh = MaybeUninit::<[u32; FRESH_PANELS * BLOCK * PANEL]>::uninit();
        self.part_with(part, panels, fresh.as_mut_ptr().cast());
    }

    fn part_with(&self, part: &Part, panels: Panels<'_>, fresh: *mut u32) {
        if self.rounded && self.cut.blocks > 1 {
            self.long_part(part, panels, fresh);
        } else {
            self.blocks(part, panels, fresh, std::ptr::null_mut());
        }
    }

    /// With room for the sums of chains that one block does not finish, where C is too narrow to keep them.
    #[inline(never)]
    fn long_part(&self, part: &Part, panels: Panels<'_>, fresh: *mut u32) {
        let mut sums = MaybeUninit::<[f32; TASK_SUMS]>::uninit();
        self.blocks(part, panels, fresh, sums.as_mut_ptr().cast());
    }

    #[inline(never)]
    fn blocks(&self, part: &Part, panels: Panels<'_>, fresh: *mut u32, sums: *mut f32) {
        let mut strip = MaybeUninit::<[u32; STRIP_WORDS]>::uninit();
        let strip = strip.as_mut_ptr().cast::<u32>();
        #[cfg(target_arch = "x86_64")]
        let mut registers = super::amx::Shapes::default();
        for index in 0..self.cut.blocks {
            let block = self.cut.block(index);
            let (right, panel_stride) = self.panels(part, panels, fresh, block.clone());
            let stage =
                Stage { first: index == 0, last: index + 1 == self.cut.blocks, sums, panel_stride };
            let mut panels_ahead = self.panels_ahead(part, panels, index + 1);
            for strip_index in part.strips.clone() {
                let rows = self.cut.rows(strip_index);
                #[cfg(target_arch = "x86_64")]
                if self.left.form.is_tiles() {
                    // SAFETY: strips have this form where the machine has the instructions.
                    unsafe { registers.set(rows.len()) };
                }
                let next = (strip_index + 1 < part.strips.end).then_some(strip_index + 1);
                // SAFETY: the array is a slot, and this task's alone.
                let (left, mut ahead) =
                    unsafe { self.strip(strip, index, block.clone(), strip_index, next) };
                let mut panel = part.panels.start;
                while panel < part.panels.end {
                    let (kernel, taken) = kernel(
                        self.left.level,
                        self.left.word,
                        self.left.transposed,
                        rows.len(),
                        part.panels.end - panel,
                    );
                    let columns = panel * PANEL..((panel + taken) * PANEL).min(self.n);
                    // SAFETY: strip and panels hold the block, and the tile is this task's alone.
                    unsafe {
                        let right = right.add((panel - part.panels.start) * panel_stride);
                        // The first strip reads panels that may come from memory; those behind it have time to fetch more.
                        let ahead = if ahead.is_done() && strip_index > part.strips.start {
                            &mut panels_ahead
                        } else {
                            &mut ahead
                        };
                        self.tile(part, &stage, rows.clone(), columns, |tile| {
                            kernel(block.len(), left, right, tile, ahead);
                        });
                    }
                    panel += taken;
                }
            }
        }
    }

    /// Where a block of a strip is, copied to `room` if not before, and what is read of the strip that follows.
    ///
    /// # Safety
    /// The room is a slot, and no other thread uses it.
    unsafe fn strip(
        &self,
        room: *mut u32,
        index: usize,
        block: Range<usize>,
        strip: usize,
        next: Option<usize>,
    ) -> (*const u32, Ahead) {
        let form = self.left.form;
        if let Some(words) = self.strips {
            let slot = form.slot(self.cut.longest());
            let at =
                |strip: usize| words[(index * self.cut.strips() + strip) * slot..][..slot].as_ptr();
            let ahead = next.map_or_else(Ahead::nothing, |next| match form.step {
                1 => Ahead::lines(at(next), form.strip, block.len(), form.row),
                step => Ahead::lines(at(next), 1, block.len() * step, 0),
            });
            return (at(strip), ahead);
        }
        // SAFETY: the caller's promise.
        unsafe { pack::strip(room, &self.left, self.cut.rows(strip), block.clone()) };
        let ahead = |next| Ahead::new(&self.left, self.cut.rows(next), block);
        (room, next.map_or_else(Ahead::nothing, ahead))
    }

    /// Where a block of the part's first panel is, and the words from one panel to the next.
    fn panels(
        &self,
        part: &Part,
        panels: Panels<'_>,
        fresh: *mut u32,
        block: Range<usize>,
    ) -> (*const u32, usize) {
        let Panels::Fresh { b, transposed } = panels else {
            let Panels::Packed(words) = panels else { unreachable!() };
            let panel = self.words * PANEL;
            return (words[part.panels.start * panel + block.start * PANEL..].as_ptr(), panel);
        };
        for (slot, index) in part.panels.clone().enumerate() {
            // SAFETY: the buffer has room for the part's panels, and the packer writes every word before any is read.
            let words = unsafe {
                std::slice::from_raw_parts_mut(fresh.add(slot * BLOCK * PANEL), block.len() * PANEL)
            };
            let Left { level, word, .. } = self.left;
            pack::panel(level, words, b, transposed, word, index * PANEL, block.start);
        }
        (fresh, BLOCK * PANEL)
    }

    /// What is read of packed panels after the present block: the next one of this part, or the first of the part behind it, which the
    /// same thread is likely to take up.
    fn panels_ahead(&self, part: &Part, panels: Panels<'_>, index: usize) -> Ahead {
        let Panels::Packed(words) = panels else { return Ahead::nothing() };
        let width = self.n.div_ceil(PANEL);
        let (index, first) =
            if index < self.cut.blocks { (index, part.panels.start) } else { (0, part.panels.end) };
        let block = self.cut.block(index);
        let count = part.panels.len().min(width - first);
        let at = words[(first * self.words + block.start) * PANEL..].as_ptr();
        Ahead::lines(at, count, block.len() * PANEL, self.words * PANEL)
    }

    /// Runs the kernel on one tile: finds where its chains start and end, and finishes those that end.
    fn tile(
        &self,
        part: &Part,
        stage: &Stage,
        rows: Range<usize>,
        columns: Range<usize>,
        run: impl FnOnce(&Tile),
    ) {
        let place = self.place(rows.start, columns.start);
        let (unfinished, unfinished_stride) = if stage.sums.is_null() {
            (place.cast::<f32>(), self.stride)
        } else {
            let stride = part.panels.len() * PANEL;
            let row = rows.start - self.cut.rows(part.strips.start).start;
            let column = columns.start - part.panels.start * PANEL;
            (stage.sums.wrapping_add(row * stride + column), stride)
        };
        // A rounded C joins the finished sum, as a residual does.
        let joins = self.product.accumulate && self.rounded;
        let (start, start_stride) = match (stage.first, self.product.accumulate && !joins) {
            (true, false) => (std::ptr::null_mut(), 0),
            (true, true) => (place.cast::<f32>(), self.stride),
            (false, _) => (unfinished, unfinished_stride),
        };
        let mut finished = MaybeUninit::<[f32; TILES_STRIP * PANEL]>::uninit();
        let finished = finished.as_mut_ptr().cast::<f32>();
        // Whole panels, of which few rows make a tile of several: at most as many values as the longest strip has of one panel.
        let finished_stride = columns.len().next_multiple_of(PANEL);
        let (end, end_stride, rounded) = match (stage.last, self.plain) {
            (false, _) => (unfinished.cast::<u8>(), unfinished_stride, false),
            (true, true) => (place, self.stride, self.rounded),
            (true, false) => (finished.cast::<u8>(), finished_stride, false),
        };
        let (mut bias, mut residual, mut residual_stride) = (std::ptr::null(), std::ptr::null(), 0);
        if stage.last && self.plain {
            let epilogue = &self.product.epilogue;
            bias = epilogue.bias.map_or(bias, |bias| address(bias, 0, columns.start));
            if let Some(view) = epilogue.residual {
                (residual, residual_stride) =
                    (address(view, rows.start, columns.start), view.row_stride());
            } else if joins {
                (residual, residual_stride) = (place.cast_const(), self.stride);
            }
        }
        run(&Tile {
            rows: rows.len(),
            columns: columns.len(),
            panel_stride: stage.panel_stride,
            start,
            start_stride,
            bias,
            residual,
            residual_stride,
            end,
            end_stride,
            rounded,
        });
        if stage.last && !self.plain {
            for (index, row) in rows.enumerate() {
                // SAFETY: the kernel has written the tile's rows and columns.
                let sums = unsafe {
                    std::slice::from_raw_parts(finished.add(index * finished_stride), columns.len())
                };
                self.finish(sums, row, columns.clone());
            }
        }
    }

    /// Where an element of C is.
    fn place(&self, row: usize, column: usize) -> *mut u8 {
        let size = if self.rounded { 2 } else { 4 };
        // SAFETY: the element is in bounds.
        unsafe { self.start.get().add((row * self.stride + column) * size) }
    }

    /// The epilogue of part of a row.
    fn finish(&self, sums: &[f32], row: usize, columns: Range<usize>) {
        let epilogue = &self.product.epilogue;
        let joins = self.product.accumulate && self.rounded;
        match (self.product.a.dtype(), self.rounded) {
            (DType::BF16, true) => {
                finish::<bf16, bf16>(self.out, sums, row, columns, epilogue, joins)
            }
            (DType::BF16, false) => {
                finish::<bf16, f32>(self.out, sums, row, columns, epilogue, joins)
            }
            _ => finish::<f32, f32>(self.out, sums, row, columns, epilogue, joins),
        }
    }
}

multiversion! {
    fn finish<A: Element, C: Element>(
        out: SharedMut<'_>,
        sums: &[f32],
        row: usize,
        columns: Range<usize>,
        epilogue: &Epilogue<'_>,
        joins: bool,
    ) {
        // SAFETY: the tile belongs to this task alone.
        let out = unsafe { out.part_mut::<C>(row, columns.clone()) };
        for (start, sums) in (columns.start..).step_by(PANEL).zip(sums.chunks(PANEL)) {
            let here = start..start + sums.len();
            let mut line = [0f32; PANEL];
            line[..sums.len()].copy_from_slice(sums);
            if let Some(bias) = epilogue.bias {
                for (x, b) in line.iter_mut().zip(&bias.as_slice::<A>()[here.clone()]) {
                    *x += b.to_f32();
                }
            }
            if epilogue.activation == Activation::Silu {
                for x in &mut line {
                    *x *= math::sigmoid(*x);
                }
            }
            if let Some(residual) = epilogue.residual {
                for (x, r) in line.iter_mut().zip(&residual.row::<C>(row)[here]) {
                    *x += r.to_f32();
                }
            }
            for (out, x) in out[start - columns.start..].iter_mut().zip(&line[..sums.len()]) {
                *out = C::from_f32(if joins { *x + out.to_f32() } else { *x });
            }
        }
    }
}
