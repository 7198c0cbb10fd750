//! The final projection fused with log-softmax, target gather and entropy: logits are never held whole.
//!
//! logits\[t\] = hidden\[t\] weight^T / temperature; log_probs\[t\] = logits\[t, targets\[t\]\] - lse\[t\]; entropy\[t\] =
//! -sum p log p (nats). `hidden` is `[tokens, hidden]`, `weight` `[vocabulary, hidden]` (same dtype), `targets` `[tokens]`
//! (u32); `log_probs`, `entropy`, `lse` are float32 `[tokens]`. A logit is the float32 sum of [`crate::matmul`] times
//! 1/temperature. The vocabulary is visited in blocks of a fixed width, so a token's numbers do not depend on the batch
//! around it, and [`crate::sample`] reports the same bits for the tokens it draws. A logit that is not finite makes the
//! numbers of its token, and of no other, not finite.
//!
//! On devices beside the host, targets are not read by the caller's side: the log-probability of one outside the vocabulary
//! is NaN, and its gradient that of no target. There a token's numbers depend neither on the batch nor on the tile shape. On Hopper logits of
//! bfloat16 are computed by wgmma where rows of both factors begin at multiples of 16 bytes, unless numerics are to be invariant.
//!
//! Source of the one-pass sum: Milakov, Gimelshein, arXiv 1805.02867; its sum of p log p is carried along the same way.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
mod cpu;
pub(crate) mod cuda;
mod hopper;
pub(crate) mod online;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cuda::CODE;

/// Log-probability of each target under the distribution at this temperature, whole (before any truncation by top-k,
/// top-p or min-p).
///
/// # Errors
/// When shapes or dtypes disagree, a target is outside the vocabulary, or the temperature is not positive.
pub fn forward(
    log_probs: ViewMut<'_>,
    entropy: ViewMut<'_>,
    lse: ViewMut<'_>,
    hidden: View<'_>,
    weight: View<'_>,
    targets: View<'_>,
    temperature: f32,
) -> Result<()> {
    const OP: &str = "log_prob.forward";
    let mut dims = NamedDims::new(OP);
    let inverse = check_factors(OP, &mut dims, hidden, weight, targets, temperature)?;
    for (name, output) in [("log_probs", &log_probs), ("entropy", &entropy), ("lse", &lse)] {
        dims.bind(name, output.dims(), ["tokens"])?;
        arguments::dense::<f32>(OP, name, output.as_view())?;
    }
    match hidden.device() {
        Device::Cpu => {
            let problem = problem(OP, hidden, weight, targets, inverse)?;
            cpu::forward(log_probs.into_slice(), entropy.into_slice(), lse.into_slice(), problem)
        }
        _ => cuda::forward(log_probs, entropy, lse, hidden, weight, targets, inverse),
    }
}

/// Gradients of the weighted sum of log-probs (weights `d_log_probs`, float32) and of entropies (weights `d_entropy`,
/// float32, where given): `d_hidden` is overwritten (dtype of `hidden`), `d_weight` (float32; none where the projection is frozen) is
/// added to, tokens in order. Logits are computed again, a wave of tokens at a time.
///
/// With p = exp(logit - lse), the gradient by a logit is
/// (d_log_prob (1 if target, else 0) - p (d_log_prob + d_entropy (log p + entropy))) / temperature, rounded to the dtype of
/// `hidden` before the two products that carry it on.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    d_hidden: ViewMut<'_>,
    d_weight: Option<ViewMut<'_>>,
    d_log_probs: View<'_>,
    d_entropy: Option<View<'_>>,
    hidden: View<'_>,
    weight: View<'_>,
    targets: View<'_>,
    lse: View<'_>,
    entropy: View<'_>,
    temperature: f32,
) -> Result<()> {
    const OP: &str = "log_prob.backward";
    let mut dims = NamedDims::new(OP);
    let inverse = check_factors(OP, &mut dims, hidden, weight, targets, temperature)?;
    dims.bind("d_hidden", d_hidden.dims(), ["tokens", "hidden"])?;
    arguments::same_dtype(OP, "d_hidden", d_hidden.as_view(), hidden.dtype())?;
    if let Some(d_weight) = &d_weight {
        dims.bind("d_weight", d_weight.dims(), ["vocabulary", "hidden"])?;
        arguments::dtype::<f32>(OP, "d_weight", d_weight.as_view())?;
    }
    let vectors = [("d_log_probs", d_log_probs), ("lse", lse), ("entropy", entropy)];
    for (name, vector) in vectors.into_iter().chain(d_entropy.map(|view| ("d_entropy", view))) {
        dims.bind(name, vector.dims(), ["tokens"])?;
        arguments::dense::<f32>(OP, name, vector)?;
    }
    match hidden.device() {
        Device::Cpu => {
            let problem = problem(OP, hidden, weight, targets, inverse)?;
            let loss = Loss {
                d_log_probs: d_log_probs.as_slice(),
                d_entropy: d_entropy.map(|d_entropy| d_entropy.as_slice()),
                lse: lse.as_slice(),
                entropy: entropy.as_slice(),
            };
            arguments::with_float!(hidden.dtype(), E => {
                cpu::backward::<E>(d_hidden, d_weight, loss, problem)
            })
        }
        _ => {
            let of_tokens = cuda::Vectors { targets, d_log_probs, d_entropy, lse, entropy };
            cuda::backward(d_hidden, d_weight, of_tokens, hidden, weight, inverse)
        }
    }
}

/// 1/temperature: every user of a distribution at a temperature multiplies its logits by this.
pub(crate) fn inverse(operation: &'static str, temperature: f32) -> Result<f32> {
    let inverse = 1.0 / temperature;
    if inverse > 0.0 && inverse.is_finite() {
        return Ok(inverse);
    }
    let message = format!("the temperature is {temperature}, expected a finite number above 1e-38");
    Err(arguments::value(operation, message))
}

/// What both directions take.
#[derive(Clone, Copy)]
struct Problem<'a> {
    hidden: View<'a>,
    weight: View<'a>,
    targets: &'a [u32],
    inverse_temperature: f32,
}

/// What the backward direction takes beside: one value a token.
#[derive(Clone, Copy)]
struct Loss<'a> {
    d_log_probs: &'a [f32],
    d_entropy: Option<&'a [f32]>,
    lse: &'a [f32],
    entropy: &'a [f32],
}

/// Checks what both directions take; gives 1/temperature.
fn check_factors(
    operation: &'static str,
    dims: &mut NamedDims,
    hidden: View<'_>,
    weight: View<'_>,
    targets: View<'_>,
    temperature: f32,
) -> Result<f32> {
    dims.bind("hidden", hidden.dims(), ["tokens", "hidden"])?;
    dims.bind("weight", weight.dims(), ["vocabulary", "hidden"])?;
    dims.bind("targets", targets.dims(), ["tokens"])?;
    arguments::float(operation, "hidden", hidden)?;
    arguments::same_dtype(operation, "weight", weight, hidden.dtype())?;
    arguments::dense::<u32>(operation, "targets", targets)?;
    inverse(operation, temperature)
}

fn problem<'a>(
    operation: &'static str,
    hidden: View<'a>,
    weight: View<'a>,
    targets: View<'a>,
    inverse_temperature: f32,
) -> Result<Problem<'a>> {
    let (targets, vocabulary) = (targets.as_slice::<u32>(), weight.dim(0));
    if let Some(t) = targets.iter().position(|&target| target as usize >= vocabulary) {
        let target = targets[t];
        let message = format!("targets[{t}] is {target}, expected an id below {vocabulary}");
        return Err(arguments::value(operation, message));
    }
    Ok(Problem { hidden, weight, targets, inverse_temperature })
}
