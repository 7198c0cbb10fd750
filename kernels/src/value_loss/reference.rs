//! The oracle, in float64.

use super::Statistics;

/// One token's two branches: of the value as it is, and of the value held to the clip's bounds.
pub fn branches(value: f64, old: f64, target: f64, clip: Option<f64>) -> [f64; 2] {
    let held = clip.map_or(value, |clip| value.clamp(old - clip, old + clip));
    [value, held].map(|value| 0.5 * (value - target) * (value - target))
}

/// The weighted loss of all tokens, and its statistics.
pub fn forward(
    values: &[f64],
    old: &[f64],
    returns: &[f64],
    weights: &[f64],
    clip: Option<f64>,
) -> Statistics {
    let mut statistics = Statistics { tokens: values.len() as f64, ..Statistics::default() };
    for t in 0..values.len() {
        let [plain, held] = branches(values[t], old[t], returns[t], clip);
        statistics.loss += weights[t] * plain.max(held);
        statistics.clipped += f64::from(u8::from(held > plain));
    }
    statistics
}

/// Gradient of the weighted loss by the values: v - R where the loss is that of the value as it is, 0 where it is constant.
pub fn backward(
    values: &[f64],
    old: &[f64],
    returns: &[f64],
    weights: &[f64],
    clip: Option<f64>,
) -> Vec<f64> {
    (0..values.len())
        .map(|t| {
            let [plain, held] = branches(values[t], old[t], returns[t], clip);
            if held > plain { 0.0 } else { weights[t] * (values[t] - returns[t]) }
        })
        .collect()
}
