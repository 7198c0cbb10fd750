//! Draws the next token of each row: projection, temperature, top-k, top-p, min-p, one Philox number a row.
//!
//! `hidden` is `[rows, hidden]`, the weight `[vocabulary, hidden]`; `tokens` (u32), `log_probs` and `entropy` (float32) are
//! `[rows]`. A row's draw depends on its own settings alone: the random number is that of (seed, [`Stream::Sampling`],
//! sequence, position), its first two words taken as a 52-bit fraction, so that tokens of a probability near 1e-7 are
//! drawn as often as they should be.
//!
//! Order of truncation: temperature, then top-k, then top-p over what is left, then min-p (relative to the most likely
//! token), then the draw from the renormalised rest by inverting its cumulative distribution in order of token id. Ties at
//! the top-k or top-p boundary fall to the lower id. `log_probs` is of the **whole** distribution at this temperature, not
//! the truncated one, and so is `entropy`: exactly what [`crate::log_prob::forward`] gives for the same hidden state,
//! token and temperature, bit for bit. Temperature 0 takes the most likely token (lowest id on ties) and reports its
//! log-probability at temperature 1.
//!
//! Sources: top-p: Holtzman et al., arXiv 1904.09751; min-p: Nguyen et al., arXiv 2407.01082.

use prime_runtime::random::{Stream, block};
use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;
use crate::log_prob;
use crate::matmul::Packed;

pub mod check;
mod cpu;
pub mod reference;
#[cfg(test)]
mod tests;
mod truncate;

/// How one row is drawn.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// 0 for the most likely token.
    pub temperature: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the fewest most likely tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// The run's seed.
    pub seed: u64,
    /// The sample's own number.
    pub sequence: u64,
    /// The token's place in its response.
    pub position: u32,
}

impl Row {
    /// The row's random number, between 0 and 1 and neither.
    pub fn uniform(&self) -> f64 {
        let [high, low, ..] = block(self.seed, Stream::Sampling, self.sequence, self.position);
        let bits = (u64::from(high) << 20) | u64::from(low >> 12);
        (bits as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// What the row's logits are multiplied by.
    fn inverse_temperature(&self, operation: &'static str) -> Result<f32> {
        if self.temperature == 0.0 {
            Ok(1.0)
        } else {
            log_prob::inverse(operation, self.temperature)
        }
    }

    /// Whether any entry may be left out of the draw.
    fn truncates(&self) -> bool {
        self.temperature != 0.0 && (self.top_k > 0 || self.top_p < 1.0 || self.min_p > 0.0)
    }
}

/// Draws one token a row.
///
/// # Errors
/// When shapes or dtypes disagree, a setting is out of range, or a logit is not finite (the first such row is named; what
/// the outputs hold is then unspecified).
pub fn forward(
    tokens: ViewMut<'_>,
    log_probs: ViewMut<'_>,
    entropy: ViewMut<'_>,
    hidden: View<'_>,
    weight: &Packed,
    rows: &[Row],
) -> Result<()> {
    const OP: &str = "sample.forward";
    let mut dims = NamedDims::new(OP);
    dims.bind("hidden", hidden.dims(), ["rows", "hidden"])?;
    dims.bind("weight", &[weight.n(), weight.k()], ["vocabulary", "hidden"])?;
    dims.bind("tokens", tokens.dims(), ["rows"])?;
    dims.bind("log_probs", log_probs.dims(), ["rows"])?;
    dims.bind("entropy", entropy.dims(), ["rows"])?;
    dims.bind("rows", &[rows.len()], ["rows"])?;
    arguments::float(OP, "hidden", hidden)?;
    arguments::same_dtype(OP, "hidden", hidden, weight.dtype())?;
    let tokens = arguments::slice_mut::<u32>(OP, "tokens", tokens)?;
    let log_probs = arguments::slice_mut::<f32>(OP, "log_probs", log_probs)?;
    let entropy = arguments::slice_mut::<f32>(OP, "entropy", entropy)?;
    if weight.n() == 0 {
        return dims.fail("`weight` has no rows, expected at least one token".into());
    }
    for (i, row) in rows.iter().enumerate() {
        row.inverse_temperature(OP)?;
        let wrong = |name: &str, value: f32, expected: &str| {
            let message = format!("rows[{i}].{name} is {value}, expected {expected}");
            Err(arguments::value(OP, message))
        };
        if !(row.top_p > 0.0 && row.top_p <= 1.0) {
            return wrong("top_p", row.top_p, "above 0 and at most 1");
        }
        if !(0.0..=1.0).contains(&row.min_p) {
            return wrong("min_p", row.min_p, "0 to 1");
        }
    }
    let not_finite = match hidden.device() {
        Device::Cpu => cpu::forward(tokens, log_probs, entropy, hidden, weight, rows)?,
        device => return Err(arguments::no_version(OP, device)),
    };
    match not_finite {
        None => Ok(()),
        Some(row) => {
            let temperature = rows[row].temperature;
            let message = format!(
                "row {row} (temperature {temperature}) has a logit that is not a finite number: \
                 its hidden state or the weight has diverged"
            );
            Err(arguments::value(OP, message))
        }
    }
}
