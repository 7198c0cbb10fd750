//! The host version: tokens spread over cores, the pairs of a head over vector lanes.

use prime_runtime::{Element, Error, Result, View, ViewMut};

use super::Direction;
use crate::arguments::with_float;
use crate::parallel;
use crate::simd::multiversion;

/// Elements below which a task is not worth handing to another core.
const GRAIN: usize = 1 << 14;

pub(super) fn turn(
    operation: &'static str,
    x: ViewMut<'_>,
    positions: View<'_>,
    cos: View<'_>,
    sin: View<'_>,
    direction: Direction,
) -> Result<()> {
    let table = cos.dim(0);
    for token in 0..positions.dim(0) {
        let position = positions.row::<u32>(token)[0];
        if position as usize >= table {
            return Err(Error::Shape {
                operation,
                message: format!(
                    "token {token} is at position {position}, but the tables end before position {table}"
                ),
            });
        }
    }
    with_float!(x.dtype(), E => rows::<E>(x, positions, cos, sin, direction));
    Ok(())
}

fn rows<E: Element>(
    x: ViewMut<'_>,
    positions: View<'_>,
    cos: View<'_>,
    sin: View<'_>,
    direction: Direction,
) {
    let (tokens, elements) = (x.dim(0), x.dim(1) * x.dim(2));
    if elements == 0 {
        return;
    }
    let sign = if direction == Direction::Forward { 1.0 } else { -1.0 };
    let x = x.shared();
    parallel::ranges(tokens, GRAIN.div_ceil(elements), |range| {
        for token in range {
            let position = positions.row::<u32>(token)[0] as usize;
            // SAFETY: the ranges do not overlap, so that this task alone writes this row.
            let row = unsafe { x.row_mut::<E>(token) };
            turn_row(row, cos.row::<f32>(position), sin.row::<f32>(position), sign);
        }
    });
}

multiversion! {
    /// Turns all heads of one token; `sign` is -1 to turn back.
    fn turn_row<E: Element>(row: &mut [E], cos: &[f32], sin: &[f32], sign: f32) {
        let half = cos.len();
        for head in row.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for (((x1, x2), &c), &s) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                let (a, b, s) = (x1.to_f32(), x2.to_f32(), s * sign);
                *x1 = E::from_f32(a.mul_add(c, -(b * s)));
                *x2 = E::from_f32(b.mul_add(c, a * s));
            }
        }
    }
}
