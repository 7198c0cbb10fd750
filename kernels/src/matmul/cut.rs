//! How the host version cuts a product into tasks, and operands into strips, panels and blocks.

use std::ops::Range;

use super::cpu::{Product, Right, Word};
use crate::parallel;
use crate::simd::Level;

/// Rows of a register tile.
pub(super) const STRIP: usize = 12;
/// Columns of a register tile.
pub(super) const PANEL: usize = 32;
/// Most words of a block along k.
pub(super) const BLOCK: usize = 512;
/// Most panels of a task: a block of them stays in the second-level cache.
const TASK_PANELS: usize = 16;
/// Most rows of a task, so that the sums of unfinished chains fit on its stack.
const TASK_ROWS: usize = 8 * STRIP;
/// The same of a large product, whose unfinished sums fit into the same room.
const LARGE_BLOCK: usize = 1024;
const LARGE_PANELS: usize = 4;
const LARGE_ROWS: usize = TASK_PANELS * TASK_ROWS / LARGE_PANELS;
/// The most sums that a task has unfinished.
pub(super) const TASK_SUMS: usize = TASK_ROWS * TASK_PANELS * PANEL;
/// Words from one row of a copied strip to the next: odd in cache lines, so that rows fall into different sets.
pub(super) const STRIP_ROW: usize = LARGE_BLOCK + 16;
/// Rows of a strip for AMX: two tile registers.
pub(super) const TILES_STRIP: usize = 32;
/// Most words of a block for AMX: a strip of them stays in the first-level cache, while panels come from the second.
const TILES_BLOCK: usize = 256;
/// [`STRIP_ROW`] for AMX.
pub(super) const TILES_ROW: usize = TILES_BLOCK + 16;
/// Words of the largest strip.
pub(super) const STRIP_WORDS: usize = STRIP_ROW * STRIP;
const _: () = assert!(TILES_ROW * TILES_STRIP <= STRIP_WORDS);
/// Up to so many rows, a task packs the panels it needs by itself, block by block, on its stack.
pub(super) const FRESH_ROWS: usize = 48;
/// Panels of such a task.
pub(super) const FRESH_PANELS: usize = 4;
/// Fewer multiply-adds than this are not worth waking another thread,
const SERIAL_WORK: usize = 1 << 20;
/// unless they read so many words of B, perhaps from memory.
pub(super) const SERIAL_WORDS: usize = 1 << 17;

/// Part `index` of `0..length` cut into `parts` that differ by one at most.
pub(super) fn part(length: usize, parts: usize, index: usize) -> Range<usize> {
    index * length / parts..(index + 1) * length / parts
}

/// How strips of op(A) lie in memory, and where blocks of words may end.
#[derive(Clone, Copy)]
pub(super) struct Form {
    /// Most rows of a strip.
    pub(super) strip: usize,
    /// Words from one row of a strip to the next,
    pub(super) row: usize,
    /// and from one word along k to the next.
    pub(super) step: usize,
    /// The kernel takes so many words along k at once: blocks end at multiples of them, and behind k there are zeros.
    pub(super) unit: usize,
    /// Most words of a block, and the same of a large product.
    blocks: [usize; 2],
}

impl Form {
    /// The form that the kernels of a level read.
    pub(super) fn new(level: Level, word: Word, transposed_a: bool) -> Form {
        let blocks = [BLOCK, LARGE_BLOCK];
        match (level, word, transposed_a) {
            (Level::Amx, Word::Pair, _) => Form {
                strip: TILES_STRIP,
                row: TILES_ROW,
                step: 1,
                unit: 16,
                blocks: [TILES_BLOCK; 2],
            },
            (_, _, false) => Form { strip: STRIP, row: STRIP_ROW, step: 1, unit: 1, blocks },
            (_, _, true) => Form { strip: STRIP, row: 1, step: STRIP, unit: 1, blocks },
        }
    }

    /// Whether strips are for tile registers.
    pub(super) fn is_tiles(&self) -> bool {
        self.unit > 1
    }

    /// Words of the room that a strip of up to so many words along k needs.
    pub(super) fn slot(&self, words: usize) -> usize {
        if self.step == 1 { self.strip * self.row } else { words * self.step }
    }
}

/// How a product is cut.
pub(super) struct Cut {
    m: usize,
    n: usize,
    pub(super) form: Form,
    /// Words along k, and the blocks in which tasks walk along them.
    words: usize,
    pub(super) blocks: usize,
    /// Tasks side by side,
    across: usize,
    /// and below one another.
    down: usize,
    serial: bool,
    /// A is copied into strips before the tasks start.
    pub(super) copies: bool,
}

/// A task's part of C.
pub(super) struct Part {
    pub(super) strips: Range<usize>,
    pub(super) panels: Range<usize>,
}

impl Cut {
    /// Cuts a product of m x n values, to be computed by kernels of that level.
    pub(super) fn new(level: Level, m: usize, n: usize, product: &Product<'_>, word: Word) -> Cut {
        let form = Form::new(level, word, product.transposed_a);
        let (strips, width) = (m.div_ceil(form.strip), n.div_ceil(PANEL));
        let words = word.count(product.k);
        let threads = rayon::current_num_threads();
        let serial = threads == 1 || m * n * product.k < SERIAL_WORK && n * words < SERIAL_WORDS;
        let fresh = m <= FRESH_ROWS && matches!(product.right, Right::Plain { .. });
        let large = m > LARGE_ROWS && width > 2 * TASK_PANELS && words > BLOCK;
        let (most_panels, most_rows) = match (large, fresh) {
            (true, _) => (LARGE_PANELS, LARGE_ROWS),
            (false, true) => (FRESH_PANELS, TASK_ROWS),
            (false, false) => (TASK_PANELS, TASK_ROWS),
        };
        let most_strips = most_rows / form.strip;
        // Enough tasks to level out uneven work; narrower ones only where there are too few rows to share, but not so narrow
        // that a kernel for few rows lacks panels to read side by side.
        let wanted = if serial { 1 } else { 4 * threads };
        let narrow = if m <= TASK_ROWS && !fresh {
            // Few rows make little use of a panel: let each panel be read by one task.
            wanted
        } else {
            wanted.div_ceil(strips)
        };
        let across = width.div_ceil(most_panels).max(narrow.min(width.div_ceil(4)));
        let level = if across >= 2 * threads { 1 } else { wanted.div_ceil(across) };
        let down = level.max(strips.div_ceil(most_strips)).min(strips);
        // A strip of a transposed A takes part of a cache line of each row. Where rows fall into the same sets of the
        // first-level cache, the rest of the line is gone before the next strip wants it.
        let a = product.a;
        let collide = product.transposed_a && a.row_stride() * a.dtype().size() % 2048 == 0;
        let copies = large || collide && across > 1 && !fresh;
        let blocks = words.div_ceil(form.blocks[usize::from(large)]).max(1);
        Cut { m, n, form, words, blocks, across, down, serial, copies }
    }

    /// Words of a block.
    pub(super) fn block(&self, index: usize) -> Range<usize> {
        let unit = self.form.unit;
        let units = part(self.words.div_ceil(unit), self.blocks, index);
        units.start * unit..(units.end * unit).min(self.words)
    }

    /// Words of the longest block.
    pub(super) fn longest(&self) -> usize {
        let unit = self.form.unit;
        self.words.div_ceil(unit).div_ceil(self.blocks) * unit
    }

    /// Strips of all of A.
    pub(super) fn strips(&self) -> usize {
        self.m.div_ceil(self.form.strip)
    }

    /// Rows of a strip: strips differ by one row at most.
    pub(super) fn rows(&self, strip: usize) -> Range<usize> {
        part(self.m, self.strips(), strip)
    }

    /// Runs every task, on all cores.
    pub(super) fn for_each_part(&self, work: impl Fn(&Part) + Sync) {
        let (strips, width) = (self.strips(), self.n.div_ceil(PANEL));
        let run = |index: usize| {
            // Tasks that run at about the same time share what they read of the larger operand; all of the smaller one may
            // stay in the third-level cache.
            let [row, column] = if self.m > self.n {
                [index / self.across, index % self.across]
            } else {
                [index % self.down, index / self.down]
            };
            work(&Part {
                strips: part(strips, self.down, row),
                panels: part(width, self.across, column),
            });
        };
        let tasks = self.across * self.down;
        if self.serial {
            (0..tasks).for_each(run);
        } else {
            parallel::ranges(tasks, 1, |range| range.for_each(run));
        }
    }
}
