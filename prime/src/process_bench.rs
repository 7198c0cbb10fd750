//! ProcessBench: finding the first wrong step of a worked solution.
//!
//! A solution's prediction is the first step whose score falls below a threshold, or none. With a1 the share of right solutions in which no step
//! is named, and a2 that of wrong ones in which the labelled step is, F1 = 2 a1 a2 / (a1 + a2). The threshold is chosen by F1 on one half
//! of the solutions, by a hash of their ids, and F1 is reported on the other (arXiv 2412.06559; arXiv 2412.01981's evaluation chooses it on
//! another data set).

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::data::{self, Row};
use crate::step::named;
use crate::steps::{prefix_values, step_rewards};
use crate::tasks::Split;

/// A worked solution.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// Its id.
    pub id: String,
    /// The problem.
    pub problem: String,
    /// Its steps.
    pub steps: Vec<String>,
    /// The first wrong step, counted from 0; none where all are right.
    pub first_wrong: Option<usize>,
}

named! {
    /// What of a step is compared with the threshold. (Programs compare its sigmoid, which orders steps alike until it saturates.)
    Signal, "signal" {
        /// The step's reward.
        Step = "step reward",
        /// The value of the prefix that ends with it.
        Prefix = "prefix value",
        /// That value divided by the prefix's tokens, which the prefix-value loss trains.
        Mean = "mean prefix value",
    }
}

/// How well one signal finds first wrong steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Found {
    /// The signal.
    pub signal: Signal,
    /// The threshold.
    pub threshold: f64,
    /// F1 on the half on which the threshold was chosen.
    pub chosen_f1: f64,
    /// Share of right solutions in which no step is named, on the other half.
    pub right: f64,
    /// Share of wrong solutions in which the labelled step is named.
    pub wrong: f64,
    /// Their harmonic mean.
    pub f1: f64,
}

/// Reads solutions: `id`, `problem`, `steps` and `label` (-1: no step is wrong), as a JSON list, JSON Lines or Parquet.
///
/// # Errors
/// When an entry cannot be used; it is named.
pub fn read(path: &Path) -> Result<Vec<Solution>> {
    let mut solutions = Vec::new();
    for row in data::rows(path)? {
        let row = row?;
        solutions.push(row.checked(solution(&row, solutions.len()))?);
    }
    ensure!(!solutions.is_empty(), "{} has no solutions", path.display());
    Ok(solutions)
}

fn solution(row: &Row, index: usize) -> Result<Solution> {
    let steps: Vec<String> = row
        .list("steps")?
        .iter()
        .enumerate()
        .map(|(k, step)| {
            let step = step.as_str().filter(|step| !step.is_empty());
            Ok(step.with_context(|| format!("steps[{k}] is not text, or empty"))?.to_string())
        })
        .collect::<Result<_>>()?;
    ensure!(!steps.is_empty(), "it has no steps");
    let label = row.get("label")?.as_i64().context("the field \"label\" is not a whole number")?;
    let first_wrong = match label {
        -1 => None,
        label => match usize::try_from(label).ok().filter(|&label| label < steps.len()) {
            Some(label) => Some(label),
            None => {
                bail!("label is {label}; it must be -1, or one of {} steps from 0", steps.len())
            }
        },
    };
    let id = if row.fields.contains_key("id") { row.text("id")? } else { index.to_string() };
    Ok(Solution { id, problem: row.text("problem")?, steps, first_wrong })
}

impl Signal {
    /// The signal at the end of each step.
    pub fn scores(self, rewards: &[f64], ends: &[usize]) -> Vec<f64> {
        let steps = step_rewards(rewards, ends);
        match self {
            Signal::Step => steps,
            Signal::Prefix => prefix_values(&steps),
            Signal::Mean => {
                let values = prefix_values(&steps).into_iter().zip(ends);
                values.map(|(value, &end)| value / end.max(1) as f64).collect()
            }
        }
    }
}

/// A solution's step scores and its label.
pub struct Scored<'a> {
    /// The solution.
    pub solution: &'a Solution,
    /// The score of each step.
    pub scores: Vec<f64>,
}

impl Scored<'_> {
    /// The first step whose score is below the threshold.
    pub fn predicted(&self, threshold: f64) -> Option<usize> {
        self.scores.iter().position(|&score| score < threshold)
    }
}

/// Chooses a threshold on one half of the solutions and tells what it finds on the other.
///
/// # Errors
/// When a half lacks right or wrong solutions: F1 is then of nothing.
pub fn find(signal: Signal, scored: &[Scored<'_>]) -> Result<Found> {
    let (chosen_on, told_on): (Vec<&Scored<'_>>, Vec<&Scored<'_>>) =
        scored.iter().partition(|scored| Split::of(&scored.solution.id, 2) == Split::HeldOut);
    for (half, name) in [(&chosen_on, "first"), (&told_on, "second")] {
        let right = half.iter().filter(|scored| scored.solution.first_wrong.is_none()).count();
        ensure!(
            right > 0 && right < half.len(),
            "the {name} half has {right} right solutions of {}: F1 needs right and wrong ones in both halves",
            half.len()
        );
    }
    let (threshold, chosen_f1) = choose(&chosen_on);
    let [right, wrong, f1] = shares(&told_on, threshold);
    Ok(Found { signal, threshold, chosen_f1, right, wrong, f1 })
}

/// The share of right solutions without a prediction, that of wrong ones with the right one, and F1.
fn shares(scored: &[&Scored<'_>], threshold: f64) -> [f64; 3] {
    let share = |is_right: bool| {
        let of_kind = scored.iter().filter(|s| s.solution.first_wrong.is_none() == is_right);
        let (mut hits, mut count) = (0, 0);
        for scored in of_kind {
            hits += usize::from(scored.predicted(threshold) == scored.solution.first_wrong);
            count += 1;
        }
        f64::from(hits as u32) / f64::from(count.max(1) as u32)
    };
    let (right, wrong) = (share(true), share(false));
    let f1 = if right + wrong > 0.0 { 2.0 * right * wrong / (right + wrong) } else { 0.0 };
    [right, wrong, f1]
}

/// The threshold of the greatest F1, of those between neighbouring scores, below all and above all; of equals, the lowest.
fn choose(scored: &[&Scored<'_>]) -> (f64, f64) {
    let mut scores: Vec<f64> = scored.iter().flat_map(|s| s.scores.iter().copied()).collect();
    scores.sort_by(f64::total_cmp);
    scores.dedup();
    let between = scores.windows(2).map(|pair| 0.5 * (pair[0] + pair[1]));
    let (lowest, highest) = (scores.first().unwrap_or(&0.0), scores.last().unwrap_or(&0.0));
    let mut best = (lowest - 1.0, shares(scored, lowest - 1.0)[2]);
    for threshold in between.chain([highest + 1.0]) {
        let f1 = shares(scored, threshold)[2];
        if f1 > best.1 {
            best = (threshold, f1);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn solutions(count: usize) -> Vec<Solution> {
        (0..count)
            .map(|i| Solution {
                id: format!("s{i}"),
                problem: "p".into(),
                steps: vec!["a".into(); 4],
                first_wrong: (i % 2 == 1).then_some(i % 4),
            })
            .collect()
    }

    fn scored<'a>(
        solutions: &'a [Solution],
        score: impl Fn(usize, &Solution) -> f64,
    ) -> Vec<Scored<'a>> {
        let of = |solution: &'a Solution| Scored {
            solution,
            scores: (0..solution.steps.len()).map(|step| score(step, solution)).collect(),
        };
        solutions.iter().map(of).collect()
    }

    #[test]
    fn a_planted_fall_is_found_and_equal_scores_find_nothing() {
        let solutions = solutions(60);
        let falls = |step: usize, solution: &Solution| {
            if solution.first_wrong == Some(step) { 0.2 } else { 0.6 }
        };
        let found = find(Signal::Step, &scored(&solutions, falls)).unwrap();
        assert_eq!((found.right, found.wrong, found.f1), (1.0, 1.0, 1.0));
        assert!((0.2..0.6).contains(&found.threshold));

        let found = find(Signal::Step, &scored(&solutions, |_, _| 0.5)).unwrap();
        assert_eq!((found.f1, found.chosen_f1), (0.0, 0.0));
    }

    #[test]
    fn the_first_step_below_the_threshold_is_named_not_the_lowest() {
        let solutions = solutions(60);
        // Every later step is lower still: a prefix that was lost stays so.
        let falls = |step: usize, solution: &Solution| match solution.first_wrong {
            Some(first) if step >= first => 0.4 - 0.1 * step as f64,
            _ => 0.6,
        };
        assert_eq!(find(Signal::Prefix, &scored(&solutions, falls)).unwrap().f1, 1.0);
    }

    #[test]
    fn signals_are_the_reward_the_prefix_value_and_its_mean() {
        let rewards = [1.0, 1.0, -6.0];
        let of = |signal: Signal| signal.scores(&rewards, &[2, 3]);
        assert_eq!(of(Signal::Step), [2.0, -6.0]);
        assert_eq!(of(Signal::Prefix), [2.0, -4.0]);
        assert_eq!(of(Signal::Mean), [1.0, -4.0 / 3.0]);
    }

    #[test]
    fn solutions_are_read_from_a_list_or_from_lines_and_a_wrong_one_is_named() {
        let read = |text: &str| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            super::read(file.path())
        };
        let entry = r#"{"id":"a","problem":"p","steps":["x","y"],"label":1}"#;
        let listed = read(&format!("[{entry}]")).unwrap();
        assert_eq!(listed, read(&format!("{entry}\n\n")).unwrap());
        assert_eq!(listed[0].first_wrong, Some(1));
        for (from, to, expected) in [
            ("\"label\":1", "\"label\":2", "label is 2; it must be -1, or one of 2 steps"),
            ("\"label\":1", "\"label\":null", "\"label\" is not a whole number"),
            ("[\"x\",\"y\"]", "[]", "it has no steps"),
            ("[\"x\",\"y\"]", "[\"x\",3]", "steps[1] is not text"),
            ("\"problem\":\"p\",", "", "no field \"problem\""),
        ] {
            let message = format!("{:#}", read(&entry.replace(from, to)).unwrap_err());
            assert!(message.contains(", line 1: ") && message.contains(expected), "{message}");
        }
        assert!(read("[]").unwrap_err().to_string().contains("has no solutions"));
    }

    #[test]
    fn a_half_of_one_kind_is_refused() {
        let mut all_right = solutions(20);
        all_right.iter_mut().for_each(|solution| solution.first_wrong = None);
        let message = find(Signal::Step, &scored(&all_right, |_, _| 0.5)).unwrap_err().to_string();
        assert!(message.contains("F1 needs right and wrong ones"), "{message}");
    }
}
