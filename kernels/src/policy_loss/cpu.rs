//! The host version: one pass, the elementary part vectorised, the sums in token order.

use std::ops::Range;

use super::{HostInputs, Numbers, Objective, Statistics};
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
fn token(log_ratio: f32, new: f32, advantage: f32, numbers: Numbers) -> Token {
    let Numbers { low, high, least, most, .. } = numbers;
    let ratio = exp(log_ratio.clamp(least, most));
    let bounded = ratio.clamp(low, high);
    let unclipped = -advantage * ratio;
    let clipped = -advantage * bounded;
    if numbers.weighs {
        return Token {
            loss: clipped * new,
            slope: clipped,
            clipped: ratio != bounded,
            clipped_dual: false,
        };
    }
    let dual = if advantage < 0.0 { -advantage * numbers.dual } else { f32::INFINITY };
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
    let held = if log_ratio < least || log_ratio > most { 0.0 } else { 1.0 };
    Token {
        loss: if greater > dual { dual } else { greater },
        slope: unclipped * (maximum * minimum * held),
        clipped: clipped > unclipped,
        clipped_dual: greater > dual,
    }
}

pub(super) fn forward(inputs: HostInputs<'_>, objective: Objective<'_>) -> Statistics {
    let numbers = Numbers::from(objective);
    let mut statistics = Statistics { tokens: inputs.new.len() as f64, ..Statistics::default() };
    let (mut losses, mut flags) = ([0.0f32; CHUNK], [0u8; CHUNK]);
    each_chunk(inputs, objective, |range, log_ratios| {
        let count = range.len();
        let (new, old) = (&inputs.new[range.clone()], &inputs.old[range.clone()]);
        let advantages = &inputs.advantages[range.clone()];
        chunk(&mut losses[..count], &mut flags[..count], log_ratios, new, advantages, numbers);
        for (i, weight) in inputs.weights[range].iter().enumerate() {
            statistics.loss += f64::from(*weight) * f64::from(losses[i]);
            statistics.clipped += f64::from(flags[i] & 1);
            statistics.clipped_dual += f64::from(flags[i] >> 1);
            statistics.kl += f64::from(old[i]) - f64::from(new[i]);
        }
    });
    statistics
}

pub(super) fn backward(d_log_probs: &mut [f32], inputs: HostInputs<'_>, objective: Objective<'_>) {
    let numbers = Numbers::from(objective);
    each_chunk(inputs, objective, |range, log_ratios| {
        let (new, advantages) = (&inputs.new[range.clone()], &inputs.advantages[range.clone()]);
        let weights = &inputs.weights[range.clone()];
        slopes(&mut d_log_probs[range], log_ratios, new, advantages, weights, numbers);
    });
}

/// Walks over the tokens in order, each chunk with the logarithms of its ratios.
fn each_chunk(
    inputs: HostInputs<'_>,
    objective: Objective<'_>,
    mut then: impl FnMut(Range<usize>, &[f32]),
) {
    let mut log_ratios = [0.0f32; CHUNK];
    let chunks = |range: Range<usize>| {
        range.clone().step_by(CHUNK).map(move |start| start..(start + CHUNK).min(range.end))
    };
    let Objective::SequenceClip { cu_seqlens, .. } = objective else {
        for range in chunks(0..inputs.new.len()) {
            let count = range.len();
            let pairs = inputs.new[range.clone()].iter().zip(&inputs.old[range.clone()]);
            for (log_ratio, (new, old)) in log_ratios.iter_mut().zip(pairs) {
                *log_ratio = new - old;
            }
            then(range, &log_ratios[..count]);
        }
        return;
    };
    for bounds in cu_seqlens.as_slice::<u32>().windows(2) {
        let tokens = bounds[0] as usize..bounds[1] as usize;
        let pairs = inputs.new[tokens.clone()].iter().zip(&inputs.old[tokens.clone()]);
        let sum: f64 = pairs.map(|(&new, &old)| f64::from(new) - f64::from(old)).sum();
        log_ratios.fill((sum / tokens.len() as f64) as f32);
        for range in chunks(tokens) {
            let count = range.len();
            then(range, &log_ratios[..count]);
        }
    }
}

multiversion! {
    fn chunk(
        losses: &mut [f32],
        flags: &mut [u8],
        log_ratios: &[f32],
        new: &[f32],
        advantages: &[f32],
        numbers: Numbers,
    ) {
        for i in 0..losses.len() {
            let token = token(log_ratios[i], new[i], advantages[i], numbers);
            losses[i] = token.loss;
            flags[i] = u8::from(token.clipped) | u8::from(token.clipped_dual) << 1;
        }
    }
}

multiversion! {
    fn slopes(
        d_log_probs: &mut [f32],
        log_ratios: &[f32],
        new: &[f32],
        advantages: &[f32],
        weights: &[f32],
        numbers: Numbers,
    ) {
        for i in 0..d_log_probs.len() {
            d_log_probs[i] = token(log_ratios[i], new[i], advantages[i], numbers).slope * weights[i];
        }
    }
}
