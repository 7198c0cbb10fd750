//! The oracle, in float64.

use super::{Kind, MOST_LOG_RATIO, MOST_PENALTY, Statistics};

/// One token's penalty.
pub fn penalty(new: f64, reference: f64, kind: Kind) -> f64 {
    let d = new - reference;
    match kind {
        Kind::Kl => d,
        Kind::Abs => d.abs(),
        Kind::Mse => d * d / 2.0,
        Kind::LowVarKl => {
            let most = f64::from(MOST_LOG_RATIO);
            let d = d.clamp(-most, most);
            ((-d).exp() + d - 1.0).min(f64::from(MOST_PENALTY))
        }
    }
}

/// The penalties' sums.
pub fn forward(new: &[f64], reference: &[f64], weights: &[f64], kind: Kind) -> Statistics {
    let mut statistics = Statistics::default();
    for t in 0..new.len() {
        let penalty = penalty(new[t], reference[t], kind);
        statistics.loss += weights[t] * penalty;
        statistics.penalty += penalty;
    }
    statistics
}

/// The gradient of the weighted sum by the new log-probs.
pub fn backward(new: &[f64], reference: &[f64], weights: &[f64], kind: Kind) -> Vec<f64> {
    (0..new.len())
        .map(|t| {
            let d = new[t] - reference[t];
            weights[t]
                * match kind {
                    Kind::Kl => 1.0,
                    Kind::Abs if d == 0.0 => 0.0,
                    Kind::Abs => d.signum(),
                    Kind::Mse => d,
                    Kind::LowVarKl if (-d).exp() + d - 1.0 > f64::from(MOST_PENALTY) => 0.0,
                    Kind::LowVarKl => 1.0 - (-d).exp(),
                }
        })
        .collect()
}
