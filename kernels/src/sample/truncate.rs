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
        // Most likely entries that top-k left, or a head of all that is sure to hold enough.
        let (count, total) = match kept {
            Some(k) => (k, mass(logits, &ids[..k], state.max)),
            None => {
                // Entries less likely than (1 - top_p) / vocabulary sum to less than 1 - top_p. The slack is for the
                // rounding of the sums and of the bound itself.
                let (sum, max) = (f64::from(state.sum), f64::from(state.max));
                let least = (1.0 - f64::from(row.top_p)) / logits.len() as f64 * sum;
                let slack = 1e-3 + f64::from(f32::EPSILON) * max.abs();
                let least = (max + least.ln() - slack) as f32;
                (at_least(logits, least, ids), f64::from(state.sum))
            }
        };
        let head = &mut ids[..count];
        if let Some(nucleus) = top_p(logits, head, state.max, f64::from(row.top_p) * total) {
            boundary = boundary.stricter(nucleus);
        }
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

/// The boundary after the fewest of `head`, most likely first, whose masses sum to `target`; none if all do not.
fn top_p(logits: &[f32], head: &mut [u32], max: f32, target: f64) -> Option<Boundary> {
    let (mut low, mut high, mut before) = (0, head.len(), 0.0);
    // The mass of `..low` is `before`, below the target; the entry looked for is in `low..high`, and the halves of that
    // are put in order against each other, never within.
    while high - low > 1 {
        let half = (high - low) / 2;
        head[low..high].select_nth_unstable_by(half, |&a, &b| order(logits, a, b));
        let middle = low + half;
        let reached = before + mass(logits, &head[low..middle], max);
        if reached >= target {
            high = middle;
        } else {
            (low, before) = (middle, reached);
        }
    }
    let last = *head.get(low)?;
    let reached = before + mass(logits, &[last], max);
    (reached >= target).then(|| Boundary { logit: logits[last as usize], last })
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
