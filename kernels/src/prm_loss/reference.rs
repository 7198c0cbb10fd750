//! The oracle, in float64.

use super::{Cost, Over};

/// A batch in float64.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Log-probabilities under the reference.
    pub reference: Vec<f64>,
    /// Where responses begin, and the end.
    pub cu_seqlens: Vec<u32>,
    /// Label, offset and weight of each response's targets.
    pub targets: Vec<Vec<[f64; 3]>>,
    /// The scale of the log-ratio.
    pub beta: f64,
    /// How far a logit is from its target.
    pub cost: Cost,
    /// What is held against the targets.
    pub over: Over,
    /// What the sum is divided by.
    pub divisor: f64,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

// -log sigmoid(-x).
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

impl Batch {
    /// The loss as a function of the PRM's log-probabilities.
    pub fn loss(&self, prm: &[f64]) -> f64 {
        let cost = |x: f64, y: f64| match self.cost {
            Cost::CrossEntropy => y * softplus(-x) + (1.0 - y) * softplus(x),
            Cost::Error => y * sigmoid(-x) + (1.0 - y) * sigmoid(x),
        };
        let mut sum = 0.0;
        for (i, targets) in self.targets.iter().enumerate() {
            for logit in self.logits(prm, i) {
                sum += targets.iter().map(|[y, o, w]| w * cost(logit - o, *y)).sum::<f64>();
            }
        }
        sum / self.divisor
    }

    /// Gradient of the loss by the PRM's log-probabilities, and of each token the sum of the magnitudes that were added.
    pub fn gradient(&self, prm: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let slope = |x: f64, y: f64| match self.cost {
            Cost::CrossEntropy => sigmoid(x) - y,
            Cost::Error => (1.0 - 2.0 * y) * sigmoid(x) * sigmoid(-x),
        };
        let (mut gradient, mut magnitude) = (vec![0.0; prm.len()], vec![0.0; prm.len()]);
        for (i, targets) in self.targets.iter().enumerate() {
            let first = self.cu_seqlens[i] as usize;
            let length = self.cu_seqlens[i + 1] as usize - first;
            for (k, logit) in self.logits(prm, i).into_iter().enumerate() {
                let by_logit: f64 = targets.iter().map(|[y, o, w]| w * slope(logit - o, *y)).sum();
                // A response's logit is the sum over its tokens; a prefix's value the mean over those it has.
                let (tokens, by_token) = match self.over {
                    Over::Responses => (length, by_logit),
                    Over::Prefixes => (k + 1, by_logit / (k + 1) as f64),
                };
                for t in first..first + tokens {
                    gradient[t] += by_token * self.beta / self.divisor;
                    magnitude[t] += (by_token * self.beta / self.divisor).abs();
                }
            }
        }
        (gradient, magnitude)
    }

    fn logits(&self, prm: &[f64], response: usize) -> Vec<f64> {
        let span = self.cu_seqlens[response] as usize..self.cu_seqlens[response + 1] as usize;
        let sum = |tokens: std::ops::Range<usize>| -> f64 {
            tokens.map(|t| prm[t] - self.reference[t]).sum()
        };
        match self.over {
            Over::Responses => vec![self.beta * sum(span)],
            Over::Prefixes => {
                let value =
                    |end: usize| self.beta * sum(span.start..end) / (end - span.start) as f64;
                (span.start + 1..=span.end).map(value).collect()
            }
        }
    }
}
