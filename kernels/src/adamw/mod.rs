//! AdamW with decoupled weight decay over one flat range of parameters.
//!
//! g = gradient * scale; m = m + (1 - b1) (g - m); v = b2 v + (1 - b2) g^2; w = w (1 - lr decay);
//! w -= lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + epsilon). State is float32 `[parameters]`, or smaller: moments of
//! eight bits ([`Moments::Int8`]), and bfloat16 weights without masters, rounded at random ([`Parameters::Rounded`]). Random bits are
//! Philox's of seed, step and the parameter's place: the same on every device, whatever the number of threads. Settings are
//! float64, and 1 - b2 and the like are rounded once: 1 - 0.999 in float32 is wrong in its fifth digit.
//!
//! Source: Loshchilov and Hutter, arXiv 1711.05101; the order of operations of PyTorch's AdamW.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut, bf16};

use crate::arguments;
use crate::device::device_struct;

pub mod check;
mod code;
pub(crate) mod cpu;
mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub use code::BLOCK;
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
    /// Fixes the random bits of rounding.
    pub seed: u64,
    /// The first parameter's place in the whole model, a multiple of 4: fixes them too.
    pub first: u64,
}

/// The weights of a range.
pub enum Parameters<'a> {
    /// float32 weights, and where their rounding to a dtype to compute in is wanted.
    Masters(ViewMut<'a>, Option<ViewMut<'a>>),
    /// bfloat16 weights and nothing else: each update rounds them up or down at random, so that small changes are kept in the mean.
    Rounded(ViewMut<'a>),
}

/// The moments of a range.
pub enum Moments<'a> {
    /// float32 `[parameters]`.
    Float32 {
        /// The first.
        m: ViewMut<'a>,
        /// The second.
        v: ViewMut<'a>,
    },
    /// Codes of eight bits, four in a word (u32 `[parameters / 4]`, rounded up, the first in the lowest bits), and a float32 scale for each
    /// [`BLOCK`] parameters of the range (`[parameters / BLOCK]`, rounded up). Zero everywhere is no moments.
    Int8 {
        /// Codes of the first.
        m: ViewMut<'a>,
        /// Their scales.
        m_scales: ViewMut<'a>,
        /// Codes of the second.
        v: ViewMut<'a>,
        /// Their scales.
        v_scales: ViewMut<'a>,
    },
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
        let Settings {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            step,
            gradient_scale,
            ..
        } = settings;
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

/// Updates weights and moments. Float32 weights that are wanted in another dtype beside are rounded to nearest there.
///
/// # Errors
/// When shapes or dtypes disagree, the step is 0, or the place of the first parameter is not a multiple of 4.
pub fn update(
    parameters: Parameters<'_>,
    moments: Moments<'_>,
    gradient: View<'_>,
    settings: Settings,
) -> Result<()> {
    const OPERATION: &str = "adamw.update";
    let mut dims = NamedDims::new(OPERATION);
    match &parameters {
        Parameters::Masters(master, compute) => {
            dims.bind("master", master.dims(), ["parameters"])?;
            arguments::dense::<f32>(OPERATION, "master", master.as_view())?;
            if let Some(compute) = compute {
                dims.bind("compute", compute.dims(), ["parameters"])?;
                arguments::float(OPERATION, "compute", compute.as_view())?;
                arguments::contiguous(OPERATION, "compute", compute.as_view())?;
            }
        }
        Parameters::Rounded(weights) => {
            dims.bind("weights", weights.dims(), ["parameters"])?;
            arguments::dense::<bf16>(OPERATION, "weights", weights.as_view())?;
        }
    }
    dims.bind("gradient", gradient.dims(), ["parameters"])?;
    arguments::dense::<f32>(OPERATION, "gradient", gradient)?;
    match &moments {
        Moments::Float32 { m, v } => {
            for (name, view) in [("m", m), ("v", v)] {
                dims.bind(name, view.dims(), ["parameters"])?;
                arguments::dense::<f32>(OPERATION, name, view.as_view())?;
            }
        }
        Moments::Int8 { m, m_scales, v, v_scales } => {
            let count = gradient.dim(0);
            for (name, view, each) in [
                ("m", m, 4),
                ("v", v, 4),
                ("m_scales", m_scales, BLOCK),
                ("v_scales", v_scales, BLOCK),
            ] {
                if view.dims() != [count.div_ceil(each)] {
                    let (found, wanted) = (view.dims(), count.div_ceil(each));
                    return dims.fail(format!(
                        "`{name}` is {found:?}, but {count} parameters take [{wanted}]"
                    ));
                }
                match each {
                    4 => arguments::dense::<u32>(OPERATION, name, view.as_view())?,
                    _ => arguments::dense::<f32>(OPERATION, name, view.as_view())?,
                }
            }
        }
    }
    if settings.step == 0 {
        return Err(arguments::value(OPERATION, "the first update is step 1, got step 0"));
    }
    if !settings.first.is_multiple_of(4) {
        let message =
            format!("the first parameter's place is {}, expected a multiple of 4", settings.first);
        return Err(arguments::value(OPERATION, message));
    }
    match gradient.device() {
        Device::Cpu => {
            cpu::update(parameters, moments, gradient.as_slice(), settings);
            Ok(())
        }
        _ => cuda::update(parameters, moments, gradient, settings),
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
