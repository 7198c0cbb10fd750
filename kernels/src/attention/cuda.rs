//! Launchers of attention: which instance for which head dimension, and how many blocks.
//!
//! Head dimensions are padded to the next that has an instance. Every variant keeps to 99 KiB of shared memory, which all chips from
//! sm_80 on offer. Numbers of blocks are upper bounds that follow from shapes alone: blocks beyond the last tile end at once.

use std::f32::consts::LOG2_E;

use prime_runtime::{DType, Result, View, ViewMut};

use super::Mask;
use crate::arguments;
use crate::device::{
    Code, DeviceStruct, Launch, Pointer, by_dtype, device_struct, source, vectorised,
};
use crate::scratch;

pub(crate) const CODE: Code = Code {
    sources: &[
        source!("attention", "forward.cu"),
        source!("attention", "backward.cu"),
        source!("attention", "decode.cu"),
    ],
    structs: &[
        AttentionForward::LAYOUT,
        AttentionDelta::LAYOUT,
        AttentionBackwardKeys::LAYOUT,
        AttentionBackwardQueries::LAYOUT,
        AttentionDecode::LAYOUT,
        AttentionCombine::LAYOUT,
    ],
};

device_struct! {
    struct AttentionForward {
        out: Pointer,
        lse: Pointer,
        q: Pointer,
        k: Pointer,
        v: Pointer,
        cu_seqlens: Pointer,
        spans: Pointer,
        sequences: u32,
        packed: u32,
        shared_by: u32,
        head_dim: u32,
        causal: u32,
        aligned: u32,
        scale: f32,
        scale_log2: f32,
        out_stride: u64,
        lse_stride: u64,
        q_stride: u64,
        k_stride: u64,
        v_stride: u64,
        spans_stride: u64,
    }

    struct AttentionDelta {
        delta: Pointer,
        d_out: Pointer,
        out: Pointer,
        tokens: u32,
        heads: u32,
        head_dim: u32,
        aligned: u32,
        d_out_stride: u64,
        out_stride: u64,
    }

    struct AttentionBackwardKeys {
        d_k: Pointer,
        d_v: Pointer,
        d_out: Pointer,
        q: Pointer,
        k: Pointer,
        v: Pointer,
        lse: Pointer,
        delta: Pointer,
        cu_seqlens: Pointer,
        sequences: u32,
        shared_by: u32,
        head_dim: u32,
        causal: u32,
        aligned: u32,
        scale: f32,
        scale_log2: f32,
        d_k_stride: u64,
        d_v_stride: u64,
        d_out_stride: u64,
        q_stride: u64,
        k_stride: u64,
        v_stride: u64,
        lse_stride: u64,
        delta_stride: u64,
    }

    struct AttentionBackwardQueries {
        d_q: Pointer,
        d_out: Pointer,
        q: Pointer,
        k: Pointer,
        v: Pointer,
        lse: Pointer,
        delta: Pointer,
        cu_seqlens: Pointer,
        sequences: u32,
        shared_by: u32,
        head_dim: u32,
        causal: u32,
        aligned: u32,
        scale: f32,
        scale_log2: f32,
        d_q_stride: u64,
        d_out_stride: u64,
        q_stride: u64,
        k_stride: u64,
        v_stride: u64,
        lse_stride: u64,
        delta_stride: u64,
    }

    struct AttentionDecode {
        out: Pointer,
        part: Pointer,
        part_lse: Pointer,
        q: Pointer,
        keys: Pointer,
        values: Pointer,
        spans: Pointer,
        sequences: u32,
        shared_by: u32,
        heads: u32,
        rows: u32,
        head_dim: u32,
        splits: u32,
        aligned: u32,
        scale_log2: f32,
        out_stride: u64,
        q_stride: u64,
        keys_stride: u64,
        values_stride: u64,
        spans_stride: u64,
    }

    struct AttentionCombine {
        out: Pointer,
        part: Pointer,
        part_lse: Pointer,
        spans: Pointer,
        sequences: u32,
        heads: u32,
        rows: u32,
        head_dim: u32,
        splits: u32,
        out_stride: u64,
        spans_stride: u64,
    }
}

/// Head dimensions that have instances.
const HEAD_DIMS: [usize; 6] = [32, 64, 80, 96, 128, 256];
/// Rows of a fragment.
const FRAGMENT: usize = 16;
/// Blocks that keep a large device busy: keys are split over blocks of decoding until there are so many.
const ENOUGH_BLOCKS: usize = 264;
/// Splits of the keys of a sequence, at most, and the reserved keys that make another worth its sums.
const MOST_SPLITS: usize = 32;
const KEYS_OF_SPLIT: usize = 256;

/// An instance of a kernel that goes through rows in steps.
struct Variant {
    /// Elements of a row.
    dim: usize,
    dtype: DType,
    warps: usize,
    /// Rows of a block.
    rows: usize,
    /// Rows of a step.
    step: usize,
    /// The last template argument, where it is not the step.
    extra: &'static str,
}

impl Variant {
    fn name(&self, kernel: &str, between: &str) -> String {
        let kind = by_dtype!(self.dtype, "", "");
        let Variant { dim, warps, step, extra, .. } = self;
        format!("{kernel}<{kind}, {dim}, {warps}{between}, {step}{extra}>")
    }

    fn threads(&self) -> u32 {
        32 * self.warps as u32
    }

    /// Bytes of so many rows of shared memory.
    fn bytes(&self, rows: usize) -> usize {
        rows * self.dim * self.dtype.size()
    }
}

/// The smallest padded head dimension that holds `head_dim`.
fn padded(operation: &'static str, head_dim: usize) -> Result<usize> {
    HEAD_DIMS.into_iter().find(|&dim| dim >= head_dim).ok_or_else(|| {
        arguments::value(
            operation,
            format!("a head has {head_dim} elements, but kernels exist for at most 256"),
        )
    })
}

fn forward_variant(dtype: DType, dim: usize) -> (Variant, usize) {
    let (height, step) = match (dtype, dim) {
        (DType::BF16, 256) => (1, 64),
        // With 64 keys a step, sums and scores need a few more than the 255 registers of a thread.
        (DType::BF16, 128) => (2, 48),
        (DType::BF16, _) => (2, 64),
        (_, 256) => (1, 16),
        _ => (1, 32),
    };
    (Variant { dim, dtype, warps: 4, rows: 4 * FRAGMENT * height, step, extra: "" }, height)
}

/// What a launch of the backward of keys computes: both gradients, or one of them where registers do not hold both.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Keys,
    Values,
    Both,
}

fn keys_variants(dtype: DType, dim: usize) -> Vec<(Variant, Part)> {
    let variant = |warps, step, part| {
        let extra = match part {
            Part::Keys => ", 1",
            Part::Values => ", 2",
            Part::Both => ", 3",
        };
        (Variant { dim, dtype, warps, rows: warps * FRAGMENT, step, extra }, part)
    };
    match (dtype, dim) {
        (DType::BF16, 256) => vec![variant(4, 16, Part::Keys), variant(4, 32, Part::Values)],
        (DType::BF16, 128) => vec![variant(4, 48, Part::Both)],
        (DType::BF16, _) => vec![variant(4, 64, Part::Both)],
        (_, 256) => vec![variant(2, 8, Part::Keys), variant(2, 8, Part::Values)],
        (_, 32 | 64) => vec![variant(4, 32, Part::Both)],
        _ => vec![variant(4, 16, Part::Both)],
    }
}

fn queries_variant(dtype: DType, dim: usize) -> Variant {
    let (warps, step) = match (dtype, dim) {
        (DType::BF16, 256) => (4, 16),
        (DType::BF16, _) => (4, 64),
        (_, 256) => (2, 8),
        (_, 32 | 64 | 80) => (4, 32),
        _ => (4, 16),
    };
    Variant { dim, dtype, warps, rows: warps * FRAGMENT, step, extra: "" }
}

fn decode_variant(dtype: DType, dim: usize) -> Variant {
    let (warps, step) = match (dtype, dim) {
        (DType::BF16, 256) => (2, 16),
        (DType::BF16, _) => (4, 16),
        (_, 256) => (1, 16),
        _ => (4, 8),
    };
    Variant { dim, dtype, warps, rows: FRAGMENT, step, extra: "" }
}

fn stride(view: View<'_>) -> u64 {
    view.row_stride() as u64
}

/// Whether all rows and heads start at multiples of 16 bytes.
fn aligned(head_dim: usize, views: &[View<'_>]) -> u32 {
    u32::from(vectorised(head_dim, views) > 1)
}

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
    arguments::contiguous("attention.forward", "cu_seqlens", cu_seqlens)?;
    let sequences = cu_seqlens.dim(0).saturating_sub(1);
    attend(
        "attention.forward",
        out,
        Some(lse),
        q,
        k,
        v,
        Lengths::Offsets(cu_seqlens),
        sequences,
        scale,
        mask,
    )
}

/// How a launch learns which rows belong to which sequence.
#[derive(Clone, Copy)]
enum Lengths<'a> {
    Offsets(View<'a>),
    Spans(View<'a>),
}

fn attend(
    operation: &'static str,
    mut out: ViewMut<'_>,
    mut lse: Option<ViewMut<'_>>,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    lengths: Lengths<'_>,
    sequences: usize,
    scale: f32,
    mask: Mask,
) -> Result<()> {
    let (tokens, heads, head_dim) = (q.dim(0), q.dim(1), q.dim(2));
    let shared_by = heads / k.dim(1);
    let (variant, height) = forward_variant(q.dtype(), padded(operation, head_dim)?);
    // Over a cache the heads of a group read the same keys at the same time.
    let (packed, offsets, spans) = match lengths {
        Lengths::Offsets(offsets) => (1, Some(offsets), None),
        Lengths::Spans(spans) => (shared_by, None, Some(spans)),
    };
    let aligned = aligned(head_dim, &[out.as_view(), q, k, v]);
    let (out_stride, lse_stride) =
        (stride(out.as_view()), lse.as_ref().map_or(0, |lse| stride(lse.as_view())));
    let name = variant.name("attention_forward", &format!(", {height}"));
    let mut launch = Launch::new(&CODE.sources[0], name, q.device());
    let arguments = AttentionForward {
        out: launch.write(&mut out),
        lse: launch.write_if(lse.as_mut()),
        q: launch.read(q),
        k: launch.read(k),
        v: launch.read(v),
        cu_seqlens: launch.read_if(offsets),
        spans: launch.read_if(spans),
        sequences: sequences as u32,
        packed: packed as u32,
        shared_by: shared_by as u32,
        head_dim: head_dim as u32,
        causal: u32::from(mask == Mask::Causal),
        aligned,
        scale,
        scale_log2: scale * LOG2_E,
        out_stride,
        lse_stride,
        q_stride: stride(q),
        k_stride: stride(k),
        v_stride: stride(v),
        spans_stride: spans.map_or(0, stride),
    };
    launch
        .grid([tiles(tokens * packed, variant.rows, sequences), heads / packed, 1])
        .block(variant.threads())
        .shared(variant.bytes(variant.rows + 2 * variant.step))
        .run(&arguments)
}

/// The most tiles that so many rows of so many sequences can take.
fn tiles(rows: usize, tile: usize, sequences: usize) -> usize {
    if rows == 0 { 0 } else { rows / tile + sequences.min(rows) }
}

pub(super) fn backward(
    mut d_q: ViewMut<'_>,
    mut d_k: ViewMut<'_>,
    mut d_v: ViewMut<'_>,
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
    let operation = "attention.backward";
    arguments::contiguous(operation, "cu_seqlens", cu_seqlens)?;
    let (device, dtype) = (q.device(), q.dtype());
    let (tokens, heads, head_dim) = (q.dim(0), q.dim(1), q.dim(2));
    let (kv_heads, sequences) = (k.dim(1), cu_seqlens.dim(0).saturating_sub(1));
    let dim = padded(operation, head_dim)?;
    if tokens == 0 {
        return Ok(());
    }
    let mut delta = scratch::device(device, DType::F32, tokens, heads)?;
    compute_delta(delta.view_mut(), d_out, out)?;
    let delta = delta.view();

    let gradients = [d_q.as_view(), d_k.as_view(), d_v.as_view()];
    let aligned = aligned(head_dim, &[gradients[0], gradients[1], gradients[2], d_out, q, k, v]);
    let [d_q_stride, d_k_stride, d_v_stride] = gradients.map(stride);
    for (variant, part) in keys_variants(dtype, dim) {
        let mut launch =
            Launch::new(&CODE.sources[1], variant.name("attention_backward_keys", ""), device);
        let arguments = AttentionBackwardKeys {
            d_k: launch.write_if((part != Part::Values).then_some(&mut d_k)),
            d_v: launch.write_if((part != Part::Keys).then_some(&mut d_v)),
            d_out: launch.read(d_out),
            q: launch.read(q),
            k: launch.read(k),
            v: launch.read(v),
            lse: launch.read(lse),
            delta: launch.read(delta),
            cu_seqlens: launch.read(cu_seqlens),
            sequences: sequences as u32,
            shared_by: (heads / kv_heads) as u32,
            head_dim: head_dim as u32,
            causal: u32::from(mask == Mask::Causal),
            aligned,
            scale,
            scale_log2: scale * LOG2_E,
            d_k_stride,
            d_v_stride,
            d_out_stride: stride(d_out),
            q_stride: stride(q),
            k_stride: stride(k),
            v_stride: stride(v),
            lse_stride: stride(lse),
            delta_stride: stride(delta),
        };
        launch
            .grid([tiles(tokens, variant.rows, sequences), kv_heads, 1])
            .block(variant.threads())
            .shared(keys_shared(&variant, part))
            .run(&arguments)?;
    }

    let variant = queries_variant(dtype, dim);
    let mut launch =
        Launch::new(&CODE.sources[1], variant.name("attention_backward_queries", ""), device);
    let arguments = AttentionBackwardQueries {
        d_q: launch.write(&mut d_q),
        d_out: launch.read(d_out),
        q: launch.read(q),
        k: launch.read(k),
        v: launch.read(v),
        lse: launch.read(lse),
        delta: launch.read(delta),
        cu_seqlens: launch.read(cu_seqlens),
        sequences: sequences as u32,
        shared_by: (heads / kv_heads) as u32,
        head_dim: head_dim as u32,
        causal: u32::from(mask == Mask::Causal),
        aligned,
        scale,
        scale_log2: scale * LOG2_E,
        d_q_stride,
        d_out_stride: stride(d_out),
        q_stride: stride(q),
        k_stride: stride(k),
        v_stride: stride(v),
        lse_stride: stride(lse),
        delta_stride: stride(delta),
    };
    launch
        .grid([tiles(tokens, variant.rows, sequences), heads, 1])
        .block(variant.threads())
        .shared(variant.bytes(2 * variant.rows + 4 * variant.step))
        .run(&arguments)
}

fn keys_shared(variant: &Variant, part: Part) -> usize {
    let own = if part == Part::Values { 1 } else { 2 };
    // With each step its queries' log-sum-exps and deltas.
    variant.bytes(own * variant.rows + 4 * variant.step) + 4 * variant.step * size_of::<f32>()
}

/// Sums of d_out * out over each head: `[tokens, heads]`.
fn compute_delta(mut delta: ViewMut<'_>, d_out: View<'_>, out: View<'_>) -> Result<()> {
    let (tokens, heads, head_dim) = (out.dim(0), out.dim(1), out.dim(2));
    let kernel = by_dtype!(out.dtype(), "attention_delta<", ">");
    let mut launch = Launch::new(&CODE.sources[1], kernel, out.device());
    let arguments = AttentionDelta {
        delta: launch.write(&mut delta),
        d_out: launch.read(d_out),
        out: launch.read(out),
        tokens: tokens as u32,
        heads: heads as u32,
        head_dim: head_dim as u32,
        aligned: aligned(head_dim, &[d_out, out]),
        d_out_stride: stride(d_out),
        out_stride: stride(out),
    };
    launch.grid([(tokens * heads).div_ceil(4), 1, 1]).block(128).run(&arguments)
}

pub(super) fn decode(
    mut out: ViewMut<'_>,
    q: View<'_>,
    keys: View<'_>,
    values: View<'_>,
    spans: View<'_>,
    scale: f32,
) -> Result<()> {
    let operation = "attention.decode";
    let (tokens, heads, head_dim) = (q.dim(0), q.dim(1), q.dim(2));
    let (kv_heads, sequences) = (keys.dim(1), spans.dim(0));
    let (shared_by, dim) = (heads / kv_heads, padded(operation, head_dim)?);
    if tokens == 0 || sequences == 0 {
        return Ok(());
    }
    // With many new tokens a sequence, as in prompts, tiles of queries keep the device busy and use each key more often.
    if tokens * shared_by > 2 * FRAGMENT * sequences {
        let lengths = Lengths::Spans(spans);
        return attend(
            operation,
            out,
            None,
            q,
            keys,
            values,
            lengths,
            sequences,
            scale,
            Mask::Causal,
        );
    }
    let variant = decode_variant(q.dtype(), dim);
    let row_tiles = tiles(tokens * shared_by, variant.rows, sequences);
    // Lengths are on the device: what the cache reserves for a sequence stands for them.
    let worth = (keys.dim(0) / sequences / KEYS_OF_SPLIT).clamp(1, MOST_SPLITS);
    let splits = ENOUGH_BLOCKS.div_ceil(row_tiles * kv_heads).min(worth);
    let aligned = aligned(head_dim, &[q, keys, values]);
    let (out_stride, rows) = (stride(out.as_view()), tokens * heads);
    let parts = |columns| {
        (splits > 1)
            .then(|| scratch::device(q.device(), DType::F32, splits * rows, columns))
            .transpose()
    };
    let (mut part, mut part_lse) = (parts(head_dim)?, parts(1)?);
    {
        let mut part = part.as_mut().map(|part| part.view_mut());
        let mut part_lse = part_lse.as_mut().map(|part| part.view_mut());
        let whole = part.is_none().then_some(&mut out);
        let mut launch =
            Launch::new(&CODE.sources[2], variant.name("attention_decode", ""), q.device());
        let arguments = AttentionDecode {
            out: launch.write_if(whole),
            part: launch.write_if(part.as_mut()),
            part_lse: launch.write_if(part_lse.as_mut()),
            q: launch.read(q),
            keys: launch.read(keys),
            values: launch.read(values),
            spans: launch.read(spans),
            sequences: sequences as u32,
            shared_by: shared_by as u32,
            heads: heads as u32,
            rows: rows as u32,
            head_dim: head_dim as u32,
            splits: splits as u32,
            aligned,
            scale_log2: scale * LOG2_E,
            out_stride,
            q_stride: stride(q),
            keys_stride: stride(keys),
            values_stride: stride(values),
            spans_stride: stride(spans),
        };
        launch
            .grid([row_tiles, kv_heads, splits])
            .block(variant.threads())
            .shared(decode_shared(&variant))
            .run(&arguments)?;
    }
    let (Some(part), Some(part_lse)) = (part, part_lse) else { return Ok(()) };
    let kernel = by_dtype!(q.dtype(), "attention_combine<", ">");
    let mut launch = Launch::new(&CODE.sources[2], kernel, q.device());
    let arguments = AttentionCombine {
        out: launch.write(&mut out),
        part: launch.read(part.view()),
        part_lse: launch.read(part_lse.view()),
        spans: launch.read(spans),
        sequences: sequences as u32,
        heads: heads as u32,
        rows: rows as u32,
        head_dim: head_dim as u32,
        splits: splits as u32,
        out_stride,
        spans_stride: stride(spans),
    };
    launch.grid([tiles(rows, 4, sequences), 1, 1]).block(128).run(&arguments)
}

fn decode_shared(variant: &Variant) -> usize {
    variant.bytes(variant.rows + variant.warps * 4 * variant.step)
}
