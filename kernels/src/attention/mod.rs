//! Grouped-query attention over packed sequences: out = softmax(scale * q k^T) v, causal or full, scores never held whole.
//!
//! `q` and `out` are `[tokens, heads, head_dim]`, `k` and `v` `[tokens, kv_heads, head_dim]` (rows may be spread out: blocks of a fused
//! q/k/v buffer), `cu_seqlens` is `[sequences + 1]` (u32), `lse` (float32, `[tokens, heads]`) keeps each row's log-sum-exp of scaled scores.
//! Query head h reads key/value head h / (heads / kv_heads).
//!
//! Keys are visited in blocks of a fixed size aligned to the start of their sequence, and every score and every output is one chain of
//! fused multiply-adds in order: a token's output does not depend on the batch around it, and [`decode`] over a cache gives the bits of [`forward`].
//!
//! Sources: Dao et al., arXiv 2205.14135 and 2307.08691; Ainslie et al., arXiv 2305.13245.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Those of its own sequence up to its own position.
    Causal,
    /// All of its own sequence.
    Full,
}

/// Attention of every token over its own sequence.
///
/// # Errors
/// When shapes or dtypes disagree, `heads` is not a multiple of `kv_heads`, or `cu_seqlens` is not cumulative.
pub fn forward(
    _out: ViewMut<'_>,
    _lse: ViewMut<'_>,
    _q: View<'_>,
    _k: View<'_>,
    _v: View<'_>,
    _cu_seqlens: View<'_>,
    _scale: f32,
    _mask: Mask,
) -> Result<()> {
    todo!()
}

/// Gradients of [`forward`], all overwritten, in the inputs' dtype; deterministic.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    _d_q: ViewMut<'_>,
    _d_k: ViewMut<'_>,
    _d_v: ViewMut<'_>,
    _d_out: View<'_>,
    _q: View<'_>,
    _k: View<'_>,
    _v: View<'_>,
    _out: View<'_>,
    _lse: View<'_>,
    _cu_seqlens: View<'_>,
    _scale: f32,
    _mask: Mask,
) -> Result<()> {
    todo!()
}

/// Causal attention of new tokens over a cache that already holds their own keys and values.
///
/// `q` and `out` are `[new_tokens, heads, head_dim]`; `keys` and `values` are `[cache_rows, kv_heads, head_dim]`. `spans` is `[sequences, 4]` (u32), a row a sequence:
/// first row in `q`, number of new tokens, first row in the cache, number of cached tokens (the new ones included, at the end).
///
/// # Errors
/// When shapes or dtypes disagree, or a span is out of bounds.
pub fn decode(
    _out: ViewMut<'_>,
    _q: View<'_>,
    _keys: View<'_>,
    _values: View<'_>,
    _spans: View<'_>,
    _scale: f32,
) -> Result<()> {
    todo!()
}
