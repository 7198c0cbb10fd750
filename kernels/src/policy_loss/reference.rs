//! The oracle, in float64.

use super::{Clip, MOST_LOG_RATIO, Statistics};

/// One token's loss.
pub fn loss(new: f64, old: f64, advantage: f64, clip: Clip) -> f64 {
    let (low, high) = bounds(clip);
    let ratio = ratio(new, old);
    let surrogate = (-advantage * ratio).max(-advantage * ratio.clamp(low, high));
    match clip.dual {
        Some(dual) if advantage < 0.0 => surrogate.min(-advantage * f64::from(dual)),
        _ => surrogate,
    }
}

/// The weighted loss of all tokens, and its statistics.
pub fn forward(
    new: &[f64],
    old: &[f64],
    advantages: &[f64],
    weights: &[f64],
    clip: Clip,
) -> Statistics {
    let (low, high) = bounds(clip);
    let mut statistics = Statistics { tokens: new.len() as f64, ..Statistics::default() };
    for t in 0..new.len() {
        let ratio = ratio(new[t], old[t]);
        let (plain, held) = (-advantages[t] * ratio, -advantages[t] * ratio.clamp(low, high));
        let dual = clip.dual.filter(|_| advantages[t] < 0.0);
        let over = dual.is_some_and(|dual| plain.max(held) > -advantages[t] * f64::from(dual));
        statistics.loss += weights[t] * loss(new[t], old[t], advantages[t], clip);
        statistics.clipped += f64::from(u8::from(held > plain));
        statistics.clipped_dual += f64::from(u8::from(over));
        statistics.kl += old[t] - new[t];
    }
    statistics
}

/// Gradient of the weighted loss by the new log-probs: -A ratio where the loss is that, 0 where it is constant.
pub fn backward(
    new: &[f64],
    old: &[f64],
    advantages: &[f64],
    weights: &[f64],
    clip: Clip,
) -> Vec<f64> {
    (0..new.len())
        .map(|t| {
            let plain = -advantages[t] * ratio(new[t], old[t]);
            let follows = loss(new[t], old[t], advantages[t], clip) == plain
                && (new[t] - old[t]).abs() <= f64::from(MOST_LOG_RATIO);
            if follows { weights[t] * plain } else { 0.0 }
        })
        .collect()
}

fn ratio(new: f64, old: f64) -> f64 {
    let most = f64::from(MOST_LOG_RATIO);
    (new - old).clamp(-most, most).exp()
}

// The bounds as float32 has them, so that a ratio on a bound is on it in both precisions.
fn bounds(clip: Clip) -> (f64, f64) {
    (f64::from(1.0 - clip.low), f64::from(1.0 + clip.high))
}
