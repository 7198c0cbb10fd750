//! Leave-one-out returns from outcomes and process rewards (arXiv 2502.01456 equation 5; on outcomes alone arXiv 2402.14740).
//!
//! With n responses to a prompt, r\[i, t\] the process reward of token t of response i, and m\[i\] the mean of r over the
//! tokens of response i (0 for a response of no tokens):
//! - the outcome part is the same in all forms: o\[i\] = score\[i\] - mean over the others of score\[j\], the score being the outcome less its
//!   penalties;
//! - the process part of the paper's equation 5 subtracts the others' mean:
//!   r~\[i, t\] = r\[i, t\] - mean over j != i of m\[j\];
//! - the process part of both code bases multiplies the token where the paper would multiply the mean:
//!   r~\[i, t\] = r\[i, t\] n/(n - 1) - (sum over all j of m\[j\]) / (n - 1),
//!   which is the paper's plus (r\[i, t\] - m\[i\]) / (n - 1);
//! - return\[i, t\] = process_coef * (sum over s >= t of process_gamma^(s - t) r~\[i, s\]) + outcome_coef * outcome_gamma^(last - t) o\[i\].
//!
//! Groups may differ in size, as a filter or a replay leaves them: n is that of the response's own group. A prompt's only response has no others, and
//! is refused.
//!
//! In the form `paper` the advantages are the returns; in the code forms they are the returns whitened over all tokens
//! of the batch. After whitening only the ratio of the coefficients matters.

use anyhow::{Result, ensure};

use super::{Advantages, Settings, Source, mean_reward, whiten};
use crate::step::{Form, Group, Rollouts, reverse_scan};

/// Leave-one-out returns and advantages of a graded batch with its process rewards.
pub(super) fn rloo(batch: &Rollouts, source: &Source, settings: &Settings) -> Result<Advantages> {
    let mut returns = if settings.process_coef == 0.0 {
        vec![0.0; batch.token_count()]
    } else {
        process_returns(batch, settings)?
    };
    for group in &batch.groups {
        let others = others(group)?;
        let total: f64 = source.scores[group.responses.clone()].iter().sum();
        for i in group.responses.clone() {
            let score = source.scores[i];
            let outcome = score - (total - score) / others;
            let span = batch.span(i);
            for t in span.clone() {
                let part = settings.outcome_weight(span.end - 1, t) * outcome;
                returns[t] = (settings.process_coef * f64::from(returns[t]) + part) as f32;
            }
        }
    }
    batch.column("returns", &returns)?;
    let advantages = match settings.form {
        Form::Paper => returns.clone(),
        Form::PrimeRepo | Form::Verl => whiten(&returns),
    };
    Ok(Advantages { returns, advantages })
}

/// The discounted sums of r~, without their coefficient.
fn process_returns(batch: &Rollouts, settings: &Settings) -> Result<Vec<f32>> {
    let rewards = batch.column("process_rewards", &batch.process_rewards)?;
    let mut centred = vec![0.0_f32; rewards.len()];
    let mean = |i: usize| mean_reward(batch, rewards, i);
    for group in &batch.groups {
        let others = others(group)?;
        let total: f64 = group.responses.clone().map(mean).sum();
        for i in group.responses.clone() {
            let (scale, baseline) = match settings.form {
                Form::Paper => (1.0, (total - mean(i)) / others),
                Form::PrimeRepo | Form::Verl => ((others + 1.0) / others, total / others),
            };
            for t in batch.span(i) {
                centred[t] = (scale * f64::from(rewards[t]) - baseline) as f32;
            }
        }
    }
    reverse_scan(batch, &centred, settings.process_gamma)
}

/// How many other responses the baseline of each response of a group is a mean of.
fn others(group: &Group) -> Result<f64> {
    ensure!(
        group.responses.len() >= 2,
        "prompt `{}` has {} response; a leave-one-out baseline needs at least 2",
        group.prompt_id,
        group.responses.len()
    );
    Ok((group.responses.len() - 1) as f64)
}
