//! Losses of the implicit PRM. With q\[t\] = log pi_prm(y_t) - log pi_ref(y_t), a response's logit is z = beta * sum of q over its tokens, and
//! the value of its prefix of t tokens is v\[t\] = beta * (mean of q over these t).
//!
//! A response has targets, none or several: a label y (0 to 1), an offset o and a weight w each. With x = z - o,
//! - [`Cost::CrossEntropy`]: c(x, y) = -y log sigmoid(x) - (1 - y) log (1 - sigmoid(x));
//! - [`Cost::Error`]: c(x, y) = y (1 - sigmoid(x)) + (1 - y) sigmoid(x).
//!
//! loss = 1 / divisor * sum over responses and their targets of w c(x, y). With [`Over::Prefixes`], every prefix of a response stands for the
//! response: x = v\[t\] - o, and the sum is over tokens too. Offsets, labels and weights are constants: what a loss takes from other responses,
//! such as their logits, is computed before and enters by them, so that it does not depend on how a batch is cut.
//!
//! | loss | label | offset | weight |
//! |---|---|---|---|
//! | cross-entropy (arXiv 2502.01456, algorithm 1 line 8) | outcome | 0 | 1 |
//! | a pair's -log sigmoid(z_w - z_l), by its two ends | 1; 0 | z_l; z_w | 1 |
//! | NCA's -log sigmoid(z_w) - log sigmoid(-z_w) / 2 - log sigmoid(-z_l) / 2 | 2/3; 0 | 0 | 3/2; 1/2 |
//! | KTO (`Error`) | 1 or 0 | KL | its class's |
//! | prefix values (`Prefixes`, arXiv 2604.13197) | 1 or 0 | margin; -margin | 1 |
//!
//! `prm_log_probs`, `ref_log_probs` are float32 `[tokens]`, `cu_seqlens` u32 `[sequences + 1]`; `labels`, `offsets`, `weights` float32
//! `[targets]`, `cu_targets` u32 `[sequences + 1]`, where the targets of each response begin. A response of no tokens has the logit 0 and no
//! prefixes. Index arrays and targets are checked on the host; on a device they have been checked before they were uploaded. Sums run in
//! float64, in token order on the host, in a fixed order on a device; the cross-entropy is taken of the logit, not of its sigmoid, so that it
//! neither overflows nor loses digits where the sigmoid is near 0 or 1.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
mod cpu;
mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;

pub(crate) use cuda::CODE;

/// How far a logit is from its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// The binary cross-entropy of its sigmoid.
    CrossEntropy,
    /// The chance that a draw from its sigmoid differs from a draw from the label.
    Error,
}

/// What is held against the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The response's logit.
    Responses,
    /// The value of each of its prefixes.
    Prefixes,
}

/// Which loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The scale of the log-ratio.
    pub beta: f32,
    /// How far a logit is from its target.
    pub cost: Cost,
    /// What is held against the targets.
    pub over: Over,
    /// What the sum is divided by: that of the whole batch, so that micro-batches add up to it.
    pub divisor: f64,
}

/// What the responses of a micro-batch are to become.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// 0 to 1 (float32 `[targets]`).
    pub labels: View<'a>,
    /// What is subtracted from the logit (float32 `[targets]`).
    pub offsets: View<'a>,
    /// Not negative (float32 `[targets]`).
    pub weights: View<'a>,
    /// Where the targets of each response begin, and the end (u32 `[sequences + 1]`).
    pub cu_targets: View<'a>,
}

/// What a loss reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Under the PRM (float32 `[tokens]`).
    pub prm_log_probs: View<'a>,
    /// Under the reference (float32 `[tokens]`).
    pub ref_log_probs: View<'a>,
    /// Where responses begin, and the end (u32 `[sequences + 1]`).
    pub cu_seqlens: View<'a>,
    /// What they are to become.
    pub targets: Targets<'a>,
}

/// This micro-batch's share of the loss.
///
/// # Errors
/// When shapes or dtypes disagree, a label is outside 0 to 1, an offset or beta is not finite, a weight is negative or not finite, or the
/// divisor is not positive.
pub fn forward(inputs: Inputs<'_>, settings: Settings) -> Result<f64> {
    const OP: &str = "prm_loss.forward";
    check(NamedDims::new(OP), OP, &inputs, &settings)?;
    match inputs.prm_log_probs.device() {
        Device::Cpu => Ok(cpu::forward(&cpu::Slices::of(&inputs), &settings)),
        _ => cuda::forward(&inputs, &settings),
    }
}

/// Gradient with respect to `prm_log_probs`, overwritten.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    d_prm_log_probs: ViewMut<'_>,
    inputs: Inputs<'_>,
    settings: Settings,
) -> Result<()> {
    const OP: &str = "prm_loss.backward";
    let mut dims = NamedDims::new(OP);
    dims.bind("d_prm_log_probs", d_prm_log_probs.dims(), ["tokens"])?;
    arguments::dense::<f32>(OP, "d_prm_log_probs", d_prm_log_probs.as_view())?;
    check(dims, OP, &inputs, &settings)?;
    match d_prm_log_probs.device() {
        Device::Cpu => {
            cpu::backward(d_prm_log_probs.into_slice(), &cpu::Slices::of(&inputs), &settings);
            Ok(())
        }
        _ => cuda::backward(d_prm_log_probs, &inputs, &settings),
    }
}

fn check(
    mut dims: NamedDims,
    operation: &'static str,
    inputs: &Inputs<'_>,
    settings: &Settings,
) -> Result<()> {
    let Targets { labels, offsets, weights, cu_targets } = inputs.targets;
    dims.bind("prm_log_probs", inputs.prm_log_probs.dims(), ["tokens"])?;
    dims.bind("ref_log_probs", inputs.ref_log_probs.dims(), ["tokens"])?;
    dims.bind("labels", labels.dims(), ["targets"])?;
    dims.bind("offsets", offsets.dims(), ["targets"])?;
    dims.bind("weights", weights.dims(), ["targets"])?;
    arguments::dense::<f32>(operation, "prm_log_probs", inputs.prm_log_probs)?;
    arguments::dense::<f32>(operation, "ref_log_probs", inputs.ref_log_probs)?;
    let (tokens, targets) = (dims.size("tokens"), dims.size("targets"));
    let sequences = inputs.cu_seqlens.dim(0).saturating_sub(1);
    check_sequences(&dims, operation, "cu_seqlens", inputs.cu_seqlens, (tokens, "tokens"))?;
    check_sequences(&dims, operation, "cu_targets", cu_targets, (targets, "targets"))?;
    if cu_targets.dim(0) != sequences + 1 {
        let found = cu_targets.dim(0);
        return dims.fail(format!(
            "`cu_targets` has {found} entries, expected {}, as `cu_seqlens`",
            sequences + 1
        ));
    }
    if !settings.beta.is_finite() {
        let beta = settings.beta;
        return Err(arguments::value(operation, format!("beta is {beta}, expected a number")));
    }
    let divisor = settings.divisor;
    if !(divisor > 0.0 && divisor.is_finite()) {
        let message = format!("the divisor is {divisor}, expected a positive number");
        return Err(arguments::value(operation, message));
    }
    let within = |tensor, view, expected, is_right: &dyn Fn(f32) -> bool| {
        let values = arguments::on_host::<f32>(operation, tensor, view)?.unwrap_or_default();
        match values.iter().position(|&value| !is_right(value)) {
            None => Ok(()),
            Some(i) => {
                let message = format!("{tensor}[{i}] is {}, expected {expected}", values[i]);
                Err(arguments::value(operation, message))
            }
        }
    };
    within("labels", labels, "0 to 1", &|label| (0.0..=1.0).contains(&label))?;
    within("offsets", offsets, "a number", &f32::is_finite)?;
    within("weights", weights, "0 or more", &|weight| weight >= 0.0 && weight.is_finite())
}

/// Checks that cumulative lengths begin at 0, never fall, and end at the number of what they cut.
fn check_sequences(
    dims: &NamedDims,
    operation: &'static str,
    name: &'static str,
    cumulative: View<'_>,
    (count, of): (usize, &str),
) -> Result<()> {
    if cumulative.dims().len() != 1 || cumulative.dims()[0] == 0 {
        let found = cumulative.dims();
        return dims.fail(format!("`{name}` is {found:?}, expected one entry more than sequences"));
    }
    let Some(offsets) = arguments::on_host::<u32>(operation, name, cumulative)? else {
        return Ok(());
    };
    if offsets[0] != 0 || !offsets.is_sorted() || offsets[offsets.len() - 1] as usize != count {
        return dims.fail(format!(
            "`{name}` must start at 0, never fall, and end at the number of {of}, {count}"
        ));
    }
    Ok(())
}
