//! Draws the next token of each row: projection, temperature, top-k, top-p, min-p, one Philox number a row.
//!
//! `hidden` is `[rows, hidden]`, the weight `[vocabulary, hidden]`; `tokens` (u32), `log_probs` and `entropy` (float32) are `[rows]`. A row's draw depends
//! on its own settings alone: the random number is that of (seed, [`Stream::Sampling`], sequence, position).
//!
//! Order of truncation: temperature, then top-k, then top-p over what is left, then min-p (relative to the most likely token), then the draw from the
//! renormalised rest by inverting its cumulative distribution in order of token id. Ties at the top-k or top-p boundary fall to the lower id.
//! `log_probs` is of the **whole** distribution at this temperature, not the truncated one: exactly what [`crate::log_prob::forward`]
//! gives for the same hidden state, token and temperature, bit for bit. Temperature 0 takes the most likely token (lowest id on ties)
//! and reports its log-probability at temperature 1.

use prime_runtime::{Result, View, ViewMut};

use crate::matmul::Packed;

#[allow(unused_imports)]
use prime_runtime::random::Stream;

pub mod check;

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

/// Draws one token a row.
///
/// # Errors
/// When shapes or dtypes disagree, or a setting is out of range.
pub fn forward(
    _tokens: ViewMut<'_>,
    _log_probs: ViewMut<'_>,
    _entropy: ViewMut<'_>,
    _hidden: View<'_>,
    _weight: &Packed,
    _rows: &[Row],
) -> Result<()> {
    todo!()
}
