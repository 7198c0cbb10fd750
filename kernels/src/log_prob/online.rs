//! One row's softmax over a vocabulary that arrives in blocks: the arithmetic that [`crate::log_prob`] and [`crate::sample`]
//! share, to the bit.

use crate::math::exp;
use crate::simd::multiversion;

/// Vocabulary entries of a block. Every row is visited in blocks that begin at multiples of this.
pub(crate) const BLOCK: usize = 1024;

/// Sums run in this many lanes, entry `i` of a block in lane `i % LANES`, and are then added in a fixed tree.
pub(crate) const LANES: usize = 16;

/// What a row's softmax is known by after some of its blocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct State {
    /// The greatest logit.
    pub(crate) max: f32,
    /// Sum of e^(logit - max).
    pub(crate) sum: f32,
    /// Sum of e^(logit - max) (logit - max).
    pub(crate) weighted: f32,
}

impl State {
    /// Of no blocks.
    pub(crate) const EMPTY: State = State { max: f32::MIN, sum: 0.0, weighted: 0.0 };

    /// The row's numbers, with the log-probability of an entry that has this logit.
    ///
    /// With logits taken from their maximum, no term is large where the logits are.
    pub(crate) fn finish(&self, logit: f32) -> Numbers {
        let log_sum = f64::from(self.sum).ln();
        Numbers {
            log_prob: (f64::from(logit - self.max) - log_sum) as f32,
            entropy: (log_sum - f64::from(self.weighted) / f64::from(self.sum)) as f32,
            lse: (f64::from(self.max) + log_sum) as f32,
        }
    }
}

/// What a row's softmax says of one of its entries and of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    /// The entry's log-probability.
    pub(crate) log_prob: f32,
    /// -sum p log p.
    pub(crate) entropy: f32,
    /// The logarithm of the sum of e^logit.
    pub(crate) lse: f32,
}

multiversion! {
    /// Multiplies a block of raw logits by 1/temperature, in place, and takes it into the row's state.
    pub(crate) fn absorb(state: &mut State, logits: &mut [f32], inverse_temperature: f32) {
        let mut greatest = [f32::MIN; LANES];
        for chunk in logits.chunks_mut(LANES) {
            for (greatest, logit) in greatest.iter_mut().zip(chunk) {
                *logit *= inverse_temperature;
                *greatest = if *logit > *greatest { *logit } else { *greatest };
            }
        }
        let max = greatest.into_iter().fold(state.max, f32::max);

        let (mut sums, mut weighted) = ([0.0; LANES], [0.0; LANES]);
        let (chunks, tail) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            for lane in 0..LANES {
                let below = chunk[lane] - max;
                let e = exp(below);
                sums[lane] += e;
                weighted[lane] = below.mul_add(e, weighted[lane]);
            }
        }
        for (lane, logit) in tail.iter().enumerate() {
            let below = logit - max;
            let e = exp(below);
            sums[lane] += e;
            weighted[lane] = below.mul_add(e, weighted[lane]);
        }

        let (mut sum, mut weight) = (tree(sums), tree(weighted));
        if state.sum > 0.0 {
            let shift = state.max - max;
            let scale = exp(shift);
            sum += scale * state.sum;
            weight += scale * shift.mul_add(state.sum, state.weighted);
        }
        *state = State { max, sum, weighted: weight };
    }
}

/// The sum of lanes: halves onto halves.
#[inline(always)]
pub(crate) fn tree(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
