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
//! On devices beside the host the same holds of the device's own [`crate::log_prob::forward`], and nothing is read back: a row that has a
//! logit which is not finite gets the token `u32::MAX`, and whoever reads the tokens asks [`check_drawn`].
//!
//! Sources: top-p: Holtzman et al., arXiv 1904.09751; min-p: Nguyen et al., arXiv 2407.01082.

use prime_runtime::random::{Stream, block};
use prime_runtime::{DType, Device, Error, NamedDims, Result, View, ViewMut};

use crate::arguments;
use crate::log_prob;
use crate::matmul::Packed;

pub mod check;
mod cpu;
pub(crate) mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;
mod truncate;

pub(crate) use cuda::CODE;

/// The projection from hidden states to logits.
#[derive(Clone, Copy)]
pub enum Weight<'a> {
    /// In the order in which the host reads it, for use many times; on the host only.
    Packed(&'a Packed),
    /// As checkpoints store it.
    Plain(View<'a>),
}

impl Weight<'_> {
    fn vocabulary(&self) -> usize {
        match self {
            Weight::Packed(packed) => packed.n(),
            Weight::Plain(view) => view.dim(0),
        }
    }

    fn dtype(&self) -> DType {
        match self {
            Weight::Packed(packed) => packed.dtype(),
            Weight::Plain(view) => view.dtype(),
        }
    }
}

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
/// When shapes or dtypes disagree, a setting is out of range, or, on the host, a logit is not finite (the first such row is
/// named; what the outputs hold is then unspecified).
pub fn forward(
    tokens: ViewMut<'_>,
    log_probs: ViewMut<'_>,
    entropy: ViewMut<'_>,
    hidden: View<'_>,
    weight: Weight<'_>,
    rows: &[Row],
) -> Result<()> {
    let mut dims = check_shapes(&tokens, &log_probs, &entropy, hidden, weight)?;
    dims.bind("rows", &[rows.len()], ["rows"])?;
    check_rows(rows)?;
    match (hidden.device(), weight) {
        (Device::Cpu, _) => {
            let (tokens, log_probs) = (tokens.into_slice(), log_probs.into_slice());
            let entropy = entropy.into_slice();
            let not_finite = cpu::forward(tokens, log_probs, entropy, hidden, weight, rows)?;
            not_finite.map_or(Ok(()), |row| Err(diverged(row, rows)))
        }
        (_, Weight::Plain(_)) if rows.is_empty() => Ok(()),
        (device, Weight::Plain(weight)) => {
            let settings = cuda::upload(device, rows)?;
            cuda::forward(OP, tokens, log_probs, entropy, hidden, weight, settings.view())
        }
        (device, Weight::Packed(_)) => dims.fail(format!(
            "`weight` is packed, which only the host reads; on {device} give it as it is stored"
        )),
    }
}

/// [`forward`] on a device, with settings of the rows that it holds already: what [`settings`] made, `[SETTING_WORDS, rows]`. Nothing comes from
/// the host, so that the call may be recorded in a graph.
///
/// # Errors
/// When shapes or dtypes disagree, or on the host.
pub fn forward_sent(
    tokens: ViewMut<'_>,
    log_probs: ViewMut<'_>,
    entropy: ViewMut<'_>,
    hidden: View<'_>,
    weight: View<'_>,
    settings: View<'_>,
) -> Result<()> {
    let mut dims = check_shapes(&tokens, &log_probs, &entropy, hidden, Weight::Plain(weight))?;
    dims.bind("settings", settings.dims(), ["words", "rows"])?;
    arguments::dtype::<u32>(OP, "settings", settings)?;
    if settings.dim(0) != SETTING_WORDS {
        let (words, expected) = (settings.dim(0), SETTING_WORDS);
        return dims.fail(format!("`settings` has {words} words a row, expected {expected}"));
    }
    match hidden.device() {
        Device::Cpu => dims.fail("the host draws from rows themselves: call `forward`".into()),
        _ => cuda::forward(OP, tokens, log_probs, entropy, hidden, weight, settings),
    }
}

/// Words of a row's settings as devices read them.
pub const SETTING_WORDS: usize = cuda::WORDS;

/// Writes the settings of rows as devices read them: word after word, of each word row after row. They replace what `words` held.
///
/// # Errors
/// When a setting is out of range.
pub fn settings(words: &mut Vec<u32>, rows: &[Row]) -> Result<()> {
    check_rows(rows)?;
    words.clear();
    words.resize(SETTING_WORDS * rows.len(), 0);
    write_settings(words, rows);
    Ok(())
}

fn write_settings(words: &mut [u32], rows: &[Row]) {
    for (i, row) in rows.iter().enumerate() {
        for (word, value) in cuda::words(row).into_iter().enumerate() {
            words[word * rows.len() + i] = value;
        }
    }
}

const OP: &str = "sample.forward";

fn check_shapes(
    tokens: &ViewMut<'_>,
    log_probs: &ViewMut<'_>,
    entropy: &ViewMut<'_>,
    hidden: View<'_>,
    weight: Weight<'_>,
) -> Result<NamedDims> {
    let mut dims = NamedDims::new(OP);
    dims.bind("hidden", hidden.dims(), ["rows", "hidden"])?;
    let vocabulary_by_hidden = ["vocabulary", "hidden"];
    match weight {
        Weight::Packed(packed) => {
            dims.bind("weight", &[packed.n(), packed.k()], vocabulary_by_hidden)?;
        }
        Weight::Plain(view) => dims.bind("weight", view.dims(), vocabulary_by_hidden)?,
    }
    dims.bind("tokens", tokens.dims(), ["rows"])?;
    dims.bind("log_probs", log_probs.dims(), ["rows"])?;
    dims.bind("entropy", entropy.dims(), ["rows"])?;
    arguments::float(OP, "hidden", hidden)?;
    arguments::same_dtype(OP, "hidden", hidden, weight.dtype())?;
    arguments::dense::<u32>(OP, "tokens", tokens.as_view())?;
    arguments::dense::<f32>(OP, "log_probs", log_probs.as_view())?;
    arguments::dense::<f32>(OP, "entropy", entropy.as_view())?;
    if weight.vocabulary() == 0 {
        dims.fail("`weight` has no rows, expected at least one token".into())?;
    }
    Ok(dims)
}

fn check_rows(rows: &[Row]) -> Result<()> {
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
    Ok(())
}

/// Checks tokens that a device beside the host has drawn for these rows, once they are read back.
///
/// # Errors
/// When a row had a logit that is not finite; the first such row is named.
pub fn check_drawn(tokens: &[u32], rows: &[Row]) -> Result<()> {
    let undrawn = tokens.iter().zip(rows).position(|(&token, _)| token == u32::MAX);
    undrawn.map_or(Ok(()), |row| Err(diverged(row, rows)))
}

fn diverged(row: usize, rows: &[Row]) -> Error {
    let temperature = rows[row].temperature;
    let message = format!(
        "row {row} (temperature {temperature}) has a logit that is not a finite number: \
         its hidden state or the weight has diverged"
    );
    arguments::value("sample.forward", message)
}
