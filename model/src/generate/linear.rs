//! The matrices of linear layers in the order in which the kernels of their device read them best.

use std::ops::Range;

use prime_kernels::matmul::{self, Epilogue, Layout as Product, Packed};
use prime_kernels::{sample, swiglu};
use prime_runtime::{Device, View, ViewMut};

use crate::decoder::Sizes;
use crate::layout::LayerLayout;
use crate::{Result, Weights};

/// One matrix of a model's weights, `dims` of `range`.
pub(super) struct Linear {
    range: Range<usize>,
    dims: [usize; 2],
    /// On the host, where steps have few rows: put in order once. Elsewhere kernels read the weights themselves.
    packed: Option<Packed>,
}

impl Linear {
    pub(super) fn new(weights: &Weights, range: &Range<usize>, dims: [usize; 2]) -> Result<Self> {
        let packed = match weights.data().device() {
            Device::Cpu => Some(Packed::new(weights.view(range, &dims), Product::NT)?),
            _ => None,
        };
        Ok(Linear { range: range.clone(), dims, packed })
    }

    /// Takes over new weights.
    pub(super) fn load(&mut self, weights: &Weights) -> Result<()> {
        if let Some(packed) = &mut self.packed {
            packed.repack(weights.view(&self.range, &self.dims))?;
        }
        Ok(())
    }

    /// x through the layer; `weights` are those that were taken over last.
    pub(super) fn forward(
        &self,
        out: ViewMut<'_>,
        x: View<'_>,
        weights: &Weights,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        match &self.packed {
            Some(packed) => matmul::forward_packed(out, x, packed, epilogue)?,
            None => {
                let weight = weights.view(&self.range, &self.dims);
                matmul::forward(out, x, weight, Product::NT, epilogue)?;
            }
        }
        Ok(())
    }

    /// x through the layer and SwiGLU; `gate_up` is room for what lies between.
    pub(super) fn forward_swiglu(
        &self,
        out: ViewMut<'_>,
        mut gate_up: ViewMut<'_>,
        x: View<'_>,
        weights: &Weights,
    ) -> Result<()> {
        match &self.packed {
            Some(packed) => {
                let product = gate_up.reborrow();
                matmul::forward_packed(product, x, packed, Epilogue::default())?;
                swiglu::forward(out, gate_up.as_view())?;
            }
            None => {
                let weight = weights.view(&self.range, &self.dims);
                matmul::forward_swiglu(out, gate_up, false, x, weight)?;
            }
        }
        Ok(())
    }

    /// Draws from the distributions that the final projection gives: on the host from rows, elsewhere from their settings there.
    pub(super) fn sample(
        &self,
        tokens: ViewMut<'_>,
        log_probs: ViewMut<'_>,
        entropy: ViewMut<'_>,
        hidden: View<'_>,
        weights: &Weights,
        rows: &[sample::Row],
        settings: View<'_>,
    ) -> Result<()> {
        match &self.packed {
            Some(packed) => {
                let weight = sample::Weight::Packed(packed);
                sample::forward(tokens, log_probs, entropy, hidden, weight, rows)?;
            }
            None => {
                let weight = weights.view(&self.range, &self.dims);
                sample::forward_sent(tokens, log_probs, entropy, hidden, weight, settings)?;
            }
        }
        Ok(())
    }
}

/// A layer's matrices.
pub(super) struct LayerLinears {
    pub(super) qkv: Linear,
    pub(super) output: Linear,
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
}

impl LayerLinears {
    pub(super) fn new(weights: &Weights, layer: &LayerLayout, sizes: Sizes) -> Result<Self> {
        let linear = |range: &Range<usize>, dims: [usize; 2]| Linear::new(weights, range, dims);
        Ok(LayerLinears {
            qkv: linear(&layer.qkv, [sizes.qkv(), sizes.hidden])?,
            output: linear(&layer.output, [sizes.hidden, sizes.q()])?,
            gate_up: linear(&layer.gate_up, [2 * sizes.intermediate, sizes.hidden])?,
            down: linear(&layer.down, [sizes.hidden, sizes.intermediate])?,
        })
    }

    /// Takes over new weights.
    pub(super) fn load(&mut self, weights: &Weights) -> Result<()> {
        let linears = [&mut self.qkv, &mut self.output, &mut self.gate_up, &mut self.down];
        linears.into_iter().try_for_each(|linear| linear.load(weights))
    }
}
