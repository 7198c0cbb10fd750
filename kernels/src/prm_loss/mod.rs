//! The implicit PRM's cross-entropy on outcomes: s\[i\] = sigmoid(beta * sum over the tokens of response i of (prm - ref)),
//! loss = mean over responses of the binary cross-entropy of s\[i\] against outcome\[i\] (which may be fractional).
//!
//! `prm_log_probs`, `ref_log_probs` are float32 `[tokens]`, `outcomes` float32 `[sequences]`, `cu_seqlens` u32
//! `[sequences + 1]`. `responses` is the number of responses of the whole batch, so that micro-batches add up to it.
//! A response of no tokens has s = 1/2. Sums run in float64 in token order; the cross-entropy is taken of the logit, not of
//! its sigmoid, so that it neither overflows nor loses digits where s is near 0 or 1.
//!
//! Source: arXiv 2502.01456, algorithm 1 line 8; arXiv 2412.01981.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;

/// `probabilities[i]` = s\[i\] (float32 `[sequences]`); returns this micro-batch's share of the loss.
///
/// # Errors
/// When shapes or dtypes disagree, an outcome is outside 0 to 1, beta is not finite, or there are more sequences than
/// `responses`.
pub fn forward(
    probabilities: ViewMut<'_>,
    prm_log_probs: View<'_>,
    ref_log_probs: View<'_>,
    outcomes: View<'_>,
    cu_seqlens: View<'_>,
    beta: f32,
    responses: usize,
) -> Result<f64> {
    const OP: &str = "prm_loss.forward";
    let mut dims = NamedDims::new(OP);
    dims.bind("prm_log_probs", prm_log_probs.dims(), ["tokens"])?;
    dims.bind("ref_log_probs", ref_log_probs.dims(), ["tokens"])?;
    dims.bind("outcomes", outcomes.dims(), ["sequences"])?;
    dims.bind("probabilities", probabilities.dims(), ["sequences"])?;
    let device = prm_log_probs.device();
    let prm_log_probs = arguments::slice::<f32>(OP, "prm_log_probs", prm_log_probs)?;
    let ref_log_probs = arguments::slice::<f32>(OP, "ref_log_probs", ref_log_probs)?;
    let probabilities = arguments::slice_mut::<f32>(OP, "probabilities", probabilities)?;
    let outcomes = arguments::slice::<f32>(OP, "outcomes", outcomes)?;
    let cu_seqlens = sequences(&dims, OP, cu_seqlens)?;
    check_scalars(OP, beta, responses, outcomes)?;
    match device {
        Device::Cpu => Ok(cpu::forward(
            probabilities,
            prm_log_probs,
            ref_log_probs,
            outcomes,
            cu_seqlens,
            beta,
            responses,
        )),
        device => Err(arguments::no_version(OP, device)),
    }
}

/// Gradient with respect to `prm_log_probs`, overwritten: (s\[i\] - outcome\[i\]) * beta / responses on every token of
/// response i.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    d_prm_log_probs: ViewMut<'_>,
    probabilities: View<'_>,
    outcomes: View<'_>,
    cu_seqlens: View<'_>,
    beta: f32,
    responses: usize,
) -> Result<()> {
    const OP: &str = "prm_loss.backward";
    let mut dims = NamedDims::new(OP);
    dims.bind("d_prm_log_probs", d_prm_log_probs.dims(), ["tokens"])?;
    dims.bind("outcomes", outcomes.dims(), ["sequences"])?;
    dims.bind("probabilities", probabilities.dims(), ["sequences"])?;
    let device = d_prm_log_probs.device();
    let d_prm_log_probs = arguments::slice_mut::<f32>(OP, "d_prm_log_probs", d_prm_log_probs)?;
    let probabilities = arguments::slice::<f32>(OP, "probabilities", probabilities)?;
    let outcomes = arguments::slice::<f32>(OP, "outcomes", outcomes)?;
    let cu_seqlens = sequences(&dims, OP, cu_seqlens)?;
    check_scalars(OP, beta, responses, outcomes)?;
    match device {
        Device::Cpu => {
            cpu::backward(d_prm_log_probs, probabilities, outcomes, cu_seqlens, beta, responses);
            Ok(())
        }
        device => Err(arguments::no_version(OP, device)),
    }
}

/// The cumulative lengths, checked against the bound sizes of `sequences` and `tokens`.
fn sequences<'a>(
    dims: &NamedDims,
    operation: &'static str,
    cu_seqlens: View<'a>,
) -> Result<&'a [u32]> {
    let (sequences, tokens) = (dims.size("sequences"), dims.size("tokens"));
    if cu_seqlens.dims() != [sequences + 1] {
        let found = cu_seqlens.dims();
        return dims.fail(format!(
            "`cu_seqlens` is {found:?}, expected [{}]: one entry more than the {sequences} outcomes",
            sequences + 1
        ));
    }
    let offsets = arguments::slice::<u32>(operation, "cu_seqlens", cu_seqlens)?;
    let rises = offsets.is_sorted();
    if offsets[0] != 0 || !rises || offsets[sequences] as usize != tokens {
        return dims.fail(format!(
            "`cu_seqlens` must start at 0, never fall, and end at the number of tokens, {tokens}"
        ));
    }
    Ok(offsets)
}

fn check_scalars(
    operation: &'static str,
    beta: f32,
    responses: usize,
    outcomes: &[f32],
) -> Result<()> {
    if !beta.is_finite() {
        return Err(arguments::value(operation, format!("beta is {beta}, expected a number")));
    }
    if responses < outcomes.len() {
        let found = outcomes.len();
        let message = format!("{found} outcomes of a batch of {responses} responses");
        return Err(arguments::value(operation, message));
    }
    match outcomes.iter().position(|outcome| !(0.0..=1.0).contains(outcome)) {
        None => Ok(()),
        Some(i) => {
            let message = format!("outcomes[{i}] is {}, expected 0 to 1", outcomes[i]);
            Err(arguments::value(operation, message))
        }
    }
}
