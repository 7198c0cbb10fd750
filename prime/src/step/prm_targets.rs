//! What each loss of the PRM wants of a response: labels, offsets and weights for [`prime_kernels::prm_loss`].
//!
//! z is a response's logit, beta times the sum of its log-ratios, and y its outcome. With "right" for an outcome of at least 1/2:
//!
//! - `ce`: the mean over responses of the cross-entropy of sigmoid(z) against y, which may be fractional.
//! - `dpo`: verl's "detached" DPO. With s = 1 where y > 0 and -1 elsewhere, and o the mean logit of the responses of the group that are worse
//!   (where y > 0) or better (elsewhere), 0 where there is none: the mean over responses of -log sigmoid(s (z - o)).
//! - `bon_acc`, `bon_rm`: the **sum** over responses of the same, each times n f^(n - 1), with n the size of its group and f the share of the
//!   group whose outcome (`bon_acc`) or logit (`bon_rm`) is not greater. (As published: the sum grows with the batch.)
//! - `dpo-pairs`: the mean over pairs of -log sigmoid(z_right - z_wrong). The k-th right response of a group is paired with its wrong response
//!   number k modulo their count; a group of one kind has no pairs, and a wrong response that no right one came to is not used.
//! - `nca`: the mean over the same pairs of -log sigmoid(z_right) - log sigmoid(-z_right) / 2 - log sigmoid(-z_wrong) / 2.
//! - `kto`: the mean over responses of y w_desirable (1 - sigmoid(z - KL)) + (1 - y) w_undesirable sigmoid(z - KL), where KL is beta times
//!   the mean log-ratio sum of responses behind prompts that they do not answer, at least 0.
//! - `prefix-value`: the mean over tokens t of -y log sigmoid(v\[t\] - m) - (1 - y) log sigmoid(-v\[t\] - m), v\[t\] being beta times the mean
//!   log-ratio up to t and m the margin.
//!
//! Logits of other responses, KL, and the logits in `bon_rm` are constants: no gradient flows into them. Those of `dpo`, `bon_acc` and
//! `bon_rm` are of the PRM before its update of the batch, and of the whole batch. Those of `dpo-pairs` and `kto` are of the PRM before the
//! minibatch's own update: with both ends of a pair in one minibatch, the gradient is exactly that of the pair. Therefore pairs stay within a
//! minibatch, and minibatches of these losses are of whole groups.
//!
//! Sources: arXiv 2502.01456; verl's `prime_core_algos.py`; arXiv 2412.01981 and its repository (pairs, KTO); TRL's `nca_pair`;
//! arXiv 2604.13197 (prefix values).

use std::ops::Range;

use anyhow::{Result, ensure};
use prime_kernels::prm_loss::{self, Cost, Inputs, Over, Settings};
use prime_runtime::View;

use super::Rollouts;

named! {
    /// A loss of the PRM.
    PrmLoss, "PRM loss" {
        /// Cross-entropy on the outcome.
        Ce = "ce",
        /// verl's detached DPO.
        Dpo = "dpo",
        /// The same, weighted for best-of-n by outcomes.
        BonAcc = "bon_acc",
        /// The same, weighted for best-of-n by logits.
        BonRm = "bon_rm",
        /// DPO on pairs of a right and a wrong response.
        DpoPairs = "dpo-pairs",
        /// KTO with a KL estimate from mismatched pairs.
        Kto = "kto",
        /// NCA on pairs of a right and a wrong response.
        Nca = "nca",
        /// Cross-entropy of every prefix's value.
        PrefixValue = "prefix-value",
    }
}

/// A loss with its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Which.
    pub name: PrmLoss,
    /// The scale of the log-ratio.
    pub beta: f64,
    /// The margin of [`PrmLoss::PrefixValue`].
    pub margin: f64,
    /// The weight of right responses in [`PrmLoss::Kto`].
    pub desirable: f64,
    /// That of wrong ones.
    pub undesirable: f64,
}

/// A graded batch as a loss sees it.
#[derive(Clone, Copy, Debug)]
pub struct Graded<'a> {
    /// The responses of each prompt.
    pub groups: &'a [Range<usize>],
    /// The grader's verdicts, 0 to 1.
    pub outcomes: &'a [f32],
    /// Where responses begin, and the end.
    pub cu_seqlens: &'a [u32],
}

/// What the responses of a minibatch are to become.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    /// (targets)
    pub labels: Vec<f32>,
    /// (targets)
    pub offsets: Vec<f32>,
    /// (targets)
    pub weights: Vec<f32>,
    /// Where the targets of each response of the minibatch begin, and the end.
    pub cu_targets: Vec<u32>,
    /// How they are held against the responses.
    pub settings: Settings,
    /// The loss is this times what the kernel says of it: the two ends of a pair say all of it each.
    pub share: f64,
}

impl Loss {
    /// Cross-entropy of a scale.
    pub fn cross_entropy(beta: f64) -> Loss {
        Loss { name: PrmLoss::Ce, beta, margin: 0.0, desirable: 1.0, undesirable: 1.0 }
    }

    /// Whether targets are made of the batch's logits before its update.
    pub fn reads_batch(&self) -> bool {
        matches!(self.name, PrmLoss::Dpo | PrmLoss::BonAcc | PrmLoss::BonRm)
    }

    /// Whether targets are made of the minibatch's logits before its own update.
    pub fn reads_minibatch(&self) -> bool {
        self.name == PrmLoss::DpoPairs
    }

    /// Whether a minibatch must be of whole groups.
    pub fn keeps_groups(&self) -> bool {
        matches!(self.name, PrmLoss::DpoPairs | PrmLoss::Nca | PrmLoss::Kto)
    }

    /// The targets of some responses of a batch. `logits` are those of all responses, where [`Loss::reads_batch`] or
    /// [`Loss::reads_minibatch`] say that they are read; `kl` is the estimate of [`PrmLoss::Kto`].
    pub fn targets(
        &self,
        batch: &Graded<'_>,
        minibatch: Range<usize>,
        logits: &[f64],
        kl: f64,
    ) -> Targets {
        let mut wanted: Vec<Vec<[f64; 3]>> = vec![Vec::new(); minibatch.len()];
        let mut divisor = minibatch.len() as f64;
        let mut share = 1.0;
        let outcome = |i: usize| f64::from(batch.outcomes[i]);
        // Targets of a soft label: what a right response is to become, and what a wrong one is.
        let both = |y: f64, offset: [f64; 2], weight: [f64; 2]| -> Vec<[f64; 3]> {
            let targets =
                [[1.0, offset[0], y * weight[0]], [0.0, offset[1], (1.0 - y) * weight[1]]];
            targets.into_iter().filter(|[_, _, weight]| *weight > 0.0).collect()
        };
        match self.name {
            PrmLoss::Ce => {
                for i in minibatch.clone() {
                    wanted[i - minibatch.start].push([outcome(i), 0.0, 1.0]);
                }
            }
            PrmLoss::Dpo | PrmLoss::BonAcc | PrmLoss::BonRm => {
                for group in batch.groups {
                    for i in group.clone().filter(|i| minibatch.contains(i)) {
                        let offset = opponents(batch, group, i, logits);
                        let not_greater: &dyn Fn(usize) -> bool = match self.name {
                            PrmLoss::BonAcc => &|j| outcome(j) <= outcome(i),
                            _ => &|j| logits[j] <= logits[i],
                        };
                        let weight = match self.name {
                            PrmLoss::Dpo => 1.0,
                            _ => {
                                let size = group.len() as f64;
                                let count = group.clone().filter(|&j| not_greater(j)).count();
                                size * (count as f64 / size).powi(group.len() as i32 - 1)
                            }
                        };
                        let label = f64::from(u8::from(outcome(i) > 0.0));
                        wanted[i - minibatch.start].push([label, offset, weight]);
                    }
                }
                if self.name != PrmLoss::Dpo {
                    divisor = 1.0;
                }
            }
            PrmLoss::DpoPairs | PrmLoss::Nca => {
                let pairs = pairs(batch, &minibatch);
                for &(right, wrong) in &pairs {
                    let (of_right, of_wrong) = match self.name {
                        PrmLoss::Nca => ([2.0 / 3.0, 0.0, 1.5], [0.0, 0.0, 0.5]),
                        _ => ([1.0, logits[wrong], 1.0], [0.0, logits[right], 1.0]),
                    };
                    wanted[right - minibatch.start].push(of_right);
                    wanted[wrong - minibatch.start].push(of_wrong);
                }
                divisor = pairs.len() as f64;
                if self.name == PrmLoss::DpoPairs {
                    share = 0.5;
                }
            }
            PrmLoss::Kto => {
                for i in minibatch.clone() {
                    wanted[i - minibatch.start] =
                        both(outcome(i), [kl; 2], [self.desirable, self.undesirable]);
                }
            }
            PrmLoss::PrefixValue => {
                for i in minibatch.clone() {
                    wanted[i - minibatch.start] =
                        both(outcome(i), [self.margin, -self.margin], [1.0; 2]);
                }
                divisor =
                    f64::from(batch.cu_seqlens[minibatch.end] - batch.cu_seqlens[minibatch.start]);
            }
        }
        let mut cu_targets = vec![0];
        for targets in &wanted {
            cu_targets.push(cu_targets[cu_targets.len() - 1] + targets.len() as u32);
        }
        let column = |k: usize| wanted.iter().flatten().map(|target| target[k] as f32).collect();
        Targets {
            labels: column(0),
            offsets: column(1),
            weights: column(2),
            cu_targets,
            settings: Settings {
                beta: self.beta as f32,
                cost: match self.name {
                    PrmLoss::Kto => Cost::Error,
                    _ => Cost::CrossEntropy,
                },
                over: match self.name {
                    PrmLoss::PrefixValue => Over::Prefixes,
                    _ => Over::Responses,
                },
                // A minibatch without pairs or tokens has no targets either.
                divisor: divisor.max(1.0),
            },
            share,
        }
    }
}

impl Targets {
    /// Those of some responses of the minibatch.
    pub fn part(&self, rows: Range<usize>) -> Targets {
        let first = self.cu_targets[rows.start];
        let span = first as usize..self.cu_targets[rows.end] as usize;
        Targets {
            labels: self.labels[span.clone()].to_vec(),
            offsets: self.offsets[span.clone()].to_vec(),
            weights: self.weights[span].to_vec(),
            cu_targets: self.cu_targets[rows.start..=rows.end].iter().map(|k| k - first).collect(),
            ..*self
        }
    }
}

/// The mean logit of those that a response is to be told from: the worse ones of its group where its outcome is above 0, else the better ones.
fn opponents(batch: &Graded<'_>, group: &Range<usize>, i: usize, logits: &[f64]) -> f64 {
    let outcomes = batch.outcomes;
    let others: Vec<f64> = group
        .clone()
        .filter(|&j| {
            if outcomes[i] > 0.0 { outcomes[j] < outcomes[i] } else { outcomes[j] > outcomes[i] }
        })
        .map(|j| logits[j])
        .collect();
    others.iter().sum::<f64>() / others.len().max(1) as f64
}

/// Pairs of a right response and a wrong one to the same prompt, of the groups that lie within a minibatch.
fn pairs(batch: &Graded<'_>, minibatch: &Range<usize>) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    let within =
        |group: &&Range<usize>| group.start >= minibatch.start && group.end <= minibatch.end;
    for group in batch.groups.iter().filter(within) {
        let (right, wrong): (Vec<usize>, Vec<usize>) =
            group.clone().partition(|&i| batch.outcomes[i] >= 0.5);
        if !wrong.is_empty() {
            pairs.extend(right.iter().enumerate().map(|(k, &i)| (i, wrong[k % wrong.len()])));
        }
    }
    pairs
}

/// The logits of responses: beta times the sum of their log-ratios.
pub fn logits(prm: &[f32], reference: &[f32], cu_seqlens: &[u32], beta: f64) -> Vec<f64> {
    let first = cu_seqlens.first().copied().unwrap_or(0);
    let sum = |span: &[u32]| -> f64 {
        ((span[0] - first) as usize..(span[1] - first) as usize)
            .map(|t| f64::from(prm[t]) - f64::from(reference[t]))
            .sum()
    };
    // The kernel's beta is float32.
    cu_seqlens.windows(2).map(|span| f64::from(beta as f32) * sum(span)).collect()
}

/// The loss of a whole batch whose log-probabilities are known, on the host.
///
/// # Errors
/// When a log-probability is missing or not finite, or the loss is not finite.
pub fn loss_of(batch: &Rollouts, loss: &Loss, kl: f64) -> Result<f64> {
    let groups: Vec<_> = batch.groups.iter().map(|group| group.responses.clone()).collect();
    let graded =
        Graded { groups: &groups, outcomes: &batch.outcomes, cu_seqlens: &batch.cu_seqlens };
    let prm = batch.column("prm_log_probs", &batch.prm_log_probs)?;
    let reference = batch.column("ref_log_probs", &batch.ref_log_probs)?;
    let logits = logits(prm, reference, &batch.cu_seqlens, loss.beta);
    let targets = loss.targets(&graded, 0..batch.len(), &logits, kl);
    let (tokens, count, sequences) = (prm.len(), targets.labels.len(), batch.len() + 1);
    let inputs = Inputs {
        prm_log_probs: View::from_slice(prm, &[tokens]),
        ref_log_probs: View::from_slice(reference, &[tokens]),
        cu_seqlens: View::from_slice(&batch.cu_seqlens, &[sequences]),
        targets: prm_loss::Targets {
            labels: View::from_slice(&targets.labels, &[count]),
            offsets: View::from_slice(&targets.offsets, &[count]),
            weights: View::from_slice(&targets.weights, &[count]),
            cu_targets: View::from_slice(&targets.cu_targets, &[sequences]),
        },
    };
    let loss = targets.share * prm_loss::forward(inputs, targets.settings)?;
    ensure!(loss.is_finite(), "the PRM loss is {loss}; the log-ratios or beta are too large");
    Ok(loss)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS: Loss =
        Loss { name: PrmLoss::Dpo, beta: 0.5, margin: 0.25, desirable: 2.0, undesirable: 3.0 };

    /// Targets of groups of these sizes, where the logit of response i is i.
    fn targets(name: PrmLoss, outcomes: &[f32], sizes: &[usize]) -> Targets {
        let mut groups: Vec<Range<usize>> = Vec::new();
        for size in sizes {
            let start = groups.last().map_or(0, |group| group.end);
            groups.push(start..start + size);
        }
        let cu_seqlens: Vec<u32> = (0..=outcomes.len() as u32).map(|i| 2 * i).collect();
        let batch = Graded { groups: &groups, outcomes, cu_seqlens: &cu_seqlens };
        let logits: Vec<f64> = (0..outcomes.len()).map(|i| i as f64).collect();
        Loss { name, ..LOSS }.targets(&batch, 0..outcomes.len(), &logits, 0.125)
    }

    /// Label, offset and weight of each target, response by response.
    fn listed(targets: &Targets) -> Vec<Vec<[f32; 3]>> {
        let one = |k: usize| [targets.labels[k], targets.offsets[k], targets.weights[k]];
        let spans = targets.cu_targets.windows(2);
        spans.map(|span| (span[0] as usize..span[1] as usize).map(one).collect()).collect()
    }

    #[test]
    fn detached_dpo_holds_a_response_against_the_mean_of_the_worse_or_better_ones() {
        let made = targets(PrmLoss::Dpo, &[1.0, 0.0, 0.5, 0.0, 1.0], &[4, 1]);
        assert_eq!(
            listed(&made),
            [
                vec![[1.0, 2.0, 1.0]], // worse are 1, 2 and 3
                vec![[0.0, 1.0, 1.0]], // better are 0 and 2
                vec![[1.0, 2.0, 1.0]], // worse are 1 and 3
                vec![[0.0, 1.0, 1.0]],
                vec![[1.0, 0.0, 1.0]], // alone
            ]
        );
        assert_eq!(made.settings.divisor, 5.0);
        let made = targets(PrmLoss::BonAcc, &[1.0, 0.0, 0.5, 0.0], &[4]);
        // 4 (4/4)^3, 4 (2/4)^3, 4 (3/4)^3
        assert_eq!(made.weights, [4.0, 0.5, 1.6875, 0.5]);
        assert_eq!(made.settings.divisor, 1.0);
        let made = targets(PrmLoss::BonRm, &[1.0, 0.0], &[2]);
        assert_eq!(made.weights, [1.0, 2.0]);
    }

    #[test]
    fn each_right_response_is_paired_with_a_wrong_one_of_its_prompt_whatever_the_group() {
        let outcomes =
            [1.0, 0.0, 1.0, 1.0, 0.0, /**/ 1.0, 1.0, /**/ 0.0, /**/ 0.75, 0.25];
        let made = targets(PrmLoss::DpoPairs, &outcomes, &[5, 2, 1, 2]);
        assert_eq!(
            listed(&made),
            [
                vec![[1.0, 1.0, 1.0]],
                vec![[0.0, 0.0, 1.0], [0.0, 3.0, 1.0]],
                vec![[1.0, 4.0, 1.0]],
                vec![[1.0, 1.0, 1.0]],
                vec![[0.0, 2.0, 1.0]],
                vec![],
                vec![],
                vec![],
                vec![[1.0, 9.0, 1.0]],
                vec![[0.0, 8.0, 1.0]],
            ]
        );
        assert_eq!((made.settings.divisor, made.share), (4.0, 0.5));
        let made = targets(PrmLoss::Nca, &[0.0, 1.0], &[2]);
        assert_eq!(listed(&made), [vec![[0.0, 0.0, 0.5]], vec![[2.0 / 3.0, 0.0, 1.5]]]);
        let made = targets(PrmLoss::Nca, &[1.0, 1.0], &[2]);
        assert_eq!((listed(&made), made.settings.divisor), (vec![vec![], vec![]], 1.0));
    }

    #[test]
    fn a_partial_pass_rate_counts_for_both_labels() {
        let made = targets(PrmLoss::Kto, &[1.0, 0.25], &[2]);
        assert_eq!(
            listed(&made),
            [vec![[1.0, 0.125, 2.0]], vec![[1.0, 0.125, 0.5], [0.0, 0.125, 2.25]]]
        );
        assert_eq!(made.settings.cost, Cost::Error);
        let made = targets(PrmLoss::PrefixValue, &[0.0, 0.25], &[2]);
        assert_eq!(
            listed(&made),
            [vec![[0.0, -0.25, 1.0]], vec![[1.0, 0.25, 0.25], [0.0, -0.25, 0.75]]]
        );
        assert_eq!((made.settings.over, made.settings.divisor), (Over::Prefixes, 4.0));
        assert_eq!(targets(PrmLoss::Ce, &[0.25], &[1]).labels, [0.25]);
    }

    #[test]
    fn a_part_has_the_targets_of_its_responses() {
        let made = targets(PrmLoss::DpoPairs, &[1.0, 0.0, 1.0, 1.0], &[4]);
        let part = made.part(1..3);
        assert_eq!(listed(&part), listed(&made)[1..3]);
        assert_eq!(part.cu_targets, [0, 3, 4]);
        assert_eq!(part.settings, made.settings);
    }
}
