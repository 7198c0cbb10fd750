//! The oracle, in float64: a whole sort.

use super::Row;

/// How near to a boundary an oracle's decision may be before it declines to decide.
#[derive(Clone, Copy)]
pub struct Slack {
    /// Of a sum of probabilities.
    pub probability: f64,
    /// Of a logit.
    pub logit: f64,
}

/// Which entries a row's settings keep, given its logits over the temperature. `None` when a decision is closer than the
/// slack.
pub fn kept(logits: &[f64], row: &Row, slack: Slack) -> Option<Vec<bool>> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let max = logits[order[0]];
    if row.top_k > 0 {
        order.truncate(row.top_k as usize);
    }
    let total: f64 = order.iter().map(|&j| (logits[j] - max).exp()).sum();
    if row.top_p < 1.0 {
        let (mut sum, mut count) = (0.0, 0);
        let target = f64::from(row.top_p);
        while sum < target && count < order.len() {
            sum += (logits[order[count]] - max).exp() / total;
            count += 1;
            if (sum - target).abs() < slack.probability {
                return None;
            }
        }
        order.truncate(count);
    }
    let least = max + f64::from(row.min_p).ln();
    // At 1 the bound is the maximum itself, and the comparison is exact.
    let close = |&j: &usize| row.min_p < 1.0 && (logits[j] - least).abs() < slack.logit;
    if row.min_p > 0.0 && order.iter().any(close) {
        return None;
    }
    order.retain(|&j| logits[j] >= least);
    let mut kept = vec![false; logits.len()];
    order.into_iter().for_each(|j| kept[j] = true);
    Some(kept)
}

/// The probabilities of a draw from the kept entries.
pub fn probabilities(logits: &[f64], kept: &[bool]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mass = |(&z, &kept): (&f64, &bool)| if kept { (z - max).exp() } else { 0.0 };
    let masses: Vec<f64> = logits.iter().zip(kept).map(mass).collect();
    let total: f64 = masses.iter().sum();
    masses.into_iter().map(|mass| mass / total).collect()
}

/// The entry at which the cumulative probability passes `uniform`; `None` when that is closer than the slack.
pub fn draw(probabilities: &[f64], uniform: f64, slack: Slack) -> Option<usize> {
    let last = probabilities.iter().rposition(|&p| p > 0.0)?;
    let mut sum = 0.0;
    for (j, p) in probabilities.iter().enumerate() {
        sum += p;
        if *p > 0.0 && j < last && (sum - uniform).abs() < slack.probability {
            return None;
        }
        if sum > uniform {
            return Some(j);
        }
    }
    Some(last)
}
