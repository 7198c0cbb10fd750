//! SwiGLU: out = silu(gate) * up, gate and up side by side in one buffer.
//!
//! `gate_up` is `[tokens, 2 * intermediate]` (gate first), `out` is `[tokens, intermediate]`, one dtype.
//!
//! Source: Shazeer, arXiv 2002.05202.

use prime_runtime::{Result, View, ViewMut};

pub mod check;

/// silu(gate) * up.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward(_out: ViewMut<'_>, _gate_up: View<'_>) -> Result<()> {
    todo!()
}

/// Gradient of both halves, overwritten.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn backward(_d_gate_up: ViewMut<'_>, _d_out: View<'_>, _gate_up: View<'_>) -> Result<()> {
    todo!()
}
