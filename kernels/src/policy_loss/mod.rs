//! The policy's loss, a token at a time, under one of three objectives.
//!
//! With ratio = exp(new - old), A the token's advantage and clip(x) = clamp(x, 1 - low, 1 + high):
//! - [`Objective::Clip`] (PPO): loss\[t\] = max(-A ratio, -A clip(ratio)), and with dual clipping, where A < 0, min(that, -A * dual);
//! - [`Objective::SequenceClip`] (GSPO): the same without the dual clip, where the ratio of every token of a sequence is
//!   s = exp(mean over its tokens of (new - old)). The gradient is that of GSPO-token: s is held constant times the token's own ratio to
//!   itself, so that token t receives -A\[t\] s. Where A is one number for the sequence this is the gradient of s itself;
//! - [`Objective::ClippedWeight`] (CISPO): loss\[t\] = -clip(ratio) A new, with clip(ratio) held constant: every token learns, with a bounded
//!   weight.
//!
//! The whole loss is the sum over tokens of weight\[t\] * loss\[t\]: the weights are the aggregation (token-mean, sequence-mean, ...) computed by
//! the caller, so that micro-batches add up to the batch. All tensors are float32 `[tokens]`; `cu_seqlens` is u32 `[sequences + 1]`, checked on
//! the host, and on a device before it was uploaded. A sequence's mean is taken in float64.
//!
//! new - old is held to -20..20, and a sequence's mean to at most 10, outside of which the gradient is 0: a ratio is always finite, and an
//! advantage of 0 gives a loss of 0. Where two branches of a maximum or minimum are equal, each passes half of its own gradient; inside the
//! bounds, bounds included, both branches have the gradient of -A ratio, so that the whole of it passes. ([`Objective::ClippedWeight`] has no
//! branches, and its gradient, -clip(ratio) A, does not end where the ratio is held.)
//!
//! Sources: Schulman et al., arXiv 1707.06347; asymmetric bounds: arXiv 2503.14476; dual clip: arXiv 1912.09729; GSPO: arXiv 2507.18071
//! (equation 5, and GSPO-token, equation 13); CISPO: arXiv 2506.13585 (equation 4).

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

impl Clip {
    /// Bounds that no ratio reaches: the plain policy gradient of importance-weighted tokens.
    pub const NONE: Clip = Clip { low: 1.0, high: 1e9, dual: None };
}

/// What is made small: see the module's documentation.
#[derive(Clone, Copy, Debug)]
pub enum Objective<'a> {
    /// PPO's surrogate of each token's ratio.
    Clip(Clip),
    /// GSPO's surrogate of each sequence's ratio.
    SequenceClip {
        /// The ratio's lower bound is 1 - low.
        low: f32,
        /// The ratio's upper bound is 1 + high.
        high: f32,
        /// Where sequences begin, and the end.
        cu_seqlens: View<'a>,
    },
    /// CISPO's policy gradient under clipped importance weights.
    ClippedWeight {
        /// The weight's lower bound is 1 - low: 1 leaves it without one.
        low: f32,
        /// The weight's upper bound is 1 + high.
        high: f32,
    },
}

impl Objective<'_> {
    fn clip(&self) -> Clip {
        match *self {
            Objective::Clip(clip) => clip,
            Objective::SequenceClip { low, high, .. } | Objective::ClippedWeight { low, high } => {
                Clip { low, high, dual: None }
            }
        }
    }
}

/// An objective's numbers, as the host and devices compute with them.
#[derive(Clone, Copy)]
struct Numbers {
    /// The ratio's bounds.
    low: f32,
    high: f32,
    /// The dual clip: infinite where there is none.
    dual: f32,
    /// What the logarithm of the ratio is held to.
    least: f32,
    most: f32,
    /// Whether the clipped ratio is the weight of the log-prob.
    weighs: bool,
}

impl From<Objective<'_>> for Numbers {
    fn from(objective: Objective<'_>) -> Self {
        let clip = objective.clip();
        let (least, most) = match objective {
            Objective::SequenceClip { .. } => (f32::NEG_INFINITY, MOST_MEAN_LOG_RATIO),
            _ => (-MOST_LOG_RATIO, MOST_LOG_RATIO),
        };
        Numbers {
            low: 1.0 - clip.low,
            high: 1.0 + clip.high,
            dual: clip.dual.unwrap_or(f32::INFINITY),
            least,
            most,
            weighs: matches!(objective, Objective::ClippedWeight { .. }),
        }
    }
}

/// What one batch's policy loss says of itself. Means over tokens are left as sums, so that micro-batches add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Sum of weight * loss.
    pub loss: f64,
    /// Tokens whose clipped branch was the greater one; under [`Objective::ClippedWeight`] those whose weight was clipped.
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

/// The greatest mean of new - old that a sequence's ratio is computed of.
const MOST_MEAN_LOG_RATIO: f32 = 10.0;

/// The loss and what it says of itself, tokens added in order on the host, in a fixed order on a device.
///
/// # Errors
/// When shapes or dtypes disagree, a bound of the clip is out of range, or `cu_seqlens` does not describe the tokens.
pub fn forward(
    new_log_probs: View<'_>,
    old_log_probs: View<'_>,
    advantages: View<'_>,
    weights: View<'_>,
    objective: Objective<'_>,
) -> Result<Statistics> {
    const OP: &str = "policy_loss.forward";
    let mut dims = NamedDims::new(OP);
    let inputs =
        inputs(OP, &mut dims, new_log_probs, old_log_probs, advantages, weights, objective)?;
    match new_log_probs.device() {
        Device::Cpu => Ok(cpu::forward(inputs.on_host(), objective)),
        _ => cuda::forward(inputs, objective),
    }
}

/// Gradient of the weighted loss with respect to the new log-probs, overwritten; what the objective holds constant has none.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    d_log_probs: ViewMut<'_>,
    new_log_probs: View<'_>,
    old_log_probs: View<'_>,
    advantages: View<'_>,
    weights: View<'_>,
    objective: Objective<'_>,
) -> Result<()> {
    const OP: &str = "policy_loss.backward";
    let mut dims = NamedDims::new(OP);
    dims.bind("d_log_probs", d_log_probs.dims(), ["tokens"])?;
    let inputs =
        inputs(OP, &mut dims, new_log_probs, old_log_probs, advantages, weights, objective)?;
    arguments::dense::<f32>(OP, "d_log_probs", d_log_probs.as_view())?;
    match new_log_probs.device() {
        Device::Cpu => {
            cpu::backward(d_log_probs.into_slice(), inputs.on_host(), objective);
            Ok(())
        }
        _ => cuda::backward(d_log_probs, inputs, objective),
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
    objective: Objective<'_>,
) -> Result<Inputs<'a>> {
    let clip = objective.clip();
    let columns = [
        ("new_log_probs", new_log_probs),
        ("old_log_probs", old_log_probs),
        ("advantages", advantages),
        ("weights", weights),
    ];
    let [new, old, advantages, weights] = arguments::per_token(operation, dims, columns)?;
    let inputs = Inputs { new, old, advantages, weights };
    if let Objective::SequenceClip { cu_seqlens, .. } = objective {
        check_sequences(dims, operation, cu_seqlens)?;
    }
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

/// Checks the cumulative lengths against the number of tokens.
fn check_sequences(dims: &NamedDims, operation: &'static str, cu_seqlens: View<'_>) -> Result<()> {
    let tokens = dims.size("tokens");
    if cu_seqlens.dims().len() != 1 || cu_seqlens.dim(0) == 0 {
        let found = cu_seqlens.dims();
        return dims.fail(format!("`cu_seqlens` is {found:?}, expected [sequences + 1]"));
    }
    let Some(offsets) = arguments::on_host::<u32>(operation, "cu_seqlens", cu_seqlens)? else {
        return Ok(());
    };
    if offsets[0] != 0 || !offsets.is_sorted() || offsets[offsets.len() - 1] as usize != tokens {
        return dims.fail(format!(
            "`cu_seqlens` must start at 0, never fall, and end at the number of tokens, {tokens}"
        ));
    }
    Ok(())
}
