//! The host version: waves of tokens by blocks of the vocabulary, each a matrix product and then a pass over its rows.

use std::ops::Range;

use prime_runtime::{DType, Element, Result, ViewMut};

use super::online::{BLOCK, State, Work, absorb};
use super::{Loss, Problem};
use crate::math::exp_bounded;
use crate::matmul::{self, Epilogue, Layout};
use crate::simd::multiversion;
use crate::{parallel, scratch};

/// Logits held at once, at most: 4 MiB of float32, which stay in the cache between the product and the pass.
const HELD: usize = 1 << 20;

/// Logits that a core takes at least, so that spreading them costs less than working on them.
const GRAIN: usize = 1 << 14;

pub(super) fn forward(
    log_probs: &mut [f32],
    entropy: &mut [f32],
    lse: &mut [f32],
    problem: Problem<'_>,
) -> Result<()> {
    let Waves { tokens, vocabulary, width, wave } = Waves::of(problem);
    let mut logits = scratch::take::<f32>(wave * width)?;
    let mut states = scratch::take::<f32>(wave * STATE)?;
    let states = ViewMut::from_slice(&mut states, &[wave, STATE]).shared();
    let outputs =
        [log_probs, entropy, lse].map(|values| ViewMut::from_slice(values, &[tokens, 1]).shared());
    for rows in pieces(tokens, wave) {
        for block in pieces(vocabulary, width) {
            let dims = [rows.len(), block.len()];
            let mut logits = ViewMut::from_slice(&mut logits[..dims[0] * dims[1]], &dims);
            project(logits.reborrow(), problem, &rows, &block)?;
            let logits = logits.shared();
            parallel::ranges(rows.len(), GRAIN.div_ceil(block.len()), |range| {
                let mut work = Work::new();
                for row in range {
                    let t = rows.start + row;
                    // SAFETY: each row is visited once.
                    let (logits, stored) =
                        unsafe { (logits.row_mut::<f32>(row), states.row_mut::<f32>(row)) };
                    let (mut state, mut target) = match stored {
                        _ if block.start == 0 => (State::EMPTY, f32::NAN),
                        &mut [max, sum, weighted, target] => (State { max, sum, weighted }, target),
                        _ => unreachable!("a state is four values"),
                    };
                    absorb(&mut state, logits, problem.inverse_temperature, &mut work);
                    let id = problem.targets[t] as usize;
                    if block.contains(&id) {
                        target = logits[id - block.start];
                    }
                    stored.copy_from_slice(&[state.max, state.sum, state.weighted, target]);
                    if block.end == vocabulary {
                        let numbers = state.finish(target);
                        let numbers = [numbers.log_prob, numbers.entropy, numbers.lse];
                        for (output, number) in outputs.iter().zip(numbers) {
                            // SAFETY: as above.
                            unsafe { output.row_mut::<f32>(t)[0] = number };
                        }
                    }
                }
            });
        }
    }
    Ok(())
}

pub(super) fn backward<E: Element>(
    mut d_hidden: ViewMut<'_>,
    mut d_weight: Option<ViewMut<'_>>,
    loss: Loss<'_>,
    problem: Problem<'_>,
) -> Result<()> {
    let Waves { tokens, vocabulary, width, wave } = Waves::of(problem);
    let hidden = problem.hidden.dim(1);
    let rounds = E::DTYPE != DType::F32;
    // A sum over several blocks is kept in float32 and rounded once.
    let kept = rounds && vocabulary > width;
    let mut logits = scratch::take::<f32>(wave * width)?;
    let mut rounded = scratch::take::<E>(if rounds { wave * width } else { 0 })?;
    let mut sums = scratch::take::<f32>(if kept { wave * hidden } else { 0 })?;
    for rows in pieces(tokens, wave) {
        for block in pieces(vocabulary, width) {
            let dims = [rows.len(), block.len()];
            let mut logits = ViewMut::from_slice(&mut logits[..dims[0] * dims[1]], &dims);
            project(logits.reborrow(), problem, &rows, &block)?;
            let gradient = if rounds {
                let mut rounded = ViewMut::from_slice(&mut rounded[..dims[0] * dims[1]], &dims);
                let in_dtype = rounded.reborrow().shared();
                differentiate(logits, &rows, &block, loss, problem, |row, gradient| {
                    // SAFETY: each row is visited once.
                    round(unsafe { in_dtype.row_mut::<E>(row) }, gradient);
                });
                rounded
            } else {
                differentiate(logits.reborrow(), &rows, &block, loss, problem, |_, _| {});
                logits
            };
            let gradient = gradient.as_view();

            let of_tokens = if kept {
                ViewMut::from_slice(&mut sums[..rows.len() * hidden], &[rows.len(), hidden])
            } else {
                d_hidden.reborrow().into_rows(rows.clone())
            };
            let weight = problem.weight.rows(block.clone());
            if block.start == 0 {
                matmul::forward(of_tokens, gradient, weight, Layout::NN, Epilogue::default())?;
            } else {
                matmul::accumulate(of_tokens, gradient, weight, Layout::NN)?;
            }
            if let Some(d_weight) = &mut d_weight {
                let (of_block, hidden) =
                    (d_weight.reborrow().into_rows(block), problem.hidden.rows(rows.clone()));
                matmul::accumulate(of_block, gradient, hidden, Layout::TN)?;
            }
        }
        if kept {
            let out = d_hidden.reborrow().into_rows(rows.clone()).shared();
            parallel::ranges(rows.len(), GRAIN.div_ceil(hidden.max(1)), |range| {
                for row in range {
                    // SAFETY: each row is visited once.
                    round(unsafe { out.row_mut::<E>(row) }, &sums[row * hidden..][..hidden]);
                }
            });
        }
    }
    Ok(())
}

/// Float32 values of a row's state between two blocks: greatest logit, two sums, the target's logit.
const STATE: usize = 4;

struct Waves {
    tokens: usize,
    vocabulary: usize,
    /// Vocabulary entries of a block.
    width: usize,
    /// Tokens of a wave.
    wave: usize,
}

impl Waves {
    fn of(problem: Problem<'_>) -> Waves {
        let (tokens, vocabulary) = (problem.hidden.dim(0), problem.weight.dim(0));
        let width = BLOCK.min(vocabulary);
        Waves { tokens, vocabulary, width, wave: (HELD / width.max(1)).min(tokens) }
    }
}

/// `0..count` cut every `width`.
fn pieces(count: usize, width: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(width.max(1)).map(move |start| start..(start + width).min(count))
}

/// Raw logits of some tokens over a block.
fn project(
    out: ViewMut<'_>,
    problem: Problem<'_>,
    rows: &Range<usize>,
    block: &Range<usize>,
) -> Result<()> {
    let hidden = problem.hidden.rows(rows.clone());
    let weight = problem.weight.rows(block.clone());
    matmul::forward(out, hidden, weight, Layout::NT, Epilogue::default())
}

/// Replaces the raw logits of some tokens over a block by the loss's gradient with respect to them, and hands every row on.
fn differentiate(
    logits: ViewMut<'_>,
    rows: &Range<usize>,
    block: &Range<usize>,
    loss: Loss<'_>,
    problem: Problem<'_>,
    then: impl Fn(usize, &[f32]) + Sync,
) {
    let inverse = problem.inverse_temperature;
    let logits = logits.shared();
    parallel::ranges(rows.len(), GRAIN.div_ceil(block.len()), |range| {
        for row in range {
            let t = rows.start + row;
            // SAFETY: each row is visited once.
            let values = unsafe { logits.row_mut::<f32>(row) };
            let slope = Slope {
                d_log_prob: loss.d_log_probs[t],
                d_entropy: loss.d_entropy.map_or(0.0, |d_entropy| d_entropy[t]),
                lse: loss.lse[t],
                entropy: loss.entropy[t],
                inverse,
            };
            let id = problem.targets[t] as usize;
            let at_target = block.contains(&id).then(|| slope.at(values[id - block.start], 1.0));
            others(values, slope);
            if let Some(at_target) = at_target {
                values[id - block.start] = at_target;
            }
            then(row, values);
        }
    });
}

/// What the gradient by one token's logits depends on.
#[derive(Clone, Copy)]
struct Slope {
    d_log_prob: f32,
    d_entropy: f32,
    lse: f32,
    entropy: f32,
    inverse: f32,
}

impl Slope {
    /// The gradient by a raw logit; `hit` is 1 for the target's and 0 for the others.
    #[inline(always)]
    fn at(self, logit: f32, hit: f32) -> f32 {
        let log_p = logit * self.inverse - self.lse;
        let both = self.d_entropy.mul_add(log_p + self.entropy, self.d_log_prob);
        (-exp_bounded(log_p)).mul_add(both, hit * self.d_log_prob) * self.inverse
    }
}

multiversion! {
    fn others(logits: &mut [f32], slope: Slope) {
        for logit in logits {
            *logit = slope.at(*logit, 0.0);
        }
    }
}

multiversion! {
    fn round<E: Element>(out: &mut [E], values: &[f32]) {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = E::from_f32(value);
        }
    }
}
