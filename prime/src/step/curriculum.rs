//! What a run learns of its prompts: how each part of a mix does, and which prompts teach nothing any more and are left out in later epochs.
//!
//! A prompt whose samples were all right gives no advantage, and the filter throws its rollouts away after they were paid for. In a data set
//! that is gone through several times, such prompts are better not sampled at all (the history resampling of SRPO, arXiv 2504.14286,
//! which keeps what is too hard for now).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Rollouts;
use super::rollout::Prompt;
use crate::tasks::Task;

/// The mean outcome of each prompt when it was last sampled. It is a part of the run's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Curriculum {
    means: BTreeMap<u64, f32>,
}

impl Curriculum {
    /// Takes over what a round of sampling found: a group for each prompt.
    pub fn learn(&mut self, prompts: &[Prompt], round: &Rollouts) {
        for (prompt, group) in prompts.iter().zip(&round.groups) {
            let outcomes = &round.outcomes[group.responses.clone()];
            let mean = outcomes.iter().sum::<f32>() / outcomes.len().max(1) as f32;
            self.means.insert(prompt.index, mean);
        }
    }

    /// Whether all samples of a prompt were right when it was last sampled.
    pub fn is_solved(&self, index: u64) -> bool {
        self.means.get(&index).is_some_and(|&mean| mean >= 1.0)
    }

    /// How many prompts are.
    pub fn solved(&self) -> usize {
        self.means.values().filter(|&&mean| mean >= 1.0).count()
    }

    /// How many prompts were ever sampled.
    pub fn seen(&self) -> usize {
        self.means.len()
    }

    /// Gives every solved prompt another chance, since nothing else is left.
    pub fn begin_anew(&mut self) {
        self.means.retain(|_, mean| *mean < 1.0);
    }
}

/// The mean outcome of each group of a data set's problems ([`Task::group`]), where it has several.
#[derive(Default)]
pub struct ByGroup {
    sums: BTreeMap<String, (f64, usize)>,
}

impl ByGroup {
    /// Adds a round of sampling.
    pub fn add(&mut self, task: &dyn Task, prompts: &[Prompt], round: &Rollouts) {
        for (prompt, group) in prompts.iter().zip(&round.groups) {
            let (name, _) = task.group(&prompt.problem);
            // What bears the task's own name is all of it.
            if name.is_empty() || name == task.name() {
                continue;
            }
            let outcomes = &round.outcomes[group.responses.clone()];
            let (sum, count) = self.sums.entry(name.to_owned()).or_default();
            *sum += outcomes.iter().map(|&outcome| f64::from(outcome)).sum::<f64>();
            *count += outcomes.len();
        }
    }

    /// The means, by name.
    pub fn accuracies(&self) -> impl Iterator<Item = (&str, f64)> {
        self.sums.iter().map(|(name, (sum, count))| (name.as_str(), sum / (*count).max(1) as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Response;
    use super::*;
    use crate::tasks::Problem;

    #[test]
    fn the_last_sampling_decides_what_is_solved() {
        let prompt = |index| Prompt {
            index,
            problem: Problem { id: index, ..Problem::default() },
            tokens: vec![1].into(),
        };
        let sampled = |curriculum: &mut Curriculum, outcomes: &[(u64, [f32; 2])]| {
            let mut round = Rollouts::new();
            let mut prompts = Vec::new();
            for &(index, outcomes) in outcomes {
                let responses = outcomes.map(|outcome| Response {
                    tokens: vec![1],
                    old_log_probs: vec![-1.0],
                    outcome,
                    finished: true,
                });
                round.push_group(index.to_string(), vec![1], &responses).unwrap();
                prompts.push(prompt(index));
            }
            curriculum.learn(&prompts, &round);
        };
        let mut curriculum = Curriculum::default();
        sampled(&mut curriculum, &[(3, [1.0, 1.0]), (5, [1.0, 0.0]), (8, [0.0, 0.0])]);
        let solved =
            |curriculum: &Curriculum| [3, 5, 8, 9].map(|index| curriculum.is_solved(index));
        assert_eq!(solved(&curriculum), [true, false, false, false]);
        sampled(&mut curriculum, &[(5, [1.0, 1.0]), (3, [1.0, 0.5])]);
        assert_eq!(solved(&curriculum), [false, true, false, false]);
        assert_eq!((curriculum.solved(), curriculum.seen()), (1, 3));
        let saved = serde_json::to_string(&curriculum).unwrap();
        assert_eq!(serde_json::from_str::<Curriculum>(&saved).unwrap(), curriculum);
        curriculum.begin_anew();
        assert_eq!((curriculum.solved(), curriculum.seen()), (0, 2));
    }
}
