//! The PRM's update: one of the losses of [`super::prm_targets`] of its log-ratios against the graded outcomes.

use std::ops::Range;

use anyhow::{Result, ensure};
use prime_kernels::prm_loss;
use prime_model::on_host;

use super::Rollouts;
use super::prm_targets::{Graded, Loss, PrmLoss, Targets, logits};
use crate::engine::{Engine, Learner, Sample, Scored, TokenGradients, Update};

/// How the PRM is updated.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The loss.
    pub loss: Loss,
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
    /// Loss of the first epoch, the mean over its minibatches by their responses.
    pub loss: f64,
    /// The last optimiser update.
    pub update: Update,
}

/// Responses behind prompts that they do not answer: what [`PrmLoss::Kto`] estimates its KL from. Each response of the batch stands behind the
/// prompt of the next group, the last group's behind the first; those longer than `most` tokens are left out, and so are all of a batch of
/// one prompt.
pub struct Mismatched<'a> {
    /// Which response each is, rising.
    responses: Vec<usize>,
    samples: Vec<Sample<'a>>,
}

impl<'a> Mismatched<'a> {
    /// Those of a batch.
    pub fn of(batch: &'a Rollouts, most: usize) -> Self {
        let mut mismatched = Mismatched { responses: Vec::new(), samples: Vec::new() };
        let count = batch.groups.len();
        for (g, group) in batch.groups.iter().enumerate().take_while(|_| count > 1) {
            let prompt = &batch.groups[(g + 1) % count].prompt_tokens;
            for i in group.responses.clone() {
                let response = &batch.tokens[batch.span(i)];
                if prompt.len() + response.len() <= most {
                    mismatched.responses.push(i);
                    mismatched.samples.push(Sample { prompt, response });
                }
            }
        }
        mismatched
    }

    /// What a model scores.
    pub fn samples(&self) -> &[Sample<'a>] {
        &self.samples
    }

    /// KL of those that belong to a minibatch: beta times the mean of their sums of log-ratios under `engine`'s PRM and the reference, whose
    /// log-probabilities of all of them are given; at least 0, and 0 where there are none.
    pub(crate) fn kl(
        &self,
        engine: &mut Engine,
        prm: &Learner,
        reference: &[f32],
        minibatch: &Range<usize>,
        beta: f64,
    ) -> Result<f64> {
        let first = self.responses.partition_point(|&i| i < minibatch.start);
        let end = self.responses.partition_point(|&i| i < minibatch.end);
        let token = |k: usize| -> usize {
            self.samples[..k].iter().map(|sample| sample.response.len()).sum()
        };
        let samples = &self.samples[first..end];
        if samples.is_empty() {
            return Ok(0.0);
        }
        let (mut log_probs, mut entropy) = (Vec::new(), Vec::new());
        engine.score(&prm.weights, samples, 1.0, &mut log_probs, &mut entropy)?;
        let reference = &reference[token(first)..token(end)];
        let ratios = log_probs.iter().zip(reference);
        let sum: f64 = ratios.map(|(&a, &b)| f64::from(a) - f64::from(b)).sum();
        Ok((beta * sum / samples.len() as f64).max(0.0))
    }
}

/// Trains the PRM on a graded batch whose reference log-probabilities are known. Minibatches are consecutive responses, in order, or
/// consecutive groups where the loss compares responses with each other. Where the loss compares with logits of before the update, they are
/// those of `batch.prm_log_probs`, or scored now where these are missing. `mismatched`, with the reference's log-probabilities, is read by
/// [`PrmLoss::Kto`].
///
/// # Errors
/// When a loss or gradient is NaN or infinite.
pub fn prm_update(
    engine: &mut Engine,
    prm: &mut Learner,
    batch: &Rollouts,
    mismatched: Option<(&Mismatched<'_>, &[f32])>,
    settings: &Settings,
) -> Result<Outcome> {
    let (samples, loss) = (batch.samples(), &settings.loss);
    let reference = batch.column("ref_log_probs", &batch.ref_log_probs)?;
    let groups: Vec<Range<usize>> =
        batch.groups.iter().map(|group| group.responses.clone()).collect();
    let graded =
        Graded { groups: &groups, outcomes: &batch.outcomes, cu_seqlens: &batch.cu_seqlens };
    let mut known = vec![0.0; batch.len()];
    if loss.reads_batch() {
        known = known_logits(engine, prm, batch, 0..batch.len(), loss.beta, true)?;
    }
    let (mut scored, mut loss_sum) = (Vec::with_capacity(reference.len()), 0.0);
    let mut update = None;
    for epoch in 0..settings.epochs {
        for minibatch in minibatches(&groups, batch.len(), settings) {
            if loss.reads_minibatch() {
                let fresh = update.is_none();
                let now = known_logits(engine, prm, batch, minibatch.clone(), loss.beta, fresh)?;
                known[minibatch.clone()].copy_from_slice(&now);
            }
            let kl = match mismatched.filter(|_| loss.name == PrmLoss::Kto) {
                None => 0.0,
                Some((mismatched, reference)) => {
                    mismatched.kl(engine, prm, reference, &minibatch, loss.beta)?
                }
            };
            let targets = loss.targets(&graded, minibatch.clone(), &known, kl);
            let first_token = batch.cu_seqlens[minibatch.start] as usize;
            let differentiate = |scores: Scored<'_>, d: &mut TokenGradients<'_>| -> Result<()> {
                let tokens = first_token + scores.tokens.start..first_token + scores.tokens.end;
                let rows =
                    minibatch.start + scores.samples.start..minibatch.start + scores.samples.end;
                let cu_seqlens: Vec<u32> = batch.cu_seqlens[rows.start..=rows.end]
                    .iter()
                    .map(|&offset| offset - batch.cu_seqlens[rows.start])
                    .collect();
                let part: Targets = targets.part(scores.samples.clone());
                let inputs = scores.inputs.of_prm(
                    scores.log_probs,
                    &reference[tokens],
                    &cu_seqlens,
                    &part,
                )?;
                let share = part.share * prm_loss::forward(inputs, part.settings)?;
                ensure!(share.is_finite(), "the PRM's loss is {share}");
                if epoch == 0 {
                    scored.extend_from_slice(&on_host(scores.log_probs)?);
                    loss_sum += share * minibatch.len() as f64;
                }
                prm_loss::backward(d.log_probs.reborrow(), inputs, part.settings)?;
                Ok(())
            };
            let part = &samples[minibatch.clone()];
            engine.differentiate(&prm.weights, &mut prm.gradients, part, 1.0, differentiate)?;
            update = Some(prm.update()?);
        }
    }
    let Some(update) = update else {
        anyhow::bail!("the PRM was given no responses to learn from")
    };
    Ok(Outcome { prm_log_probs: scored, loss: loss_sum / batch.len() as f64, update })
}

/// The responses of each minibatch.
fn minibatches(
    groups: &[Range<usize>],
    responses: usize,
    settings: &Settings,
) -> Vec<Range<usize>> {
    if !settings.loss.keeps_groups() {
        return super::minibatches(responses, settings.minibatches).collect();
    }
    super::minibatches(groups.len(), settings.minibatches)
        .map(|part| groups[part.start].start..groups[part.end - 1].end)
        .collect()
}

/// The logits of some responses under the PRM as it stands: from the batch where it was scored and not updated since, else from a pass of their
/// own.
fn known_logits(
    engine: &mut Engine,
    prm: &Learner,
    batch: &Rollouts,
    rows: Range<usize>,
    beta: f64,
    not_updated: bool,
) -> Result<Vec<f64>> {
    let cu_seqlens = &batch.cu_seqlens[rows.start..=rows.end];
    let tokens = cu_seqlens[0] as usize..cu_seqlens[rows.len()] as usize;
    let reference = &batch.ref_log_probs[tokens.clone()];
    if not_updated && !batch.prm_log_probs.is_empty() {
        let known = &batch.column("prm_log_probs", &batch.prm_log_probs)?[tokens];
        return Ok(logits(known, reference, cu_seqlens, beta));
    }
    let (mut log_probs, mut entropy) = (Vec::with_capacity(reference.len()), Vec::new());
    let samples = batch.samples();
    engine.score(&prm.weights, &samples[rows], 1.0, &mut log_probs, &mut entropy)?;
    Ok(logits(&log_probs, reference, cu_seqlens, beta))
}
