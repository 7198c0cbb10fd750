//! The policy's update: clipped policy gradient on the advantages.

use anyhow::{Result, ensure};
use prime_kernels::policy_loss::{self, Clip};
use prime_kernels::value_loss;
use prime_model::on_host;
use prime_runtime::random::{Generator as Random, Stream};

use super::{Aggregation, Rollouts, critic_update};
use crate::engine::{Engine, Learner, Sample, Scored, TokenGradients};

/// How the policy is updated.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Where the ratio is clipped.
    pub clip: Clip,
    /// The entropy bonus's coefficient.
    pub entropy_coef: f32,
    /// How token losses make the loss.
    pub aggregation: Aggregation,
    /// The most tokens of a response.
    pub max_new_tokens: usize,
    /// The temperature that the batch was sampled at: the policy is the distribution at that temperature.
    pub temperature: f32,
    /// Optimiser updates a pass over the batch.
    pub minibatches: usize,
    /// Passes over the batch.
    pub epochs: usize,
    /// Fixes the order of responses where there are several minibatches.
    pub seed: u64,
    /// The step's number, likewise.
    pub step: u64,
    /// The value loss of a critic that is the policy with a value head.
    pub critic: Option<critic_update::Joint>,
}

/// What the update did: means over its minibatches, or over all tokens they saw.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Mean policy loss of a minibatch, without the entropy bonus.
    pub loss: f64,
    /// Share of tokens whose clipped branch was the greater one.
    pub clip_fraction: f64,
    /// Mean of old - new log-probabilities: a plain estimate of KL(sampling policy, updated policy).
    pub kl: f64,
    /// Mean entropy of the policy at the response's tokens, nats.
    pub entropy: f64,
    /// Mean gradient norm before clipping.
    pub gradient_norm: f64,
    /// The last learning rate.
    pub learning_rate: f64,
    /// Log-probabilities under the policy being updated, as the first epoch's passes computed them, in the batch's order.
    pub new_log_probs: Vec<f32>,
    /// What the shared critic's part of the update did, where there is one.
    pub critic: Option<critic_update::Outcome>,
}

/// Trains the policy on a batch with its advantages.
///
/// # Errors
/// When a loss or gradient is NaN or infinite.
pub fn policy_update(
    engine: &mut Engine,
    policy: &mut Learner,
    batch: &Rollouts,
    settings: &Settings,
) -> Result<Outcome> {
    let samples = batch.samples();
    let lengths = batch.lengths();
    let old = batch.column("old_log_probs", &batch.old_log_probs)?;
    let advantages = batch.column("advantages", &batch.advantages)?;
    let (old_values, returns) = match settings.critic {
        Some(_) => {
            (batch.column("values", &batch.values)?, batch.column("returns", &batch.returns)?)
        }
        None => (&[][..], &[][..]),
    };
    let mut values = value_loss::Statistics::default();
    let mut outcome = Outcome { new_log_probs: vec![0.0; old.len()], ..Outcome::default() };
    let (mut statistics, mut entropy_sum, mut updates) =
        (policy_loss::Statistics::default(), 0.0, 0.0);
    let mut order: Vec<usize> = (0..batch.len()).collect();
    for epoch in 0..settings.epochs {
        if settings.minibatches > 1 {
            let sequence = settings.step * settings.epochs as u64 + epoch as u64;
            Random::new(settings.seed, Stream::Shuffle, sequence).shuffle(&mut order);
        }
        for minibatch in super::minibatches(order.len(), settings.minibatches) {
            let rows = &order[minibatch];
            let part: Vec<Sample<'_>> = rows.iter().map(|&row| samples[row]).collect();
            let part_lengths: Vec<usize> = rows.iter().map(|&row| lengths[row]).collect();
            let weights = settings.aggregation.weights(&part_lengths, settings.max_new_tokens)?;
            let part_of = |column: &[f32]| -> Vec<f32> {
                rows.iter().flat_map(|&row| column[batch.span(row)].iter().copied()).collect()
            };
            let (old, advantages) = (part_of(old), part_of(advantages));
            let joint = match settings.critic {
                None => None,
                Some(joint) => {
                    let mut weights = Aggregation::TokenMean.weights(&part_lengths, 0)?;
                    weights.iter_mut().for_each(|weight| *weight *= joint.coef);
                    Some((part_of(old_values), part_of(returns), weights, joint.clip))
                }
            };
            let mut new = Vec::with_capacity(old.len());
            let mut d_entropy: Vec<f32> = Vec::new();
            let loss = |scores: Scored<'_>, d: &mut TokenGradients<'_>| -> Result<()> {
                let tokens = scores.tokens.clone();
                let token_weights = &weights[tokens.clone()];
                let [old, advantages, weights] = scores.inputs.columns.place([
                    &old[tokens.clone()],
                    &advantages[tokens],
                    token_weights,
                ])?;
                let scored = scores.log_probs;
                let part = policy_loss::forward(scored, old, advantages, weights, settings.clip)?;
                ensure!(part.loss.is_finite(), "the policy's loss is {}", part.loss);
                statistics.loss += part.loss;
                statistics.clipped += part.clipped;
                statistics.kl += part.kl;
                statistics.tokens += part.tokens;
                let entropy = on_host::<f32>(scores.entropy)?;
                entropy_sum += entropy.iter().map(|&x| f64::from(x)).sum::<f64>();
                policy_loss::backward(
                    d.log_probs.reborrow(),
                    scored,
                    old,
                    advantages,
                    weights,
                    settings.clip,
                )?;
                if settings.entropy_coef != 0.0 {
                    d.uses_entropy = true;
                    d_entropy.clear();
                    d_entropy.extend(token_weights.iter().map(|w| -settings.entropy_coef * w));
                    d.entropy.write(&d_entropy)?;
                }
                new.extend_from_slice(&on_host(scored)?);
                if let Some((old, returns, weights, clip)) = &joint {
                    d.uses_values = true;
                    let tokens = scores.tokens;
                    let columns =
                        [&old[tokens.clone()], &returns[tokens.clone()], &weights[tokens]];
                    critic_update::differentiate(
                        scores.inputs,
                        d.values.reborrow(),
                        scores.values,
                        columns,
                        *clip,
                        &mut values,
                    )?;
                }
                Ok(())
            };
            engine.differentiate(
                &policy.weights,
                &mut policy.gradients,
                &part,
                settings.temperature,
                loss,
            )?;
            if epoch == 0 {
                let mut new = new.as_slice();
                for &row in rows {
                    let (this, rest) = new.split_at(lengths[row]);
                    outcome.new_log_probs[batch.span(row)].copy_from_slice(this);
                    new = rest;
                }
            }
            let update = policy.update()?;
            outcome.gradient_norm += update.gradient_norm;
            outcome.learning_rate = update.learning_rate;
            updates += 1.0;
        }
    }
    let tokens = statistics.tokens.max(1.0);
    outcome.loss = statistics.loss / f64::max(updates, 1.0);
    outcome.gradient_norm /= f64::max(updates, 1.0);
    outcome.clip_fraction = statistics.clipped / tokens;
    outcome.kl = statistics.kl / tokens;
    outcome.entropy = entropy_sum / tokens;
    outcome.critic = settings.critic.map(|joint| critic_update::Outcome {
        loss: values.loss / (f64::from(joint.coef) * f64::max(updates, 1.0)),
        clip_fraction: values.clipped / values.tokens.max(1.0),
        ..critic_update::Outcome::default()
    });
    Ok(outcome)
}
