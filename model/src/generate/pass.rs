//! One pass of a ragged batch of new tokens through the layers, over the caches.

use std::ops::Range;

use prime_kernels::matmul::Epilogue;
use prime_kernels::{attention, rms_norm, rope, sample, scatter, swiglu};
use prime_runtime::{DType, Device, Plan, Slot, Tensor, View};

use super::GenerationLimits;
use super::linear::LayerLinears;
use crate::decoder::{Sizes, attention_scale, bias, norm_heads};
use crate::lora::{self, LowRankBuffers, Place};
use crate::transfer::Upload;
use crate::{Config, Result, Weights};

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
    pub(super) low_rank: Option<LowRankBuffers>,
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
    /// The rows as devices read them; the host's stay empty.
    pub(super) settings: Vec<u32>,
}

impl Step {
    /// Whether every sequence has one token, from which the next is drawn.
    pub(super) fn decodes(&self) -> bool {
        let sequences = self.spans.len() / 4;
        self.tokens.len() == sequences && self.picked.len() == sequences
    }

    pub(super) fn clear(&mut self) {
        let lists = [
            &mut self.tokens,
            &mut self.positions,
            &mut self.cache_rows,
            &mut self.spans,
            &mut self.picked,
            &mut self.settings,
        ];
        lists.into_iter().for_each(Vec::clear);
        self.drawn_slots.clear();
        self.rows.clear();
    }
}

/// A step's lists as kernels read them.
#[derive(Clone, Copy)]
pub(super) struct StepViews<'a> {
    pub(super) tokens: View<'a>,     // (tokens)
    pub(super) positions: View<'a>,  // (tokens)
    pub(super) cache_rows: View<'a>, // (tokens)
    pub(super) spans: View<'a>,      // (sequences, 4)
    pub(super) picked: View<'a>,     // (drawn)
    pub(super) settings: View<'a>,   // (words, drawn)
}

/// Where the lists of steps go on a device.
pub(super) struct StepUpload(Upload<u32, 6>);

impl StepUpload {
    pub(super) fn new(device: Device, limits: GenerationLimits) -> Result<Self> {
        let (tokens, slots) = (limits.step_tokens, limits.slots);
        let settings = sample::SETTING_WORDS * slots;
        let capacities = [tokens, tokens, tokens, 4 * slots, slots, settings];
        Ok(StepUpload(Upload::new(device, capacities)?))
    }

    pub(super) fn send(&mut self, step: &Step) -> Result<()> {
        self.0.send(lists(step))
    }

    /// The lists of the step that was sent last.
    pub(super) fn views<'a>(&'a self, step: &'a Step) -> StepViews<'a> {
        let [tokens, positions, cache_rows, spans, picked, settings] = self.0.views(lists(step));
        let spans = spans.reshape(&[spans.dim(0) / 4, 4]);
        let words = sample::SETTING_WORDS;
        let settings = settings.reshape(&[words, settings.dim(0) / words]);
        StepViews { tokens, positions, cache_rows, spans, picked, settings }
    }
}

fn lists(step: &Step) -> [&[u32]; 6] {
    [&step.tokens, &step.positions, &step.cache_rows, &step.spans, &step.picked, &step.settings]
}

/// Where drawn tokens come from a device; the host reads its own where they are.
pub(super) struct Drawn {
    pub(super) tokens: Vec<u32>,
    pub(super) log_probs: Vec<f32>,
    pub(super) entropy: Vec<f32>,
}

impl Drawn {
    pub(super) fn new(device: Device, limits: GenerationLimits) -> Self {
        let count = if device == Device::Cpu { 0 } else { limits.slots };
        Drawn { tokens: vec![0; count], log_probs: vec![0.0; count], entropy: vec![0.0; count] }
    }
}

/// A layer over the new tokens: their keys and values join the caches, and attention reads those.
pub(super) fn layer_forward(
    config: &Config,
    weights: &Weights,
    index: usize,
    linears: &LayerLinears,
    lists: StepViews<'_>,
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
    linears.qkv.forward(
        buffers.qkv.head_mut(tokens),
        buffers.normed.head(tokens),
        weights,
        epilogue,
    )?;
    let (out, x) = (buffers.qkv.head_mut(tokens), buffers.normed.head(tokens));
    lora::forward(weights, index, Place::Qkv, out, x, buffers.low_rank.as_mut())?;
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
    rope::forward(sizes.as_heads_mut(rotated), lists.positions, cos.view(), sin.view())?;
    let raw = buffers.qkv.head(tokens);
    let rotated = buffers.qk.as_ref().map_or(raw, |qk| qk.head(tokens));
    scatter::forward(keys.view_mut(), rotated.columns(q_end..k_end), lists.cache_rows)?;
    scatter::forward(values.view_mut(), raw.columns(k_end..sizes.qkv()), lists.cache_rows)?;
    attention::decode(
        sizes.as_heads_mut(buffers.attended.head_mut(tokens)),
        sizes.as_heads(rotated.columns(0..q_end)),
        sizes.as_heads(keys.view()),
        sizes.as_heads(values.view()),
        lists.spans,
        attention_scale(config),
    )?;
    let epilogue = Epilogue {
        bias: bias(weights, layer.output_bias.as_ref()),
        residual: Some(buffers.stream.head(tokens)),
        ..Epilogue::default()
    };
    linears.output.forward(
        buffers.middle.head_mut(tokens),
        buffers.attended.head(tokens),
        weights,
        epilogue,
    )?;
    let (out, x) = (buffers.middle.head_mut(tokens), buffers.attended.head(tokens));
    lora::forward(weights, index, Place::Output, out, x, buffers.low_rank.as_mut())?;
    normed(&mut buffers.normed, &mut buffers.rstd, &buffers.middle, &layer.post_norm)?;
    if lora::is_at(weights, index, Place::GateUp) {
        let (mut out, x) = (buffers.gate_up.head_mut(tokens), buffers.normed.head(tokens));
        linears.gate_up.forward(out.reborrow(), x, weights, Epilogue::default())?;
        lora::forward(weights, index, Place::GateUp, out, x, buffers.low_rank.as_mut())?;
        swiglu::forward(buffers.activated.head_mut(tokens), buffers.gate_up.head(tokens))?;
    } else {
        linears.gate_up.forward_swiglu(
            buffers.activated.head_mut(tokens),
            buffers.gate_up.head_mut(tokens),
            buffers.normed.head(tokens),
            weights,
        )?;
    }
    let epilogue = Epilogue { residual: Some(buffers.middle.head(tokens)), ..Epilogue::default() };
    linears.down.forward(
        buffers.stream.head_mut(tokens),
        buffers.activated.head(tokens),
        weights,
        epilogue,
    )?;
    let (out, x) = (buffers.stream.head_mut(tokens), buffers.activated.head(tokens));
    lora::forward(weights, index, Place::Down, out, x, buffers.low_rank.as_mut())
}

/// Copies rows of a cache to others of it; the two ranges do not overlap.
pub(super) fn copy_rows(cache: &mut Tensor, from: usize, to: usize, count: usize) -> Result<()> {
    let (low, high) = (from.min(to), from.max(to));
    let (head, tail) = cache.view_mut().split_at_row(high);
    let (low, high) = (head.into_rows(low..low + count), tail.into_rows(0..count));
    let (mut target, source) = if to < from { (low, high) } else { (high, low) };
    Ok(target.copy_from(source.as_view())?)
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
    pub(super) fn new(
        config: &Config,
        weights: &Weights,
        limits: GenerationLimits,
    ) -> Result<Self> {
        let (device, dtype) = (weights.data().device(), weights.dtype());
        let (plan, slots) = plan_buffers(config, dtype, limits);
        let mut memory = plan.allocate(device)?;
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
            low_rank: LowRankBuffers::new(weights, limits.step_tokens, false)?,
        })
    }
}
