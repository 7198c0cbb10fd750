//! The PRM's update: cross-entropy of its implicit outcome probability against the graded outcomes.

use anyhow::{Result, ensure};
use prime_kernels::prm_loss;
use prime_model::on_host;

use super::Rollouts;
use crate::engine::{Engine, Learner, LossInputs, Sample, Scored, TokenGradients, Update};

/// How the PRM is updated.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The scale of the log-ratio in the loss.
    pub beta: f64,
    /// Optimiser updates a pass over the batch.
    pub minibatches: usize,
    /// Passes over the batch.
    pub epochs: usize,
}

/// What the update did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Log-probability of every response token as the passes of the **first** epoch computed it: what the update mode `after` rewards with.
    pub prm_log_probs: Vec<f32>,
    /// Mean loss of the first epoch.
    pub loss: f64,
    /// The last optimiser update.
    pub update: Update,
}

/// Trains the PRM on a graded batch whose reference log-probabilities are known. Minibatches are consecutive responses, in order.
///
/// # Errors
/// When a loss or gradient is NaN or infinite.
pub fn prm_update(
    engine: &mut Engine,
    prm: &mut Learner,
    batch: &Rollouts,
    settings: &Settings,
) -> Result<Outcome> {
    let samples = batch.samples();
    let reference = batch.column("ref_log_probs", &batch.ref_log_probs)?;
    let beta = settings.beta as f32;
    let (mut scored, mut loss_sum) = (Vec::with_capacity(reference.len()), 0.0);
    let mut update = None;
    for epoch in 0..settings.epochs {
        for minibatch in super::minibatches(batch.len(), settings.minibatches) {
            let responses = minibatch.len();
            let first_token = batch.cu_seqlens[minibatch.start] as usize;
            let part: &[Sample<'_>] = &samples[minibatch.clone()];
            let loss = |scores: Scored<'_>, d: &mut TokenGradients<'_>| -> Result<()> {
                let tokens = first_token + scores.tokens.start..first_token + scores.tokens.end;
                let rows =
                    minibatch.start + scores.samples.start..minibatch.start + scores.samples.end;
                let cu_seqlens: Vec<u32> = batch.cu_seqlens[rows.start..=rows.end]
                    .iter()
                    .map(|&offset| offset - batch.cu_seqlens[rows.start])
                    .collect();
                let LossInputs { columns, cu_seqlens: offsets, probabilities } = scores.inputs;
                let [cu_seqlens] = offsets.place([&cu_seqlens])?;
                let [reference, outcomes, _] =
                    columns.place([&reference[tokens], &batch.outcomes[rows.clone()], &[]])?;
                let share = prm_loss::forward(
                    probabilities.head_mut(rows.len()),
                    scores.log_probs,
                    reference,
                    outcomes,
                    cu_seqlens,
                    beta,
                    responses,
                )?;
                ensure!(share.is_finite(), "the PRM's loss is {share}");
                if epoch == 0 {
                    scored.extend_from_slice(&on_host(scores.log_probs)?);
                    loss_sum += share * responses as f64;
                }
                prm_loss::backward(
                    d.log_probs.reborrow(),
                    probabilities.head(rows.len()),
                    outcomes,
                    cu_seqlens,
                    beta,
                    responses,
                )?;
                Ok(())
            };
            engine.differentiate(&prm.weights, &mut prm.gradients, part, 1.0, loss)?;
            update = Some(prm.update()?);
        }
    }
    let Some(update) = update else {
        anyhow::bail!("the PRM was given no responses to learn from")
    };
    Ok(Outcome { prm_log_probs: scored, loss: loss_sum / batch.len() as f64, update })
}
