//! The clipped policy-gradient surrogate, a token at a time.
//!
//! With ratio = exp(new - old): loss\[t\] = max(-A ratio, -A clamp(ratio, 1 - low, 1 + high)), and with dual clipping,
//! where A < 0, min(that, -A * dual). The whole loss is the sum over tokens of weight\[t\] * loss\[t\]: the weights are
//! the aggregation (token-mean, sequence-mean, ...) computed by the caller, so that micro-batches add up to the batch.
//! All tensors are float32 `[tokens]`.
//!
//! new - old is held to -20..20, outside of which its gradient is 0: a ratio is always finite, and an advantage of 0
//! gives a loss of 0. Where two branches of a maximum or minimum are equal, each passes half of its own gradient; inside
//! the bounds, bounds included, both branches have the gradient of -A ratio, so that the whole of it passes.
//!
//! Sources: Schulman et al., arXiv 1707.06347; asymmetric bounds: arXiv 2503.14476; dual clip: arXiv 1912.09729.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
mod cpu;
mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cuda::CODE;

/// Where the ratio is clipped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// The ratio's lower bound is 1 - low.
    pub low: f32,
    /// The ratio's upper bound is 1 + high.
    pub high: f32,
    /// For negative advantages the loss is at most -A times this, where given (above 1).
    pub dual: Option<f32>,
}

/// What one batch's policy loss says of itself. Means over tokens are left as sums, so that micro-batches add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Sum of weight * loss.
    pub loss: f64,
    /// Tokens whose clipped branch was the greater one.
    pub clipped: f64,
    /// Tokens held by the dual clip.
    pub clipped_dual: f64,
    /// Sum of old - new over tokens: the plain estimate of KL(old, new).
    pub kl: f64,
    /// Tokens.
    pub tokens: f64,
}

/// The greatest |new - old| that a ratio is computed of.
const MOST_LOG_RATIO: f32 = 20.0;

/// The loss and what it says of itself, tokens added in order on the host, in a fixed order on a device.
///
/// # Errors
/// When shapes or dtypes disagree, or a bound of the clip is out of range.
pub fn forward(
    new_log_probs: View<'_>,
    old_log_probs: View<'_>,
    advantages: View<'_>,
    weights: View<'_>,
    clip: Clip,
) -> Result<Statistics> {
    const OP: &str = "policy_loss.forward";
    let mut dims = NamedDims::new(OP);
    let inputs = inputs(OP, &mut dims, new_log_probs, old_log_probs, advantages, weights, clip)?;
    match new_log_probs.device() {
        Device::Cpu => Ok(cpu::forward(inputs.on_host(), clip)),
        _ => cuda::forward(inputs, clip),
    }
}

/// Gradient of the weighted loss with respect to the new log-probs, overwritten.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    d_log_probs: ViewMut<'_>,
    new_log_probs: View<'_>,
    old_log_probs: View<'_>,
    advantages: View<'_>,
    weights: View<'_>,
    clip: Clip,
) -> Result<()> {
    const OP: &str = "policy_loss.backward";
    let mut dims = NamedDims::new(OP);
    dims.bind("d_log_probs", d_log_probs.dims(), ["tokens"])?;
    let inputs = inputs(OP, &mut dims, new_log_probs, old_log_probs, advantages, weights, clip)?;
    arguments::dense::<f32>(OP, "d_log_probs", d_log_probs.as_view())?;
    match new_log_probs.device() {
        Device::Cpu => {
            cpu::backward(d_log_probs.into_slice(), inputs.on_host(), clip);
            Ok(())
        }
        _ => cuda::backward(d_log_probs, inputs, clip),
    }
}

/// The four inputs of both directions, one value a token.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    new: View<'a>,
    old: View<'a>,
    advantages: View<'a>,
    weights: View<'a>,
}

/// [`Inputs`] that the host can see.
#[derive(Clone, Copy)]
struct HostInputs<'a> {
    new: &'a [f32],
    old: &'a [f32],
    advantages: &'a [f32],
    weights: &'a [f32],
}

impl<'a> Inputs<'a> {
    fn on_host(&self) -> HostInputs<'a> {
        HostInputs {
            new: self.new.as_slice(),
            old: self.old.as_slice(),
            advantages: self.advantages.as_slice(),
            weights: self.weights.as_slice(),
        }
    }
}

fn inputs<'a>(
    operation: &'static str,
    dims: &mut NamedDims,
    new_log_probs: View<'a>,
    old_log_probs: View<'a>,
    advantages: View<'a>,
    weights: View<'a>,
    clip: Clip,
) -> Result<Inputs<'a>> {
    let mut vector = |name: &'static str, view: View<'a>| {
        dims.bind(name, view.dims(), ["tokens"])?;
        arguments::dense::<f32>(operation, name, view).map(|()| view)
    };
    let inputs = Inputs {
        new: vector("new_log_probs", new_log_probs)?,
        old: vector("old_log_probs", old_log_probs)?,
        advantages: vector("advantages", advantages)?,
        weights: vector("weights", weights)?,
    };
    if !(0.0..=1.0).contains(&clip.low) {
        let low = clip.low;
        return Err(arguments::value(operation, format!("clip.low is {low}, expected 0 to 1")));
    }
    if !(clip.high >= 0.0 && clip.high.is_finite()) {
        let high = clip.high;
        return Err(arguments::value(
            operation,
            format!("clip.high is {high}, expected 0 or more"),
        ));
    }
    if let Some(dual) = clip.dual.filter(|dual| !(*dual > 1.0 && dual.is_finite())) {
        return Err(arguments::value(operation, format!("clip.dual is {dual}, expected above 1")));
    }
    Ok(inputs)
}
