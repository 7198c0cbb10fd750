//! One row's softmax over a vocabulary that arrives in blocks: the arithmetic that [`crate::log_prob`] and [`crate::sample`]
//! share, to the bit.

use crate::math::exp_bounded;
use crate::simd::multiversion;

/// Vocabulary entries of a block. Every row is visited in blocks that begin at multiples of this.
pub(crate) const BLOCK: usize = 1024;

/// Sums run in this many lanes, entry `i` of a block in lane `i % LANES`, and are then added in a fixed tree.
pub(crate) const LANES: usize = 16;

/// Working memory of one thread's passes, made once for many rows.
pub(crate) struct Work {
    /// e^(logit - max) of a block, then zeros to a multiple of [`LANES`].
    pub(crate) exps: [f32; BLOCK],
    /// The same times logit - max.
    weighted: [f32; BLOCK],
}

impl Work {
    pub(crate) fn new() -> Work {
        Work { exps: [0.0; BLOCK], weighted: [0.0; BLOCK] }
    }

    /// Room for the exponentials of `count` entries, then zeros to a multiple of [`LANES`].
    #[inline(always)]
    pub(crate) fn padded(&mut self, count: usize) -> &mut [f32] {
        let padded = &mut self.exps[..count.next_multiple_of(LANES)];
        padded[count..].fill(0.0);
        padded
    }
}

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

    /// Whether all logits were finite.
    pub(crate) fn is_finite(&self) -> bool {
        // An infinite logit makes a difference of infinities, or 0 times one, in `weighted`.
        self.weighted.is_finite() && self.sum.is_finite()
    }

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
    pub(crate) fn absorb(
        state: &mut State,
        logits: &mut [f32],
        inverse_temperature: f32,
        work: &mut Work,
    ) {
        // Several plain loops, since the compiler vectorises each of these and not their union.
        for logit in logits.iter_mut() {
            *logit *= inverse_temperature;
        }
        let max = greatest(logits, state.max);
        let padded = logits.len().next_multiple_of(LANES);
        let (exps, weighted) = (&mut work.exps[..padded], &mut work.weighted[..padded]);
        exps[logits.len()..].fill(0.0);
        weighted[logits.len()..].fill(0.0);
        for ((e, weighted), logit) in exps.iter_mut().zip(weighted.iter_mut()).zip(logits.iter()) {
            let below = logit - max;
            *e = exp_bounded(below);
            *weighted = *e * below;
        }
        let (mut sum, mut weight) = (sum(exps), sum(weighted));
        // Not `> 0.0`: a sum that is not a number must stay.
        if state.sum != 0.0 {
            let shift = state.max - max;
            let scale = exp_bounded(shift);
            sum += scale * state.sum;
            weight += scale * shift.mul_add(state.sum, state.weighted);
        }
        *state = State { max, sum, weighted: weight };
    }
}

/// The greatest of `start` and the values.
#[inline(always)]
fn greatest(values: &[f32], start: f32) -> f32 {
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [start; LANES];
    let (chunks, tail) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(chunk[lane], lanes[lane]);
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = larger(lanes[lane + half], lanes[lane]);
        }
        half /= 2;
    }
    tail.iter().fold(lanes[0], |most, &value| larger(value, most))
}

/// The sum of a multiple of [`LANES`] values: lanes, then halves of them onto halves.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    for chunk in values.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            lanes[lane] += chunk[lane];
        }
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
