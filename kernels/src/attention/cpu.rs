//! The host version of forward and decode: one pass over blocks of keys with a running maximum and sum.
//!
//! A task is a few neighbouring tokens of one sequence, with all query heads of one key/value head, so that a block of keys
//! and values is unpacked once for all of them. What a row computes does not depend on the rows of its task.

use prime_runtime::{Element, Result, SharedMut, View, ViewMut};

use super::{Mask, Pages, Span};
use crate::arguments::with_float;
use crate::simd::multiversion;
use crate::{math, parallel, scratch};
use pack::Block;
use product::{Strided, product};

mod backward;
mod pack;
mod product;

pub(super) use backward::backward;

/// Keys of a block. Part of the arithmetic: the running maximum and sum are brought up to date once a block.
const KEYS: usize = 64;
/// Floats of the widest vector. Part of the arithmetic: a block's sum is this many sums, added in a tree.
const LANES: usize = 16;

pub(super) fn forward(
    out: ViewMut<'_>,
    lse: ViewMut<'_>,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    cu_seqlens: View<'_>,
    scale: f32,
    mask: Mask,
) -> Result<()> {
    let span = |sequence| Span::of_cu_seqlens(&cu_seqlens, sequence);
    let sequences = cu_seqlens.dim(0) - 1;
    let call =
        Call { out: out.shared(), lse: Some(lse.shared()), q, k, v, pages: None, scale, mask };
    with_float!(q.dtype(), E => attend::<E>(&call, sequences, span))
}

pub(super) fn decode(
    out: ViewMut<'_>,
    q: View<'_>,
    keys: View<'_>,
    values: View<'_>,
    spans: View<'_>,
    pages: Option<Pages<'_>>,
    scale: f32,
) -> Result<()> {
    let span = |sequence| Span::of_row(spans.row::<u32>(sequence));
    let sequences = spans.dim(0);
    let out = out.shared();
    let mask = Mask::Causal;
    let call = Call { out, lse: None, q, k: keys, v: values, pages, scale, mask };
    with_float!(q.dtype(), E => attend::<E>(&call, sequences, span))
}

/// Up to so many rows, a block of keys and values is read ahead.
const FEW_ROWS: usize = 16;

/// The sizes of a head layout.
#[derive(Clone, Copy)]
struct Heads {
    kv_heads: usize,
    /// Query heads of a key/value head.
    group: usize,
    head_dim: usize,
    /// `head_dim` rounded up to whole vectors.
    padded: usize,
}

impl Heads {
    fn new(q: &View<'_>, k: &View<'_>) -> Self {
        let (kv_heads, head_dim) = (k.dim(1), k.dim(2));
        Heads {
            kv_heads,
            group: q.dim(1) / kv_heads,
            head_dim,
            padded: head_dim.next_multiple_of(LANES),
        }
    }

    /// Tokens of a tile of at most so many rows, at least one.
    fn tile(&self, rows: usize) -> usize {
        1 << (rows / self.group).max(1).ilog2()
    }

    /// The query heads of a key/value head in some tokens.
    fn queries(&self, first: usize, tokens: usize, kv_head: usize) -> Block {
        let column = kv_head * self.group * self.head_dim;
        Block { first, rows: tokens, column, heads: self.group, width: self.head_dim }
    }

    /// A key/value head in some rows.
    fn keys(&self, first: usize, rows: usize, kv_head: usize) -> Block {
        let column = kv_head * self.head_dim;
        Block { first, rows, column, heads: 1, width: self.head_dim }
    }
}

/// What the tasks of one call share.
struct Call<'a> {
    out: SharedMut<'a>,
    lse: Option<SharedMut<'a>>,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    pages: Option<Pages<'a>>,
    scale: f32,
    mask: Mask,
}

impl Call<'_> {
    /// The runs of neighbouring rows of `k` and `v` that hold `count` keys of a sequence from key `start` on: of each the number of keys before
    /// it, its first row, and its rows. All but the last are whole vectors.
    fn runs(
        &self,
        span: Span,
        start: usize,
        count: usize,
        mut run: impl FnMut(usize, usize, usize),
    ) {
        let Some(pages) = &self.pages else { return run(0, span.key + start, count) };
        let mut done = 0;
        while done < count {
            let key = start + done;
            let rows = (pages.size - key % pages.size).min(count - done);
            run(done, pages.row(span.key, key), rows);
            done += rows;
        }
    }
}

/// The working memory of one task; rows are (token, head of the group).
struct Memory<'a> {
    queries: &'a mut [f32], // (rows, padded)
    sums: &'a mut [f32],    // (rows, padded): values weighted and added
    keys: &'a mut [f32],    // (head_dim, KEYS)
    values: &'a mut [f32],  // (KEYS, padded)
    max: &'a mut [f32],     // (rows)
    sum: &'a mut [f32],     // (rows): weights added
}

impl<'a> Memory<'a> {
    fn size(heads: Heads, tile: usize) -> usize {
        let rows = (tile * heads.group).next_multiple_of(LANES);
        2 * rows * heads.padded + 2 * KEYS * heads.padded + 2 * rows
    }

    fn of(memory: &'a mut [f32], heads: Heads, tile: usize) -> Self {
        let rows = (tile * heads.group).next_multiple_of(LANES);
        let (queries, memory) = memory.split_at_mut(rows * heads.padded);
        let (sums, memory) = memory.split_at_mut(rows * heads.padded);
        let (keys, memory) = memory.split_at_mut(KEYS * heads.padded);
        let (values, memory) = memory.split_at_mut(KEYS * heads.padded);
        let (max, sum) = memory.split_at_mut(rows);
        Memory { queries, sums, keys, values, max, sum }
    }
}

fn attend<E: Element>(
    call: &Call<'_>,
    sequences: usize,
    span: impl Fn(usize) -> Span + Sync,
) -> Result<()> {
    let heads = Heads::new(&call.q, &call.k);
    // Large tiles unpack the keys less often; small ones give every core its share of little work.
    let tokens: usize = (0..sequences).map(|sequence| span(sequence).new).sum();
    let large = tokens * heads.group * heads.kv_heads >= 4 * 256 * rayon::current_num_threads();
    let tile = heads.tile(if large { 256 } else { 64 });
    let tiles_of = |sequence| span(sequence).new.div_ceil(tile);
    let count: usize = (0..sequences).map(tiles_of).sum();
    // (count, 2): the sequence of a tile, and its place there
    let mut tiles = scratch::take::<u32>(2 * count)?;
    let places = (0..sequences).flat_map(|s| (0..tiles_of(s)).map(move |place| (s, place)));
    for (entry, (sequence, place)) in tiles.chunks_exact_mut(2).zip(places) {
        entry.copy_from_slice(&[sequence as u32, place as u32]);
    }
    let tiles = &*tiles;
    let tasks = count * heads.kv_heads;
    let each = Memory::size(heads, tile);
    let mut memory = scratch::take::<f32>(each * parallel::pieces(tasks))?;
    parallel::ranges_with(tasks, 1, &mut memory, each, |range, memory| {
        let mut memory = Memory::of(memory, heads, tile);
        for task in range {
            let (index, kv_head) = (task / heads.kv_heads, task % heads.kv_heads);
            // From both ends in turn: under a causal mask a sequence's last tiles cost the most.
            let index = if index % 2 == 0 { index / 2 } else { count - 1 - index / 2 };
            let span = span(tiles[2 * index] as usize);
            let first = tiles[2 * index + 1] as usize * tile;
            let tokens = tile.min(span.new - first);
            attend_tile::<E>(call, heads, span, first, tokens, kv_head, &mut memory);
        }
    });
    Ok(())
}

/// The rows of queries `first..first + tokens` of a sequence under one key/value head.
fn attend_tile<E: Element>(
    call: &Call<'_>,
    heads: Heads,
    span: Span,
    first: usize,
    tokens: usize,
    kv_head: usize,
    memory: &mut Memory<'_>,
) {
    let Heads { group, head_dim, padded, .. } = heads;
    let rows = tokens * group;
    pack::widen::<E>(memory.queries, &call.q, heads.queries(span.query + first, tokens, kv_head));
    memory.sums[..rows * padded].fill(0.0);
    memory.max[..rows].fill(f32::NEG_INFINITY);
    memory.sum[..rows].fill(0.0);
    let seen = span.visible(first + tokens - 1, call.mask);
    let few = rows <= FEW_ROWS;
    for start in (0..seen).step_by(KEYS) {
        let count = KEYS.min(seen - start);
        // A vector of rows at a time. With few queries there is little to do with a block but to read it: the next one's keys are asked for meanwhile, and
        // its values before the sums, which read nothing from far.
        for before in (0..count).step_by(LANES) {
            call.runs(span, start + before, LANES.min(count - before), |more, row, rows| {
                let (before, keys) = (before + more, heads.keys(row, rows, kv_head));
                pack::transpose::<E>(&mut memory.keys[before..], &call.k, keys);
                pack::widen::<E>(&mut memory.values[before * padded..], &call.v, keys);
            });
            let ahead = start + KEYS + before;
            if few && ahead < seen {
                call.runs(span, ahead, LANES.min(seen - ahead), |_, row, rows| {
                    pack::fetch::<E>(&call.k, heads.keys(row, rows, kv_head));
                });
            }
        }
        if few && start + KEYS < seen {
            let next = start + KEYS;
            call.runs(span, next, KEYS.min(seen - next), |_, row, rows| {
                pack::fetch::<E>(&call.v, heads.keys(row, rows, kv_head));
            });
        }
        let visible = |row: usize| {
            span.visible(first + row / group, call.mask).saturating_sub(start).min(count)
        };
        attend_block(heads, rows, visible, call.scale, memory);
    }
    for token in 0..tokens {
        let row = span.query + first + token;
        let column = kv_head * group;
        let columns = column * head_dim..(column + group) * head_dim;
        // SAFETY: spans do not overlap in `q`, and a task alone writes its tokens and heads.
        let out = unsafe { call.out.part_mut::<E>(row, columns) };
        for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let row = token * group + head;
            pack::narrow(out, &memory.sums[row * padded..], memory.sum[row]);
        }
        if let Some(lse) = &call.lse {
            // SAFETY: as above.
            let lse = unsafe { lse.part_mut::<f32>(row, column..column + group) };
            for (head, lse) in lse.iter_mut().enumerate() {
                let row = token * group + head;
                *lse = memory.max[row] + memory.sum[row].ln();
            }
        }
    }
}

/// Adds a block of keys and values to all rows; row r sees the first `visible(r)` of them. What a row does not see it does
/// not touch, so that its bits are those of a block that ends there.
fn attend_block(
    heads: Heads,
    rows: usize,
    visible: impl Fn(usize) -> usize,
    scale: f32,
    memory: &mut Memory<'_>,
) {
    let Heads { head_dim, padded, .. } = heads;
    let mut scores = [0f32; 4 * KEYS];
    for first in (0..rows).step_by(4) {
        let height = (rows - first).min(4);
        let (mut seen, mut most) = ([0; 4], 0);
        for row in 0..height {
            seen[row] = visible(first + row);
            most = most.max(seen[row]);
        }
        if most == 0 {
            continue;
        }
        let columns = most.next_multiple_of(LANES);
        let queries = Strided { values: &memory.queries[first * padded..], row: padded, column: 1 };
        product(&mut scores, KEYS, queries, memory.keys, KEYS, height, columns, head_dim, false);
        for row in 0..height {
            let sums = &mut memory.sums[(first + row) * padded..][..padded];
            soften(
                &mut scores[row * KEYS..][..columns],
                seen[row],
                scale,
                &mut memory.max[first + row],
                &mut memory.sum[first + row],
                sums,
            );
        }
        // Together as far as all see, then each row alone.
        let common = seen[..height].iter().copied().min().unwrap_or(0);
        let sums = &mut memory.sums[first * padded..];
        let weights = Strided { values: &scores, row: KEYS, column: 1 };
        product(sums, padded, weights, memory.values, padded, height, padded, common, true);
        for row in 0..height {
            let values = &memory.values[common * padded..];
            let weights = Strided { values: &scores[row * KEYS + common..], row: KEYS, column: 1 };
            let sums = &mut sums[row * padded..];
            product(sums, padded, weights, values, padded, 1, padded, seen[row] - common, true);
        }
    }
}

multiversion! {
    /// Turns one row's products with a block of keys into weights relative to the largest score so far, and brings what
    /// was summed before to the same scale.
    fn soften(
        scores: &mut [f32],
        visible: usize,
        scale: f32,
        max: &mut f32,
        sum: &mut f32,
        sums: &mut [f32],
    ) {
        if visible == 0 {
            return;
        }
        let mut largest = [f32::NEG_INFINITY; LANES];
        for (vector, scores) in scores.chunks_exact_mut(LANES).enumerate() {
            for lane in 0..LANES {
                let score = scores[lane] * scale;
                let seen = vector * LANES + lane < visible;
                let score = if seen { score } else { f32::NEG_INFINITY };
                scores[lane] = score;
                largest[lane] = if score > largest[lane] { score } else { largest[lane] };
            }
        }
        let new_max = tree(largest, |a, b| if a > b { a } else { b }).max(*max);
        let mut added = [0f32; LANES];
        for scores in scores.chunks_exact_mut(LANES) {
            for lane in 0..LANES {
                scores[lane] = math::exp_bounded(scores[lane] - new_max);
                added[lane] += scores[lane];
            }
        }
        let correction = math::exp_bounded(*max - new_max);
        *max = new_max;
        *sum = sum.mul_add(correction, tree(added, |a, b| a + b));
        for sum in sums {
            *sum *= correction;
        }
    }
}

/// Combines lanes pair by pair, then the halves, and so on.
#[inline(always)]
fn tree(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = combine(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}
