//! AdamW with decoupled weight decay over one flat range of parameters, float32 master weights.
//!
//! g = gradient * scale; m = m + (1 - b1) (g - m); v = b2 v + (1 - b2) g^2; w = w (1 - lr decay);
//! w -= lr / (1 - b1^step) * m / (sqrt(v) / sqrt(1 - b2^step) + epsilon). All state is float32 `[parameters]`. Settings are
//! float64, and 1 - b2 and the like are rounded once: 1 - 0.999 in float32 is wrong in its fifth digit.
//!
//! Source: Loshchilov and Hutter, arXiv 1711.05101; the order of operations of PyTorch's AdamW.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

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

/// Updates `master`, `m` and `v`, and writes the new weights to `compute` (float32 or bfloat16, rounded to nearest) where given.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn update(
    _master: ViewMut<'_>,
    _compute: Option<ViewMut<'_>>,
    _m: ViewMut<'_>,
    _v: ViewMut<'_>,
    _gradient: View<'_>,
    _settings: Settings,
) -> Result<()> {
    todo!()
}

/// The Euclidean norm of a float32 range, summed in float64 over fixed chunks: NaN or infinite when any element is.
///
/// # Errors
/// When the dtype is not float32.
pub fn norm(_gradient: View<'_>) -> Result<f64> {
    todo!()
}
