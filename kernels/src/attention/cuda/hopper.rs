//! Launchers of the kernels for Hopper: bfloat16 whose rows and heads start at multiples of 16 bytes.

use std::f32::consts::LOG2_E;

use prime_runtime::{DType, Result, View, ViewMut};

use super::super::tuning::{self, Problem, Variant};
use super::{FRAGMENT, ForwardKernel, Lengths, Mask, Pages, aligned, page_shift, stride, tiles};
use crate::device::{
    DeviceStruct, Launch, Pointer, StructLayout, Swizzle, TensorMap, Tiling, device_struct, tier,
};
use crate::numerics::Numerics;
use crate::scratch;

device_struct! {
    struct AttentionForwardHopper {
        q: TensorMap,
        k: TensorMap,
        v: TensorMap,
        out: Pointer,
        lse: Pointer,
        values: Pointer,
        cu_seqlens: Pointer,
        spans: Pointer,
        table: Pointer,
        taken: Pointer,
        tiles: u32,
        items: u32,
        heads_together: u32,
        sequences: u32,
        shared_by: u32,
        head_dim: u32,
        causal: u32,
        page_shift: u32,
        box_rows: u32,
        scale: f32,
        scale_log2: f32,
        out_stride: u64,
        lse_stride: u64,
        values_stride: u64,
        spans_stride: u64,
        table_stride: u64,
    }

    struct AttentionPrepareHopper {
        lse: Pointer,
        delta: Pointer,
        sums: Pointer,
        turns: Pointer,
        d_out: Pointer,
        out: Pointer,
        lse_in: Pointer,
        cu_seqlens: Pointer,
        sequences: u32,
        tokens: u32,
        slots: u32,
        head_dim: u32,
        pieces: u32,
        d_out_stride: u64,
        out_stride: u64,
        lse_in_stride: u64,
    }

    struct AttentionBackwardHopper {
        q: TensorMap,
        d_out: TensorMap,
        k: TensorMap,
        v: TensorMap,
        d_k: Pointer,
        d_v: Pointer,
        sums: Pointer,
        lse: Pointer,
        delta: Pointer,
        turns: Pointer,
        cu_seqlens: Pointer,
        sequences: u32,
        tokens: u32,
        slots: u32,
        shared_by: u32,
        head_dim: u32,
        causal: u32,
        scale: f32,
        scale_log2: f32,
        d_k_stride: u64,
        d_v_stride: u64,
    }

    struct AttentionFinishHopper {
        d_q: Pointer,
        sums: Pointer,
        tokens: u32,
        heads: u32,
        head_dim: u32,
        pieces: u32,
        scale: f32,
        d_q_stride: u64,
    }

    struct AttentionDecodeHopper {
        keys: TensorMap,
        values: TensorMap,
        out: Pointer,
        part: Pointer,
        part_lse: Pointer,
        q: Pointer,
        spans: Pointer,
        table: Pointer,
        sequences: u32,
        shared_by: u32,
        heads: u32,
        rows: u32,
        head_dim: u32,
        splits: u32,
        page_shift: u32,
        scale_log2: f32,
        out_stride: u64,
        q_stride: u64,
        spans_stride: u64,
        table_stride: u64,
    }
}

/// The argument structs of these kernels.
pub(super) const LAYOUTS: [StructLayout; 5] = [
    AttentionForwardHopper::LAYOUT,
    AttentionPrepareHopper::LAYOUT,
    AttentionBackwardHopper::LAYOUT,
    AttentionFinishHopper::LAYOUT,
    AttentionDecodeHopper::LAYOUT,
];

/// Columns of a piece: 128 bytes, what a swizzle spans.
const PIECE: u32 = 64;

/// An instance of the forward kernel.
#[derive(Debug, PartialEq, Eq)]
pub(in super::super) struct ForwardVariant {
    /// As the `.cu` text lists it.
    pub(super) name: &'static str,
    /// The most elements of a head.
    head_dim: usize,
    /// Query rows of a block, 64 a warpgroup, and keys of a step.
    rows: usize,
    keys: usize,
}

/// For each head dimension the variant that is taken first, then others.
pub(super) const FORWARD: &[ForwardVariant] = &[
    ForwardVariant {
        name: "attention_forward_sm90<64, 3, 128>",
        head_dim: 64,
        rows: 192,
        keys: 128,
    },
    ForwardVariant {
        name: "attention_forward_sm90<64, 2, 128>",
        head_dim: 64,
        rows: 128,
        keys: 128,
    },
    ForwardVariant {
        name: "attention_forward_sm90<128, 2, 128>",
        head_dim: 128,
        rows: 128,
        keys: 128,
    },
    ForwardVariant {
        name: "attention_forward_sm90<128, 2, 176>",
        head_dim: 128,
        rows: 128,
        keys: 176,
    },
    ForwardVariant {
        name: "attention_forward_sm90<256, 2, 64>",
        head_dim: 256,
        rows: 128,
        keys: 64,
    },
];

impl ForwardVariant {
    /// The consumers' threads, and a warpgroup that loads.
    fn threads(&self) -> u32 {
        2 * self.rows as u32 + 128
    }

    /// Queries, two stages of keys and values, ten barriers; of two tiles what is known, and a word for each block that is cleaned.
    fn shared(&self) -> usize {
        let cleaned = (self.rows - 1) / self.keys + 2;
        (self.rows + 4 * self.keys) * self.head_dim * 2 + 10 * 8 + 2 * (32 + cleaned * 4)
    }
}

/// The first of the variants with the least room that a head of so many elements fits into.
fn choose<V>(variants: &[V], room: impl Fn(&V) -> usize, head_dim: usize) -> Option<&V> {
    variants.iter().filter(|variant| room(variant) >= head_dim).min_by_key(|variant| room(variant))
}

/// The forward variants for a head of so many elements, the one that is taken unless another is preferred first.
pub(super) fn forward_variants(head_dim: usize) -> impl Iterator<Item = &'static ForwardVariant> {
    let room = choose(FORWARD, |variant| variant.head_dim, head_dim).map(|found| found.head_dim);
    FORWARD.iter().filter(move |variant| Some(variant.head_dim) == room)
}

/// Fewest new tokens a sequence for which tiles of one head's queries are worth more than tiles of all heads that share keys.
const LEAST_QUERIES: usize = 64;

/// The forward variant that serves a call, if one does.
pub(super) fn forward_variant(
    [q, k, v]: [View<'_>; 3],
    out: View<'_>,
    lengths: Lengths<'_>,
    sequences: usize,
    mask: Mask,
    numerics: Numerics,
) -> Result<Option<&'static ForwardVariant>> {
    let [tokens, heads, head_dim] = [0, 1, 2].map(|axis| q.dim(axis));
    let (kv_heads, dtype) = (k.dim(1), q.dtype());
    let problem = Problem { tokens, sequences, heads, kv_heads, head_dim, mask, dtype };
    let few = matches!(lengths, Lengths::Spans(..)) && tokens < LEAST_QUERIES * sequences;
    // Sampler and trainer are to take one path, and decoding has none here.
    let other = numerics == Numerics::Invariant || few;
    if other || !serves(head_dim, &[q, k, v, out])? {
        return Ok(None);
    }
    let Some(first) = choose(FORWARD, |variant| variant.head_dim, head_dim) else {
        return Ok(None);
    };
    let preferred = tuning::preferred(&problem).map(|Variant(kernel)| kernel);
    Ok(match preferred {
        Some(ForwardKernel::Portable(_)) => None,
        Some(ForwardKernel::Hopper(variant)) if variant.head_dim == first.head_dim => Some(variant),
        _ => Some(first),
    })
}

/// Whether a device has these kernels for views.
fn serves(head_dim: usize, views: &[View<'_>]) -> Result<bool> {
    let [first, ..] = views else { return Ok(false) };
    let fits = first.dtype() == DType::BF16 && aligned(head_dim, views) == 1 && first.dim(0) > 0;
    Ok(fits && tier(first.device())?.hopper())
}

/// A map of `[tokens, heads, head_dim]` with boxes of so many rows of a piece of one head.
fn map(launch: &mut Launch<'_>, view: View<'_>, start: Pointer, rows: usize) -> Result<TensorMap> {
    let [tokens, heads, head_dim] = [0, 1, 2].map(|axis| view.dim(axis) as u64);
    // The distance of rows means nothing where there is one, and may then be anything.
    let row = if tokens > 1 { stride(view) } else { heads * head_dim };
    let tiling = Tiling {
        dtype: DType::BF16,
        start,
        dims: &[head_dim, heads, tokens],
        strides: &[2 * head_dim, 2 * row],
        tile: &[PIECE, 1, rows as u32],
        swizzle: Swizzle::Bytes128,
    };
    TensorMap::new(launch.device(), &tiling)
}

/// Bytes of keys and values that stay in the last cache while tiles pass: part of an H200's 50 MB.
const CACHED: usize = 32 << 20;

/// How many query heads' tiles come together: all that share keys, and as many of these as the cache holds. It divides the number of heads.
fn heads_together(heads: usize, shared_by: usize, keys: View<'_>) -> usize {
    let of_one = 2 * keys.dim(0) * keys.dim(2) * keys.dtype().size();
    let kv_heads = heads / shared_by;
    let most = (CACHED / of_one.max(1)).clamp(1, kv_heads);
    let fitting = (1..=most).rev().find(|&some| kv_heads.is_multiple_of(some));
    fitting.unwrap_or(1) * shared_by
}

pub(super) fn forward<'a>(
    variant: &'static ForwardVariant,
    out: &'a mut ViewMut<'_>,
    lse: Option<&'a mut ViewMut<'_>>,
    [q, k, v]: [View<'a>; 3],
    lengths: Lengths<'a>,
    sequences: usize,
    scale: f32,
    mask: Mask,
) -> Result<()> {
    let (tokens, heads, head_dim) = (q.dim(0), q.dim(1), q.dim(2));
    let (offsets, spans, pages) = match lengths {
        Lengths::Offsets(offsets) => (Some(offsets), None, None),
        Lengths::Spans(spans, pages) => (None, Some(spans), pages),
    };
    // Rows of a box lie in one page: powers of two that divide a step.
    let box_rows =
        pages.map_or(variant.keys, |pages| pages.size.min(1 << variant.keys.trailing_zeros()));
    let (tiles, shared_by) = (tiles(tokens, variant.rows, sequences), heads / k.dim(1));
    let items = tiles * heads;
    let blocks = items.min(tier(q.device())?.multiprocessors);
    let mut taken =
        (items > blocks).then(|| scratch::device(q.device(), DType::U32, 1, 1)).transpose()?;
    let mut taken = taken.as_mut().map(|taken| taken.view_mut());
    if let Some(taken) = &mut taken {
        taken.fill_zero()?;
    }
    let (out_stride, lse_stride) =
        (stride(out.as_view()), lse.as_ref().map_or(0, |lse| stride(lse.as_view())));
    let mut launch = Launch::new(&super::CODE.sources[3], variant.name, q.device());
    let [q_at, k_at, v_at] = [q, k, v].map(|view| launch.read(view));
    let arguments = AttentionForwardHopper {
        q: map(&mut launch, q, q_at, variant.rows)?,
        k: map(&mut launch, k, k_at, box_rows)?,
        v: map(&mut launch, v, v_at, box_rows)?,
        out: launch.write(out),
        lse: launch.write_if(lse),
        values: v_at,
        cu_seqlens: launch.read_if(offsets),
        spans: launch.read_if(spans),
        table: launch.read_if(pages.map(|pages| pages.table)),
        taken: launch.write_if(taken.as_mut()),
        tiles: tiles as u32,
        items: items as u32,
        heads_together: heads_together(heads, shared_by, k) as u32,
        sequences: sequences as u32,
        shared_by: shared_by as u32,
        head_dim: head_dim as u32,
        causal: u32::from(mask == Mask::Causal),
        page_shift: page_shift(pages),
        box_rows: box_rows as u32,
        scale,
        scale_log2: scale * LOG2_E,
        out_stride,
        lse_stride,
        values_stride: stride(v),
        spans_stride: spans.map_or(0, stride),
        table_stride: pages.map_or(0, |pages| stride(pages.table)),
    };
    launch.grid([blocks, 1, 1]).block(variant.threads()).shared(variant.shared()).run(&arguments)
}

/// An instance of the backward kernel.
#[derive(Debug, PartialEq)]
pub(super) struct BackwardVariant {
    /// As the `.cu` text lists it.
    name: &'static str,
    /// The most elements of a head.
    head_dim: usize,
    /// Keys of a block.
    keys: usize,
}

pub(super) const BACKWARD: &[BackwardVariant] = &[
    BackwardVariant { name: "attention_backward_sm90<64>", head_dim: 64, keys: 128 },
    BackwardVariant { name: "attention_backward_sm90<128>", head_dim: 128, keys: 128 },
    BackwardVariant { name: "attention_backward_sm90<256>", head_dim: 256, keys: 64 },
];

/// Queries of a step of the backward kernel.
const QUERIES: usize = 64;

impl BackwardVariant {
    fn pieces(&self) -> usize {
        self.head_dim / PIECE as usize
    }

    /// Own keys and values; two stages of queries and one or two of d_out, as many of gradients of scores, weights that are handed over where there is one; two
    /// parts of d_q; a number for each query of a stage; two barriers for each stage, four of the parts, one of the keys.
    fn shared(&self) -> usize {
        let (stages, handed) =
            if self.head_dim > 128 { (1, self.keys * QUERIES * 4) } else { (2, 0) };
        let rows = (2 * self.keys + (2 + stages) * QUERIES) * self.head_dim * 2;
        let scores = stages * self.keys * QUERIES * 2 + handed;
        rows + scores + 2 * QUERIES * QUERIES * 4 + (2 + stages) * (QUERIES * 4 + 16) + 5 * 8
    }
}

/// Fewest tokens a sequence, on average, for which numbers lie by tiles of a sequence each.
const LEAST_LENGTH: usize = 16;

/// The backward variant that serves a call, if one does.
pub(super) fn backward_variant(
    head_dim: usize,
    views: &[View<'_>],
    sequences: usize,
) -> Result<Option<&'static BackwardVariant>> {
    let short = views.first().is_some_and(|view| view.dim(0) < LEAST_LENGTH * sequences);
    if short || !serves(head_dim, views)? {
        return Ok(None);
    }
    Ok(choose(BACKWARD, |variant| variant.head_dim, head_dim))
}

/// Elements that [`backward`] borrows: sums of d_q, each of two numbers a query, and turns.
fn scratch_elements(tokens: usize, heads: usize, pieces: usize, sequences: usize) -> [usize; 3] {
    let slots = heads * slots(tokens, sequences);
    [heads * pieces * tokens * PIECE as usize, slots * QUERIES, 2 * slots]
}

/// Tiles of queries that have a slot: those of any sequences of so many tokens together.
fn slots(tokens: usize, sequences: usize) -> usize {
    tokens / QUERIES + sequences
}

/// The most bytes that [`backward`] borrows for any sequences of so many tokens together.
pub(super) fn backward_scratch(tokens: usize, heads: usize, head_dim: usize) -> usize {
    let Some(variant) = choose(BACKWARD, |variant| variant.head_dim, head_dim) else { return 0 };
    let [sums, numbers, turns] =
        scratch_elements(tokens, heads, variant.pieces(), tokens / LEAST_LENGTH);
    scratch::device_bytes(DType::F32, sums)
        + 2 * scratch::device_bytes(DType::F32, numbers)
        + scratch::device_bytes(DType::U32, turns)
}

/// The gradients, from `[d_out, q, k, v, out, lse, cu_seqlens]`.
pub(super) fn backward<'a>(
    variant: &'static BackwardVariant,
    d_q: &'a mut ViewMut<'_>,
    d_k: &'a mut ViewMut<'_>,
    d_v: &'a mut ViewMut<'_>,
    [d_out, q, k, v, out, lse, cu_seqlens]: [View<'a>; 7],
    scale: f32,
    mask: Mask,
    numerics: Numerics,
) -> Result<()> {
    let (tokens, heads, head_dim) = (q.dim(0), q.dim(1), q.dim(2));
    let (device, kv_heads, sequences) = (q.device(), k.dim(1), cu_seqlens.dim(0) - 1);
    let (pieces, slots) = (variant.pieces(), slots(tokens, sequences));
    let source = &super::CODE.sources[4];
    let mut sums = scratch::device(device, DType::F32, heads * pieces * tokens, PIECE as usize)?;
    let mut kept_lse = scratch::device(device, DType::F32, heads * slots, QUERIES)?;
    let mut delta = scratch::device(device, DType::F32, heads * slots, QUERIES)?;
    let mut turns = (numerics != Numerics::Unordered)
        .then(|| scratch::device(device, DType::U32, heads * slots, 2))
        .transpose()?;
    let (mut sums, mut kept_lse, mut delta) =
        (sums.view_mut(), kept_lse.view_mut(), delta.view_mut());
    let mut turns = turns.as_mut().map(|turns| turns.view_mut());

    let mut launch = Launch::new(source, "attention_prepare_sm90", device);
    let arguments = AttentionPrepareHopper {
        lse: launch.write(&mut kept_lse),
        delta: launch.write(&mut delta),
        sums: launch.write(&mut sums),
        turns: launch.write_if(turns.as_mut()),
        d_out: launch.read(d_out),
        out: launch.read(out),
        lse_in: launch.read(lse),
        cu_seqlens: launch.read(cu_seqlens),
        sequences: sequences as u32,
        tokens: tokens as u32,
        slots: slots as u32,
        head_dim: head_dim as u32,
        pieces: pieces as u32,
        d_out_stride: stride(d_out),
        out_stride: stride(out),
        lse_in_stride: stride(lse),
    };
    let grid = [tiles(tokens, QUERIES, sequences), heads, 1];
    launch.grid(grid).block(256).run(&arguments)?;

    let (d_k_stride, d_v_stride) = (stride(d_k.as_view()), stride(d_v.as_view()));
    let mut launch = Launch::new(source, variant.name, device);
    let [q_at, d_out_at, k_at, v_at] = [q, d_out, k, v].map(|view| launch.read(view));
    let arguments = AttentionBackwardHopper {
        q: map(&mut launch, q, q_at, QUERIES)?,
        d_out: map(&mut launch, d_out, d_out_at, QUERIES)?,
        k: map(&mut launch, k, k_at, variant.keys)?,
        v: map(&mut launch, v, v_at, variant.keys)?,
        d_k: launch.write(d_k),
        d_v: launch.write(d_v),
        sums: launch.write(&mut sums),
        lse: launch.read(kept_lse.as_view()),
        delta: launch.read(delta.as_view()),
        turns: launch.write_if(turns.as_mut()),
        cu_seqlens: launch.read(cu_seqlens),
        sequences: sequences as u32,
        tokens: tokens as u32,
        slots: slots as u32,
        shared_by: (heads / kv_heads) as u32,
        head_dim: head_dim as u32,
        causal: u32::from(mask == Mask::Causal),
        scale,
        scale_log2: scale * LOG2_E,
        d_k_stride,
        d_v_stride,
    };
    launch
        .grid([tiles(tokens, variant.keys, sequences), kv_heads, 1])
        .block(384)
        .shared(variant.shared())
        .run(&arguments)?;

    let d_q_stride = stride(d_q.as_view());
    let mut launch = Launch::new(source, "attention_finish_sm90", device);
    let arguments = AttentionFinishHopper {
        d_q: launch.write(d_q),
        sums: launch.read(sums.as_view()),
        tokens: tokens as u32,
        heads: heads as u32,
        head_dim: head_dim as u32,
        pieces: pieces as u32,
        scale,
        d_q_stride,
    };
    let threads = tokens * heads * head_dim / 8;
    launch.grid([threads.div_ceil(256), 1, 1]).block(256).run(&arguments)
}

/// An instance of the decode kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DecodeVariant {
    /// As the `.cu` text lists it.
    pub(super) name: &'static str,
    /// The most elements of a head.
    head_dim: usize,
    warps: usize,
    stages: usize,
}

const DECODE: &[DecodeVariant] = &[
    DecodeVariant { name: "attention_decode_sm90<64, 4, 4>", head_dim: 64, warps: 4, stages: 4 },
    DecodeVariant { name: "attention_decode_sm90<128, 4, 3>", head_dim: 128, warps: 4, stages: 3 },
    DecodeVariant { name: "attention_decode_sm90<256, 2, 3>", head_dim: 256, warps: 2, stages: 3 },
];

impl DecodeVariant {
    /// Queries, and for each warp and stage keys and values and a barrier.
    fn shared(&self) -> usize {
        let stages = self.warps * self.stages;
        FRAGMENT * self.head_dim * 2 * (1 + 2 * stages) + 8 * stages
    }
}

/// The decode variant that serves a call, if one does.
pub(super) fn decode_variant(views: [View<'_>; 3]) -> Result<Option<&'static DecodeVariant>> {
    let head_dim = views[0].dim(2);
    if !serves(head_dim, &views)? {
        return Ok(None);
    }
    Ok(decode_kernel(head_dim))
}

/// The decode variant for heads of so many elements, where rows are aligned.
pub(super) fn decode_kernel(head_dim: usize) -> Option<&'static DecodeVariant> {
    choose(DECODE, |variant| variant.head_dim, head_dim)
}

/// Decodes into the whole output, or into parts and their log-sum-exps, from `[q, keys, values, spans]`.
pub(super) fn decode<'a>(
    variant: &'static DecodeVariant,
    out: Option<&'a mut ViewMut<'_>>,
    part: Option<&'a mut ViewMut<'_>>,
    part_lse: Option<&'a mut ViewMut<'_>>,
    [q, keys, values, spans]: [View<'a>; 4],
    pages: Option<Pages<'a>>,
    grid: [usize; 3],
    scale: f32,
) -> Result<()> {
    let (tokens, heads, head_dim) = (q.dim(0), q.dim(1), q.dim(2));
    let out_stride = out.as_ref().map_or(0, |out| stride(out.as_view()));
    let mut launch = Launch::new(&super::CODE.sources[5], variant.name, q.device());
    let [keys_at, values_at] = [keys, values].map(|view| launch.read(view));
    let arguments = AttentionDecodeHopper {
        keys: map(&mut launch, keys, keys_at, FRAGMENT)?,
        values: map(&mut launch, values, values_at, FRAGMENT)?,
        out: launch.write_if(out),
        part: launch.write_if(part),
        part_lse: launch.write_if(part_lse),
        q: launch.read(q),
        spans: launch.read(spans),
        table: launch.read_if(pages.map(|pages| pages.table)),
        sequences: spans.dim(0) as u32,
        shared_by: (heads / keys.dim(1)) as u32,
        heads: heads as u32,
        rows: (tokens * heads) as u32,
        head_dim: head_dim as u32,
        splits: grid[2] as u32,
        page_shift: page_shift(pages),
        scale_log2: scale * LOG2_E,
        out_stride,
        q_stride: stride(q),
        spans_stride: stride(spans),
        table_stride: pages.map_or(0, |pages| stride(pages.table)),
    };
    launch
        .grid(grid)
        .block(32 * variant.warps as u32)
        .shared(variant.shared())
        .early()
        .run(&arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_is_listed_and_fits_a_multiprocessor() {
        let forward = FORWARD.iter().map(|variant| (variant.name, variant.shared(), 3));
        let backward = BACKWARD.iter().map(|variant| (variant.name, variant.shared(), 4));
        let decode = DECODE.iter().map(|variant| (variant.name, variant.shared(), 5));
        for (name, shared, source) in forward.chain(backward).chain(decode) {
            let line = format!("INSTANCE({name})");
            let text = super::super::CODE.sources[source].text;
            assert!(text.lines().any(|listed| listed == line), "{line}");
            assert!(shared <= 227 * 1024, "{name} takes {shared} bytes");
        }
    }

    #[test]
    fn the_smallest_head_dimension_with_room_is_taken() {
        let of = |head_dim| choose(FORWARD, |variant| variant.head_dim, head_dim);
        let dims = [8, 64, 72, 128, 136, 256, 264].map(|d| of(d).map(|found| found.head_dim));
        let expected = [Some(64), Some(64), Some(128), Some(128), Some(256), Some(256), None];
        assert_eq!(dims, expected);
        let of = |head_dim| choose(BACKWARD, |variant| variant.head_dim, head_dim);
        assert_eq!([8, 72, 136, 256, 264].map(|d| of(d).map(|found| found.keys)), {
            [Some(128), Some(128), Some(64), Some(64), None]
        });
    }
}
