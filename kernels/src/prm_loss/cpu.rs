//! The host version. A response is one chain of float64 additions in token order: its numbers do not depend on the batch.

use super::{Cost, Inputs, Over, Settings};

/// The inputs where the host can read them.
pub(super) struct Slices<'a> {
    prm: &'a [f32],
    reference: &'a [f32],
    cu_seqlens: &'a [u32],
    labels: &'a [f32],
    offsets: &'a [f32],
    weights: &'a [f32],
    cu_targets: &'a [u32],
}

impl<'a> Slices<'a> {
    pub(super) fn of(inputs: &Inputs<'a>) -> Self {
        Slices {
            prm: inputs.prm_log_probs.as_slice(),
            reference: inputs.ref_log_probs.as_slice(),
            cu_seqlens: inputs.cu_seqlens.as_slice(),
            labels: inputs.targets.labels.as_slice(),
            offsets: inputs.targets.offsets.as_slice(),
            weights: inputs.targets.weights.as_slice(),
            cu_targets: inputs.targets.cu_targets.as_slice(),
        }
    }

    fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// Calls `with` with each logit that is held against the targets of a response, and the number of tokens behind it.
    fn logits(&self, response: usize, settings: &Settings, mut with: impl FnMut(usize, f64)) {
        let (beta, mut sum) = (f64::from(settings.beta), 0.0);
        let span = self.cu_seqlens[response] as usize..self.cu_seqlens[response + 1] as usize;
        let tokens = self.prm[span.clone()].iter().zip(&self.reference[span.clone()]);
        for (t, (&prm, &reference)) in tokens.enumerate() {
            sum += f64::from(prm) - f64::from(reference);
            if settings.over == Over::Prefixes {
                with(t, beta * sum / (t + 1) as f64);
            }
        }
        if settings.over == Over::Responses {
            with(span.len(), beta * sum);
        }
    }

    /// The sum over a response's targets of `of(x, label)`, weighted.
    fn targets(&self, response: usize, logit: f64, of: impl Fn(f64, f64) -> f64) -> f64 {
        let targets = self.cu_targets[response] as usize..self.cu_targets[response + 1] as usize;
        targets
            .map(|k| {
                let x = logit - f64::from(self.offsets[k]);
                f64::from(self.weights[k]) * of(x, f64::from(self.labels[k]))
            })
            .sum()
    }
}

pub(super) fn forward(inputs: &Slices<'_>, settings: &Settings) -> f64 {
    let mut total = 0.0;
    for response in 0..inputs.sequences() {
        inputs.logits(response, settings, |_, logit| {
            total += match settings.cost {
                // softplus(x) - y x, where softplus(x) = max(x, 0) + log(1 + e^-|x|).
                Cost::CrossEntropy => inputs
                    .targets(response, logit, |x, y| x.max(0.0) - y * x + (-x.abs()).exp().ln_1p()),
                Cost::Error => {
                    inputs.targets(response, logit, |x, y| y * sigmoid(-x) + (1.0 - y) * sigmoid(x))
                }
            };
        });
    }
    total / settings.divisor
}

pub(super) fn backward(d_prm_log_probs: &mut [f32], inputs: &Slices<'_>, settings: &Settings) {
    let scale = f64::from(settings.beta) / settings.divisor;
    for response in 0..inputs.sequences() {
        let span = inputs.cu_seqlens[response] as usize..inputs.cu_seqlens[response + 1] as usize;
        let of_response = &mut d_prm_log_probs[span];
        inputs.logits(response, settings, |t, logit| {
            let slope = scale
                * match settings.cost {
                    Cost::CrossEntropy => inputs.targets(response, logit, |x, y| sigmoid(x) - y),
                    Cost::Error => inputs.targets(response, logit, |x, y| {
                        (1.0 - 2.0 * y) * sigmoid(x) * sigmoid(-x)
                    }),
                };
            match settings.over {
                Over::Responses => of_response.fill(slope as f32),
                Over::Prefixes => of_response[t] = (slope / (t + 1) as f64) as f32,
            }
        });
        if settings.over == Over::Prefixes {
            // A token is in every prefix that ends at it or later.
            let mut sum = 0.0;
            for d in of_response.iter_mut().rev() {
                sum += f64::from(*d);
                *d = sum as f32;
            }
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
