//! Root-mean-square normalisation: out = weight * x * rstd, rstd = 1 / sqrt(mean(x^2) + epsilon), over the last
//! dimension.
//!
//! `x` is `[tokens, hidden]`, or `[tokens, heads, head_dim]` for QK-norm; `weight` is `[hidden]` or `[head_dim]`; `rstd`
//! (float32) has one value a normalised row: `[tokens]` or `[tokens, heads]`. All but `rstd` and the weight's gradient
//! share one dtype; rows of `x`, `out` and their gradients may be spread out. As in transformers, x * rstd is rounded to
//! the storage dtype before the weight is applied.
//!
//! With n = x * rstd and g = d_out * weight, d_x = rstd * (g - n * mean(g * n)) and d_weight = sum over rows of d_out * n
//! (n rounded, as the weight met it).
//!
//! Source: Zhang and Sennrich, arXiv 1910.07467.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments::{self, with_float};

pub mod check;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cuda::CODE;

/// Normalises `x`.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward(
    out: ViewMut<'_>,
    rstd: ViewMut<'_>,
    x: View<'_>,
    weight: View<'_>,
    epsilon: f32,
) -> Result<()> {
    const OPERATION: &str = "rms_norm.forward";
    let mut shapes = Shapes::new(OPERATION, x, weight, rstd.as_view())?;
    shapes.like_x("out", out.as_view())?;
    match x.device() {
        Device::Cpu => {
            with_float!(x.dtype(), E => cpu::forward::<E>(out, rstd, x, weight, epsilon));
            Ok(())
        }
        _ => cuda::forward(out, rstd, x, weight, epsilon),
    }
}

/// Adds `delta` to the residual stream and normalises the sum, in one pass: `sum` = x + delta rounded to the dtype,
/// `out` = norm(`sum`).
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward_residual(
    out: ViewMut<'_>,
    sum: ViewMut<'_>,
    rstd: ViewMut<'_>,
    x: View<'_>,
    delta: View<'_>,
    weight: View<'_>,
    epsilon: f32,
) -> Result<()> {
    const OPERATION: &str = "rms_norm.forward_residual";
    let mut shapes = Shapes::new(OPERATION, x, weight, rstd.as_view())?;
    shapes.like_x("out", out.as_view())?;
    shapes.like_x("sum", sum.as_view())?;
    shapes.like_x("delta", delta)?;
    match x.device() {
        Device::Cpu => {
            with_float!(
                x.dtype(),
                E => cpu::forward_residual::<E>(out, sum, rstd, x, delta, weight, epsilon)
            );
            Ok(())
        }
        _ => cuda::normalise(out, Some(sum), rstd, x, Some(delta), weight, epsilon),
    }
}

/// Gradients: `d_x` is overwritten with the gradient through the norm, plus `d_residual` where given (what reached `x`
/// past the norm); `d_weight` (float32) is added to, tokens in order on the host.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn backward(
    d_x: ViewMut<'_>,
    d_weight: ViewMut<'_>,
    d_out: View<'_>,
    x: View<'_>,
    weight: View<'_>,
    rstd: View<'_>,
    d_residual: Option<View<'_>>,
) -> Result<()> {
    const OPERATION: &str = "rms_norm.backward";
    let mut shapes = Shapes::new(OPERATION, x, weight, rstd)?;
    shapes.like_x("d_x", d_x.as_view())?;
    shapes.like_x("d_out", d_out)?;
    if let Some(d_residual) = d_residual {
        shapes.like_x("d_residual", d_residual)?;
    }
    shapes.dims.bind("d_weight", d_weight.dims(), ["width"])?;
    arguments::dense::<f32>(OPERATION, "d_weight", d_weight.as_view())?;
    match x.device() {
        Device::Cpu => {
            let d_weight = d_weight.into_slice();
            with_float!(
                x.dtype(),
                E => cpu::backward::<E>(d_x, d_weight, d_out, x, weight, rstd, d_residual)
            );
            Ok(())
        }
        _ => cuda::backward(d_x, d_weight, d_out, x, weight, rstd, d_residual),
    }
}

/// The agreement of a call's tensors with its `x`.
struct Shapes {
    operation: &'static str,
    dims: NamedDims,
    x: prime_runtime::DType,
}

impl Shapes {
    fn new(
        operation: &'static str,
        x: View<'_>,
        weight: View<'_>,
        rstd: View<'_>,
    ) -> Result<Shapes> {
        arguments::float(operation, "x", x)?;
        let mut shapes = Shapes { operation, dims: NamedDims::new(operation), x: x.dtype() };
        shapes.like_x("x", x)?;
        shapes.dims.bind("weight", weight.dims(), ["width"])?;
        match x.dims().len() {
            2 => shapes.dims.bind("rstd", rstd.dims(), ["tokens"])?,
            _ => shapes.dims.bind("rstd", rstd.dims(), ["tokens", "heads"])?,
        }
        arguments::same_dtype(operation, "weight", weight, x.dtype())?;
        arguments::dtype::<f32>(operation, "rstd", rstd)?;
        arguments::contiguous(operation, "weight", weight)?;
        Ok(shapes)
    }

    fn like_x(&mut self, tensor: &'static str, view: View<'_>) -> Result<()> {
        match view.dims().len() {
            2 => self.dims.bind(tensor, view.dims(), ["tokens", "width"])?,
            _ => self.dims.bind(tensor, view.dims(), ["tokens", "heads", "width"])?,
        }
        arguments::same_dtype(self.operation, tensor, view, self.x)
    }
}
