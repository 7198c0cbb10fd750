//! Estimators that subtract the value of the text before a token.
//!
//! `gae`: with the rewards R\[t\] = process_coef r\[t\] less the KL penalty of token t, plus outcome_coef * score at a response's last token, values V of a critic and V = 0 after the
//! last token: delta\[t\] = R\[t\] + process_gamma V\[t + 1\] - V\[t\], A\[t\] = delta\[t\] + process_gamma gae_lambda A\[t + 1\]; returns are A + V, and
//! advantages are A whitened over all tokens of the batch. Here the discount is of time, so it acts on outcomes too.
//!
//! `prm-value`: the implicit PRM's value of the first t tokens is the sum of their process rewards, and A\[t\] = outcome_coef * score, discounted, -
//! process_coef * (sum over s < t of r\[s\]).

use anyhow::Result;

use super::{Advantages, Settings, Source, whiten};
use crate::step::{Rollouts, reverse_scan};

pub(super) fn gae(batch: &Rollouts, source: &Source, settings: &Settings) -> Result<Advantages> {
    let values = batch.column("values", &batch.values)?;
    let rewards = process_rewards(batch, settings)?;
    let mut deltas = vec![0.0_f32; values.len()];
    for i in 0..batch.len() {
        let span = batch.span(i);
        for t in span.clone() {
            let last = t + 1 == span.end;
            let next = if last { 0.0 } else { f64::from(values[t + 1]) };
            let outcome = if last { settings.outcome_coef * source.scores[i] } else { 0.0 };
            let process =
                rewards.map_or(0.0, |rewards| settings.process_coef * f64::from(rewards[t]));
            let penalty = source.penalties.get(t).map_or(0.0, |&penalty| f64::from(penalty));
            let delta =
                process - penalty + outcome + settings.process_gamma * next - f64::from(values[t]);
            deltas[t] = delta as f32;
        }
    }
    let discount = settings.process_gamma * settings.gae_lambda;
    let advantages = reverse_scan(batch, &deltas, discount)?;
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    Ok(Advantages { advantages: whiten(&advantages), returns })
}

pub(super) fn prm_value(
    batch: &Rollouts,
    source: &Source,
    settings: &Settings,
) -> Result<Advantages> {
    let rewards = process_rewards(batch, settings)?;
    let mut advantages = vec![0.0_f32; batch.token_count()];
    for i in 0..batch.len() {
        let span = batch.span(i);
        let mut value = 0.0;
        for t in span.clone() {
            let outcome = settings.outcome_weight(span.end - 1, t) * source.scores[i];
            advantages[t] = (outcome - settings.process_coef * value) as f32;
            value += rewards.map_or(0.0, |rewards| f64::from(rewards[t]));
        }
    }
    Ok(Advantages { returns: advantages.clone(), advantages })
}

/// The process rewards, where they count.
fn process_rewards<'a>(batch: &'a Rollouts, settings: &Settings) -> Result<Option<&'a [f32]>> {
    if settings.process_coef == 0.0 {
        return Ok(None);
    }
    batch.column("process_rewards", &batch.process_rewards).map(Some)
}
