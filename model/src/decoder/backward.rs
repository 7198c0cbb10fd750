//! The way back through a decoder.

use prime_kernels::attention::{self, Mask};
use prime_kernels::matmul::{self, Layout as Product};
use prime_kernels::{embedding, gather, rms_norm, rope, swiglu};
use prime_runtime::View;

use super::{Decoder, Sizes, attention_inputs, attention_scale, expect_norm};
use crate::activations::{BackwardBuffers, LayerBuffers};
use crate::layout::LayerLayout;
use crate::lora::{self, LowRankBuffers, Place};
use crate::pack::PackViews;
use crate::{Activations, Gradients, Mode, Pack, Result, Weights};

impl Decoder {
    /// The way back from the gradient of the last norm's output at the picked rows.
    pub(crate) fn trunk_backward(
        &self,
        weights: &Weights,
        pack: &Pack,
        activations: &mut Activations,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let lists = activations.pack.views(pack);
        let sizes = Sizes::new(&self.config, pack.tokens.len());
        let picked = pack.picked.len();
        let Activations { mode, streams, layers, backward, low_rank, .. } = activations;
        let back = backward.as_mut().expect("checked where the way back begins");
        rms_norm::backward(
            back.picked.head_mut(picked),
            gradients.norm_mut(&self.layout.final_norm),
            back.picked_normed.head(picked),
            activations.picked.head(picked),
            weights.view(&self.layout.final_norm, &[sizes.hidden]),
            activations.picked_rstd.head(picked),
            None,
        )?;
        gather::backward(
            back.stream.head_mut(sizes.tokens),
            back.picked.head(picked),
            lists.picked,
        )?;
        for index in (0..self.config.num_layers).rev() {
            let input = streams[index].head(sizes.tokens);
            let buffers = match mode {
                Mode::TrainCheckpointed => {
                    // The last layer's buffers still hold what the forward pass left.
                    if index + 1 != self.config.num_layers {
                        let layer = &mut layers[0];
                        self.layer_forward(
                            weights, index, lists, sizes, input, layer, true, low_rank,
                        )?;
                    }
                    &layers[0]
                }
                _ => &layers[index],
            };
            self.layer_backward(
                weights, index, lists, sizes, input, buffers, back, gradients, low_rank,
            )?;
        }
        let table = [self.config.vocab_size, sizes.hidden];
        if let Some(d_table) = gradients.view_mut(&self.layout.embedding, &table) {
            embedding::backward(d_table, back.stream.head(sizes.tokens), lists.tokens)?;
        }
        Ok(())
    }

    /// A layer's way back: `back.stream` holds the gradient of its output, and then that of its input.
    fn layer_backward(
        &self,
        weights: &Weights,
        index: usize,
        lists: PackViews<'_>,
        sizes: Sizes,
        input: View<'_>,
        buffers: &LayerBuffers,
        back: &mut BackwardBuffers,
        gradients: &mut Gradients,
        low_rank: &mut Option<LowRankBuffers>,
    ) -> Result<()> {
        let layer = &self.layout.layers[index];
        let tokens = sizes.tokens;
        let down = [sizes.hidden, sizes.intermediate];
        matmul::backward(
            Some(back.activated.head_mut(tokens)),
            gradients.view_mut(&layer.down, &down),
            None,
            back.stream.head(tokens),
            buffers.activated.head(tokens),
            weights.view(&layer.down, &down),
            Product::NT,
        )?;
        lora::backward(
            weights,
            index,
            Place::Down,
            back.activated.head_mut(tokens),
            gradients,
            back.stream.head(tokens),
            buffers.activated.head(tokens),
            low_rank.as_mut(),
        )?;
        swiglu::backward(
            back.gate_up.head_mut(tokens),
            back.activated.head(tokens),
            buffers.gate_up.head(tokens),
        )?;
        let gate_up = [2 * sizes.intermediate, sizes.hidden];
        matmul::backward(
            Some(back.normed.head_mut(tokens)),
            gradients.view_mut(&layer.gate_up, &gate_up),
            None,
            back.gate_up.head(tokens),
            buffers.post_normed.head(tokens),
            weights.view(&layer.gate_up, &gate_up),
            Product::NT,
        )?;
        lora::backward(
            weights,
            index,
            Place::GateUp,
            back.normed.head_mut(tokens),
            gradients,
            back.gate_up.head(tokens),
            buffers.post_normed.head(tokens),
            low_rank.as_mut(),
        )?;
        rms_norm::backward(
            back.middle.head_mut(tokens),
            gradients.norm_mut(&layer.post_norm),
            back.normed.head(tokens),
            buffers.middle.head(tokens),
            weights.view(&layer.post_norm, &[sizes.hidden]),
            buffers.post_rstd.head(tokens),
            Some(back.stream.head(tokens)),
        )?;
        let output = [sizes.hidden, sizes.q()];
        let (d_output, d_output_bias) =
            gradients.weight_and_bias(&layer.output, output, layer.output_bias.as_ref());
        matmul::backward(
            Some(back.attended.head_mut(tokens)),
            d_output,
            d_output_bias,
            back.middle.head(tokens),
            buffers.attended.head(tokens),
            weights.view(&layer.output, &output),
            Product::NT,
        )?;
        lora::backward(
            weights,
            index,
            Place::Output,
            back.attended.head_mut(tokens),
            gradients,
            back.middle.head(tokens),
            buffers.attended.head(tokens),
            low_rank.as_mut(),
        )?;
        self.attention_backward(weights, layer, lists, sizes, buffers, back, gradients)?;
        let qkv = [sizes.qkv(), sizes.hidden];
        let (d_qkv, d_qkv_bias) =
            gradients.weight_and_bias(&layer.qkv, qkv, layer.qkv_bias.as_ref());
        matmul::backward(
            Some(back.normed.head_mut(tokens)),
            d_qkv,
            d_qkv_bias,
            back.qkv.head(tokens),
            buffers.input_normed.head(tokens),
            weights.view(&layer.qkv, &qkv),
            Product::NT,
        )?;
        lora::backward(
            weights,
            index,
            Place::Qkv,
            back.normed.head_mut(tokens),
            gradients,
            back.qkv.head(tokens),
            buffers.input_normed.head(tokens),
            low_rank.as_mut(),
        )?;
        rms_norm::backward(
            back.stream.head_mut(tokens),
            gradients.norm_mut(&layer.input_norm),
            back.normed.head(tokens),
            input,
            weights.view(&layer.input_norm, &[sizes.hidden]),
            buffers.input_rstd.head(tokens),
            Some(back.middle.head(tokens)),
        )?;
        Ok(())
    }

    /// From the gradient of the attended values to that of the fused q/k/v buffer before rotation and norm.
    fn attention_backward(
        &self,
        weights: &Weights,
        layer: &LayerLayout,
        lists: PackViews<'_>,
        sizes: Sizes,
        buffers: &LayerBuffers,
        back: &mut BackwardBuffers,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let tokens = sizes.tokens;
        let rotated = sizes.q() + sizes.kv();
        let (q, k, v) = attention_inputs(sizes, &buffers.qkv, buffers.qk.as_ref());
        let (d_raw, d_v) = back.qkv.head_mut(tokens).split_at_column(rotated);
        let mut d_rotated = match &mut back.qk {
            None => d_raw,
            Some(qk) => qk.head_mut(tokens),
        };
        let (d_q, d_k) = d_rotated.reborrow().split_at_column(sizes.q());
        attention::backward(
            sizes.as_heads_mut(d_q),
            sizes.as_heads_mut(d_k),
            sizes.as_heads_mut(d_v),
            sizes.as_heads(back.attended.head(tokens)),
            q,
            k,
            v,
            sizes.as_heads(buffers.attended.head(tokens)),
            buffers.lse.head(tokens),
            lists.cu_seqlens,
            attention_scale(&self.config),
            Mask::Causal,
        )?;
        rope::backward(
            sizes.as_heads_mut(d_rotated),
            lists.positions,
            self.cos.view(),
            self.sin.view(),
        )?;
        let (Some(d_qk), Some(qk)) = (&back.qk, &buffers.qk) else { return Ok(()) };
        let (q_norm, k_norm) =
            (expect_norm(layer.q_norm.as_ref()), expect_norm(layer.k_norm.as_ref()));
        let raw = buffers.qkv.head(tokens);
        let (d_q, d_rest) = back.qkv.head_mut(tokens).split_at_column(sizes.q());
        let d_k = d_rest.split_at_column(sizes.kv()).0;
        let parts = [
            (d_q, q_norm, 0..sizes.q(), qk.q_rstd.head(tokens)),
            (d_k, k_norm, sizes.q()..rotated, qk.k_rstd.head(tokens)),
        ];
        for (d_x, norm, columns, rstd) in parts {
            rms_norm::backward(
                sizes.as_heads_mut(d_x),
                gradients.norm_mut(norm),
                sizes.as_heads(d_qk.head(tokens).columns(columns.clone())),
                sizes.as_heads(raw.columns(columns)),
                weights.view(norm, &[sizes.head_dim]),
                rstd,
                None,
            )?;
        }
        Ok(())
    }
}
