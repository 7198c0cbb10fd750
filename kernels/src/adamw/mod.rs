//! AdamW with decoupled weight decay over one flat range of parameters, float32 master weights.
//!
//! g = gradient * scale; m = m + (1 - b1) (g - m); v = b2 v + (1 - b2) g^2; w = w (1 - lr decay);
//! w -= lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + epsilon). All state is float32 `[parameters]`. Settings are
//! float64, and 1 - b2 and the like are rounded once: 1 - 0.999 in float32 is wrong in its fifth digit.
//!
//! Source: Loshchilov and Hutter, arXiv 1711.05101; the order of operations of PyTorch's AdamW.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
pub(crate) mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

/// One update's settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// This update's number, from 1: corrects the moments' bias.
    pub step: u64,
    /// Multiplies the gradient: clipping by global norm.
    pub gradient_scale: f64,
}

/// Updates `master`, `m` and `v`, and writes the new weights to `compute` (float32 or bfloat16, rounded to nearest) where
/// given.
///
/// # Errors
/// When shapes or dtypes disagree, or the step is 0.
pub fn update(
    master: ViewMut<'_>,
    compute: Option<ViewMut<'_>>,
    m: ViewMut<'_>,
    v: ViewMut<'_>,
    gradient: View<'_>,
    settings: Settings,
) -> Result<()> {
    const OPERATION: &str = "adamw.update";
    let mut dims = NamedDims::new(OPERATION);
    dims.bind("master", master.dims(), ["parameters"])?;
    dims.bind("m", m.dims(), ["parameters"])?;
    dims.bind("v", v.dims(), ["parameters"])?;
    dims.bind("gradient", gradient.dims(), ["parameters"])?;
    if let Some(compute) = &compute {
        dims.bind("compute", compute.dims(), ["parameters"])?;
        arguments::float(OPERATION, "compute", compute.as_view())?;
        arguments::contiguous(OPERATION, "compute", compute.as_view())?;
    }
    if settings.step == 0 {
        return Err(arguments::value(OPERATION, "the first update is step 1, got step 0"));
    }
    match gradient.device() {
        Device::Cpu => {
            let master = arguments::slice_mut(OPERATION, "master", master)?;
            let m = arguments::slice_mut(OPERATION, "m", m)?;
            let v = arguments::slice_mut(OPERATION, "v", v)?;
            let gradient = arguments::slice(OPERATION, "gradient", gradient)?;
            cpu::update(master, compute, m, v, gradient, settings);
            Ok(())
        }
        device => Err(arguments::no_version(OPERATION, device)),
    }
}

/// The Euclidean norm of a float32 range, summed in float64 over fixed chunks: NaN or infinite when any element is.
///
/// # Errors
/// When the dtype is not float32.
pub fn norm(gradient: View<'_>) -> Result<f64> {
    const OPERATION: &str = "adamw.norm";
    arguments::dtype::<f32>(OPERATION, "gradient", gradient)?;
    match gradient.device() {
        Device::Cpu => Ok(cpu::norm(gradient)),
        device => Err(arguments::no_version(OPERATION, device)),
    }
}
