//! AdamW with decoupled weight decay over one flat range of parameters, float32 master weights.
//!
//! g = gradient * scale; m = m + (1 - b1) (g - m); v = b2 v + (1 - b2) g^2; w = w (1 - lr decay);
//! w -= lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + epsilon). All state is float32 `[parameters]`. Settings are
//! float64, and 1 - b2 and the like are rounded once: 1 - 0.999 in float32 is wrong in its fifth digit.
//!
//! Source: Loshchilov and Hutter, arXiv 1711.05101; the order of operations of PyTorch's AdamW.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;
use crate::device::device_struct;

pub mod check;
pub(crate) mod cpu;
mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cuda::CODE;

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

device_struct! {
    /// What one update multiplies by, computed in float64 and rounded once.
    struct Factors {
        scale: f32,
        /// 1 - b1.
        new_m: f32,
        b2: f32,
        /// 1 - b2.
        new_v: f32,
        /// 1 - lr * decay.
        keep: f32,
        /// lr / (1 - b1^step).
        rate: f32,
        /// sqrt(1 - b2^step).
        root: f32,
        epsilon: f32,
    }
}

impl Factors {
    fn new(settings: Settings) -> Self {
        let Settings { learning_rate, beta1, beta2, epsilon, weight_decay, step, gradient_scale } =
            settings;
        Factors {
            scale: gradient_scale as f32,
            new_m: (1.0 - beta1) as f32,
            b2: beta2 as f32,
            new_v: (1.0 - beta2) as f32,
            keep: (1.0 - learning_rate * weight_decay) as f32,
            rate: (learning_rate / (1.0 - beta1.powf(step as f64))) as f32,
            root: (1.0 - beta2.powf(step as f64)).sqrt() as f32,
            epsilon: epsilon as f32,
        }
    }
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
    arguments::dense::<f32>(OPERATION, "master", master.as_view())?;
    arguments::dense::<f32>(OPERATION, "m", m.as_view())?;
    arguments::dense::<f32>(OPERATION, "v", v.as_view())?;
    arguments::dense::<f32>(OPERATION, "gradient", gradient)?;
    let factors = Factors::new(settings);
    match gradient.device() {
        Device::Cpu => {
            let [master, m, v] = [master, m, v].map(ViewMut::into_slice);
            cpu::update(master, compute, m, v, gradient.as_slice(), factors);
            Ok(())
        }
        _ => cuda::update(master, compute, m, v, gradient, factors),
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
        _ => cuda::norm(gradient),
    }
}
