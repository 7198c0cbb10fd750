//! The host version of backward.
//!
//! A task is a block of keys of one sequence under one key/value head. It walks over tiles of queries: the weights are computed
//! again from q, k and the log-sum-exp, d_k and d_v of the block stay in the cache, and d_q collects in float32 memory. Every
//! element of every gradient is one chain in the order of keys or of queries: a task takes a tile of queries when the task of the keys
//! before its own has left it. So the blocks of one sequence follow one another through the tiles, on as many cores as there are.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use prime_runtime::{Element, Result, SharedMut, View, ViewMut};

use super::pack::{self, Block};
use super::product::{Strided, product};
use super::{Heads, KEYS, LANES, tree};
use crate::arguments::with_float;
use crate::attention::{Mask, Span};
use crate::simd::multiversion;
use crate::{math, parallel, scratch};

pub(in crate::attention) fn backward(
    d_q: ViewMut<'_>,
    d_k: ViewMut<'_>,
    d_v: ViewMut<'_>,
    d_out: View<'_>,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    out: View<'_>,
    lse: View<'_>,
    cu_seqlens: View<'_>,
    scale: f32,
    mask: Mask,
) -> Result<()> {
    let (d_q, d_k, d_v) = (d_q.shared(), d_k.shared(), d_v.shared());
    let call = Call { d_q, d_k, d_v, d_out, q, k, v, out, lse, cu_seqlens, scale, mask };
    with_float!(q.dtype(), E => sequences::<E>(&call))
}

/// Rows of a tile. Keys that only some of its tokens see are computed for all.
const ROWS: usize = 64;

/// Floats between the memories of two workers. Without them the end of one is fetched ahead with the beginning of the other, while that is written: measured,
/// up to a fifth of the time.
const GAP: usize = 8192;

/// What the tasks of one call share.
struct Call<'a> {
    d_q: SharedMut<'a>,
    d_k: SharedMut<'a>,
    d_v: SharedMut<'a>,
    d_out: View<'a>,
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    out: View<'a>,
    lse: View<'a>,
    cu_seqlens: View<'a>,
    scale: f32,
    mask: Mask,
}

/// The working memory of one task; rows are (token, head of the group).
struct Memory<'a> {
    queries: &'a mut [f32],  // (rows, padded)
    d_out: &'a mut [f32],    // (rows, padded)
    keys: &'a mut [f32],     // (KEYS, padded)
    keys_t: &'a mut [f32],   // (head_dim, KEYS)
    values_t: &'a mut [f32], // (head_dim, KEYS)
    d_keys: &'a mut [f32],   // (KEYS, padded)
    d_values: &'a mut [f32], // (KEYS, padded)
    weights: &'a mut [f32],  // (rows, KEYS)
    d_scores: &'a mut [f32], // (rows, KEYS)
}

impl<'a> Memory<'a> {
    fn size(heads: Heads) -> usize {
        let rows = (heads.tile(ROWS) * heads.group).next_multiple_of(LANES);
        2 * rows * heads.padded + 5 * KEYS * heads.padded + 2 * rows * KEYS
    }

    fn of(memory: &'a mut [f32], heads: Heads) -> Self {
        let rows = (heads.tile(ROWS) * heads.group).next_multiple_of(LANES);
        let (queries, memory) = memory.split_at_mut(rows * heads.padded);
        let (d_out, memory) = memory.split_at_mut(rows * heads.padded);
        let (keys, memory) = memory.split_at_mut(KEYS * heads.padded);
        let (keys_t, memory) = memory.split_at_mut(KEYS * heads.padded);
        let (values_t, memory) = memory.split_at_mut(KEYS * heads.padded);
        let (d_keys, memory) = memory.split_at_mut(KEYS * heads.padded);
        let (d_values, memory) = memory.split_at_mut(KEYS * heads.padded);
        let (weights, d_scores) = memory.split_at_mut(rows * KEYS);
        Memory { queries, d_out, keys, keys_t, values_t, d_keys, d_values, weights, d_scores }
    }
}

/// Of a tile of queries; rows are (token, head of the group).
struct Rows<'a> {
    d_queries: &'a mut [f32], // (rows, padded)
    lse: &'a mut [f32],       // (rows)
    mean: &'a mut [f32],      // (rows): d_out times out, added; the mean of the weights' gradients
}

/// The same of all rows, `(sequence, key/value head, token, head of the group)`.
struct AllRows<'a> {
    d_queries: SharedMut<'a>,
    lse: SharedMut<'a>,
    mean: SharedMut<'a>,
}

impl AllRows<'_> {
    /// Those of some tokens of a sequence under one key/value head.
    ///
    /// # Safety
    /// No other thread uses them.
    unsafe fn tile(
        &self,
        heads: Heads,
        span: Span,
        kv_head: usize,
        tokens: Range<usize>,
    ) -> Rows<'_> {
        let start = (span.query * heads.kv_heads + kv_head * span.new) * heads.group;
        let range = start + tokens.start * heads.group..start + tokens.end * heads.group;
        // SAFETY: the caller's promise.
        unsafe {
            Rows {
                d_queries: self
                    .d_queries
                    .part_mut(0, range.start * heads.padded..range.end * heads.padded),
                lse: self.lse.part_mut(0, range.clone()),
                mean: self.mean.part_mut(0, range),
            }
        }
    }
}

/// How many tiles of its queries a block of keys has left. At its end it has left all, also if it panics: nobody waits for ever.
struct Progress<'a>(&'a AtomicU32);

impl Progress<'_> {
    fn leave(&self, tile: usize) {
        self.0.store(tile as u32 + 1, Ordering::Release);
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.0.store(u32::MAX, Ordering::Release);
    }
}

/// Waits until a block has left a tile.
fn await_tile(progress: &AtomicU32, tile: usize) {
    let mut looks = 0u32;
    while progress.load(Ordering::Acquire) <= tile as u32 {
        looks += 1;
        if looks.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
}

fn sequences<E: Element>(call: &Call<'_>) -> Result<()> {
    let heads = Heads::new(&call.q, &call.k);
    let (tokens, sequences) = (call.q.dim(0), call.cu_seqlens.dim(0) - 1);
    let all_rows = tokens * heads.kv_heads * heads.group;
    let mut d_queries = scratch::take::<f32>(all_rows * heads.padded)?;
    let mut lse = scratch::take::<f32>(all_rows)?;
    let mut mean = scratch::take::<f32>(all_rows)?;
    let rows = AllRows {
        d_queries: ViewMut::from_slice(&mut d_queries, &[1, all_rows * heads.padded]).shared(),
        lse: ViewMut::from_slice(&mut lse, &[1, all_rows]).shared(),
        mean: ViewMut::from_slice(&mut mean, &[1, all_rows]).shared(),
    };
    // Of each sequence and key/value head, how many blocks of keys were begun; and of each block, how many tiles it has left. No two blocks
    // have one slot: a sequence's blocks are at most one more than begin between its start and the next one's.
    let units = sequences * heads.kv_heads;
    let slots = tokens / KEYS + sequences + 1;
    let mut counters = scratch::take::<u32>(units + heads.kv_heads * slots)?;
    counters.fill(0);
    // SAFETY: an atomic has the size and alignment of its number, and there is no other borrow.
    let counters = unsafe {
        let length = counters.len();
        std::slice::from_raw_parts(counters.as_mut_ptr().cast::<AtomicU32>(), length)
    };
    let (begun, progress) = counters.split_at(units);
    let span = |unit| Span::of_cu_seqlens(&call.cu_seqlens, unit / heads.kv_heads);
    let left = |unit: usize| {
        let blocks = span(unit).keys.div_ceil(KEYS);
        blocks.saturating_sub(begun[unit].load(Ordering::Relaxed) as usize)
    };
    // Begins the next block of a unit and ends it, if there is one. Its predecessor was begun by a worker that ends it without waiting for anything
    // but its own predecessor: none waits for ever.
    let advance = |unit: usize, memory: &mut Memory<'_>| {
        let place = begun[unit].fetch_add(1, Ordering::Relaxed) as usize;
        let span = span(unit);
        if place >= span.keys.div_ceil(KEYS) {
            return false;
        }
        let (sequence, kv_head) = (unit / heads.kv_heads, unit % heads.kv_heads);
        let slot = kv_head * slots + span.key / KEYS + sequence + place;
        let own = Progress(&progress[slot]);
        let before = (place > 0).then(|| &progress[slot - 1]);
        let await_tile = |tile| before.into_iter().for_each(|b| await_tile(b, tile));
        keys::<E>(call, heads, span, place, kv_head, &rows, memory, &own, await_tile);
        true
    };
    let workers = rayon::current_num_threads().min(tokens.div_ceil(KEYS) * heads.kv_heads);
    let each = Memory::size(heads) + GAP;
    let mut memory = scratch::take::<f32>(each * parallel::pieces(workers))?;
    parallel::ranges_with(workers, 1, &mut memory, each, |range, memory| {
        let mut memory = Memory::of(memory, heads);
        // Units that nobody began, neighbours first: their queries stay in the core's cache. Once there are none, the unit that has the most left.
        let first = range.start * units / workers;
        for unit in (first..units).chain(0..first) {
            if begun[unit].load(Ordering::Relaxed) == 0 {
                while advance(unit, &mut memory) {}
            }
        }
        while let Some(unit) = (0..units).max_by_key(|&unit| left(unit)).filter(|&u| left(u) > 0) {
            advance(unit, &mut memory);
        }
    });
    Ok(())
}

/// A block of keys of one sequence under one key/value head.
fn keys<E: Element>(
    call: &Call<'_>,
    heads: Heads,
    span: Span,
    place: usize,
    kv_head: usize,
    rows: &AllRows<'_>,
    memory: &mut Memory<'_>,
    progress: &Progress<'_>,
    await_tile: impl Fn(usize),
) {
    let Heads { group, head_dim, padded, .. } = heads;
    let columns = |row: Block| row.column..row.column + row.heads * head_dim;
    let start = place * KEYS;
    let keys = heads.keys(span.key + start, KEYS.min(span.keys - start), kv_head);
    pack::widen::<E>(memory.keys, &call.k, keys);
    pack::transpose::<E>(memory.keys_t, &call.k, keys);
    pack::transpose::<E>(memory.values_t, &call.v, keys);
    memory.d_keys[..keys.rows * padded].fill(0.0);
    memory.d_values[..keys.rows * padded].fill(0.0);
    let tokens = heads.tile(ROWS);
    let first = if call.mask == Mask::Causal { start / tokens } else { 0 };
    for tile in first..span.new.div_ceil(tokens) {
        let tokens = tile * tokens..span.new.min((tile + 1) * tokens);
        let queries = heads.queries(span.query + tokens.start, tokens.len(), kv_head);
        pack::widen::<E>(memory.queries, &call.q, queries);
        pack::widen::<E>(memory.d_out, &call.d_out, queries);
        await_tile(tile);
        // SAFETY: the block before has left the tile, and the next one waits until this one does.
        let mut rows = unsafe { rows.tile(heads, span, kv_head, tokens.clone()) };
        if place == 0 {
            means::<E>(rows.mean, &call.out, &call.d_out, queries);
            for (token, lse) in tokens.clone().zip(rows.lse.chunks_exact_mut(group)) {
                let row = call.lse.row::<f32>(span.query + token);
                lse.copy_from_slice(&row[kv_head * group..(kv_head + 1) * group]);
            }
        }
        let visible = |row: usize| {
            let all = span.visible(tokens.start + row / group, call.mask);
            all.saturating_sub(start).min(keys.rows)
        };
        let count = tokens.len() * group;
        block(heads, count, visible, call.scale, start > 0, &mut rows, memory);
        if span.visible(tokens.end - 1, call.mask) <= start + keys.rows {
            for (token, d_queries) in tokens.zip(rows.d_queries.chunks_exact(group * padded)) {
                let block = heads.queries(span.query + token, 1, kv_head);
                // SAFETY: of all blocks, the last that the tile sees writes the rows of its tokens under the block's heads.
                let d_q = unsafe { call.d_q.part_mut::<E>(block.first, columns(block)) };
                for (d_q, d_query) in
                    d_q.chunks_exact_mut(head_dim).zip(d_queries.chunks_exact(padded))
                {
                    pack::narrow(d_q, d_query, 1.0);
                }
            }
        }
        progress.leave(tile);
    }
    for key in 0..keys.rows {
        let row = keys.first + key;
        // SAFETY: a task alone writes the rows of its keys under its head.
        let d_k = unsafe { call.d_k.part_mut::<E>(row, columns(keys)) };
        pack::narrow(d_k, &memory.d_keys[key * padded..], 1.0);
        // SAFETY: as above.
        let d_v = unsafe { call.d_v.part_mut::<E>(row, columns(keys)) };
        pack::narrow(d_v, &memory.d_values[key * padded..], 1.0);
    }
}

/// A tile of queries with a block of keys: adds to the gradients of both, or sets those of queries that met no block before.
fn block(
    heads: Heads,
    rows: usize,
    visible: impl Fn(usize) -> usize,
    scale: f32,
    met_before: bool,
    tile: &mut Rows<'_>,
    memory: &mut Memory<'_>,
) {
    let Heads { head_dim, padded, .. } = heads;
    let Memory { queries, d_out, keys, keys_t, values_t, d_keys, d_values, weights, d_scores } =
        memory;
    // The last row sees the most.
    let seen = visible(rows - 1);
    let columns = seen.next_multiple_of(LANES);
    let by_rows = |values| Strided { values, row: padded, column: 1 };
    product(weights, KEYS, by_rows(queries), keys_t, KEYS, rows, columns, head_dim, false);
    product(d_scores, KEYS, by_rows(d_out), values_t, KEYS, rows, columns, head_dim, false);
    for row in 0..rows {
        let weights = &mut weights[row * KEYS..][..columns];
        let d_scores = &mut d_scores[row * KEYS..][..columns];
        soften(weights, d_scores, visible(row), scale, tile.lse[row], tile.mean[row]);
    }
    let by_keys = |values| Strided { values, row: 1, column: KEYS };
    let d_s = Strided { values: d_scores, row: KEYS, column: 1 };
    product(tile.d_queries, padded, d_s, keys, padded, rows, padded, seen, met_before);
    product(d_keys, padded, by_keys(d_scores), queries, padded, seen, padded, rows, true);
    product(d_values, padded, by_keys(weights), d_out, padded, seen, padded, rows, true);
}

multiversion! {
    /// Turns one row's products of q and k into weights, and those of d_out and v into gradients of the products of q and k.
    fn soften(
        weights: &mut [f32],
        d_scores: &mut [f32],
        visible: usize,
        scale: f32,
        lse: f32,
        mean: f32,
    ) {
        let vectors = weights.chunks_exact_mut(LANES).zip(d_scores.chunks_exact_mut(LANES));
        for (vector, (weights, d_scores)) in vectors.enumerate() {
            for lane in 0..LANES {
                let seen = vector * LANES + lane < visible;
                let weight = math::exp_bounded(weights[lane] * scale - lse);
                let d_score = weight * (d_scores[lane] - mean) * scale;
                weights[lane] = if seen { weight } else { 0.0 };
                d_scores[lane] = if seen { d_score } else { 0.0 };
            }
        }
    }
}

multiversion! {
    /// For each head of a block the sum of `out` times `d_out`, in lanes and then in a tree.
    fn means<E: Element>(means: &mut [f32], out: &View<'_>, d_out: &View<'_>, block: Block) {
        let columns = block.column..block.column + block.heads * block.width;
        let mut means = means.iter_mut();
        for row in block.first..block.first + block.rows {
            let out = out.row::<E>(row)[columns.clone()].chunks_exact(block.width);
            let d_out = d_out.row::<E>(row)[columns.clone()].chunks_exact(block.width);
            for ((out, d_out), mean) in out.zip(d_out).zip(&mut means) {
                let (out, out_rest) = out.as_chunks::<LANES>();
                let (d_out, d_out_rest) = d_out.as_chunks::<LANES>();
                let mut sums = [0f32; LANES];
                for (out, d_out) in out.iter().zip(d_out) {
                    for lane in 0..LANES {
                        sums[lane] = out[lane].to_f32().mul_add(d_out[lane].to_f32(), sums[lane]);
                    }
                }
                for ((sum, out), d_out) in sums.iter_mut().zip(out_rest).zip(d_out_rest) {
                    *sum = out.to_f32().mul_add(d_out.to_f32(), *sum);
                }
                *mean = tree(sums, |a, b| a + b);
            }
        }
    }
}
