//! How well the PRM tells right responses from wrong ones. The score of a response is the sum of its log-ratios,
//! log pi_prm - log pi_ref, over **all** its tokens, whatever the form of the process rewards.

use anyhow::Result;

use super::{Rollouts, implicit_reward};

/// Of two responses to one prompt, how often the better one scores higher: over the pairs of a group, weighted by the
/// difference of their outcomes; the mean over groups. A group whose outcomes are all alike counts 1/2, and so does a
/// pair of equal scores, as all are before the first update. (The references count such a pair by its order.)
///
/// # Errors
/// When a log-probability is missing or not finite.
pub fn pairwise(batch: &Rollouts) -> Result<f64> {
    let scores = scores(batch)?;
    let mut sum = 0.0;
    for group in &batch.groups {
        let (mut right, mut total) = (0.0, 0.0);
        for i in group.responses.clone() {
            for j in i + 1..group.responses.end {
                let better = f64::from(batch.outcomes[i]) - f64::from(batch.outcomes[j]);
                let higher = scores[i] - scores[j];
                total += better.abs();
                right += if higher == 0.0 {
                    0.5 * better.abs()
                } else if (higher > 0.0) == (better > 0.0) {
                    better.abs()
                } else {
                    0.0
                };
            }
        }
        sum += if total > 0.0 { right / total } else { 0.5 };
    }
    Ok(sum / batch.groups.len().max(1) as f64)
}

/// How often the sign of a response's score says whether its outcome is above or below 1/2. It means something only
/// against a frozen reference: against the running policy the score has no fixed zero.
///
/// # Errors
/// When a log-probability is missing or not finite.
pub fn sign(batch: &Rollouts) -> Result<f64> {
    let scores = scores(batch)?;
    let right = scores
        .iter()
        .zip(&batch.outcomes)
        .filter(|&(&score, &outcome)| score.partial_cmp(&0.0) == outcome.partial_cmp(&0.5));
    Ok(right.count() as f64 / batch.len().max(1) as f64)
}

/// Of a right response and a wrong one, whatever their prompts, how often the right one scores higher, the area under the ROC curve; a pair of
/// equal scores counts 1/2. Right is an outcome of at least 1/2. 1/2 where all are of one kind.
///
/// # Errors
/// When a log-probability is missing or not finite.
pub fn auc(batch: &Rollouts) -> Result<f64> {
    let mut ranked: Vec<(f64, bool)> =
        scores(batch)?.into_iter().zip(batch.outcomes.iter().map(|&y| y >= 0.5)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut wrong_below, mut higher, mut right_total) = (0.0, 0.0, 0.0);
    for equal in ranked.chunk_by(|a, b| a.0 == b.0) {
        let right = equal.iter().filter(|(_, right)| *right).count() as f64;
        let wrong = equal.len() as f64 - right;
        higher += right * (wrong_below + 0.5 * wrong);
        wrong_below += wrong;
        right_total += right;
    }
    let pairs = right_total * wrong_below;
    Ok(if pairs > 0.0 { higher / pairs } else { 0.5 })
}

fn scores(batch: &Rollouts) -> Result<Vec<f64>> {
    let q = implicit_reward::log_ratios(batch)?;
    Ok((0..batch.len()).map(|i| q[batch.span(i)].iter().sum()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Response;
    use super::*;

    fn batch(groups: &[&[(f32, f32)]]) -> Rollouts {
        let mut batch = Rollouts::new();
        for (i, group) in groups.iter().enumerate() {
            let response = |&(_, outcome): &(f32, f32)| Response {
                tokens: vec![1, 2],
                old_log_probs: vec![-1.0; 2],
                outcome,
                finished: true,
            };
            let responses: Vec<_> = group.iter().map(response).collect();
            batch.push_group(format!("p{i}"), vec![1], &responses).unwrap();
        }
        // The whole score sits on the last token, which verl's process rewards leave out.
        batch.prm_log_probs = groups
            .iter()
            .flat_map(|g| g.iter())
            .flat_map(|&(score, _)| [-1.0, score - 1.0])
            .collect();
        batch.ref_log_probs = vec![-1.0; batch.token_count()];
        batch
    }

    #[test]
    fn pairs_weigh_by_the_difference_of_outcomes_and_groups_weigh_alike() {
        // Pairs 0-1 (weight 1, right), 0-2 (weight 1/2, wrong), 1-2 (weight 1/2, right): 3/4.
        let mixed: &[(f32, f32)] = &[(0.25, 1.0), (-0.5, 0.0), (0.5, 0.5)];
        let alike: &[(f32, f32)] = &[(0.25, 1.0), (-0.5, 1.0)];
        let wrong: &[(f32, f32)] = &[(0.25, 0.0), (0.5, 0.0), (-0.5, 1.0)];
        assert_eq!(pairwise(&batch(&[mixed])).unwrap(), 0.75);
        assert_eq!(pairwise(&batch(&[alike])).unwrap(), 0.5);
        assert_eq!(pairwise(&batch(&[mixed, alike, wrong])).unwrap(), 1.25 / 3.0);
    }

    #[test]
    fn a_prm_that_equals_its_reference_scores_one_half_whatever_the_order_of_the_responses() {
        for outcomes in [[1.0, 0.0], [0.0, 1.0]] {
            let batch = batch(&[&outcomes.map(|outcome| (0.0, outcome))]);
            assert_eq!(pairwise(&batch).unwrap(), 0.5);
            assert_eq!(sign(&batch).unwrap(), 0.0);
        }
    }

    #[test]
    fn area_under_the_curve_is_over_pairs_of_all_prompts_and_ties_count_half() {
        // Right: 0.5 and -0.5; wrong: 0, -0.5 and -1. Above: 3; below or equal: one above, one equal.
        let mixed = batch(&[&[(0.5, 1.0), (0.0, 0.0)], &[(-0.5, 1.0), (-0.5, 0.0), (-1.0, 0.0)]]);
        assert_eq!(auc(&mixed).unwrap(), 4.5 / 6.0);
        assert_eq!(auc(&batch(&[&[(0.5, 1.0), (0.0, 1.0)]])).unwrap(), 0.5);
    }

    #[test]
    fn sign_accuracy_compares_the_score_with_zero_and_the_outcome_with_one_half() {
        let batch = batch(&[&[(0.25, 1.0), (-0.25, 1.0), (-0.25, 0.0), (0.25, 0.75)]]);
        assert_eq!(sign(&batch).unwrap(), 0.75);
    }
}
