//! The oracle, in float64. What an objective holds constant is a column of its own, so that a difference of two losses is the slope that
//! the gradient claims.

use super::{Clip, MOST_LOG_RATIO, MOST_MEAN_LOG_RATIO, Objective, Statistics};

/// The columns of a batch, one value a token. `constant` are the new log-probs in what carries no gradient.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// New log-probs.
    pub new: &'a [f64],
    /// The same, held constant.
    pub constant: &'a [f64],
    /// Old log-probs.
    pub old: &'a [f64],
    /// Advantages.
    pub advantages: &'a [f64],
    /// Weights.
    pub weights: &'a [f64],
}

/// One token's loss, whether its clipped branch was the greater one, and whether the dual clip held it.
fn surrogate(ratio: f64, advantage: f64, clip: Clip) -> (f64, bool, bool) {
    let (low, high) = bounds(clip);
    let (plain, clipped) = (-advantage * ratio, -advantage * ratio.clamp(low, high));
    let dual = clip.dual.filter(|_| advantage < 0.0);
    let most = dual.map_or(f64::INFINITY, |dual| -advantage * f64::from(dual));
    (plain.max(clipped).min(most), clipped > plain, plain.max(clipped) > most)
}

/// The constant weight of a token's log-prob, before it is clipped and after.
fn weight(columns: Columns<'_>, objective: Objective<'_>, t: usize) -> (f64, f64) {
    let (low, high) = bounds(objective.clip());
    let ratio = held(columns.constant[t] - columns.old[t], objective).exp();
    (ratio, ratio.clamp(low, high))
}

/// The weighted loss of all tokens, and its statistics. `cu_seqlens` of an objective lie on the host.
pub fn forward(columns: Columns<'_>, objective: Objective<'_>) -> Statistics {
    let Columns { new, old, advantages, weights, .. } = columns;
    let mut statistics = Statistics { tokens: new.len() as f64, ..Statistics::default() };
    for t in 0..new.len() {
        let (loss, clipped, clipped_dual) = match objective {
            Objective::ClippedWeight { .. } => {
                let (ratio, weight) = weight(columns, objective, t);
                (-weight * advantages[t] * new[t], ratio != weight, false)
            }
            _ => {
                let ratio = log_ratio(columns, objective, t).exp();
                surrogate(ratio, advantages[t], objective.clip())
            }
        };
        statistics.loss += weights[t] * loss;
        statistics.clipped += f64::from(u8::from(clipped));
        statistics.clipped_dual += f64::from(u8::from(clipped_dual));
        statistics.kl += old[t] - new[t];
    }
    statistics
}

/// Gradient of the weighted loss by the new log-probs: -A ratio where the loss is that, 0 where it is constant; under clipped weights the
/// weight times -A.
pub fn backward(columns: Columns<'_>, objective: Objective<'_>) -> Vec<f64> {
    let Columns { new, advantages, weights, .. } = columns;
    let slope = |t: usize| match objective {
        Objective::ClippedWeight { .. } => -weight(columns, objective, t).1 * advantages[t],
        _ => {
            let ratio = log_ratio(columns, objective, t).exp();
            let (loss, ..) = surrogate(ratio, advantages[t], objective.clip());
            let plain = -advantages[t] * ratio;
            let follows = loss == plain && !is_held(columns, objective, t);
            if follows { plain } else { 0.0 }
        }
    };
    (0..new.len()).map(|t| weights[t] * slope(t)).collect()
}

/// The logarithm of the ratio that a token's loss is made of.
pub fn log_ratio(columns: Columns<'_>, objective: Objective<'_>, t: usize) -> f64 {
    held(raw(columns, objective, t), objective)
}

fn raw(columns: Columns<'_>, objective: Objective<'_>, t: usize) -> f64 {
    let Columns { new, constant, old, .. } = columns;
    let Objective::SequenceClip { cu_seqlens, .. } = objective else { return new[t] - old[t] };
    let cu_seqlens = cu_seqlens.as_slice::<u32>();
    let sequence = cu_seqlens.partition_point(|&start| start as usize <= t) - 1;
    let tokens = cu_seqlens[sequence] as usize..cu_seqlens[sequence + 1] as usize;
    let length = tokens.len() as f64;
    let mean = tokens.map(|t| constant[t] - old[t]).sum::<f64>() / length;
    new[t] - constant[t] + mean
}

fn held(log_ratio: f64, objective: Objective<'_>) -> f64 {
    match objective {
        Objective::SequenceClip { .. } => log_ratio.min(f64::from(MOST_MEAN_LOG_RATIO)),
        _ => log_ratio.clamp(-f64::from(MOST_LOG_RATIO), f64::from(MOST_LOG_RATIO)),
    }
}

fn is_held(columns: Columns<'_>, objective: Objective<'_>, t: usize) -> bool {
    let log_ratio = raw(columns, objective, t);
    held(log_ratio, objective) != log_ratio
}

// The bounds as float32 has them, so that a ratio on a bound is on it in both precisions.
fn bounds(clip: Clip) -> (f64, f64) {
    (f64::from(1.0 - clip.low), f64::from(1.0 + clip.high))
}
