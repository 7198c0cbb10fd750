//! Mistakes and repairs that the policy makes by itself, found by the task's checker of steps.

use anyhow::{Context, Result};
use prime_model::Tokenizer;
use serde::{Deserialize, Serialize};

use super::rewards::tokens;
use crate::evaluate::Estimate;
use crate::score::{Scorer, Sequence};
use crate::study::statistics::{area_under_curve, mean};
use crate::tasks::worked::{Work, Worked};

/// What a batch's responses are like, over training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Habits {
    /// The policy's step.
    pub step: u64,
    /// Responses counted.
    pub responses: usize,
    /// Share that end right.
    pub right: f64,
    /// Lines of a response that stand and are wrong.
    pub mistakes: f64,
    /// Lines of a response that are taken back.
    pub repairs: f64,
    /// Share of the lines taken back that were wrong and are followed by one that is right; none without any.
    pub repaired_well: Option<f64>,
    /// Share of the lines taken back that were right; none without any.
    pub repaired_for_nothing: Option<f64>,
    /// Operations, or columns, that a line does at once.
    pub operations_a_line: f64,
}

/// Counts the mistakes and repairs of samples.
pub(super) fn habits(step: u64, samples: &[Sample]) -> Habits {
    let mut habits = Habits { step, ..Habits::default() };
    let (mut right, mut lines, mut operations) = (0.0, 0.0, 0.0);
    let (mut back, mut well, mut for_nothing) = (0.0, 0.0, 0.0);
    for Sample { work, right: is_right, .. } in samples {
        habits.responses += 1;
        right += f64::from(u8::from(*is_right));
        for (place, line) in work.lines.iter().enumerate() {
            lines += 1.0;
            operations += line.operations as f64;
            if !line.cancelled {
                habits.mistakes += f64::from(u8::from(!line.right()));
                continue;
            }
            back += 1.0;
            if line.right() {
                for_nothing += 1.0;
            } else if work.lines.get(place + 1).is_some_and(|next| next.right() && !next.cancelled)
            {
                well += 1.0;
            }
        }
    }
    let responses = habits.responses.max(1) as f64;
    habits.right = right / responses;
    habits.mistakes /= responses;
    habits.repairs = back / responses;
    habits.repaired_well = (back > 0.0).then(|| well / back);
    habits.repaired_for_nothing = (back > 0.0).then(|| for_nothing / back);
    habits.operations_a_line = operations / f64::max(lines, 1.0);
    habits
}

/// A response of the policy with its checked work.
pub(super) struct Sample {
    pub prompt: String,
    pub text: String,
    pub right: bool,
    work: Work,
}

impl Sample {
    /// None when the prompt is none of the task's.
    pub fn new(task: &dyn Worked, prompt: String, text: String, right: bool) -> Option<Sample> {
        let work = task.check(&prompt, &text)?;
        Some(Sample { prompt, text, right, work })
    }
}

/// Log-probabilities of the samples' tokens, the end of the text included.
pub(super) fn log_probs(
    scorer: &mut Scorer,
    tokenizer: &Tokenizer,
    samples: &[Sample],
) -> Result<Vec<Vec<f32>>> {
    let mut sequences = Vec::with_capacity(samples.len());
    for sample in samples {
        let mut ids = tokens(tokenizer, &sample.text)?.ids;
        ids.extend(tokenizer.eos_id());
        sequences.push(Sequence::response(tokenizer.encode(&sample.prompt, true)?, &ids));
    }
    let scores = scorer.score(&sequences, 1.0)?;
    Ok(scores.into_iter().map(|scores| scores.log_probs).collect())
}

/// What a PRM gives to the policy's own lines. Log-ratios in nats, a line with what ends it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OwnFindings {
    /// Responses looked at.
    pub responses: usize,
    /// Share of them that end right.
    pub right: f64,
    /// The same of those with a line taken back; none where there are none.
    pub right_with_repair: Option<f64>,
    /// And of those without.
    pub right_without_repair: Option<f64>,
    /// Mean over lines that are right and stand.
    pub right_lines: Option<Estimate>,
    /// Over the first line of a response that is wrong and stands.
    pub first_mistakes: Option<Estimate>,
    /// Over lines that are taken back, their `!` included.
    pub taken_back: Option<Estimate>,
    /// Over their `!` alone.
    pub marks: Option<Estimate>,
    /// Over the lines behind them.
    pub done_again: Option<Estimate>,
    /// The chance that a right line gets more than a first mistake.
    pub right_over_mistakes: Option<f64>,
    /// Share of responses with a wrong line whose lowest line is their first wrong one.
    pub lowest_is_first_mistake: Option<f64>,
}

/// Sums up log-ratios of samples.
pub(super) fn own_findings(
    tokenizer: &Tokenizer,
    samples: &[Sample],
    prm: &[Vec<f32>],
    reference: &[Vec<f32>],
    seed: u64,
) -> Result<OwnFindings> {
    let (mut right_lines, mut first_mistakes) = (Vec::new(), Vec::new());
    let (mut taken_back, mut marks, mut done_again) = (Vec::new(), Vec::new(), Vec::new());
    let mut lowest = Vec::new();
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for (i, sample) in samples.iter().enumerate() {
        let starts = tokens(tokenizer, &sample.text)?.starts;
        let ratio = |token: usize| f64::from(prm[i][token]) - f64::from(reference[i][token]);
        let between = |from: usize, to: usize| -> f64 {
            let first = starts.partition_point(|&start| start < from);
            let end = starts.partition_point(|&start| start < to);
            (first..end).map(ratio).sum()
        };
        // A line's span leaves out the `;` or `!` that ends it.
        let sums: Vec<f64> = sample
            .work
            .lines
            .iter()
            .map(|line| between(line.span.start, line.span.end + 1))
            .collect();
        let first_wrong =
            sample.work.lines.iter().position(|line| !line.cancelled && !line.right());
        for (place, line) in sample.work.lines.iter().enumerate() {
            if line.cancelled {
                taken_back.push(sums[place]);
                marks.push(between(line.span.end, line.span.end + 1));
                done_again.extend(sums.get(place + 1));
            } else if line.right() {
                right_lines.push(sums[place]);
            } else if first_wrong == Some(place) {
                first_mistakes.push(sums[place]);
            }
        }
        if let Some(place) = first_wrong {
            let least = sums.iter().copied().fold(f64::INFINITY, f64::min);
            lowest.push(f64::from(u8::from(sums[place] <= least)));
        }
        let right = f64::from(u8::from(sample.right));
        let repairs = sample.work.lines.iter().any(|line| line.cancelled);
        if repairs { with.push(right) } else { without.push(right) }
    }
    let estimate = |values: &[f64]| (!values.is_empty()).then(|| Estimate::of(values, seed));
    let all: Vec<f64> = with.iter().chain(&without).copied().collect();
    Ok(OwnFindings {
        responses: samples.len(),
        right: mean(&all).context("there are no samples to look at")?,
        right_with_repair: mean(&with),
        right_without_repair: mean(&without),
        right_lines: estimate(&right_lines),
        first_mistakes: estimate(&first_mistakes),
        taken_back: estimate(&taken_back),
        marks: estimate(&marks),
        done_again: estimate(&done_again),
        right_over_mistakes: area_under_curve(&right_lines, &first_mistakes),
        lowest_is_first_mistake: mean(&lowest),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::tasks::arithmetic::{Arithmetic, ArithmeticSettings};

    const PROMPT: &str = "(9-8)*5+9:";

    fn made(prompt: &str, text: &str, right: bool) -> Option<Sample> {
        let task = Arithmetic::new(ArithmeticSettings::default(), 1).unwrap();
        Sample::new(&task, prompt.into(), text.into(), right)
    }

    #[test]
    fn mistakes_and_repairs_are_counted_by_what_becomes_of_them() {
        let texts = [
            ("9-8=1;1*5=5;5+9=14;#14", true),
            ("9-8=2!9-8=1;1*5=5;5+9=14;#14", true),
            ("9-8=1!9-8=1;1*5=6;6+9=15;#15", false),
            ("9-8=2!9-8=3;3*5=15;15+9=24;#24", false),
        ];
        let samples = texts.map(|(text, right)| made(PROMPT, text, right).unwrap());
        let found = habits(3, &samples);
        assert_eq!((found.responses, found.right), (4, 0.5));
        assert_eq!((found.mistakes, found.repairs), (0.5, 0.75));
        assert_eq!(found.repaired_well, Some(1.0 / 3.0));
        assert_eq!(found.repaired_for_nothing, Some(1.0 / 3.0));
        assert_eq!(found.operations_a_line, 1.0);
        assert!(made("what?", "", true).is_none());
    }

    #[test]
    fn a_prm_that_marks_wrong_lines_is_seen_to_find_the_first_of_them() {
        let tokenizer = Tokenizer::characters("0123456789+-*()=;!#:", "<pad>", "<eos>").unwrap();
        let text = "9-8=1;1*5=6;6+9=15;#15";
        let sample = |text: &str, right| made(PROMPT, text, right).unwrap();
        let samples = [sample(text, false), sample("9-8=2!9-8=1;1*5=5;5+9=14;#14", true)];
        let reference: Vec<Vec<f32>> =
            samples.iter().map(|sample| vec![0.0; sample.text.len() + 1]).collect();
        let mut prm = reference.clone();
        prm[0][text.find('6').unwrap()] = -2.0;
        prm[1][5] = -0.5;
        let found = own_findings(&tokenizer, &samples, &prm, &reference, 1).unwrap();
        assert_eq!(found.first_mistakes.unwrap().mean, -2.0);
        assert_eq!((found.marks.unwrap().mean, found.taken_back.unwrap().mean), (-0.5, -0.5));
        assert_eq!(found.done_again.unwrap().mean, 0.0);
        assert_eq!(
            (found.right_over_mistakes, found.lowest_is_first_mistake),
            (Some(1.0), Some(1.0))
        );
        assert_eq!((found.right_with_repair, found.right_without_repair), (Some(1.0), Some(0.0)));
    }
}
