//! The policy's update: its loss on the advantages, with an entropy bonus and a penalty for leaving a reference.
//!
//! The loss of a minibatch is the surrogate under the aggregation, - entropy_coef times the entropy and + kl.coef times the divergence from the
//! reference under the same aggregation. What a token weighs is decided for the whole minibatch before it is cut into micro-batches.

use anyhow::{Result, ensure};
use prime_kernels::{kl_penalty, policy_loss as kernel, value_loss};
use prime_model::on_host;
use prime_runtime::random::{Generator as Random, Stream};

use super::policy_loss::{self, Columns, KlPenalty, LossSettings};
use super::{Aggregation, Rollouts, critic_update};
use crate::engine::{Engine, Learner, LossInputs, Sample, Scored, TokenGradients};

/// How the policy is updated.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The loss.
    pub loss: LossSettings,
    /// The entropy bonus's coefficient.
    pub entropy_coef: f32,
    /// The penalty for leaving the policy's reference; the batch then has its log-probs.
    pub kl: Option<KlPenalty>,
    /// How token losses make the loss.
    pub aggregation: Aggregation,
    /// Whether responses that reached the limit of their length carry no loss, penalty or bonus.
    pub mask_truncated: bool,
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
    /// Mean policy loss of a minibatch, without entropy bonus and KL penalty.
    pub loss: f64,
    /// Share of tokens whose clipped branch was the greater one, or whose weight was clipped.
    pub clip_fraction: f64,
    /// Share of tokens held by the dual clip.
    pub dual_clip_fraction: f64,
    /// Share of tokens chosen by their covariance.
    pub selected: f64,
    /// Mean of old - new log-probabilities: a plain estimate of KL(sampling policy, updated policy).
    pub kl: f64,
    /// Mean divergence from the policy's reference, as the penalty estimates it; none without a penalty.
    pub kl_reference: Option<f64>,
    /// Share of responses that carried no loss.
    pub masked: f64,
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
    let kl = settings.kl.filter(|kl| kl.coef != 0.0);
    let reference = match kl {
        None => None,
        Some(_) => Some(batch.column("kl_ref_log_probs", &batch.kl_ref_log_probs)?),
    };
    let carries: Vec<bool> =
        batch.finished.iter().map(|&finished| finished || !settings.mask_truncated).collect();
    let mut outcome = Outcome { new_log_probs: vec![0.0; old.len()], ..Outcome::default() };
    let (mut statistics, mut entropy_sum, mut updates) = (kernel::Statistics::default(), 0.0, 0.0);
    let (mut kl_sum, mut selected) = (0.0, 0);
    let mut order: Vec<usize> = (0..batch.len()).collect();
    for epoch in 0..settings.epochs {
        let sequence = settings.step * settings.epochs as u64 + epoch as u64;
        if settings.minibatches > 1 {
            Random::new(settings.seed, Stream::Shuffle, sequence).shuffle(&mut order);
        }
        for (index, minibatch) in super::minibatches(order.len(), settings.minibatches).enumerate()
        {
            let rows = &order[minibatch];
            let part: Vec<Sample<'_>> = rows.iter().map(|&row| samples[row]).collect();
            let part_lengths: Vec<usize> = rows.iter().map(|&row| lengths[row]).collect();
            let part_carries: Vec<bool> = rows.iter().map(|&row| carries[row]).collect();
            let max_length = settings.max_new_tokens;
            let weights =
                settings.aggregation.weights_of_some(&part_lengths, &part_carries, max_length)?;
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
            let reference = reference.map(part_of);
            // Before the batch's first update the policy is the one that sampled.
            let mut rescored = Vec::new();
            if settings.loss.selects() && updates > 0.0 {
                let temperature = settings.temperature;
                engine.score(
                    &policy.weights,
                    &part,
                    temperature,
                    &mut rescored,
                    &mut Vec::new(),
                )?;
            }
            let columns = Columns {
                new: if rescored.is_empty() { &old } else { &rescored },
                old: &old,
                advantages: &advantages,
                weights: &weights,
            };
            let update = sequence * settings.minibatches as u64 + index as u64;
            let mut random = policy_loss::random_of(settings.seed, update);
            let weighed = policy_loss::weights(&settings.loss, columns, &mut random);
            selected += weighed.selected;
            let mut new = Vec::with_capacity(old.len());
            let (mut d_entropy, mut kl_weights): (Vec<f32>, Vec<f32>) = (Vec::new(), Vec::new());
            let loss = |scores: Scored<'_>, d: &mut TokenGradients<'_>| -> Result<()> {
                let (scored, tokens) = (scores.log_probs, scores.tokens.clone());
                let token_weights = &weights[tokens.clone()];
                let mut cu_seqlens = vec![0_u32];
                for &length in &part_lengths[scores.samples] {
                    cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + length as u32);
                }
                let LossInputs { columns, cu_seqlens: offsets, penalty_columns, penalties, .. } =
                    scores.inputs;
                let [cu_seqlens, _] = offsets.place([&cu_seqlens, &[]])?;
                let [old, advantages, surrogate] = columns.place([
                    &old[tokens.clone()],
                    &advantages[tokens.clone()],
                    &weighed.surrogate[tokens.clone()],
                ])?;
                let objective = settings.loss.objective(cu_seqlens);
                let part = kernel::forward(scored, old, advantages, surrogate, objective)?;
                statistics.loss += part.loss;
                statistics.clipped += part.clipped;
                statistics.clipped_dual += part.clipped_dual;
                statistics.kl += part.kl;
                statistics.tokens += part.tokens;
                let entropy = on_host::<f32>(scores.entropy)?;
                entropy_sum += entropy.iter().map(|&x| f64::from(x)).sum::<f64>();
                let d_log_probs = d.log_probs.reborrow();
                kernel::backward(d_log_probs, scored, old, advantages, surrogate, objective)?;

                kl_weights.clear();
                if let Some(kl) = kl {
                    let weight = |w: &f32| (kl.coef * f64::from(*w)) as f32;
                    kl_weights.extend(token_weights.iter().map(weight));
                }
                let from = reference.as_ref().map_or(&[][..], |column| &column[tokens.clone()]);
                let [from, kl_weights, selected] = penalty_columns.place([
                    from,
                    &kl_weights,
                    weighed.penalty.get(tokens).unwrap_or_default(),
                ])?;
                let penalties = &mut penalties.head_mut(scored.dim(0));
                if !weighed.penalty.is_empty() {
                    let kind = kl_penalty::Kind::Abs;
                    let part =
                        kl_penalty::forward(penalties.reborrow(), scored, old, selected, kind)?;
                    statistics.loss += part.loss;
                    kl_penalty::backward(d.log_probs.reborrow(), scored, old, selected, kind)?;
                }
                ensure!(statistics.loss.is_finite(), "the policy's loss is {}", statistics.loss);
                if let Some(kl) = kl {
                    let kind = kl.kind.into();
                    let part =
                        kl_penalty::forward(penalties.reborrow(), scored, from, kl_weights, kind)?;
                    ensure!(part.loss.is_finite(), "the KL penalty is {}", part.loss);
                    kl_sum += part.penalty;
                    kl_penalty::backward(d.log_probs.reborrow(), scored, from, kl_weights, kind)?;
                }
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
    outcome.dual_clip_fraction = statistics.clipped_dual / tokens;
    outcome.selected = selected as f64 / tokens;
    outcome.kl = statistics.kl / tokens;
    outcome.kl_reference = kl.map(|_| kl_sum / tokens);
    let masked = carries.iter().filter(|&&carries| !carries).count();
    outcome.masked = masked as f64 / carries.len().max(1) as f64;
    outcome.entropy = entropy_sum / tokens;
    outcome.critic = settings.critic.map(|joint| critic_update::Outcome {
        loss: values.loss / (f64::from(joint.coef) * f64::max(updates, 1.0)),
        clip_fraction: values.clipped / values.tokens.max(1.0),
        ..critic_update::Outcome::default()
    });
    Ok(outcome)
}
