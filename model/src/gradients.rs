//! Gradients of all parameters: one flat float32 arena in the weights' layout.

use std::ops::Range;
use std::sync::Arc;

use prime_runtime::{DType, Device, Tensor, View, ViewMut};

use crate::{Layout, Result};

/// One float32 gradient a parameter, in the order of [`Layout`]. Operations add to it; [`Gradients::clear`] starts a new batch.
pub struct Gradients {
    layout: Arc<Layout>,
    data: Tensor,
}

impl Gradients {
    /// Zero gradients.
    ///
    /// # Errors
    /// When the device has not enough memory.
    pub fn zeros(layout: Arc<Layout>, device: Device) -> Result<Self> {
        let data = Tensor::zeros(device, DType::F32, &[layout.elements])?;
        Ok(Gradients { layout, data })
    }

    /// Sets all gradients to zero.
    ///
    /// # Errors
    /// When the device fails.
    pub fn clear(&mut self) -> Result<()> {
        Ok(prime_kernels::fill::forward(self.data.view_mut(), 0.0)?)
    }

    /// The layout.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The whole arena.
    pub fn data(&self) -> View<'_> {
        self.data.view()
    }

    /// One parameter's gradient, to read.
    pub fn view(&self, range: &Range<usize>, dims: &[usize]) -> View<'_> {
        self.data.view().rows(range.clone()).reshape(dims)
    }

    /// One parameter's gradient, to add to.
    pub(crate) fn view_mut(&mut self, range: &Range<usize>, dims: &[usize]) -> ViewMut<'_> {
        self.data.view_mut().into_rows(range.clone()).into_shape(dims)
    }

    /// A weight's gradient and, where there is one, its bias's: the bias lies behind the weight in the layout.
    pub(crate) fn weight_and_bias(
        &mut self,
        weight: &Range<usize>,
        dims: [usize; 2],
        bias: Option<&Range<usize>>,
    ) -> (ViewMut<'_>, Option<ViewMut<'_>>) {
        let Some(bias) = bias else { return (self.view_mut(weight, &dims), None) };
        assert!(weight.end <= bias.start, "a bias lies behind its weight");
        let (head, tail) = self.data.view_mut().split_at_row(bias.start);
        let weight = head.into_rows(weight.clone()).into_shape(&dims);
        (weight, Some(tail.into_rows(0..bias.len())))
    }
}
