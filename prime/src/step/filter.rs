//! Which prompts teach something: the accuracy filter, and how a batch is filled up again.
//!
//! A prompt whose responses are all right or all wrong gives no outcome advantage. A group is kept when the mean of
//! its outcomes lies within bounds, **both ends included**. Source: arXiv 2502.01456 section 3.3; bounds 0.2 and 0.8
//! are the authors' script's.

use anyhow::{Result, ensure};

use super::Rollouts;

/// What a group must be like to be kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The least mean outcome.
    pub lower: f64,
    /// The greatest mean outcome.
    pub upper: f64,
    /// Whether a group with a response cut off at the limit of its length is dropped.
    pub drop_truncated: bool,
}

impl Bounds {
    /// # Errors
    /// When the bounds are not within 0 to 1, or cross.
    pub fn check(&self) -> Result<()> {
        ensure!(
            0.0 <= self.lower && self.lower <= self.upper && self.upper <= 1.0,
            "the accuracy filter's bounds are {} and {}; they must satisfy 0 <= lower <= upper <= 1",
            self.lower,
            self.upper
        );
        Ok(())
    }
}

/// Why a group is kept or dropped. The mean outcome is judged before truncation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The mean outcome is within the bounds.
    Kept,
    /// The mean outcome is above the upper bound.
    TooEasy,
    /// The mean outcome is below the lower bound.
    TooHard,
    /// A response was cut off at the limit of its length.
    Truncated,
}

/// The verdict on each group of a batch.
pub fn verdicts(batch: &Rollouts, bounds: &Bounds) -> Vec<Verdict> {
    let judge = |group: &super::Group| {
        let outcomes = &batch.outcomes[group.responses.clone()];
        let mean = outcomes.iter().map(|&x| f64::from(x)).sum::<f64>() / outcomes.len() as f64;
        let truncated = batch.finished[group.responses.clone()].contains(&false);
        if mean < bounds.lower {
            Verdict::TooHard
        } else if mean > bounds.upper {
            Verdict::TooEasy
        } else if bounds.drop_truncated && truncated {
            Verdict::Truncated
        } else {
            Verdict::Kept
        }
    };
    batch.groups.iter().map(judge).collect()
}

/// How many groups had each verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    /// Within the bounds.
    pub kept: usize,
    /// Above the upper bound.
    pub too_easy: usize,
    /// Below the lower bound.
    pub too_hard: usize,
    /// With a response cut off.
    pub truncated: usize,
}

impl Counts {
    /// Adds the verdicts of one round of sampling.
    pub fn add(&mut self, verdicts: &[Verdict]) {
        for verdict in verdicts {
            *match verdict {
                Verdict::Kept => &mut self.kept,
                Verdict::TooEasy => &mut self.too_easy,
                Verdict::TooHard => &mut self.too_hard,
                Verdict::Truncated => &mut self.truncated,
            } += 1;
        }
    }
}

named! {
    /// How a batch is filled up when the filter drops groups.
    Refill, "way to refill" {
        /// PRIME-RL/PRIME: sample further rounds until enough groups are kept. Kept groups beyond that lose their
        /// rollouts; their prompts are sampled anew, first of all, in the next step.
        Resample = "resample",
        /// verl: sample once, more prompts than wanted; groups that pass come first, and groups that fail fill what
        /// is left.
        Oversample = "oversample",
    }
}

/// What to do with the groups of one round of sampling; indices are into that round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Groups that join the batch, in this order.
    pub take: Vec<usize>,
    /// Groups whose prompts go to the buffer for the next step.
    pub surplus: Vec<usize>,
    /// Groups that the batch still lacks. With [`Refill::Oversample`] there is no further round: the batch is smaller.
    pub missing: usize,
}

impl Refill {
    /// How many prompts to sample in a round that is to bring `wanted` groups.
    pub fn draw(wanted: usize, oversample_factor: f64) -> usize {
        // A product that is whole but for its rounding must not cost a prompt.
        ((wanted as f64 * oversample_factor - 1e-9).ceil() as usize).max(wanted)
    }

    /// Chooses from one round of sampling. `have` groups were taken in earlier rounds of this step, `wanted` make a
    /// full batch.
    pub fn select(self, verdicts: &[Verdict], have: usize, wanted: usize) -> Selection {
        let room = wanted.saturating_sub(have);
        let (kept, failed): (Vec<usize>, Vec<usize>) =
            (0..verdicts.len()).partition(|&group| verdicts[group] == Verdict::Kept);
        let mut take = kept;
        let mut surplus = Vec::new();
        match self {
            Refill::Resample => surplus = take.split_off(room.min(take.len())),
            Refill::Oversample => {
                take.extend(failed);
                take.truncate(room);
            }
        }
        Selection { missing: room - take.len(), take, surplus }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Response;
    use super::*;

    const BOUNDS: Bounds = Bounds { lower: 0.2, upper: 0.8, drop_truncated: true };

    fn batch(groups: &[(&[f32], bool)]) -> Rollouts {
        let mut batch = Rollouts::new();
        for (i, (outcomes, finished)) in groups.iter().enumerate() {
            let response = |&outcome| Response {
                tokens: vec![1],
                old_log_probs: vec![-1.0],
                outcome,
                finished: *finished,
            };
            let responses: Vec<_> = outcomes.iter().map(response).collect();
            batch.push_group(format!("p{i}"), vec![1], &responses).unwrap();
        }
        batch
    }

    #[test]
    fn both_bounds_belong_to_what_is_kept() {
        let batch = batch(&[
            (&[1.0, 0.0, 0.0, 0.0, 0.0], true),
            (&[1.0, 1.0, 1.0, 1.0, 0.0], true),
            (&[0.0, 0.0], true),
            (&[1.0], true),
            (&[1.0, 0.0], false),
            (&[1.0, 1.0, 1.0], false),
            (&[0.5, 0.5], true),
        ]);
        let expected = [
            Verdict::Kept,
            Verdict::Kept,
            Verdict::TooHard,
            Verdict::TooEasy,
            Verdict::Truncated,
            Verdict::TooEasy,
            Verdict::Kept,
        ];
        assert_eq!(verdicts(&batch, &BOUNDS), expected);
        let mut counts = Counts::default();
        counts.add(&expected);
        assert_eq!(counts, Counts { kept: 3, too_easy: 2, too_hard: 1, truncated: 1 });

        let lenient = Bounds { drop_truncated: false, ..BOUNDS };
        assert_eq!(verdicts(&batch, &lenient)[4], Verdict::Kept);
    }

    #[test]
    fn resampling_takes_only_what_passes_and_keeps_the_prompts_it_has_no_room_for() {
        use Verdict::*;
        let round = [Kept, TooEasy, Kept, TooHard, Kept];
        let first = Refill::Resample.select(&round, 0, 5);
        assert_eq!(first, Selection { take: vec![0, 2, 4], surplus: vec![], missing: 2 });
        let second = Refill::Resample.select(&round, first.take.len(), 5);
        assert_eq!(second, Selection { take: vec![0, 2], surplus: vec![4], missing: 0 });
    }

    #[test]
    fn oversampling_puts_passing_groups_first_in_order_and_fills_up_with_failing_ones() {
        use Verdict::*;
        let round = [TooEasy, Kept, TooHard, Kept, Truncated];
        let cut = Refill::Oversample.select(&round, 0, 3);
        assert_eq!(cut, Selection { take: vec![1, 3, 0], surplus: vec![], missing: 0 });
        let short = Refill::Oversample.select(&round, 0, 6);
        assert_eq!(short, Selection { take: vec![1, 3, 0, 2, 4], surplus: vec![], missing: 1 });
    }

    #[test]
    fn a_round_draws_the_factor_times_what_is_wanted_and_never_less_than_that() {
        assert_eq!(Refill::draw(16, 4.0), 64);
        assert_eq!(Refill::draw(10, 1.1), 11);
        assert_eq!(Refill::draw(3, 1.5), 5);
        assert_eq!(Refill::draw(3, 0.0), 3);
    }

    /// The bounds of `configs/dapo.toml`.
    #[test]
    fn bounds_next_to_0_and_1_drop_exactly_the_groups_that_are_all_wrong_or_all_right() {
        let dapo = Bounds { lower: 1e-9, upper: 0.999_999_999, drop_truncated: false };
        for samples in [2, 3, 7, 16, 1000] {
            for right in [0, 1, samples / 2, samples - 1, samples] {
                let outcomes: Vec<f32> = (0..samples).map(|i| f32::from(i < right)).collect();
                let kept = verdicts(&batch(&[(&outcomes, true)]), &dapo)[0] == Verdict::Kept;
                assert_eq!(kept, right > 0 && right < samples, "{right} of {samples}");
            }
        }
    }

    #[test]
    fn bounds_that_cross_are_refused() {
        assert!(BOUNDS.check().is_ok());
        assert!(Bounds { lower: 0.9, ..BOUNDS }.check().is_err());
        assert!(Bounds { upper: f64::NAN, ..BOUNDS }.check().is_err());
    }
}
