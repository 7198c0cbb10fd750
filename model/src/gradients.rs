//! Gradients of all that learns: one flat float32 arena in the layout of the weights, or of the adapters beside them.

use std::ops::Range;
use std::sync::Arc;

use prime_runtime::{DType, Device, Tensor, View, ViewMut};

use crate::{Layout, Result, Weights};

/// One float32 gradient a parameter, in the order of [`Layout`]. Operations add to it; [`Gradients::clear`] starts a new batch.
///
/// Where adapters learn in place of the weights, these have no gradients, and no memory is kept for them.
pub struct Gradients {
    layout: Arc<Layout>,
    data: Tensor,
    /// Where gradients of frozen norms go, which nobody reads: their kernels compute them beside what is read.
    sink: Option<Tensor>,
}

impl Gradients {
    /// Zero gradients of all weights.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn zeros(layout: Arc<Layout>, device: Device) -> Result<Self> {
        let data = Tensor::zeros(device, DType::F32, &[layout.elements])?;
        Ok(Gradients { layout, data, sink: None })
    }

    /// Zero gradients of what learns of a model: its adapters, or all weights where it has none.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn of(weights: &Weights) -> Result<Self> {
        let (layout, device) = (weights.layout().clone(), weights.data().device());
        let Some(adapter) = weights.adapter() else { return Gradients::zeros(layout, device) };
        let data = Tensor::zeros(device, DType::F32, &[adapter.layout().elements])?;
        let longest = layout.tensors.iter().filter(|tensor| tensor.dims.len() == 1);
        let longest = longest.map(|tensor| tensor.dims[0]).max().unwrap_or(0);
        let sink = Some(Tensor::zeros(device, DType::F32, &[longest])?);
        Ok(Gradients { layout, data, sink })
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// When the device fails.
    pub fn clear(&mut self) -> Result<()> {
        Ok(prime_kernels::fill::forward(self.data.view_mut(), 0.0)?)
    }

    /// The layout of the weights.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The whole arena.
    pub fn data(&self) -> View<'_> {
        self.data.view()
    }

    /// The whole arena, to write.
    pub fn data_mut(&mut self) -> ViewMut<'_> {
        self.data.view_mut()
    }

    /// One parameter's gradient, to read.
    pub fn view(&self, range: &Range<usize>, dims: &[usize]) -> View<'_> {
        self.data.view().rows(range.clone()).reshape(dims)
    }

    /// One matrix's gradient, to add to; none where the weights are frozen.
    pub(crate) fn view_mut(&mut self, range: &Range<usize>, dims: &[usize]) -> Option<ViewMut<'_>> {
        self.sink.is_none().then(|| part(&mut self.data, range, dims))
    }

    /// A norm's gradient, to add to.
    pub(crate) fn norm_mut(&mut self, range: &Range<usize>) -> ViewMut<'_> {
        match &mut self.sink {
            Some(sink) => sink.head_mut(range.len()),
            None => part(&mut self.data, range, &[range.len()]),
        }
    }

    /// The gradient of an adapter's matrix, to add to.
    pub(crate) fn adapter_mut(&mut self, range: &Range<usize>, dims: &[usize]) -> ViewMut<'_> {
        part(&mut self.data, range, dims)
    }

    /// A weight's gradient and, where there is one, its bias's: the bias lies behind the weight in the layout. Frozen weights have neither.
    pub(crate) fn weight_and_bias(
        &mut self,
        weight: &Range<usize>,
        dims: [usize; 2],
        bias: Option<&Range<usize>>,
    ) -> (Option<ViewMut<'_>>, Option<ViewMut<'_>>) {
        let Some(bias) = bias.filter(|_| self.sink.is_none()) else {
            return (self.view_mut(weight, &dims), None);
        };
        assert!(weight.end <= bias.start, "a bias lies behind its weight");
        let (head, tail) = self.data.view_mut().split_at_row(bias.start);
        let weight = head.into_rows(weight.clone()).into_shape(&dims);
        (Some(weight), Some(tail.into_rows(0..bias.len())))
    }
}

fn part<'a>(data: &'a mut Tensor, range: &Range<usize>, dims: &[usize]) -> ViewMut<'a> {
    data.view_mut().into_rows(range.clone()).into_shape(dims)
}
