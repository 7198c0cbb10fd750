//! How the host version cuts a product into tasks, and operands into strips, panels and blocks.

use std::ops::Range;

use super::cpu::{Product, Right, Word};
use crate::parallel;

/// Rows of a register tile.
pub(super) const STRIP: usize = 12;
/// Columns of a register tile.
pub(super) const PANEL: usize = 32;
/// Most words of a block along k.
pub(super) const BLOCK: usize = 512;
/// Most panels of a task: a block of them stays in the second-level cache.
const TASK_PANELS: usize = 16;
/// Most strips of a task, so that the sums of unfinished chains fit on its stack.
const TASK_STRIPS: usize = 8;
/// The same of a large product, whose unfinished sums fit into the same room.
pub(super) const LARGE_BLOCK: usize = 1024;
const LARGE_PANELS: usize = 4;
const LARGE_STRIPS: usize = TASK_PANELS * TASK_STRIPS / LARGE_PANELS;
/// The most sums that a task has unfinished.
pub(super) const TASK_SUMS: usize = TASK_STRIPS * STRIP * TASK_PANELS * PANEL;
/// Words from one row of a copied strip to the next: odd in cache lines, so that rows fall into different sets.
pub(super) const STRIP_ROW: usize = LARGE_BLOCK + 16;
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

/// Rows of a strip: strips differ by one row at most.
pub(super) fn rows(m: usize, strip: usize) -> Range<usize> {
    part(m, m.div_ceil(STRIP), strip)
}

/// How a product is cut.
pub(super) struct Cut {
    m: usize,
    n: usize,
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
    /// Cuts a product of m x n values.
    pub(super) fn new(m: usize, n: usize, product: &Product<'_>, word: Word) -> Cut {
        let (strips, width, words) = (m.div_ceil(STRIP), n.div_ceil(PANEL), word.count(product.k));
        let threads = rayon::current_num_threads();
        let serial = threads == 1 || m * n * product.k < SERIAL_WORK && n * words < SERIAL_WORDS;
        let fresh = m <= FRESH_ROWS && matches!(product.right, Right::Plain { .. });
        let large = strips > LARGE_STRIPS && width > 2 * TASK_PANELS && words > BLOCK;
        let (block, most_panels, most_strips) = match (large, fresh) {
            (true, _) => (LARGE_BLOCK, LARGE_PANELS, LARGE_STRIPS),
            (false, true) => (BLOCK, FRESH_PANELS, TASK_STRIPS),
            (false, false) => (BLOCK, TASK_PANELS, TASK_STRIPS),
        };
        // Enough tasks to level out uneven work; narrower ones only where there are too few rows to share, but not so narrow
        // that a kernel for few rows lacks panels to read side by side.
        let wanted = if serial { 1 } else { 4 * threads };
        let narrow = if strips <= TASK_STRIPS && !fresh {
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
        Cut { m, n, words, blocks: words.div_ceil(block).max(1), across, down, serial, copies }
    }

    /// Words of a block.
    pub(super) fn block(&self, index: usize) -> Range<usize> {
        part(self.words, self.blocks, index)
    }

    /// Words of the longest block.
    pub(super) fn longest(&self) -> usize {
        self.words.div_ceil(self.blocks)
    }

    /// Strips of all of A.
    pub(super) fn strips(&self) -> usize {
        self.m.div_ceil(STRIP)
    }

    /// Rows of a strip.
    pub(super) fn rows(&self, strip: usize) -> Range<usize> {
        rows(self.m, strip)
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
