//! A critic's loss: the clipped squared error of its values, a token at a time.
//!
//! With v the value, o the value that the advantages were computed with and R the return: loss\[t\] = 1/2 max((v - R)^2, (held - R)^2), where held is
//! v held to o - clip..o + clip; without a clip it is 1/2 (v - R)^2. The whole loss is the sum over tokens of weight\[t\] * loss\[t\]: the
//! weights are the caller's mean, so that micro-batches add up to the batch. All tensors are float32 `[tokens]`.
//!
//! Where both branches are equal each passes half of its own gradient; inside the bounds, bounds included, both branches have the gradient of
//! the first, so that the whole of it passes.
//!
//! Source: the value loss of the PPO program, Schulman et al., arXiv 1707.06347, as Huang et al. describe it ("The 37 implementation
//! details of proximal policy optimization", 2022) and as verl computes it.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
mod cpu;
mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cuda::CODE;

/// What one batch's value loss says of itself, as sums, so that micro-batches add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Sum of weight * loss.
    pub loss: f64,
    /// Tokens whose clipped branch was the greater one.
    pub clipped: f64,
    /// Tokens.
    pub tokens: f64,
}

/// The loss and what it says of itself, tokens added in order on the host, in a fixed order on a device. Without a clip no
/// token is clipped.
///
/// # Errors
/// When shapes or dtypes disagree, or the clip is not above 0.
pub fn forward(
    values: View<'_>,
    old_values: View<'_>,
    returns: View<'_>,
    weights: View<'_>,
    clip: Option<f32>,
) -> Result<Statistics> {
    const OP: &str = "value_loss.forward";
    let mut dims = NamedDims::new(OP);
    let inputs = inputs(OP, &mut dims, values, old_values, returns, weights, clip)?;
    let clip = clip.unwrap_or(f32::INFINITY);
    match values.device() {
        Device::Cpu => Ok(cpu::forward(inputs.on_host(), clip)),
        _ => cuda::forward(inputs, clip),
    }
}

/// Gradient of the weighted loss with respect to the values, overwritten.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    d_values: ViewMut<'_>,
    values: View<'_>,
    old_values: View<'_>,
    returns: View<'_>,
    weights: View<'_>,
    clip: Option<f32>,
) -> Result<()> {
    const OP: &str = "value_loss.backward";
    let mut dims = NamedDims::new(OP);
    dims.bind("d_values", d_values.dims(), ["tokens"])?;
    let inputs = inputs(OP, &mut dims, values, old_values, returns, weights, clip)?;
    arguments::dense::<f32>(OP, "d_values", d_values.as_view())?;
    let clip = clip.unwrap_or(f32::INFINITY);
    match values.device() {
        Device::Cpu => {
            cpu::backward(d_values.into_slice(), inputs.on_host(), clip);
            Ok(())
        }
        _ => cuda::backward(d_values, inputs, clip),
    }
}

/// The four inputs of both directions, one value a token.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    values: View<'a>,
    old: View<'a>,
    returns: View<'a>,
    weights: View<'a>,
}

/// [`Inputs`] that the host can see.
#[derive(Clone, Copy)]
struct HostInputs<'a> {
    values: &'a [f32],
    old: &'a [f32],
    returns: &'a [f32],
    weights: &'a [f32],
}

impl<'a> Inputs<'a> {
    fn on_host(&self) -> HostInputs<'a> {
        HostInputs {
            values: self.values.as_slice(),
            old: self.old.as_slice(),
            returns: self.returns.as_slice(),
            weights: self.weights.as_slice(),
        }
    }
}

fn inputs<'a>(
    operation: &'static str,
    dims: &mut NamedDims,
    values: View<'a>,
    old_values: View<'a>,
    returns: View<'a>,
    weights: View<'a>,
    clip: Option<f32>,
) -> Result<Inputs<'a>> {
    let columns = [
        ("values", values),
        ("old_values", old_values),
        ("returns", returns),
        ("weights", weights),
    ];
    let [values, old, returns, weights] = arguments::per_token(operation, dims, columns)?;
    let inputs = Inputs { values, old, returns, weights };
    match clip {
        Some(clip) if !(clip > 0.0 && clip.is_finite()) => {
            Err(arguments::value(operation, format!("the clip is {clip}, expected above 0")))
        }
        _ => Ok(inputs),
    }
}
