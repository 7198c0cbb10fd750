//! Forward and backward of a decoder, written out.

mod backward;

use std::sync::Arc;

use prime_kernels::attention::{self, Mask};
use prime_kernels::matmul::{self, Epilogue, Layout as Product};
use prime_kernels::{embedding, gather, log_prob, rms_norm, rope, swiglu};
use prime_runtime::{Device, Tensor, View, ViewMut};

use crate::activations::{LayerBuffers, QkNormBuffers};
use crate::lora::{self, LowRankBuffers, Place};
use crate::offload::{Part, Parts};
use crate::pack::PackViews;
use crate::value_head::OutputGradients;
use crate::{Activations, Config, Gradients, Layout, Mode, Pack, Result, Weights, rope_tables};

/// A decoder's shape and rotation tables. Weights, activations and gradients are the caller's, so that a policy, a reward model and a
/// reference of one shape share one decoder and one set of buffers.
pub struct Decoder {
    config: Config,
    layout: Arc<Layout>,
    cos: Tensor, // (positions, head_dim / 2)
    sin: Tensor,
}

/// The sizes that every layer uses.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) tokens: usize,
    pub(crate) hidden: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) intermediate: usize,
}

impl Sizes {
    pub(crate) fn new(config: &Config, tokens: usize) -> Self {
        Sizes {
            tokens,
            hidden: config.hidden_size,
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            intermediate: config.intermediate_size,
        }
    }

    /// Columns of q in a fused buffer.
    pub(crate) fn q(self) -> usize {
        self.heads * self.head_dim
    }

    /// Columns of k, and of v.
    pub(crate) fn kv(self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Columns of a fused q/k/v buffer.
    pub(crate) fn qkv(self) -> usize {
        self.q() + 2 * self.kv()
    }

    /// A column block seen as heads.
    pub(crate) fn as_heads<'a>(self, block: View<'a>) -> View<'a> {
        block.reshape(&[block.dim(0), block.dim(1) / self.head_dim, self.head_dim])
    }

    /// A column block seen as heads, to write.
    pub(crate) fn as_heads_mut<'a>(self, block: ViewMut<'a>) -> ViewMut<'a> {
        let dims = [block.dim(0), block.dim(1) / self.head_dim, self.head_dim];
        block.into_shape(&dims)
    }
}

/// The scale of attention scores.
pub(crate) fn attention_scale(config: &Config) -> f32 {
    (1.0 / (config.head_dim as f64).sqrt()) as f32
}

impl Decoder {
    /// The decoder of a configuration on a device, for sequences of up to `positions` tokens.
    ///
    /// # Errors
    /// When the tables do not fit in memory.
    pub fn new(config: &Config, device: Device, positions: usize) -> Result<Self> {
        let (cos, sin) = rope_tables(config, device, positions)?;
        Ok(Decoder::with_tables(config, cos, sin))
    }

    /// The decoder of a configuration with rotation tables of the caller's: float32 `[positions, head_dim / 2]`. It runs where they are.
    pub fn with_tables(config: &Config, cos: Tensor, sin: Tensor) -> Self {
        Decoder { config: config.clone(), layout: Arc::new(Layout::new(config)), cos, sin }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the parameters of its models lie.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Runs a pack through the model and takes the log-probability and the entropy at its picked rows, at a temperature; read them with
    /// [`Activations::log_probs`] and [`Activations::entropy`]. Where the model has a value head, [`Activations::values`] are taken too.
    ///
    /// # Errors
    /// When the pack is larger than the plan, a token is outside the vocabulary, or a sequence is longer than the tables.
    pub fn forward<'a>(
        &self,
        weights: impl Into<Parts<'a>>,
        pack: &Pack,
        temperature: f32,
        activations: &mut Activations,
    ) -> Result<()> {
        let mut parts = weights.into();
        self.trunk_forward(&mut parts, pack, activations)?;
        let weights = parts.bring(Part::Head)?;
        let lists = activations.pack.views(pack);
        let picked = pack.picked.len();
        let table = [self.config.vocab_size, self.config.hidden_size];
        log_prob::forward(
            activations.log_probs.head_mut(picked),
            activations.entropy.head_mut(picked),
            activations.lse.head_mut(picked),
            activations.picked_normed.head(picked),
            weights.view(&weights.layout().lm_head, &table),
            lists.targets,
            temperature,
        )?;
        self.head_forward(weights, pack, activations)
    }

    /// The pass up to the last norm at the picked rows.
    pub(crate) fn trunk_forward(
        &self,
        parts: &mut Parts<'_>,
        pack: &Pack,
        activations: &mut Activations,
    ) -> Result<()> {
        activations.check(pack)?;
        pack.check(self.config.vocab_size, self.cos.dims()[0])?;
        let weights = parts.bring(Part::Embedding)?;
        activations.reserve_low_rank(weights)?;
        activations.pack.send(pack)?;
        let lists = activations.pack.views(pack);
        let sizes = Sizes::new(&self.config, pack.tokens.len());
        let table = [self.config.vocab_size, sizes.hidden];
        let table = weights.view(&weights.layout().embedding, &table);
        embedding::forward(activations.streams[0].head_mut(sizes.tokens), lists.tokens, table)?;
        for index in 0..self.config.num_layers {
            let (from, to, set) = match activations.mode {
                Mode::Score => (index % 2, (index + 1) % 2, 0),
                Mode::Train => (index, index + 1, index),
                Mode::TrainCheckpointed => (index, index + 1, 0),
            };
            let [input, output] =
                activations.streams.get_disjoint_mut([from, to]).expect("two streams");
            let buffers = &mut activations.layers[set];
            let keep = match activations.mode {
                Mode::Score => false,
                Mode::Train => true,
                // The others are computed again on the way back.
                Mode::TrainCheckpointed => index + 1 == self.config.num_layers,
            };
            let low_rank = &mut activations.low_rank;
            let input = input.head(sizes.tokens);
            let weights = parts.bring(Part::Layer(index))?;
            self.layer_forward(weights, index, lists, sizes, input, buffers, keep, low_rank)?;
            self.layer_output(weights, index, sizes, buffers, output, low_rank)?;
        }
        let last = match activations.mode {
            Mode::Score => self.config.num_layers % 2,
            Mode::Train | Mode::TrainCheckpointed => self.config.num_layers,
        };
        let weights = parts.bring(Part::Head)?;
        let picked = pack.picked.len();
        gather::forward(
            activations.picked.head_mut(picked),
            activations.streams[last].head(sizes.tokens),
            lists.picked,
        )?;
        rms_norm::forward(
            activations.picked_normed.head_mut(picked),
            activations.picked_rstd.head_mut(picked),
            activations.picked.head(picked),
            weights.view(&weights.layout().final_norm, &[sizes.hidden]),
            self.config.rms_norm_eps,
        )?;
        Ok(())
    }

    /// Adds to `gradients` those of `sum of d_log_probs * log_probs + d_entropy * entropy` of the last forward pass, which must have been
    /// over this pack with these weights and this temperature. Both are float32 `[picked]`, on the device of the activations.
    ///
    /// # Errors
    /// When the activations were planned for scoring only, or sizes disagree.
    pub fn backward(
        &self,
        weights: &Weights,
        pack: &Pack,
        temperature: f32,
        d_log_probs: View<'_>,
        d_entropy: Option<View<'_>>,
        activations: &mut Activations,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let d = OutputGradients { log_probs: Some(d_log_probs), entropy: d_entropy, values: None };
        self.backward_from(weights, pack, temperature, d, activations, gradients)
    }

    /// A layer up to its MLP's activation; with what the way back needs, where it is to be kept.
    fn layer_forward(
        &self,
        weights: &Weights,
        index: usize,
        lists: PackViews<'_>,
        sizes: Sizes,
        input: View<'_>,
        buffers: &mut LayerBuffers,
        keep: bool,
        low_rank: &mut Option<LowRankBuffers>,
    ) -> Result<()> {
        let layer = &weights.layout().layers[index];
        let epsilon = self.config.rms_norm_eps;
        let tokens = sizes.tokens;
        rms_norm::forward(
            buffers.input_normed.head_mut(tokens),
            buffers.input_rstd.head_mut(tokens),
            input,
            weights.view(&layer.input_norm, &[sizes.hidden]),
            epsilon,
        )?;
        matmul::forward(
            buffers.qkv.head_mut(tokens),
            buffers.input_normed.head(tokens),
            weights.view(&layer.qkv, &[sizes.qkv(), sizes.hidden]),
            Product::NT,
            Epilogue { bias: bias(weights, layer.qkv_bias.as_ref()), ..Epilogue::default() },
        )?;
        let (out, x) = (buffers.qkv.head_mut(tokens), buffers.input_normed.head(tokens));
        lora::forward(weights, index, Place::Qkv, out, x, low_rank.as_mut())?;
        let rotated = sizes.q() + sizes.kv();
        let rotated = match &mut buffers.qk {
            None => buffers.qkv.head_mut(tokens).split_at_column(rotated).0,
            Some(qk) => {
                let (q, k) = qk.normed.head_mut(tokens).split_at_column(sizes.q());
                let raw = buffers.qkv.head(tokens);
                norm_heads(
                    weights,
                    layer.q_norm.as_ref(),
                    sizes,
                    q,
                    qk.q_rstd.head_mut(tokens),
                    raw.columns(0..sizes.q()),
                    epsilon,
                )?;
                let raw = raw.columns(sizes.q()..rotated);
                norm_heads(
                    weights,
                    layer.k_norm.as_ref(),
                    sizes,
                    k,
                    qk.k_rstd.head_mut(tokens),
                    raw,
                    epsilon,
                )?;
                qk.normed.head_mut(tokens)
            }
        };
        rope::forward(
            sizes.as_heads_mut(rotated),
            lists.positions,
            self.cos.view(),
            self.sin.view(),
        )?;
        let (q, k, v) = attention_inputs(sizes, &buffers.qkv, buffers.qk.as_ref());
        attention::forward(
            sizes.as_heads_mut(buffers.attended.head_mut(tokens)),
            buffers.lse.head_mut(tokens),
            q,
            k,
            v,
            lists.cu_seqlens,
            attention_scale(&self.config),
            Mask::Causal,
        )?;
        matmul::forward(
            buffers.middle.head_mut(tokens),
            buffers.attended.head(tokens),
            weights.view(&layer.output, &[sizes.hidden, sizes.q()]),
            Product::NT,
            Epilogue {
                bias: bias(weights, layer.output_bias.as_ref()),
                residual: Some(input),
                ..Epilogue::default()
            },
        )?;
        let (out, x) = (buffers.middle.head_mut(tokens), buffers.attended.head(tokens));
        lora::forward(weights, index, Place::Output, out, x, low_rank.as_mut())?;
        rms_norm::forward(
            buffers.post_normed.head_mut(tokens),
            buffers.post_rstd.head_mut(tokens),
            buffers.middle.head(tokens),
            weights.view(&layer.post_norm, &[sizes.hidden]),
            epsilon,
        )?;
        if lora::is_at(weights, index, Place::GateUp) {
            let (mut out, x) = (buffers.gate_up.head_mut(tokens), buffers.post_normed.head(tokens));
            let weight = weights.view(&layer.gate_up, &[2 * sizes.intermediate, sizes.hidden]);
            matmul::forward(out.reborrow(), x, weight, Product::NT, Epilogue::default())?;
            lora::forward(weights, index, Place::GateUp, out, x, low_rank.as_mut())?;
            swiglu::forward(buffers.activated.head_mut(tokens), buffers.gate_up.head(tokens))?;
            return Ok(());
        }
        matmul::forward_swiglu(
            buffers.activated.head_mut(tokens),
            buffers.gate_up.head_mut(tokens),
            keep,
            buffers.post_normed.head(tokens),
            weights.view(&layer.gate_up, &[2 * sizes.intermediate, sizes.hidden]),
        )?;
        Ok(())
    }

    /// The end of a layer: the MLP's projection onto the residual stream.
    fn layer_output(
        &self,
        weights: &Weights,
        index: usize,
        sizes: Sizes,
        buffers: &LayerBuffers,
        output: &mut Tensor,
        low_rank: &mut Option<LowRankBuffers>,
    ) -> Result<()> {
        let layer = &weights.layout().layers[index];
        matmul::forward(
            output.head_mut(sizes.tokens),
            buffers.activated.head(sizes.tokens),
            weights.view(&layer.down, &[sizes.hidden, sizes.intermediate]),
            Product::NT,
            Epilogue { residual: Some(buffers.middle.head(sizes.tokens)), ..Epilogue::default() },
        )?;
        let (out, x) = (output.head_mut(sizes.tokens), buffers.activated.head(sizes.tokens));
        lora::forward(weights, index, Place::Down, out, x, low_rank.as_mut())
    }
}

/// A bias, where the architecture has one.
pub(crate) fn bias<'a>(
    weights: &'a Weights,
    range: Option<&std::ops::Range<usize>>,
) -> Option<View<'a>> {
    range.map(|range| weights.view(range, &[range.len()]))
}

fn expect_norm(range: Option<&std::ops::Range<usize>>) -> &std::ops::Range<usize> {
    range.expect("a layout with QK-norm has both norms")
}

/// Normalises each head of a column block.
pub(crate) fn norm_heads(
    weights: &Weights,
    norm: Option<&std::ops::Range<usize>>,
    sizes: Sizes,
    out: ViewMut<'_>,
    rstd: ViewMut<'_>,
    x: View<'_>,
    epsilon: f32,
) -> Result<()> {
    let weight = weights.view(expect_norm(norm), &[sizes.head_dim]);
    rms_norm::forward(sizes.as_heads_mut(out), rstd, sizes.as_heads(x), weight, epsilon)?;
    Ok(())
}

/// q, k and v as attention reads them.
fn attention_inputs<'a>(
    sizes: Sizes,
    qkv: &'a Tensor,
    qk: Option<&'a QkNormBuffers>,
) -> (View<'a>, View<'a>, View<'a>) {
    let raw = qkv.head(sizes.tokens);
    let rotated = qk.map_or(raw, |qk| qk.normed.head(sizes.tokens));
    let (q, end) = (sizes.q(), sizes.q() + sizes.kv());
    (
        sizes.as_heads(rotated.columns(0..q)),
        sizes.as_heads(rotated.columns(q..end)),
        sizes.as_heads(raw.columns(end..sizes.qkv())),
    )
}
