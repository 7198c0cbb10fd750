//! The host version: one pass, the elementary part vectorised, the sums in token order.

use super::{Clip, HostInputs, MOST_LOG_RATIO, Statistics};
use crate::math::exp;
use crate::simd::multiversion;

/// Tokens that are computed side by side before their sums are taken in order.
const CHUNK: usize = 256;

/// One token's loss, its derivative by the new log-prob, and which clip held it.
struct Token {
    loss: f32,
    slope: f32,
    clipped: bool,
    clipped_dual: bool,
}

#[inline(always)]
fn token(new: f32, old: f32, advantage: f32, clip: Clip) -> Token {
    let (low, high) = (1.0 - clip.low, 1.0 + clip.high);
    let log_ratio = new - old;
    let ratio = exp(log_ratio.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO));
    let unclipped = -advantage * ratio;
    let clipped = -advantage * ratio.clamp(low, high);
    let dual = if advantage < 0.0 {
        clip.dual.map_or(f32::INFINITY, |dual| -advantage * dual)
    } else {
        f32::INFINITY
    };
    let inside = (low..=high).contains(&ratio);
    let greater = if unclipped < clipped { clipped } else { unclipped };
    // The part of the unclipped branch's gradient that passes the maximum, then the minimum, then the hold.
    let maximum = if unclipped > clipped || inside {
        1.0
    } else if unclipped == clipped {
        0.5
    } else {
        0.0
    };
    let minimum = if greater < dual {
        1.0
    } else if greater == dual {
        0.5
    } else {
        0.0
    };
    let held = if log_ratio.abs() > MOST_LOG_RATIO { 0.0 } else { 1.0 };
    Token {
        loss: if greater > dual { dual } else { greater },
        slope: unclipped * (maximum * minimum * held),
        clipped: clipped > unclipped,
        clipped_dual: greater > dual,
    }
}

pub(super) fn forward(inputs: HostInputs<'_>, clip: Clip) -> Statistics {
    let mut statistics = Statistics { tokens: inputs.new.len() as f64, ..Statistics::default() };
    let (mut losses, mut flags) = ([0.0f32; CHUNK], [0u8; CHUNK]);
    for start in (0..inputs.new.len()).step_by(CHUNK) {
        let range = start..(start + CHUNK).min(inputs.new.len());
        let count = range.len();
        let (new, old) = (&inputs.new[range.clone()], &inputs.old[range.clone()]);
        let advantages = &inputs.advantages[range.clone()];
        chunk(&mut losses[..count], &mut flags[..count], new, old, advantages, clip);
        for (i, weight) in inputs.weights[range].iter().enumerate() {
            statistics.loss += f64::from(*weight) * f64::from(losses[i]);
            statistics.clipped += f64::from(flags[i] & 1);
            statistics.clipped_dual += f64::from(flags[i] >> 1);
            statistics.kl += f64::from(old[i]) - f64::from(new[i]);
        }
    }
    statistics
}

multiversion! {
    fn chunk(
        losses: &mut [f32],
        flags: &mut [u8],
        new: &[f32],
        old: &[f32],
        advantages: &[f32],
        clip: Clip,
    ) {
        for i in 0..losses.len() {
            let token = token(new[i], old[i], advantages[i], clip);
            losses[i] = token.loss;
            flags[i] = u8::from(token.clipped) | u8::from(token.clipped_dual) << 1;
        }
    }
}

multiversion! {
    pub(super) fn backward(d_log_probs: &mut [f32], inputs: HostInputs<'_>, clip: Clip) {
        for i in 0..d_log_probs.len() {
            let token = token(inputs.new[i], inputs.old[i], inputs.advantages[i], clip);
            d_log_probs[i] = token.slope * inputs.weights[i];
        }
    }
}
