//! The oracle, in float64: logits whole, one token after the other.

/// A projection and its distribution at a temperature. Matrices are flat, row after row.
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    /// `[tokens, width]`
    pub hidden: &'a [f64],
    /// `[vocabulary, width]`
    pub weight: &'a [f64],
    /// The hidden dimension.
    pub width: usize,
    /// Divides the logits.
    pub temperature: f64,
}

/// One token's distribution.
pub struct Distribution {
    /// log p of every entry.
    pub log_probs: Vec<f64>,
    /// -sum p log p.
    pub entropy: f64,
    /// log of the sum of e^logit.
    pub lse: f64,
}

impl Projection<'_> {
    /// Logits of token `t` over the temperature.
    pub fn logits(&self, t: usize) -> Vec<f64> {
        let hidden = &self.hidden[t * self.width..][..self.width];
        let dot = |row: &[f64]| row.iter().zip(hidden).map(|(w, h)| w * h).sum::<f64>();
        self.weight.chunks_exact(self.width).map(|row| dot(row) / self.temperature).collect()
    }

    /// The distribution of token `t`.
    pub fn distribution(&self, t: usize) -> Distribution {
        distribution(&self.logits(t))
    }

    /// The weighted sum of log-probs and entropies of all tokens.
    pub fn loss(&self, targets: &[u32], d_log_probs: &[f64], d_entropy: &[f64]) -> f64 {
        (0..targets.len())
            .map(|t| {
                let of = self.distribution(t);
                d_log_probs[t] * of.log_probs[targets[t] as usize] + d_entropy[t] * of.entropy
            })
            .sum()
    }

    /// Gradient of the loss by the logits of token `t`, before their division by the temperature.
    pub fn d_logits(&self, t: usize, target: u32, d_log_prob: f64, d_entropy: f64) -> Vec<f64> {
        let of = self.distribution(t);
        let slope = |(j, log_p): (usize, &f64)| {
            let hit = if j == target as usize { d_log_prob } else { 0.0 };
            hit - log_p.exp() * (d_log_prob + d_entropy * (log_p + of.entropy))
        };
        of.log_probs.iter().enumerate().map(|entry| slope(entry) / self.temperature).collect()
    }

    /// Gradients of the loss by `hidden` and by `weight`.
    pub fn backward(
        &self,
        targets: &[u32],
        d_log_probs: &[f64],
        d_entropy: &[f64],
    ) -> (Vec<f64>, Vec<f64>) {
        let width = self.width;
        let mut d_hidden = vec![0.0; self.hidden.len()];
        let mut d_weight = vec![0.0; self.weight.len()];
        for t in 0..targets.len() {
            let d_logits = self.d_logits(t, targets[t], d_log_probs[t], d_entropy[t]);
            for (j, d_logit) in d_logits.iter().enumerate() {
                for i in 0..width {
                    d_hidden[t * width + i] += d_logit * self.weight[j * width + i];
                    d_weight[j * width + i] += d_logit * self.hidden[t * width + i];
                }
            }
        }
        (d_hidden, d_weight)
    }
}

/// The distribution of these logits.
pub fn distribution(logits: &[f64]) -> Distribution {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + logits.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
    let log_probs: Vec<f64> = logits.iter().map(|z| z - lse).collect();
    let entropy = log_probs.iter().map(|log_p| -log_p.exp() * log_p).sum();
    Distribution { log_probs, entropy, lse }
}
