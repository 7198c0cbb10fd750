//! Best-of-N: which of several samples an implicit PRM would choose, and how often it is right.
//!
//! A response's score is an aggregate of what the PRM says of its steps (arXiv 2412.01981 section 4.1 takes the least reward). The best-of-N
//! answer is that of the highest score; the weighted majority's is the one whose samples' sigmoids of scores sum highest.

use serde::Serialize;

use crate::evaluate::{Estimate, Graded, majority_at, pass_at};
use crate::step::named;
use crate::steps::prefix_values;

named! {
    /// How the rewards of a response's steps make one score.
    Aggregate, "aggregate" {
        /// The sum: the logit that a PRM's cross-entropy trains.
        Sum = "sum",
        /// The mean over steps.
        Mean = "mean",
        /// The least reward of a step.
        Min = "min",
        /// The reward of the last step.
        Last = "last",
        /// The least value of a prefix that ends with a step.
        PrefixMin = "prefix-min",
        /// The mean of these values.
        PrefixMean = "prefix-mean",
    }
}

impl Aggregate {
    /// The score of a response; 0 where it has no steps.
    pub fn of(self, rewards: &[f64]) -> f64 {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let least = |values: &[f64]| values.iter().copied().reduce(f64::min).unwrap_or(0.0);
        match self {
            Aggregate::Sum => rewards.iter().sum(),
            Aggregate::Mean => mean(rewards),
            Aggregate::Min => least(rewards),
            Aggregate::Last => rewards.last().copied().unwrap_or(0.0),
            Aggregate::PrefixMin => least(&prefix_values(rewards)),
            Aggregate::PrefixMean => mean(&prefix_values(rewards)),
        }
    }
}

/// What one way of scoring makes of all problems.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Whether the reference's log-probabilities are subtracted.
    pub reference: bool,
    /// How steps' rewards make a score.
    pub aggregate: Aggregate,
    /// How often the highest score is right.
    pub best: Estimate,
    /// How often the answer of the greatest weight is right.
    pub weighted_majority: Estimate,
}

/// What needs no PRM, of the same samples.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Baselines {
    /// A sample is right.
    pub pass_at_1: Estimate,
    /// The answer that most samples gave is right.
    pub majority: Estimate,
    /// Any sample is right: what a perfect judge would reach.
    pub oracle: Estimate,
}

impl Baselines {
    /// Of graded samples.
    pub fn of(graded: &[Graded], seed: u64) -> Baselines {
        let estimate = |of: &dyn Fn(&Graded) -> f64| {
            Estimate::of(&graded.iter().map(of).collect::<Vec<f64>>(), seed)
        };
        let mean = |entry: &Graded| {
            entry.scores.iter().map(|&x| f64::from(x)).sum::<f64>()
                / entry.scores.len().max(1) as f64
        };
        Baselines {
            pass_at_1: estimate(&mean),
            majority: estimate(&|entry| majority_at(entry, entry.scores.len())),
            oracle: estimate(&|entry| pass_at(&entry.scores, entry.scores.len())),
        }
    }
}

/// Ranks the samples of every problem by the rewards of their steps: `rewards[problem][sample][step]`.
pub fn rank(graded: &[Graded], rewards: &[Vec<Vec<f64>>], reference: bool, seed: u64) -> Vec<Row> {
    Aggregate::ALL
        .iter()
        .map(|&aggregate| {
            let scores = |problem: usize| -> Vec<f64> {
                rewards[problem].iter().map(|steps| aggregate.of(steps)).collect()
            };
            let estimate = |of: &dyn Fn(&Graded, &[f64]) -> f64| {
                let values: Vec<f64> =
                    graded.iter().enumerate().map(|(i, entry)| of(entry, &scores(i))).collect();
                Estimate::of(&values, seed)
            };
            Row {
                reference,
                aggregate,
                best: estimate(&best),
                weighted_majority: estimate(&weighted_majority),
            }
        })
        .collect()
}

/// The grade of the sample of the highest score; among equals, the first.
fn best(entry: &Graded, scores: &[f64]) -> f64 {
    let mut chosen: Option<(f64, f32)> = None;
    for (&score, &grade) in scores.iter().zip(&entry.scores) {
        if chosen.is_none_or(|(highest, _)| score > highest) {
            chosen = Some((score, grade));
        }
    }
    chosen.map_or(0.0, |(_, grade)| f64::from(grade))
}

/// The grade of the answer whose samples' sigmoids of scores sum highest; among equals, the one given first. Samples without an answer have no
/// vote; without any vote it is 0.
fn weighted_majority(entry: &Graded, scores: &[f64]) -> f64 {
    let mut answers: Vec<(&str, f64, f32)> = Vec::new();
    for ((answer, &score), &grade) in entry.answers.iter().zip(scores).zip(&entry.scores) {
        let Some(answer) = answer else { continue };
        let weight = 1.0 / (1.0 + (-score).exp());
        match answers.iter_mut().find(|(other, ..)| other == answer) {
            Some((_, sum, _)) => *sum += weight,
            None => answers.push((answer, weight, grade)),
        }
    }
    let mut chosen: Option<(f64, f32)> = None;
    for (_, weight, grade) in answers {
        if chosen.is_none_or(|(most, _)| weight > most) {
            chosen = Some((weight, grade));
        }
    }
    chosen.map_or(0.0, |(_, grade)| f64::from(grade))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graded(scores: &[f32], answers: &[&str]) -> Graded {
        Graded {
            index: 0,
            level: 0,
            scores: scores.to_vec(),
            answers: answers.iter().map(|text| Some(text.to_string())).collect(),
            lengths: vec![1; scores.len()],
            finished: vec![true; scores.len()],
            texts: vec![String::new(); scores.len()],
            tokens: vec![vec![1]; scores.len()],
            failures: vec![None; scores.len()],
        }
    }

    #[test]
    fn aggregates_are_of_rewards_and_of_their_running_sums() {
        let rewards = [1.0, -2.0, 4.0];
        let of = |aggregate: Aggregate| aggregate.of(&rewards);
        assert_eq!(Aggregate::ALL.len(), 6);
        assert_eq!((of(Aggregate::Sum), of(Aggregate::Mean)), (3.0, 1.0));
        assert_eq!((of(Aggregate::Min), of(Aggregate::Last)), (-2.0, 4.0));
        // 1, -1, 3
        assert_eq!((of(Aggregate::PrefixMin), of(Aggregate::PrefixMean)), (-1.0, 1.0));
        assert!(Aggregate::ALL.iter().all(|aggregate| aggregate.of(&[]) == 0.0));
    }

    #[test]
    fn the_highest_score_is_chosen_and_weights_of_equal_answers_add_up() {
        let entry = graded(&[0.0, 1.0, 1.0, 0.0], &["3", "4", "4", "5"]);
        assert_eq!(best(&entry, &[2.0, 1.0, 1.5, 0.0]), 0.0);
        // sigmoid(2) = 0.88 for "3" against 0.73 + 0.82 for "4"
        assert_eq!(weighted_majority(&entry, &[2.0, 1.0, 1.5, 0.0]), 1.0);
        assert_eq!(best(&entry, &[0.0, 0.0, 0.0, 0.0]), 0.0, "the first of equals");
        let rows = rank(&[entry], &[vec![vec![0.0], vec![3.0], vec![1.0], vec![-1.0]]], true, 1);
        assert!(rows.iter().all(|row| row.best.mean == 1.0 && row.weighted_majority.mean == 1.0));
    }

    #[test]
    fn baselines_are_a_sample_the_majority_and_any_sample() {
        let entry = graded(&[0.0, 1.0, 0.0, 0.0], &["3", "4", "5", "5"]);
        let baselines = Baselines::of(&[entry], 1);
        assert_eq!(baselines.pass_at_1.mean, 0.25);
        assert_eq!((baselines.majority.mean, baselines.oracle.mean), (0.0, 1.0));
    }
}
