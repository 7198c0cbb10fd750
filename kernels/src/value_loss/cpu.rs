//! The host version: one pass, in token order.

use super::{HostInputs, Statistics};
use crate::simd::multiversion;

/// One token's loss, its derivative by the value, and whether the clip held it.
struct Token {
    loss: f32,
    slope: f32,
    clipped: bool,
}

/// A clip of infinity holds nothing.
#[inline(always)]
fn token(value: f32, old: f32, target: f32, clip: f32) -> Token {
    let (low, high) = (old - clip, old + clip);
    // Written with comparisons that a NaN passes.
    let held = if value < low {
        low
    } else if value > high {
        high
    } else {
        value
    };
    let (error, held_error) = (value - target, held - target);
    let (plain, clipped) = (0.5 * error * error, 0.5 * held_error * held_error);
    let inside = value >= low && value <= high;
    // The part of the gradient that passes the maximum.
    let passes = if plain > clipped || inside {
        1.0
    } else if plain == clipped {
        0.5
    } else {
        0.0
    };
    Token {
        loss: if plain < clipped { clipped } else { plain },
        slope: error * passes,
        clipped: clipped > plain,
    }
}

pub(super) fn forward(inputs: HostInputs<'_>, clip: f32) -> Statistics {
    let mut statistics = Statistics { tokens: inputs.values.len() as f64, ..Statistics::default() };
    for t in 0..inputs.values.len() {
        let token = token(inputs.values[t], inputs.old[t], inputs.returns[t], clip);
        statistics.loss += f64::from(inputs.weights[t]) * f64::from(token.loss);
        statistics.clipped += f64::from(u8::from(token.clipped));
    }
    statistics
}

multiversion! {
    pub(super) fn backward(d_values: &mut [f32], inputs: HostInputs<'_>, clip: f32) {
        for t in 0..d_values.len() {
            let token = token(inputs.values[t], inputs.old[t], inputs.returns[t], clip);
            d_values[t] = token.slope * inputs.weights[t];
        }
    }
}
