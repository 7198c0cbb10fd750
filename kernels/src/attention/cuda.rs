//! Launchers of attention. Numbers of blocks are upper bounds that follow from shapes alone: blocks beyond the last tile end at once.

use std::f32::consts::LOG2_E;

use prime_runtime::{DType, Result, View, ViewMut};

use super::tuning::decode;
use super::{Mask, Pages};
use crate::arguments;
use crate::device::{
    Code, DeviceStruct, Launch, Pointer, by_dtype, device_struct, source, vectorised,
};
use crate::numerics::{self, Numerics};
use crate::scratch;
use variants::{FRAGMENT, Part, padded};
use ways::{most_splits, splits};

pub(crate) use ways::decode_scratch;
pub(super) use ways::{DecodeKernel, decode_ways};

mod hopper;
mod variants;
mod ways;

pub(crate) const CODE: Code = Code {
    sources: &[
        source!("attention", "forward.cu"),
        source!("attention", "backward.cu"),
        source!("attention", "decode.cu"),
        source!("attention", "forward_sm90.cu"),
        source!("attention", "backward_sm90.cu"),
        source!("attention", "decode_sm90.cu"),
    ],
    structs: &[
        AttentionForward::LAYOUT,
        AttentionDelta::LAYOUT,
        AttentionBackwardKeys::LAYOUT,
        AttentionBackwardQueries::LAYOUT,
        AttentionDecode::LAYOUT,
        AttentionCombine::LAYOUT,
        hopper::LAYOUTS[0],
        hopper::LAYOUTS[1],
        hopper::LAYOUTS[2],
        hopper::LAYOUTS[3],
        hopper::LAYOUTS[4],
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
        table: Pointer,
        sequences: u32,
        packed: u32,
        shared_by: u32,
        head_dim: u32,
        causal: u32,
        aligned: u32,
        page_shift: u32,
        scale: f32,
        scale_log2: f32,
        out_stride: u64,
        lse_stride: u64,
        q_stride: u64,
        k_stride: u64,
        v_stride: u64,
        spans_stride: u64,
        table_stride: u64,
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
        table: Pointer,
        sequences: u32,
        shared_by: u32,
        heads: u32,
        rows: u32,
        head_dim: u32,
        splits: u32,
        aligned: u32,
        page_shift: u32,
        scale_log2: f32,
        out_stride: u64,
        q_stride: u64,
        keys_stride: u64,
        values_stride: u64,
        spans_stride: u64,
        table_stride: u64,
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
        numerics::chosen(),
    )
}

/// A kernel of the forward pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ForwardKernel {
    /// By the name of its instance.
    Portable(String),
    /// One of Hopper's.
    Hopper(&'static hopper::ForwardVariant),
}

impl ForwardKernel {
    /// The instance's name.
    pub(super) fn name(&self) -> String {
        match self {
            ForwardKernel::Portable(name) => name.clone(),
            ForwardKernel::Hopper(variant) => variant.name.to_owned(),
        }
    }
}

/// The kernels for packed sequences in aligned rows, the one that is taken unless another is preferred first.
pub(super) fn forward_kernels(
    dtype: DType,
    head_dim: usize,
    hopper: bool,
) -> Result<Vec<ForwardKernel>> {
    let mut kernels = Vec::new();
    // Rows and heads of such kernels begin at multiples of 16 bytes.
    if hopper && dtype == DType::BF16 && head_dim.is_multiple_of(8) {
        kernels.extend(hopper::forward_variants(head_dim).map(ForwardKernel::Hopper));
    }
    let portable = variants::forward(dtype, padded("attention.forward", head_dim)?);
    kernels.push(ForwardKernel::Portable(portable.name));
    Ok(kernels)
}

/// How a launch learns which rows belong to which sequence.
#[derive(Clone, Copy)]
enum Lengths<'a> {
    Offsets(View<'a>),
    Spans(View<'a>, Option<Pages<'a>>),
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
    numerics: Numerics,
) -> Result<()> {
    let (tokens, heads, head_dim) = (q.dim(0), q.dim(1), q.dim(2));
    let views = [q, k, v];
    if let Some(variant) =
        hopper::forward_variant(views, out.as_view(), lengths, sequences, mask, numerics)?
    {
        let lse = lse.as_mut();
        return hopper::forward(variant, &mut out, lse, views, lengths, sequences, scale, mask);
    }
    let shared_by = heads / k.dim(1);
    let variant = variants::forward(q.dtype(), padded(operation, head_dim)?);
    // Over a cache the heads of a group read the same keys at the same time.
    let (packed, offsets, spans, pages) = match lengths {
        Lengths::Offsets(offsets) => (1, Some(offsets), None, None),
        Lengths::Spans(spans, pages) => (shared_by, None, Some(spans), pages),
    };
    let aligned = aligned(head_dim, &[out.as_view(), q, k, v]);
    let (out_stride, lse_stride) =
        (stride(out.as_view()), lse.as_ref().map_or(0, |lse| stride(lse.as_view())));
    let mut launch = Launch::new(&CODE.sources[0], variant.name, q.device());
    let arguments = AttentionForward {
        out: launch.write(&mut out),
        lse: launch.write_if(lse.as_mut()),
        q: launch.read(q),
        k: launch.read(k),
        v: launch.read(v),
        cu_seqlens: launch.read_if(offsets),
        spans: launch.read_if(spans),
        table: launch.read_if(pages.map(|pages| pages.table)),
        sequences: sequences as u32,
        packed: packed as u32,
        shared_by: shared_by as u32,
        head_dim: head_dim as u32,
        causal: u32::from(mask == Mask::Causal),
        aligned,
        page_shift: page_shift(pages),
        scale,
        scale_log2: scale * LOG2_E,
        out_stride,
        lse_stride,
        q_stride: stride(q),
        k_stride: stride(k),
        v_stride: stride(v),
        spans_stride: spans.map_or(0, stride),
        table_stride: pages.map_or(0, |pages| stride(pages.table)),
    };
    launch
        .grid([tiles(tokens * packed, variant.rows, sequences), heads / packed, 1])
        .block(variant.threads)
        .shared(variant.shared)
        .run(&arguments)
}

/// The rows of a page as a power of two.
fn page_shift(pages: Option<Pages<'_>>) -> u32 {
    pages.map_or(0, |pages| pages.size.trailing_zeros())
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
    numerics: Numerics,
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
    let gradients = [d_q.as_view(), d_k.as_view(), d_v.as_view()];
    let views = [gradients[0], gradients[1], gradients[2], d_out, q, k, v, out];
    if let Some(variant) = hopper::backward_variant(head_dim, &views, sequences)? {
        let inputs = [d_out, q, k, v, out, lse, cu_seqlens];
        return hopper::backward(
            variant, &mut d_q, &mut d_k, &mut d_v, inputs, scale, mask, numerics,
        );
    }
    let mut delta = scratch::device(device, DType::F32, tokens, heads)?;
    compute_delta(delta.view_mut(), d_out, out)?;
    let delta = delta.view();

    let gradients = [d_q.as_view(), d_k.as_view(), d_v.as_view()];
    let aligned = aligned(head_dim, &[gradients[0], gradients[1], gradients[2], d_out, q, k, v]);
    let [d_q_stride, d_k_stride, d_v_stride] = gradients.map(stride);
    for &part in variants::parts(dim) {
        let variant = variants::keys(dtype, dim, part);
        let mut launch = Launch::new(&CODE.sources[1], variant.name, device);
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
            .block(variant.threads)
            .shared(variant.shared)
            .run(&arguments)?;
    }

    let variant = variants::queries(dtype, dim);
    let mut launch = Launch::new(&CODE.sources[1], variant.name, device);
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
        .block(variant.threads)
        .shared(variant.shared)
        .run(&arguments)
}

/// The most bytes that [`backward`] borrows on any chip.
pub(crate) fn backward_scratch(tokens: usize, heads: usize, head_dim: usize) -> usize {
    scratch::device_bytes(DType::F32, tokens * heads)
        .max(hopper::backward_scratch(tokens, heads, head_dim))
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
    operation: &'static str,
    mut out: ViewMut<'_>,
    q: View<'_>,
    keys: View<'_>,
    values: View<'_>,
    spans: View<'_>,
    pages: Option<Pages<'_>>,
    scale: f32,
    numerics: Numerics,
) -> Result<()> {
    let (tokens, heads, head_dim) = (q.dim(0), q.dim(1), q.dim(2));
    let (kv_heads, sequences) = (keys.dim(1), spans.dim(0));
    let (shared_by, dim) = (heads / kv_heads, padded(operation, head_dim)?);
    if tokens == 0 || sequences == 0 {
        return Ok(());
    }
    // With many new tokens a sequence, as in prompts, tiles of queries keep the device busy and use each key more often. And these walk over keys as
    // `forward` does. A split that both could share would have `forward` keep a second set of sums, for which there are no registers.
    if numerics == Numerics::Invariant || tokens * shared_by > 2 * FRAGMENT * sequences {
        let lengths = Lengths::Spans(spans, pages);
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
            numerics,
        );
    }
    let variant = variants::decode(q.dtype(), dim);
    let row_tiles = tiles(tokens * shared_by, variant.rows, sequences);
    // Lengths are on the device: what the cache reserves for a sequence stands for them.
    let reserved = pages.map_or(keys.dim(0) / sequences, |pages| pages.table.dim(1) * pages.size);
    let problem =
        decode::Problem { sequences, keys: reserved, heads, kv_heads, head_dim, dtype: q.dtype() };
    let preferred = (tokens == sequences).then(|| decode::preferred(&problem)).flatten();
    let blocks = row_tiles * kv_heads;
    let splits = match &preferred {
        Some(way) => way.splits.min(most_splits(blocks, reserved)),
        None => splits(blocks, reserved),
    };
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
        let grid = [row_tiles, kv_heads, splits];
        let portable =
            preferred.as_ref().is_some_and(|way| matches!(way.kernel, DecodeKernel::Portable(_)));
        let of_hopper = if portable { None } else { hopper::decode_variant([q, keys, values])? };
        if let Some(variant) = of_hopper {
            let (part, part_lse) = (part.as_mut(), part_lse.as_mut());
            let inputs = [q, keys, values, spans];
            hopper::decode(variant, whole, part, part_lse, inputs, pages, grid, scale)?;
        } else {
            let mut launch = Launch::new(&CODE.sources[2], variant.name, q.device());
            let arguments = AttentionDecode {
                out: launch.write_if(whole),
                part: launch.write_if(part.as_mut()),
                part_lse: launch.write_if(part_lse.as_mut()),
                q: launch.read(q),
                keys: launch.read(keys),
                values: launch.read(values),
                spans: launch.read(spans),
                table: launch.read_if(pages.map(|pages| pages.table)),
                sequences: sequences as u32,
                shared_by: shared_by as u32,
                heads: heads as u32,
                rows: rows as u32,
                head_dim: head_dim as u32,
                splits: splits as u32,
                aligned,
                page_shift: page_shift(pages),
                scale_log2: scale * LOG2_E,
                out_stride,
                q_stride: stride(q),
                keys_stride: stride(keys),
                values_stride: stride(values),
                spans_stride: stride(spans),
                table_stride: pages.map_or(0, |pages| stride(pages.table)),
            };
            launch
                .grid(grid)
                .block(variant.threads)
                .shared(variant.shared)
                .early()
                .run(&arguments)?;
        }
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
    launch.grid([tiles(rows, 4, sequences), 1, 1]).block(128).early().run(&arguments)
}
