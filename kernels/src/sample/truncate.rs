//! Which entries of a row a draw may take, found without sorting the row.
//!
//! Entries are ordered by logit, then by id. Every truncation keeps a head of that order, so that all of them together are
//! one boundary, and testing an entry against it is two comparisons.

use std::cmp::Ordering;

use super::Row;
use crate::log_prob::online::State;
use crate::math::exp_bounded;
use crate::simd::multiversion;

/// The last kept entry, or a place between two entries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Boundary {
    logit: f32,
    last: u32,
}

impl Boundary {
    /// Keeps every entry.
    pub(super) const NONE: Boundary = Boundary { logit: f32::NEG_INFINITY, last: u32::MAX };

    #[inline(always)]
    pub(super) fn keeps(self, logit: f32, id: u32) -> bool {
        // Without branches, so that loops over it vectorise.
        (logit > self.logit) | ((logit == self.logit) & (id <= self.last))
    }

    /// The one that keeps less.
    fn stricter(self, other: Boundary) -> Boundary {
        if self.keeps(other.logit, other.last) { other } else { self }
    }
}

/// The boundary of a row's settings. `logits` are over the temperature, `state` is of all of them; `ids` is working memory
/// of as many entries.
pub(super) fn boundary(logits: &[f32], state: &State, row: &Row, ids: &mut [u32]) -> Boundary {
    let mut boundary = Boundary::NONE;
    let mut kept = None;
    let k = row.top_k as usize;
    if k > 0 && k < logits.len() {
        boundary = top_k(logits, k, ids);
        kept = Some(k);
    }
    if row.top_p < 1.0 {
        let share = f64::from(row.top_p);
        let nucleus = if kept.is_none() && logits.len() > BINS {
            top_p(logits, state, share, ids)
        } else {
            let count = kept.unwrap_or_else(|| at_least(logits, f32::NEG_INFINITY, ids));
            let target = share * mass(logits, &ids[..count], state.max);
            reach(logits, &mut ids[..count], state.max, 0.0, target)
        };
        boundary = boundary.stricter(nucleus);
    }
    if row.min_p > 0.0 {
        let logit = (f64::from(state.max) + f64::from(row.min_p).ln()) as f32;
        boundary = boundary.stricter(Boundary { logit, last: u32::MAX });
    }
    boundary
}

/// Most likely first; of two as likely, the lower id.
fn order(logits: &[f32], a: u32, b: u32) -> Ordering {
    let descending = logits[b as usize].partial_cmp(&logits[a as usize]);
    descending.unwrap_or(Ordering::Equal).then(a.cmp(&b))
}

/// The boundary after the `k` most likely entries, `k` at least 1 and less than there are; their ids become the first `k`
/// of `ids`.
fn top_k(logits: &[f32], k: usize, ids: &mut [u32]) -> Boundary {
    // The k-th greatest of the groups' maxima: at least k entries reach it, and seldom many more.
    const GROUP: usize = 64;
    let groups = logits.len().div_ceil(GROUP);
    let least = if groups > k {
        for (key, group) in ids.iter_mut().zip(logits.chunks(GROUP)) {
            *key = descending_key(group.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        let (_, key, _) = ids[..groups].select_nth_unstable(k - 1);
        of_descending_key(*key)
    } else {
        f32::NEG_INFINITY
    };
    let count = at_least(logits, least, ids);
    let (_, &mut last, _) =
        ids[..count].select_nth_unstable_by(k - 1, |&a, &b| order(logits, a, b));
    Boundary { logit: logits[last as usize], last }
}

/// The boundary after the fewest entries, most likely first, that hold this share of the whole mass.
fn top_p(logits: &[f32], state: &State, share: f64, ids: &mut [u32]) -> Boundary {
    // Entries less likely than (1 - share) / vocabulary hold less than 1 - share together: bins are laid over the logits
    // above, and what lies below falls into the last.
    let depth = (logits.len() as f64 / (1.0 - share) / f64::from(state.sum)).ln().max(1e-3);
    let scale = (BINS as f64 / depth) as f32;
    let mut bins = [0.0; BINS];
    bin_masses(&mut bins, logits, state.max, scale);
    let target = share * bins.iter().sum::<f64>();
    let (mut bin, mut before) = (0, 0.0);
    while bin + 1 < BINS && before + bins[bin] < target {
        before += bins[bin];
        bin += 1;
    }
    let mut count = 0;
    for (id, &logit) in logits.iter().enumerate() {
        // Written always and kept when counted: no branch to mispredict.
        ids[count] = id as u32;
        count += usize::from(bin_of(logit, state.max, scale) as usize == bin);
    }
    reach(logits, &mut ids[..count], state.max, before, target)
}

/// Bins of logits, the most likely first.
const BINS: usize = 512;

#[inline(always)]
fn bin_of(logit: f32, max: f32, scale: f32) -> u32 {
    ((max - logit) * scale).min((BINS - 1) as f32) as u32
}

multiversion! {
    /// Adds the mass of every entry to its bin.
    fn bin_masses(bins: &mut [f64; BINS], logits: &[f32], max: f32, scale: f32) {
        const TILE: usize = 128;
        let (mut exps, mut places) = ([0.0f32; TILE], [0u32; TILE]);
        for tile in logits.chunks(TILE) {
            for ((e, place), &logit) in exps.iter_mut().zip(&mut places).zip(tile) {
                *e = exp_bounded(logit - max);
                *place = bin_of(logit, max, scale);
            }
            for (&e, &place) in exps.iter().zip(&places).take(tile.len()) {
                bins[place as usize] += f64::from(e);
            }
        }
    }
}

/// The boundary after the fewest of `head`, most likely first, whose masses bring `before` to `target`; after all of them
/// should rounding leave their sum below it.
fn reach(logits: &[f32], head: &mut [u32], max: f32, mut before: f64, target: f64) -> Boundary {
    let (mut low, mut high) = (0, head.len());
    // `..low` brings the sum to `before`, below the target; the entry looked for is in `low..high`, whose halves are put
    // in order against each other, never within.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        head[low..high].select_nth_unstable_by(middle - low, |&a, &b| order(logits, a, b));
        let reached = before + mass(logits, &head[low..middle], max);
        if reached >= target {
            high = middle;
        } else {
            (low, before) = (middle, reached);
        }
    }
    head.get(low).map_or(Boundary::NONE, |&last| Boundary { logit: logits[last as usize], last })
}

/// Writes the ids of entries with at least this logit, in order, and counts them.
fn at_least(logits: &[f32], least: f32, ids: &mut [u32]) -> usize {
    let mut count = 0;
    for (id, &logit) in logits.iter().enumerate() {
        // Written always and kept when counted: no branch to mispredict.
        ids[count] = id as u32;
        count += usize::from(logit >= least);
    }
    count
}

multiversion! {
    /// Sum of e^(logit - max) over entries.
    fn mass(logits: &[f32], ids: &[u32], max: f32) -> f64 {
        let mut sum = 0.0;
        for &id in ids {
            sum += f64::from(exp_bounded(logits[id as usize] - max));
        }
        sum
    }
}

/// A number that falls as the float rises.
fn descending_key(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_sign_negative() { bits } else { !(bits | 0x8000_0000) }
}

fn of_descending_key(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key } else { !key & 0x7fff_ffff })
}
