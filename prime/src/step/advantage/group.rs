//! Estimators whose baseline, if any, is a statistic of the prompt's responses, and those without a baseline.
//!
//! With o\[i\] the score of response i of a prompt, its outcome less its penalties (times outcome_gamma^(last - t) at token t), r\[i, t\] the process reward of its token t, m\[i\] the mean of r over its tokens, and
//! sums over s >= t discounted by `process_gamma`:
//! - `reinforce`: outcome_coef o\[i\] + process_coef * sum of r\[i, s\], less the sum of KL penalties;
//! - `grpo`: outcome_coef (o\[i\] - mean o) / std o + process_coef * sum of (r\[i, s\] - mean m) / std m;
//! - `dr-grpo`: the same without the divisions;
//! - `reinforce++`: the returns of `reinforce`, whitened over all tokens of the batch.
//!
//! Means and standard deviations (with Bessel's correction, plus 1e-6 as published programs add) are over the prompt's responses. A prompt's only response
//! has nothing to be compared with: as in verl its mean counts as 0 and its deviation as 1.

use anyhow::Result;

use super::{Advantages, Settings, Source, mean_reward, whiten};
use crate::step::{Rollouts, reverse_scan};

/// What deviations from the mean are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    /// The prompt's standard deviation.
    Deviation,
    /// Nothing.
    One,
}

pub(super) fn reinforce(
    batch: &Rollouts,
    source: &Source,
    settings: &Settings,
) -> Result<Advantages> {
    let centres = vec![Centre::NONE; batch.groups.len()];
    let mut returns = returns(batch, source, settings, &centres, &centres)?;
    if !source.penalties.is_empty() {
        let penalties = reverse_scan(batch, &source.penalties, settings.process_gamma)?;
        for (value, penalty) in returns.iter_mut().zip(penalties) {
            *value -= penalty;
        }
    }
    Ok(Advantages { advantages: returns.clone(), returns })
}

pub(super) fn reinforce_plus_plus(
    batch: &Rollouts,
    source: &Source,
    settings: &Settings,
) -> Result<Advantages> {
    let Advantages { returns, .. } = reinforce(batch, source, settings)?;
    Ok(Advantages { advantages: whiten(&returns), returns })
}

pub(super) fn grpo(
    batch: &Rollouts,
    source: &Source,
    settings: &Settings,
    scale: Scale,
) -> Result<Advantages> {
    let outcomes = centres(batch, scale, |i| source.scores[i]);
    let process = if settings.process_coef == 0.0 {
        vec![Centre::NONE; batch.groups.len()]
    } else {
        let rewards = batch.column("process_rewards", &batch.process_rewards)?;
        centres(batch, scale, |i| mean_reward(batch, rewards, i))
    };
    let returns = returns(batch, source, settings, &outcomes, &process)?;
    Ok(Advantages { advantages: returns.clone(), returns })
}

/// What is taken off a prompt's values, and what the rest is divided by.
#[derive(Clone, Copy, Debug)]
struct Centre {
    mean: f64,
    divisor: f64,
}

impl Centre {
    const NONE: Centre = Centre { mean: 0.0, divisor: 1.0 };

    fn of(&self, value: f64) -> f64 {
        (value - self.mean) / self.divisor
    }
}

fn centres(batch: &Rollouts, scale: Scale, value: impl Fn(usize) -> f64) -> Vec<Centre> {
    let of_group = |group: &crate::step::Group| {
        let count = group.responses.len() as f64;
        if count < 2.0 {
            return Centre::NONE;
        }
        let mean = group.responses.clone().map(&value).sum::<f64>() / count;
        let squares: f64 = group.responses.clone().map(|i| (value(i) - mean).powi(2)).sum();
        let divisor = match scale {
            Scale::Deviation => (squares / (count - 1.0)).sqrt() + 1e-6,
            Scale::One => 1.0,
        };
        Centre { mean, divisor }
    };
    batch.groups.iter().map(of_group).collect()
}

/// The outcome part at every token, plus the discounted sum of the process part from that token on.
fn returns(
    batch: &Rollouts,
    source: &Source,
    settings: &Settings,
    outcomes: &[Centre],
    process: &[Centre],
) -> Result<Vec<f32>> {
    let mut sums = vec![0.0_f32; batch.token_count()];
    if settings.process_coef != 0.0 {
        let rewards = batch.column("process_rewards", &batch.process_rewards)?;
        let mut centred = vec![0.0_f32; rewards.len()];
        for (group, centre) in batch.groups.iter().zip(process) {
            for t in group.responses.clone().flat_map(|i| batch.span(i)) {
                centred[t] = centre.of(f64::from(rewards[t])) as f32;
            }
        }
        sums = reverse_scan(batch, &centred, settings.process_gamma)?;
    }
    for (group, centre) in batch.groups.iter().zip(outcomes) {
        for i in group.responses.clone() {
            let (outcome, span) = (centre.of(source.scores[i]), batch.span(i));
            for t in span.clone() {
                let part = settings.outcome_weight(span.end - 1, t) * outcome;
                sums[t] = (settings.process_coef * f64::from(sums[t]) + part) as f32;
            }
        }
    }
    Ok(sums)
}
