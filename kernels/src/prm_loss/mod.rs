//! The implicit PRM's cross-entropy on outcomes: s\[i\] = sigmoid(beta * sum over the tokens of response i of (prm - ref)),
//! loss = mean over responses of the binary cross-entropy of s\[i\] against outcome\[i\] (which may be fractional).
//!
//! `prm_log_probs`, `ref_log_probs` are float32 `[tokens]`, `outcomes` float32 `[sequences]`, `cu_seqlens` u32
//! `[sequences + 1]`. `responses` is the number of responses of the whole batch, so that micro-batches add up to it.
//! A response of no tokens has s = 1/2. `cu_seqlens` and `outcomes` are checked on the host; on a device they have been checked before they
//! were uploaded. Sums run in float64, in token order on the host, in a fixed order on a device; the cross-entropy is taken of the logit, not of
//! its sigmoid, so that it neither overflows nor loses digits where s is near 0 or 1.
//!
//! Source: arXiv 2502.01456, algorithm 1 line 8; arXiv 2412.01981.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
mod cpu;
mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cuda::CODE;

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
    arguments::dense::<f32>(OP, "prm_log_probs", prm_log_probs)?;
    arguments::dense::<f32>(OP, "ref_log_probs", ref_log_probs)?;
    arguments::dense::<f32>(OP, "probabilities", probabilities.as_view())?;
    check_sequences(&dims, OP, cu_seqlens)?;
    check_values(OP, beta, responses, outcomes)?;
    match prm_log_probs.device() {
        Device::Cpu => Ok(cpu::forward(
            probabilities.into_slice(),
            prm_log_probs.as_slice(),
            ref_log_probs.as_slice(),
            outcomes.as_slice(),
            cu_seqlens.as_slice(),
            beta,
            responses,
        )),
        _ => cuda::forward(
            probabilities,
            prm_log_probs,
            ref_log_probs,
            outcomes,
            cu_seqlens,
            beta,
            responses,
        ),
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
    arguments::dense::<f32>(OP, "d_prm_log_probs", d_prm_log_probs.as_view())?;
    arguments::dense::<f32>(OP, "probabilities", probabilities)?;
    check_sequences(&dims, OP, cu_seqlens)?;
    check_values(OP, beta, responses, outcomes)?;
    match d_prm_log_probs.device() {
        Device::Cpu => {
            cpu::backward(
                d_prm_log_probs.into_slice(),
                probabilities.as_slice(),
                outcomes.as_slice(),
                cu_seqlens.as_slice(),
                beta,
                responses,
            );
            Ok(())
        }
        _ => cuda::backward(d_prm_log_probs, probabilities, outcomes, cu_seqlens, beta, responses),
    }
}

/// Checks the cumulative lengths against the bound sizes of `sequences` and `tokens`.
fn check_sequences(dims: &NamedDims, operation: &'static str, cu_seqlens: View<'_>) -> Result<()> {
    let (sequences, tokens) = (dims.size("sequences"), dims.size("tokens"));
    if cu_seqlens.dims() != [sequences + 1] {
        let found = cu_seqlens.dims();
        return dims.fail(format!(
            "`cu_seqlens` is {found:?}, expected [{}]: one entry more than the {sequences} outcomes",
            sequences + 1
        ));
    }
    let Some(offsets) = arguments::on_host::<u32>(operation, "cu_seqlens", cu_seqlens)? else {
        return Ok(());
    };
    let rises = offsets.is_sorted();
    if offsets[0] != 0 || !rises || offsets[sequences] as usize != tokens {
        return dims.fail(format!(
            "`cu_seqlens` must start at 0, never fall, and end at the number of tokens, {tokens}"
        ));
    }
    Ok(())
}

fn check_values(
    operation: &'static str,
    beta: f32,
    responses: usize,
    outcomes: View<'_>,
) -> Result<()> {
    let on_host = arguments::on_host::<f32>(operation, "outcomes", outcomes)?.unwrap_or_default();
    if !beta.is_finite() {
        return Err(arguments::value(operation, format!("beta is {beta}, expected a number")));
    }
    if responses < outcomes.dim(0) {
        let found = outcomes.dim(0);
        let message = format!("{found} outcomes of a batch of {responses} responses");
        return Err(arguments::value(operation, message));
    }
    match on_host.iter().position(|outcome| !(0.0..=1.0).contains(outcome)) {
        None => Ok(()),
        Some(i) => {
            let message = format!("outcomes[{i}] is {}, expected 0 to 1", on_host[i]);
            Err(arguments::value(operation, message))
        }
    }
}
