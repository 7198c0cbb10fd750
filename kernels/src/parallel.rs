//! Work over cores. What a task computes never depends on how the tasks are cut.

use std::ops::Range;

/// Calls `work` on ranges that together cover `0..count`, on all cores; a range has at least `grain` items where there are
/// that many. Allocates nothing.
pub(crate) fn ranges(count: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
    fn split(
        range: Range<usize>,
        grain: usize,
        pieces: usize,
        work: &(impl Fn(Range<usize>) + Sync),
    ) {
        if pieces <= 1 || range.len() < 2 * grain {
            if !range.is_empty() {
                work(range);
            }
            return;
        }
        let middle = range.start + range.len() / 2;
        rayon::join(
            || split(range.start..middle, grain, pieces / 2, work),
            || split(middle..range.end, grain, pieces - pieces / 2, work),
        );
    }
    // A few pieces a thread level out uneven work.
    let threads = rayon::current_num_threads();
    split(0..count, grain.max(1), if threads == 1 { 1 } else { threads * 4 }, &work);
}
