//! Token embedding: row `tokens[i]` of the table becomes row i of the output.
//!
//! `out` is `[tokens, hidden]`, `tokens` `[tokens]` (u32), `table` `[vocabulary, hidden]`.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// Looks tokens up.
///
/// # Errors
/// When shapes or dtypes disagree, or a token is outside the vocabulary.
pub fn forward(_out: ViewMut<'_>, _tokens: View<'_>, _table: View<'_>) -> Result<()> {
    todo!()
}

/// Adds each token's gradient to its row of `d_table` (float32), tokens in order.
///
/// # Errors
/// When shapes or dtypes disagree, or a token is outside the vocabulary.
pub fn backward(_d_table: ViewMut<'_>, _d_out: View<'_>, _tokens: View<'_>) -> Result<()> {
    todo!()
}
