//! The host version: the elementary part vectorised, the sums in token order.

use super::{Kind, MOST_LOG_RATIO, MOST_PENALTY, Statistics};
use crate::math::exp;
use crate::simd::multiversion;

pub(super) fn forward(
    penalties: &mut [f32],
    new: &[f32],
    reference: &[f32],
    weights: &[f32],
    kind: Kind,
) -> Statistics {
    values(penalties, new, reference, kind);
    let mut statistics = Statistics::default();
    for (&penalty, &weight) in penalties.iter().zip(weights) {
        statistics.loss += f64::from(weight) * f64::from(penalty);
        statistics.penalty += f64::from(penalty);
    }
    statistics
}

/// e^-d + d - 1 before it is held from above, and its slope. Written so that NaN passes.
#[inline(always)]
fn low_variance(d: f32) -> (f32, f32) {
    let d = d.clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO);
    let ratio = exp(-d);
    (ratio + d - 1.0, 1.0 - ratio)
}

multiversion! {
    fn values(penalties: &mut [f32], new: &[f32], reference: &[f32], kind: Kind) {
        for i in 0..penalties.len() {
            let d = new[i] - reference[i];
            penalties[i] = match kind {
                Kind::Kl => d,
                Kind::Abs => d.abs(),
                Kind::Mse => 0.5 * d * d,
                Kind::LowVarKl => {
                    let (penalty, _) = low_variance(d);
                    if penalty > MOST_PENALTY { MOST_PENALTY } else { penalty }
                }
            };
        }
    }
}

multiversion! {
    pub(super) fn backward(
        d_log_probs: &mut [f32],
        new: &[f32],
        reference: &[f32],
        weights: &[f32],
        kind: Kind,
    ) {
        for i in 0..d_log_probs.len() {
            let d = new[i] - reference[i];
            let slope = match kind {
                Kind::Kl => 1.0,
                Kind::Abs => if d > 0.0 { 1.0 } else if d < 0.0 { -1.0 } else { d },
                Kind::Mse => d,
                Kind::LowVarKl => {
                    let (penalty, slope) = low_variance(d);
                    if penalty > MOST_PENALTY { 0.0 } else { slope }
                }
            };
            d_log_probs[i] += weights[i] * slope;
        }
    }
}
