//! The critic's update: clipped squared error of its values against the returns.

use anyhow::{Result, ensure};
use prime_kernels::value_loss;
use prime_runtime::random::{Generator as Random, Stream};
use prime_runtime::{View, ViewMut};

use super::{Aggregation, Rollouts};
use crate::engine::{Engine, Learner, LossInputs, Sample, Valued};

/// How a critic of its own is updated.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How far a value may move from the one that the advantages were computed with.
    pub clip: Option<f32>,
    /// Optimiser updates a pass over the batch.
    pub minibatches: usize,
    /// Passes over the batch.
    pub epochs: usize,
    /// Fixes the order of responses where there are several minibatches.
    pub seed: u64,
    /// The batch's number, likewise.
    pub batch: u64,
}

/// The value loss of a critic that shares the policy's trunk, which is added to the policy's.
#[derive(Clone, Copy, Debug)]
pub struct Joint {
    /// What the value loss is multiplied by.
    pub coef: f32,
    /// As in [`Settings`].
    pub clip: Option<f32>,
}

/// What the update did: means over its minibatches, or over all tokens they saw.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Mean value loss of a minibatch.
    pub loss: f64,
    /// Share of tokens whose clipped branch was the greater one.
    pub clip_fraction: f64,
    /// Mean gradient norm before clipping.
    pub gradient_norm: f64,
    /// The last learning rate.
    pub learning_rate: f64,
}

/// Orders of the critic's responses, apart from those of the policy's and of prompts.
const SHUFFLES: u64 = 1 << 33;

/// The critic's value of the text before every token of a batch.
///
/// # Errors
/// When a response is longer than a micro-batch, or a value is not finite.
pub fn values(engine: &mut Engine, critic: &Learner, batch: &Rollouts) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(batch.token_count());
    engine.values(&critic.weights, &batch.samples(), &mut values)?;
    batch.column("values", &values)?;
    Ok(values)
}

/// Trains a critic of its own on a batch with values and returns.
///
/// # Errors
/// When a loss or gradient is NaN or infinite.
pub fn critic_update(
    engine: &mut Engine,
    critic: &mut Learner,
    batch: &Rollouts,
    settings: &Settings,
) -> Result<Outcome> {
    let samples = batch.samples();
    let lengths = batch.lengths();
    let old = batch.column("values", &batch.values)?;
    let returns = batch.column("returns", &batch.returns)?;
    let (mut outcome, mut statistics) = (Outcome::default(), value_loss::Statistics::default());
    let mut updates = 0.0;
    let mut order: Vec<usize> = (0..batch.len()).collect();
    for epoch in 0..settings.epochs {
        if settings.minibatches > 1 {
            let sequence = SHUFFLES + settings.batch * settings.epochs as u64 + epoch as u64;
            Random::new(settings.seed, Stream::Shuffle, sequence).shuffle(&mut order);
        }
        for minibatch in super::minibatches(order.len(), settings.minibatches) {
            let rows = &order[minibatch];
            let part: Vec<Sample<'_>> = rows.iter().map(|&row| samples[row]).collect();
            let part_lengths: Vec<usize> = rows.iter().map(|&row| lengths[row]).collect();
            let weights = Aggregation::TokenMean.weights(&part_lengths, 0)?;
            let part_of = |column: &[f32]| -> Vec<f32> {
                rows.iter().flat_map(|&row| column[batch.span(row)].iter().copied()).collect()
            };
            let (old, returns) = (part_of(old), part_of(returns));
            let loss = |Valued { tokens, values, inputs, d_values }: Valued<'_>| -> Result<()> {
                let columns = [&old[tokens.clone()], &returns[tokens.clone()], &weights[tokens]];
                differentiate(inputs, d_values, values, columns, settings.clip, &mut statistics)
            };
            engine.differentiate_values(&critic.weights, &mut critic.gradients, &part, loss)?;
            let update = critic.update()?;
            outcome.gradient_norm += update.gradient_norm;
            outcome.learning_rate = update.learning_rate;
            updates += 1.0;
        }
    }
    outcome.loss = statistics.loss / f64::max(updates, 1.0);
    outcome.gradient_norm /= f64::max(updates, 1.0);
    outcome.clip_fraction = statistics.clipped / statistics.tokens.max(1.0);
    Ok(outcome)
}

/// The value loss of one micro-batch, added to `statistics`, and its gradient. The columns are the old values, the returns and the tokens' weights.
///
/// # Errors
/// When the loss is NaN or infinite.
pub(super) fn differentiate(
    inputs: &mut LossInputs,
    d_values: ViewMut<'_>,
    values: View<'_>,
    columns: [&[f32]; 3],
    clip: Option<f32>,
    statistics: &mut value_loss::Statistics,
) -> Result<()> {
    let [old, returns, weights] = inputs.columns.place(columns)?;
    let part = value_loss::forward(values, old, returns, weights, clip)?;
    ensure!(part.loss.is_finite(), "the critic's loss is {}", part.loss);
    statistics.loss += part.loss;
    statistics.clipped += part.clipped;
    statistics.tokens += part.tokens;
    value_loss::backward(d_values, values, old, returns, weights, clip)?;
    Ok(())
}

/// The share of the returns' variance that the values explain: 1 - Var(returns - values) / Var(returns). None where the returns are all
/// the same.
pub fn explained_variance(values: &[f32], returns: &[f32]) -> Option<f64> {
    let variance = |numbers: &[f64]| {
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        numbers.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / numbers.len() as f64
    };
    let wide: Vec<f64> = returns.iter().map(|&x| f64::from(x)).collect();
    let left: Vec<f64> = wide.iter().zip(values).map(|(r, &v)| r - f64::from(v)).collect();
    let total = variance(&wide);
    (total > 0.0).then(|| 1.0 - variance(&left) / total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_explain_all_nothing_or_less_than_nothing_of_the_returns() {
        let returns = [0.0, 1.0, 0.0, 1.0];
        assert_eq!(explained_variance(&returns, &returns), Some(1.0));
        // A constant error is no lack of explanation.
        assert_eq!(explained_variance(&[5.0, 6.0, 5.0, 6.0], &returns), Some(1.0));
        assert_eq!(explained_variance(&[0.5; 4], &returns), Some(0.0));
        assert_eq!(explained_variance(&[1.0, 0.0, 1.0, 0.0], &returns), Some(-3.0));
        assert_eq!(explained_variance(&[0.0, 1.0], &[1.0, 1.0]), None);
        assert_eq!(explained_variance(&[], &[]), None);
    }
}
