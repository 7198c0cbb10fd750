//! The host version: rows' logits whole, some rows at a time, then each row by itself.

use std::sync::atomic::{AtomicUsize, Ordering};

use prime_runtime::{Result, View, ViewMut};

use super::truncate::{Boundary, boundary};
use super::{Row, Weight};
use crate::log_prob::online::{BLOCK, State, Work, absorb, sum};
use crate::math::exp_bounded;
use crate::matmul::{self, Epilogue, Layout};
use crate::simd::multiversion;
use crate::{parallel, scratch};

/// Logits held at once, at most, unless a single row has more: 32 MiB.
const HELD: usize = 1 << 23;

/// Draws every row; gives the first row with a logit that is not finite, if there is one.
pub(super) fn forward(
    tokens: &mut [u32],
    log_probs: &mut [f32],
    entropy: &mut [f32],
    hidden: View<'_>,
    weight: Weight<'_>,
    rows: &[Row],
) -> Result<Option<usize>> {
    let vocabulary = weight.vocabulary();
    let blocks = vocabulary.div_ceil(BLOCK);
    let wave = (HELD / vocabulary).clamp(1, rows.len().max(1));
    let truncates = rows.iter().any(Row::truncates);
    let mut logits = scratch::take::<f32>(wave * vocabulary)?;
    let mut masses = scratch::take::<f32>(wave * blocks)?;
    let of_ids = if truncates { vocabulary } else { 0 };
    let mut ids = scratch::take::<u32>(wave * of_ids)?;
    let masses = ViewMut::from_slice(&mut masses, &[wave, blocks]).shared();
    let ids = ViewMut::from_slice(&mut ids, &[wave, of_ids]).shared();
    let tokens = ViewMut::from_slice(tokens, &[rows.len(), 1]).shared();
    let log_probs = ViewMut::from_slice(log_probs, &[rows.len(), 1]).shared();
    let entropy = ViewMut::from_slice(entropy, &[rows.len(), 1]).shared();
    let not_finite = AtomicUsize::new(usize::MAX);
    for start in (0..rows.len()).step_by(wave) {
        let count = wave.min(rows.len() - start);
        let mut logits =
            ViewMut::from_slice(&mut logits[..count * vocabulary], &[count, vocabulary]);
        let hidden = hidden.rows(start..start + count);
        let (out, epilogue) = (logits.reborrow(), Epilogue::default());
        match weight {
            Weight::Packed(packed) => matmul::forward_packed(out, hidden, packed, epilogue)?,
            Weight::Plain(weight) => matmul::forward(out, hidden, weight, Layout::NT, epilogue)?,
        }
        let logits = logits.shared();
        parallel::ranges(count, (1 << 12) / vocabulary + 1, |range| {
            let mut work = Work::new();
            for i in range {
                let row = &rows[start + i];
                // SAFETY: each row is visited once.
                let (logits, ids, masses) = unsafe {
                    (logits.row_mut::<f32>(i), ids.row_mut::<u32>(i), masses.row_mut::<f32>(i))
                };
                let inverse = if row.temperature == 0.0 { 1.0 } else { 1.0 / row.temperature };
                let mut state = State::EMPTY;
                for block in logits.chunks_mut(BLOCK) {
                    absorb(&mut state, block, inverse, &mut work);
                }
                if !state.is_finite() {
                    not_finite.fetch_min(start + i, Ordering::Relaxed);
                    continue;
                }
                let token = if row.temperature == 0.0 {
                    most_likely(logits, state.max)
                } else {
                    let boundary = if row.truncates() {
                        boundary(logits, &state, row, ids)
                    } else {
                        Boundary::NONE
                    };
                    draw(logits, state.max, boundary, row.uniform(), masses, &mut work)
                };
                let numbers = state.finish(logits[token as usize]);
                // SAFETY: as above.
                unsafe {
                    tokens.row_mut::<u32>(start + i)[0] = token;
                    log_probs.row_mut::<f32>(start + i)[0] = numbers.log_prob;
                    entropy.row_mut::<f32>(start + i)[0] = numbers.entropy;
                }
            }
        });
    }
    let first = not_finite.into_inner();
    Ok((first != usize::MAX).then_some(first))
}

/// The lowest id with the greatest logit.
fn most_likely(logits: &[f32], max: f32) -> u32 {
    // A group at a time, since a search that may end at any entry does not vectorise.
    const GROUP: usize = 64;
    let holds = |group: &[f32]| group.iter().fold(false, |held, &logit| held | (logit == max));
    let start = logits.chunks(GROUP).position(holds).map_or(0, |group| group * GROUP);
    let within = logits[start..].iter().position(|&logit| logit == max);
    (start + within.expect("the maximum is one of them")) as u32
}

/// The kept entry at which the cumulative mass, in order of ids, passes `uniform` of the whole. The mass of a block is
/// summed first, then only the block that holds the entry is walked.
fn draw(
    logits: &[f32],
    max: f32,
    boundary: Boundary,
    uniform: f64,
    masses: &mut [f32],
    work: &mut Work,
) -> u32 {
    let mut total = 0.0;
    for (i, block) in logits.chunks(BLOCK).enumerate() {
        masses[i] = kept_mass(block, max, boundary, (i * BLOCK) as u32, work);
        total += f64::from(masses[i]);
    }
    let target = uniform * total;
    let (mut before, mut chosen) = (0.0, 0);
    for (i, &mass) in masses.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
        chosen = i;
        if before + f64::from(mass) > target {
            break;
        }
        before += f64::from(mass);
    }
    let start = chosen * BLOCK;
    let block = &logits[start..(start + BLOCK).min(logits.len())];
    kept_mass(block, max, boundary, start as u32, work);
    // A block's sum is rounded: should its entries sum to a little less, its last one is taken.
    let mut token = start;
    for (i, &e) in work.exps[..block.len()].iter().enumerate().filter(|(_, e)| **e > 0.0) {
        token = start + i;
        before += f64::from(e);
        if before > target {
            break;
        }
    }
    token as u32
}

multiversion! {
    /// Sum of e^(logit - max) over the kept entries of a block, the terms left in `work`.
    fn kept_mass(
        block: &[f32],
        max: f32,
        boundary: Boundary,
        start: u32,
        work: &mut Work,
    ) -> f32 {
        let padded = work.padded(block.len());
        for (i, (e, &logit)) in padded.iter_mut().zip(block).enumerate() {
            let kept = boundary.keeps(logit, start + i as u32);
            *e = if kept { exp_bounded(logit - max) } else { 0.0 };
        }
        sum(padded)
    }
}
