//! Work over cores. What a task computes never depends on how the tasks are cut.

use std::ops::Range;

/// Calls `work` on ranges that together cover `0..count`, on all cores; a range has at least `grain` items where there are
/// that many. Allocates nothing.
pub(crate) fn ranges(count: usize, grain: usize, work: impl Fn(Range<usize>) + Sync) {
    ranges_with(count, grain, &mut [], 0, |range, _| work(range));
}

/// As [`ranges`], with working memory: each call has `each` elements of `memory` to itself, their contents left by
/// whoever used them last. `memory` holds at least `each * pieces(count)`.
pub(crate) fn ranges_with(
    count: usize,
    grain: usize,
    memory: &mut [f32],
    each: usize,
    work: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    fn split(
        range: Range<usize>,
        grain: usize,
        pieces: usize,
        memory: &mut [f32],
        each: usize,
        work: &(impl Fn(Range<usize>, &mut [f32]) + Sync),
    ) {
        if pieces <= 1 || range.len() < 2 * grain {
            if !range.is_empty() {
                work(range, &mut memory[..each]);
            }
            return;
        }
        let middle = range.start + range.len() / 2;
        let (left, right) = memory.split_at_mut(each * (pieces / 2));
        rayon::join(
            || split(range.start..middle, grain, pieces / 2, left, each, work),
            || split(middle..range.end, grain, pieces - pieces / 2, right, each, work),
        );
    }
    split(0..count, grain.max(1), pieces(count), memory, each, &work);
}

/// The most ranges into which `count` items are cut: a few a thread level out uneven work.
pub(crate) fn pieces(count: usize) -> usize {
    let threads = rayon::current_num_threads();
    if threads == 1 { 1 } else { (threads * 4).min(count.max(1)) }
}
