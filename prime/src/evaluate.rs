//! Evaluation on held-out problems: samples graded, and what they say with intervals.

use anyhow::{Result, ensure};
use prime_model::{Completion, Finish, Generator, Sampling};
use prime_runtime::random::{Generator as Random, Stream};
use serde::Serialize;

use crate::graders::GraderSettings;
use crate::prompts::Prompts;
use crate::step::grade;
use crate::step::rollout::{self, Prompt, Stop};
use crate::tasks::Split;

/// Samples of evaluations are numbered from here, apart from those of training.
const FIRST_SEQUENCE: u64 = 1 << 48;

/// What is evaluated.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which problems.
    pub split: Split,
    /// How many of them; a smaller set is taken whole.
    pub problems: usize,
    /// Samples of each.
    pub samples: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// The most tokens of a response.
    pub max_new_tokens: usize,
    /// How graders work.
    pub grading: GraderSettings,
}

/// The graded samples of one problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Graded {
    /// The problem's place in its split.
    pub index: u64,
    /// The problem's level, such as its number of operations.
    pub level: u32,
    /// A score for each sample, 0 to 1.
    pub scores: Vec<f32>,
    /// The answer that the grader found in each.
    pub answers: Vec<Option<String>>,
    /// Tokens of each.
    pub lengths: Vec<usize>,
    /// Whether each ended by itself.
    pub finished: Vec<bool>,
    /// What the model wrote.
    pub texts: Vec<String>,
    /// The same in tokens, with the one that ended it.
    pub tokens: Vec<Vec<u32>>,
    /// Why a sample could not be graded; it then counts as wrong, and is reported.
    pub failures: Vec<Option<String>>,
}

/// Draws and grades samples of held-out problems. Returns them with the number of problems left out because their prompts were too long.
///
/// # Errors
/// When the split is empty or a prompt does not fit.
pub fn evaluate(
    generator: &mut Generator,
    prompts: &Prompts,
    stop: &Stop,
    settings: &Settings,
    mut progress: impl FnMut(usize),
) -> Result<(Vec<Graded>, usize)> {
    let count =
        prompts.task().len(settings.split).unwrap_or(u64::MAX).min(settings.problems as u64);
    let mut list: Vec<Prompt> = Vec::with_capacity(count as usize);
    for index in 0..count {
        list.extend(prompts.prompt(settings.split, index)?);
    }
    let left_out = count as usize - list.len();
    ensure!(
        !list.is_empty(),
        "there is nothing to evaluate: no held-out problem fits rollout.max_prompt_tokens"
    );
    let rollout_settings = rollout::Settings {
        samples: settings.samples,
        sampling: settings.sampling,
        max_new_tokens: settings.max_new_tokens,
        first_sequence: FIRST_SEQUENCE,
    };
    let (task, tokenizer) = (prompts.task(), prompts.tokenizer());
    let (completions, judged) =
        grade::beside(task, tokenizer, &list, settings.samples, &settings.grading, |finished| {
            let mut done = 0;
            let mut each = |request: usize, completion: &Completion| {
                done += 1;
                progress(done);
                finished(request, completion);
            };
            rollout::rollout(generator, &list, &rollout_settings, stop, &mut each)
        })?;
    let mut graded = Vec::with_capacity(list.len());
    for ((prompt, completions), judged) in list.iter().zip(completions).zip(judged) {
        let mut entry = Graded {
            index: prompt.index,
            level: prompt.problem.level,
            scores: Vec::with_capacity(completions.len()),
            answers: Vec::with_capacity(completions.len()),
            lengths: Vec::with_capacity(completions.len()),
            finished: Vec::with_capacity(completions.len()),
            texts: Vec::with_capacity(completions.len()),
            tokens: Vec::with_capacity(completions.len()),
            failures: Vec::with_capacity(completions.len()),
        };
        for (completion, (text, grade)) in completions.into_iter().zip(judged) {
            let finished = completion.finish == Finish::Stop;
            entry.scores.push(if grade.failure.is_some() { 0.0 } else { grade.score });
            entry.failures.push(grade.failure.map(|failure| failure.to_string()));
            entry.answers.push(grade.extracted);
            entry.lengths.push(completion.tokens.len());
            entry.finished.push(finished);
            entry.texts.push(text);
            entry.tokens.push(completion.tokens);
        }
        graded.push(entry);
    }
    Ok((graded, left_out))
}

/// A mean over problems with a 95 % interval, by resampling the problems.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Estimate {
    /// The mean of one value a problem; 2,000 resamples fixed by the seed.
    pub fn of(values: &[f64], seed: u64) -> Estimate {
        const RESAMPLES: usize = 2000;
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count.max(1) as f64;
        if count < 2 {
            return Estimate { mean, low: mean, high: mean };
        }
        let mut random = Random::new(seed, Stream::Bootstrap, count as u64);
        let mut means: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                (0..count).map(|_| values[random.below(count as u32) as usize]).sum::<f64>()
                    / count as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        // Order statistics 50 and 1951 of 2000 cut 2.5 % off each end.
        Estimate { mean, low: means[RESAMPLES / 40], high: means[RESAMPLES - 1 - RESAMPLES / 40] }
    }
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Problems evaluated.
    pub problems: usize,
    /// Samples of each.
    pub samples: usize,
    /// Mean score of a sample: pass@1, and with several samples avg@k.
    pub mean_score: Estimate,
    /// For k = 1, 2, 4, ... up to the number of samples: the chance that at least one of k samples is right.
    pub pass_at: Vec<(usize, Estimate)>,
    /// For the same k beyond 1: the score of the answer that most of the first k samples gave.
    pub majority_at: Vec<(usize, Estimate)>,
    /// Mean tokens of a response.
    pub length: f64,
    /// Share of responses cut off at the limit.
    pub truncated: f64,
    /// Responses that could not be graded. They are counted as wrong.
    pub failures: usize,
    /// Mean score by level, where the task has levels.
    pub levels: Vec<(u32, f64, usize)>,
}

impl Summary {
    /// Sums graded problems up.
    pub fn of(graded: &[Graded], seed: u64) -> Summary {
        let samples = graded.first().map_or(0, |entry| entry.scores.len());
        let mean = |entry: &Graded| {
            entry.scores.iter().map(|&x| f64::from(x)).sum::<f64>() / samples.max(1) as f64
        };
        let estimate = |value: &dyn Fn(&Graded) -> f64| {
            let values: Vec<f64> = graded.iter().map(value).collect();
            Estimate::of(&values, seed)
        };
        let powers: Vec<usize> =
            std::iter::successors(Some(1), |k| Some(k * 2)).take_while(|&k| k <= samples).collect();
        let responses = (graded.len() * samples).max(1) as f64;
        let mut levels: Vec<(u32, f64, usize)> = Vec::new();
        for entry in graded {
            match levels.iter_mut().find(|(level, ..)| *level == entry.level) {
                Some((_, sum, count)) => (*sum, *count) = (*sum + mean(entry), *count + 1),
                None => levels.push((entry.level, mean(entry), 1)),
            }
        }
        levels.sort_by_key(|&(level, ..)| level);
        levels.iter_mut().for_each(|(_, sum, count)| *sum /= *count as f64);
        Summary {
            problems: graded.len(),
            samples,
            mean_score: estimate(&mean),
            pass_at: powers
                .iter()
                .map(|&k| (k, estimate(&|entry| pass_at(&entry.scores, k))))
                .collect(),
            majority_at: powers
                .iter()
                .skip(1)
                .map(|&k| (k, estimate(&|entry| majority_at(entry, k))))
                .collect(),
            length: graded.iter().flat_map(|entry| &entry.lengths).sum::<usize>() as f64
                / responses,
            truncated: graded
                .iter()
                .flat_map(|entry| &entry.finished)
                .filter(|&&done| !done)
                .count() as f64
                / responses,
            failures: graded.iter().flat_map(|entry| &entry.failures).flatten().count(),
            levels: if levels.len() > 1 { levels } else { Vec::new() },
        }
    }
}

/// The unbiased estimate of the chance that at least one of k samples is right, from n of which c are
/// (Chen et al., arXiv 2107.03374): 1 - C(n - c, k) / C(n, k). A score of at least 1/2 counts as right.
pub(crate) fn pass_at(scores: &[f32], k: usize) -> f64 {
    let n = scores.len();
    let wrong = scores.iter().filter(|&&score| score < 0.5).count();
    if wrong < k {
        return 1.0;
    }
    1.0 - (0..k).map(|i| (wrong - i) as f64 / (n - i) as f64).product::<f64>()
}

/// The score of the answer that most of the first k samples gave; among equals, the one given first. Samples without an answer have no
/// vote; without any vote the score is 0.
pub(crate) fn majority_at(entry: &Graded, k: usize) -> f64 {
    let votes = |answer: &String| {
        entry.answers[..k].iter().flatten().filter(|other| *other == answer).count()
    };
    let mut best: Option<(usize, f32)> = None;
    for (answer, &score) in entry.answers[..k].iter().zip(&entry.scores) {
        let Some(answer) = answer else { continue };
        let count = votes(answer);
        if best.is_none_or(|(most, _)| count > most) {
            best = Some((count, score));
        }
    }
    best.map_or(0.0, |(_, score)| f64::from(score))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graded(scores: &[f32], answers: &[&str]) -> Graded {
        Graded {
            index: 0,
            level: 0,
            scores: scores.to_vec(),
            answers: answers
                .iter()
                .map(|text| (!text.is_empty()).then(|| text.to_string()))
                .collect(),
            lengths: vec![2; scores.len()],
            finished: vec![true; scores.len()],
            texts: vec![String::new(); scores.len()],
            tokens: vec![Vec::new(); scores.len()],
            failures: vec![None; scores.len()],
        }
    }

    #[test]
    fn pass_at_k_is_the_share_of_subsets_with_a_right_sample() {
        let scores = [1.0, 0.0, 0.0, 0.0];
        assert_eq!(pass_at(&scores, 1), 0.25);
        assert_eq!(pass_at(&scores, 2), 0.5);
        assert_eq!(pass_at(&scores, 4), 1.0);
        assert_eq!(pass_at(&[0.0; 4], 4), 0.0);
    }

    #[test]
    fn the_majority_is_counted_over_answers_and_silence_has_no_vote() {
        let entry = graded(&[1.0, 0.0, 0.0, 1.0], &["7", "8", "8", "7"]);
        assert_eq!(majority_at(&entry, 2), 1.0);
        assert_eq!(majority_at(&entry, 3), 0.0);
        assert_eq!(majority_at(&entry, 4), 1.0);
        assert_eq!(majority_at(&graded(&[0.0, 1.0, 0.0], &["", "5", ""]), 3), 1.0);
        assert_eq!(majority_at(&graded(&[0.0], &[""]), 1), 0.0);
    }

    #[test]
    fn an_interval_holds_the_mean_and_narrows_with_more_problems() {
        let values =
            |count: usize| -> Vec<f64> { (0..count).map(|i| f64::from(i % 2 == 0)).collect() };
        let (few, many) = (Estimate::of(&values(40), 1), Estimate::of(&values(4000), 1));
        assert!(few.low < 0.5 && 0.5 < few.high && many.high - many.low < few.high - few.low);
        // Two standard errors of a fair coin over 4000 throws are 0.0158.
        assert!((many.high - many.low - 0.031).abs() < 0.004, "{many:?}");
        assert_eq!(Estimate::of(&[0.5], 1), Estimate { mean: 0.5, low: 0.5, high: 0.5 });
    }
}
