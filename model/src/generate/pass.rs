//! One pass of a ragged batch of new tokens through the layers, over the caches.

use std::ops::Range;

use prime_kernels::attention;
use prime_kernels::matmul::{self, Epilogue, Packed};
use prime_kernels::{rms_norm, rope, sample, swiglu};
use prime_runtime::{DType, Device, Element, Plan, Slot, Tensor, View, ViewMut, bf16};

use super::GenerationLimits;
use crate::decoder::{Sizes, attention_scale, bias, norm_heads};
use crate::{Config, Result, Weights};

/// A layer's matrices in the order in which the kernels read them.
pub(super) struct PackedLayer {
    pub(super) qkv: Packed,
    pub(super) output: Packed,
    pub(super) gate_up: Packed,
    pub(super) down: Packed,
}

/// Buffers of a step, for `step_tokens` tokens and `slots` drawn rows.
pub(super) struct Buffers {
    pub(super) stream: Tensor,
    pub(super) middle: Tensor,
    pub(super) normed: Tensor,
    pub(super) rstd: Tensor,
    pub(super) qkv: Tensor,
    pub(super) qk: Option<Tensor>,
    pub(super) head_rstd: Tensor,
    pub(super) attended: Tensor,
    pub(super) gate_up: Tensor,
    pub(super) activated: Tensor,
    pub(super) picked: Tensor,
    pub(super) picked_normed: Tensor,
    pub(super) tokens: Tensor,
    pub(super) log_probs: Tensor,
    pub(super) entropy: Tensor,
}

/// Lists that describe one step's ragged batch.
#[derive(Default)]
pub(super) struct Step {
    pub(super) tokens: Vec<u32>,
    pub(super) positions: Vec<u32>,
    pub(super) cache_rows: Vec<u32>,
    pub(super) spans: Vec<u32>,
    pub(super) picked: Vec<u32>,
    pub(super) drawn_slots: Vec<usize>,
    pub(super) rows: Vec<sample::Row>,
}

impl Step {
    pub(super) fn clear(&mut self) {
        let lists = [
            &mut self.tokens,
            &mut self.positions,
            &mut self.cache_rows,
            &mut self.spans,
            &mut self.picked,
        ];
        lists.into_iter().for_each(Vec::clear);
        self.drawn_slots.clear();
        self.rows.clear();
    }
}

/// A layer over the new tokens: their keys and values join the caches, and attention reads those.
pub(super) fn layer_forward(
    config: &Config,
    weights: &Weights,
    index: usize,
    packed: &PackedLayer,
    step: &Step,
    (cos, sin): (&Tensor, &Tensor),
    (keys, values): (&mut Tensor, &mut Tensor),
    sizes: Sizes,
    buffers: &mut Buffers,
) -> Result<()> {
    let layer = &weights.layout().layers[index];
    let tokens = sizes.tokens;
    let epsilon = config.rms_norm_eps;
    let normed = |out: &mut Tensor, rstd: &mut Tensor, x: &Tensor, weight: &Range<usize>| {
        let weight = weights.view(weight, &[sizes.hidden]);
        rms_norm::forward(
            out.head_mut(tokens),
            rstd.head_mut(tokens),
            x.head(tokens),
            weight,
            epsilon,
        )
    };
    normed(&mut buffers.normed, &mut buffers.rstd, &buffers.stream, &layer.input_norm)?;
    let epilogue = Epilogue { bias: bias(weights, layer.qkv_bias.as_ref()), ..Epilogue::default() };
    matmul::forward_packed(
        buffers.qkv.head_mut(tokens),
        buffers.normed.head(tokens),
        &packed.qkv,
        epilogue,
    )?;
    let (q_end, k_end) = (sizes.q(), sizes.q() + sizes.kv());
    let rotated = match &mut buffers.qk {
        None => buffers.qkv.head_mut(tokens).split_at_column(k_end).0,
        Some(qk) => {
            let raw = buffers.qkv.head(tokens);
            let (q, k) = qk.head_mut(tokens).split_at_column(q_end);
            let rstd = &mut buffers.head_rstd;
            let heads = |count: usize| [tokens, count];
            let q_rstd = rstd.head_mut(tokens * sizes.heads).into_shape(&heads(sizes.heads));
            norm_heads(
                weights,
                layer.q_norm.as_ref(),
                sizes,
                q,
                q_rstd,
                raw.columns(0..q_end),
                epsilon,
            )?;
            let k_rstd = rstd.head_mut(tokens * sizes.kv_heads).into_shape(&heads(sizes.kv_heads));
            norm_heads(
                weights,
                layer.k_norm.as_ref(),
                sizes,
                k,
                k_rstd,
                raw.columns(q_end..k_end),
                epsilon,
            )?;
            qk.head_mut(tokens)
        }
    };
    rope::forward(
        sizes.as_heads_mut(rotated),
        View::from_slice(&step.positions, &[tokens]),
        cos.view(),
        sin.view(),
    )?;
    let raw = buffers.qkv.head(tokens);
    let rotated = buffers.qk.as_ref().map_or(raw, |qk| qk.head(tokens));
    write_cache(keys.view_mut(), rotated.columns(q_end..k_end), &step.cache_rows);
    write_cache(values.view_mut(), raw.columns(k_end..sizes.qkv()), &step.cache_rows);
    attention::decode(
        sizes.as_heads_mut(buffers.attended.head_mut(tokens)),
        sizes.as_heads(rotated.columns(0..q_end)),
        sizes.as_heads(keys.view()),
        sizes.as_heads(values.view()),
        View::from_slice(&step.spans, &[step.spans.len() / 4, 4]),
        attention_scale(config),
    )?;
    let epilogue = Epilogue {
        bias: bias(weights, layer.output_bias.as_ref()),
        residual: Some(buffers.stream.head(tokens)),
        ..Epilogue::default()
    };
    matmul::forward_packed(
        buffers.middle.head_mut(tokens),
        buffers.attended.head(tokens),
        &packed.output,
        epilogue,
    )?;
    normed(&mut buffers.normed, &mut buffers.rstd, &buffers.middle, &layer.post_norm)?;
    let (gate_up, input) = (buffers.gate_up.head_mut(tokens), buffers.normed.head(tokens));
    matmul::forward_packed(gate_up, input, &packed.gate_up, Epilogue::default())?;
    swiglu::forward(buffers.activated.head_mut(tokens), buffers.gate_up.head(tokens))?;
    let epilogue = Epilogue { residual: Some(buffers.middle.head(tokens)), ..Epilogue::default() };
    matmul::forward_packed(
        buffers.stream.head_mut(tokens),
        buffers.activated.head(tokens),
        &packed.down,
        epilogue,
    )?;
    Ok(())
}

pub(super) fn copy_rows<E: Element>(cache: &mut Tensor, from: usize, to: usize, count: usize) {
    let width = cache.dims()[1];
    cache.as_mut_slice::<E>().copy_within(from * width..(from + count) * width, to * width);
}

/// Puts each new row where the cache keeps it.
pub(super) fn write_cache(mut cache: ViewMut<'_>, rows: View<'_>, places: &[u32]) {
    pub(super) fn write<E: Element>(cache: &mut ViewMut<'_>, rows: View<'_>, places: &[u32]) {
        for (i, &place) in places.iter().enumerate() {
            cache.row_mut::<E>(place as usize).copy_from_slice(rows.row(i));
        }
    }
    match rows.dtype() {
        DType::BF16 => write::<bf16>(&mut cache, rows, places),
        _ => write::<f32>(&mut cache, rows, places),
    }
}

pub(super) fn plan_buffers(
    config: &Config,
    dtype: DType,
    limits: GenerationLimits,
) -> (Plan, Vec<Slot>) {
    let sizes = Sizes::new(config, limits.step_tokens);
    let (tokens, drawn) = (("tokens", limits.step_tokens), ("drawn", limits.slots));
    let hidden = ("hidden", sizes.hidden);
    let mut plan = Plan::new();
    let slots = [
        ("stream", dtype, vec![tokens, hidden]),
        ("middle", dtype, vec![tokens, hidden]),
        ("normed", dtype, vec![tokens, hidden]),
        ("rstd", DType::F32, vec![tokens]),
        ("qkv", dtype, vec![tokens, ("qkv", sizes.qkv())]),
        ("head_rstd", DType::F32, vec![("tokens x heads", limits.step_tokens * sizes.heads)]),
        ("attended", dtype, vec![tokens, ("q", sizes.q())]),
        ("gate_up", dtype, vec![tokens, ("gate_up", 2 * sizes.intermediate)]),
        ("activated", dtype, vec![tokens, ("intermediate", sizes.intermediate)]),
        ("picked", dtype, vec![drawn, hidden]),
        ("picked_normed", dtype, vec![drawn, hidden]),
        ("tokens", DType::U32, vec![drawn]),
        ("log_probs", DType::F32, vec![drawn]),
        ("entropy", DType::F32, vec![drawn]),
        (
            "qk",
            dtype,
            vec![
                ("tokens", if config.qk_norm { limits.step_tokens } else { 0 }),
                ("qk", sizes.q() + sizes.kv()),
            ],
        ),
    ]
    .map(|(name, dtype, dims)| plan.add(name, dtype, &dims));
    (plan, slots.to_vec())
}

impl Buffers {
    pub(super) fn new(config: &Config, dtype: DType, limits: GenerationLimits) -> Result<Self> {
        let (plan, slots) = plan_buffers(config, dtype, limits);
        let mut memory = plan.allocate(Device::Cpu)?;
        let mut slots = slots.into_iter();
        let mut take = || memory.take(slots.next().expect("as many slots as fields"));
        Ok(Buffers {
            stream: take(),
            middle: take(),
            normed: take(),
            rstd: take(),
            qkv: take(),
            head_rstd: take(),
            attended: take(),
            gate_up: take(),
            activated: take(),
            picked: take(),
            picked_normed: take(),
            tokens: take(),
            log_probs: take(),
            entropy: take(),
            qk: config.qk_norm.then(take),
        })
    }
}
