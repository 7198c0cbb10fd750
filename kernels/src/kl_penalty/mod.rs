//! A penalty for leaving a reference: an estimate, at each sampled token, of the divergence of the policy from it.
//!
//! With d = new - reference, the [`Kind`]s are
//! - `kl`: d, the plain estimate, whose gradient is 1;
//! - `abs`: |d|, whose gradient is the sign of d, and 0 at 0;
//! - `mse`: d^2 / 2, whose gradient is d;
//! - `low_var_kl`: e^-d + d - 1, which is never negative, held to at most 10; its gradient is 1 - e^-d, and 0 where it is held. d is held
//!   to -20..20 before, which the other bound hides.
//!
//! The whole penalty is the sum over tokens of weight\[t\] * penalty\[t\]: the weights are coefficient times aggregation, computed by the caller. All
//! tensors are float32 `[tokens]`.
//!
//! Sources: J. Schulman, "Approximating KL divergence" (k1, k2, k3), with the bounds of verl's `kl_penalty`; `abs` on chosen tokens is
//! KL-Cov's penalty (arXiv 2505.22617).

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
mod cpu;
mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cuda::CODE;

/// Which estimate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// d.
    Kl = 0,
    /// |d|.
    Abs = 1,
    /// d^2 / 2.
    Mse = 2,
    /// e^-d + d - 1.
    LowVarKl = 3,
}

/// The greatest |d| that the exponential of `low_var_kl` is computed of, and the greatest penalty there.
const MOST_LOG_RATIO: f32 = 20.0;
const MOST_PENALTY: f32 = 10.0;

/// Sums over tokens, so that micro-batches add up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Statistics {
    /// Of weight * penalty.
    pub loss: f64,
    /// Of the penalty.
    pub penalty: f64,
}

/// `penalties[t]`, overwritten, and their sums, tokens added in order on the host, in a fixed order on a device.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward(
    penalties: ViewMut<'_>,
    new_log_probs: View<'_>,
    reference_log_probs: View<'_>,
    weights: View<'_>,
    kind: Kind,
) -> Result<Statistics> {
    const OP: &str = "kl_penalty.forward";
    check_arguments(OP, "penalties", &penalties, new_log_probs, reference_log_probs, weights)?;
    match new_log_probs.device() {
        Device::Cpu => Ok(cpu::forward(
            penalties.into_slice(),
            new_log_probs.as_slice(),
            reference_log_probs.as_slice(),
            weights.as_slice(),
            kind,
        )),
        _ => cuda::forward(penalties, new_log_probs, reference_log_probs, weights, kind),
    }
}

/// The gradient of the weighted penalty with respect to the new log-probs, **added to** what is there: a penalty joins a loss.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    d_log_probs: ViewMut<'_>,
    new_log_probs: View<'_>,
    reference_log_probs: View<'_>,
    weights: View<'_>,
    kind: Kind,
) -> Result<()> {
    const OP: &str = "kl_penalty.backward";
    check_arguments(OP, "d_log_probs", &d_log_probs, new_log_probs, reference_log_probs, weights)?;
    match new_log_probs.device() {
        Device::Cpu => {
            cpu::backward(
                d_log_probs.into_slice(),
                new_log_probs.as_slice(),
                reference_log_probs.as_slice(),
                weights.as_slice(),
                kind,
            );
            Ok(())
        }
        _ => cuda::backward(d_log_probs, new_log_probs, reference_log_probs, weights, kind),
    }
}

fn check_arguments(
    operation: &'static str,
    output: &'static str,
    out: &ViewMut<'_>,
    new_log_probs: View<'_>,
    reference_log_probs: View<'_>,
    weights: View<'_>,
) -> Result<()> {
    let mut dims = NamedDims::new(operation);
    let columns = [
        (output, out.as_view()),
        ("new_log_probs", new_log_probs),
        ("reference_log_probs", reference_log_probs),
        ("weights", weights),
    ];
    arguments::per_token(operation, &mut dims, columns)?;
    Ok(())
}
