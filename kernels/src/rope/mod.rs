//! Rotary position embedding, in place: the pair (x\[i\], x\[i + head_dim/2\]) of every head is turned by the angle of its
//! position and frequency (the half-split order of Hugging Face checkpoints).
//!
//! `x` is `[tokens, heads, head_dim]` (rows may be spread out), `positions` is `[tokens]` (u32), `cos` and `sin` are float32 tables
//! `[positions, head_dim / 2]`; frequency scaling is in the tables, which the model makes. A pair becomes
//! `(x1 cos - x2 sin, x2 cos + x1 sin)`, computed in float32 and rounded once. Positions on the host are checked against the tables; those
//! on a device have been checked before they were uploaded.
//!
//! Source: Su et al., arXiv 2104.09864.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
mod cpu;
mod cuda;
pub mod reference;

pub(crate) use cuda::CODE;

/// Which way the pairs are turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Forward,
    Backward,
}

/// Turns `x` forward.
///
/// # Errors
/// When shapes or dtypes disagree, `head_dim` is odd, or a position is outside the table.
pub fn forward(x: ViewMut<'_>, positions: View<'_>, cos: View<'_>, sin: View<'_>) -> Result<()> {
    turn("rope.forward", "x", x, positions, cos, sin, Direction::Forward)
}

/// Turns a gradient back: a rotation's transpose is its inverse.
///
/// # Errors
/// As for [`forward`].
pub fn backward(d_x: ViewMut<'_>, positions: View<'_>, cos: View<'_>, sin: View<'_>) -> Result<()> {
    turn("rope.backward", "d_x", d_x, positions, cos, sin, Direction::Backward)
}

fn turn(
    operation: &'static str,
    name: &'static str,
    x: ViewMut<'_>,
    positions: View<'_>,
    cos: View<'_>,
    sin: View<'_>,
    direction: Direction,
) -> Result<()> {
    let mut dims = NamedDims::new(operation);
    dims.bind(name, x.dims(), ["tokens", "heads", "head_dim"])?;
    dims.bind("positions", positions.dims(), ["tokens"])?;
    dims.bind("cos", cos.dims(), ["positions", "head_dim / 2"])?;
    dims.bind("sin", sin.dims(), ["positions", "head_dim / 2"])?;
    let head_dim = dims.size("head_dim");
    if !head_dim.is_multiple_of(2) {
        return dims.fail(format!("`head_dim` is {head_dim}, but pairs need an even number"));
    }
    if dims.size("head_dim / 2") != head_dim / 2 {
        return dims.fail(format!(
            "`cos` and `sin` have {} columns, but half of `head_dim` is {}",
            dims.size("head_dim / 2"),
            head_dim / 2
        ));
    }
    arguments::float(operation, name, x.as_view())?;
    arguments::dtype::<u32>(operation, "positions", positions)?;
    arguments::dtype::<f32>(operation, "cos", cos)?;
    arguments::dtype::<f32>(operation, "sin", sin)?;
    match x.device() {
        Device::Cpu => cpu::turn(operation, x, positions, cos, sin, direction),
        _ => cuda::turn(x, positions, cos, sin, direction),
    }
}
