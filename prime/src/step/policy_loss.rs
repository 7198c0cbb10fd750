//! The policy's losses by name, and what the tokens of a minibatch weigh in them.
//!
//! - `ppo`: the surrogate of each token's ratio, clipped on both sides, and with a dual clip (arXiv 1707.06347, 1912.09729, 2503.14476);
//! - `gspo`: the surrogate of each response's ratio, the geometric mean of its tokens' (arXiv 2507.18071);
//! - `cispo`: the policy gradient under clipped importance weights (arXiv 2506.13585);
//! - `clip-cov`, `kl-cov`: against the collapse of entropy, tokens whose log-probability and advantage go together most are taken out of the
//!   loss, or held by a penalty (arXiv 2505.22617).
//!
//! **Covariances.** Of a token they are (log-prob - mean log-prob) (A - mean A), means over the tokens of the minibatch that carry loss. The
//! log-probs are those of the policy at the time of the minibatch's update: before the first update of a batch that is the policy that sampled, whose
//! log-probs are at hand; before a later one the minibatch is scored once more. Tokens are chosen for the whole minibatch before it is cut into
//! micro-batches, so the choice does not depend on how it is cut. With T tokens that carry loss:
//! - `clip-cov` takes max(1, floor(share T)) tokens, at random, of those with a covariance between `low` and `high`, both excluded, that the
//!   clip does not hold already. The draw is keyed by seed and update. Their loss and gradient are 0; they count in the aggregation's means;
//! - `kl-cov` takes the max(1, floor(share T)) tokens of the greatest covariance, of equal ones the first. Each token's loss is -A ratio,
//!   without a clip, and on the chosen ones + penalty |new - old|.

use anyhow::{Result, ensure};
use prime_kernels::kl_penalty;
use prime_kernels::policy_loss::{Clip, Objective};
use prime_runtime::View;
use prime_runtime::random::{Generator as Random, Stream};

use super::Aggregation;

named! {
    /// Which loss the policy is updated by.
    PolicyLoss, "policy loss" {
        /// The clipped surrogate of each token's ratio.
        Ppo = "ppo",
        /// The clipped surrogate of each response's ratio.
        Gspo = "gspo",
        /// The policy gradient under clipped importance weights.
        Cispo = "cispo",
        /// `ppo` without some tokens of great covariance.
        ClipCov = "clip-cov",
        /// The unclipped surrogate with a penalty on the tokens of greatest covariance.
        KlCov = "kl-cov",
    }
}

impl PolicyLoss {
    /// The aggregation that it was published with.
    pub fn aggregation(self) -> Aggregation {
        match self {
            PolicyLoss::Gspo => Aggregation::SeqMeanTokenMean,
            _ => Aggregation::TokenMean,
        }
    }
}

named! {
    /// How the divergence from a reference is estimated: see [`prime_kernels::kl_penalty`].
    KlKind, "kind of KL" {
        /// new - reference.
        Kl = "kl",
        /// Its magnitude.
        Abs = "abs",
        /// Half its square.
        Mse = "mse",
        /// e^(reference - new) + new - reference - 1, at most 10.
        LowVarKl = "low_var_kl",
    }
}

impl From<KlKind> for kl_penalty::Kind {
    fn from(kind: KlKind) -> Self {
        match kind {
            KlKind::Kl => kl_penalty::Kind::Kl,
            KlKind::Abs => kl_penalty::Kind::Abs,
            KlKind::Mse => kl_penalty::Kind::Mse,
            KlKind::LowVarKl => kl_penalty::Kind::LowVarKl,
        }
    }
}

/// A penalty for leaving a reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlPenalty {
    /// Its weight.
    pub coef: f64,
    /// How it is estimated.
    pub kind: KlKind,
}

/// Which tokens `clip-cov` and `kl-cov` take, and what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Covariance {
    /// The share of all tokens.
    pub share: f64,
    /// `clip-cov`: a covariance must be above this.
    pub low: f64,
    /// `clip-cov`: and below this.
    pub high: f64,
    /// `kl-cov`: the weight of the penalty.
    pub penalty: f64,
}

impl Covariance {
    /// As both were published.
    pub const PUBLISHED: Covariance = Covariance { share: 2e-4, low: 1.0, high: 5.0, penalty: 1.0 };

    /// # Errors
    /// When the share is outside 0 to 1, the bounds cross, or the penalty is negative.
    pub fn check(&self) -> Result<()> {
        let Covariance { share, low, high, penalty } = *self;
        ensure!((0.0..=1.0).contains(&share), "cov_share is {share}; it must be within 0 to 1");
        ensure!(low <= high, "cov_low is {low} and cov_high {high}; they must not cross");
        ensure!(penalty >= 0.0, "cov_penalty is {penalty}; it must not be negative");
        Ok(())
    }
}

/// A loss with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossSettings {
    /// Which loss.
    pub loss: PolicyLoss,
    /// Where ratios are clipped. The dual clip is `ppo`'s alone; `kl-cov` has no clip.
    pub clip: Clip,
    /// For `clip-cov` and `kl-cov`.
    pub covariance: Covariance,
}

impl LossSettings {
    /// What the kernel makes small. `cu_seqlens` are those of the micro-batch.
    pub fn objective<'a>(&self, cu_seqlens: View<'a>) -> Objective<'a> {
        let Clip { low, high, .. } = self.clip;
        match self.loss {
            PolicyLoss::Ppo => Objective::Clip(self.clip),
            PolicyLoss::Gspo => Objective::SequenceClip { low, high, cu_seqlens },
            PolicyLoss::Cispo => Objective::ClippedWeight { low, high },
            PolicyLoss::ClipCov => Objective::Clip(Clip { dual: None, ..self.clip }),
            PolicyLoss::KlCov => Objective::Clip(Clip::NONE),
        }
    }

    /// Whether tokens are chosen by covariance.
    pub fn selects(&self) -> bool {
        matches!(self.loss, PolicyLoss::ClipCov | PolicyLoss::KlCov) && self.covariance.share > 0.0
    }
}

/// The columns of a minibatch by which tokens are chosen, one value a token.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// Log-probs under the policy at the time of the update.
    pub new: &'a [f32],
    /// Under the policy that sampled.
    pub old: &'a [f32],
    /// Advantages.
    pub advantages: &'a [f32],
    /// The aggregation's weights: 0 where a token carries no loss.
    pub weights: &'a [f32],
}

/// What the tokens of a minibatch weigh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Weights {
    /// In the surrogate.
    pub surrogate: Vec<f32>,
    /// In the penalty of `kl-cov`; empty in other losses.
    pub penalty: Vec<f32>,
    /// How many tokens were chosen.
    pub selected: usize,
}

/// The weights of a minibatch's tokens. `random` is that of the update, for `clip-cov`.
pub fn weights(settings: &LossSettings, columns: Columns<'_>, random: &mut Random) -> Weights {
    let mut out = Weights { surrogate: columns.weights.to_vec(), ..Weights::default() };
    if settings.loss == PolicyLoss::KlCov {
        out.penalty = vec![0.0; columns.weights.len()];
    }
    if !settings.selects() {
        return out;
    }
    let chosen = select(settings, columns, random);
    for &t in &chosen {
        match settings.loss {
            PolicyLoss::KlCov => {
                let weight = settings.covariance.penalty * f64::from(columns.weights[t]);
                out.penalty[t] = weight as f32;
            }
            _ => out.surrogate[t] = 0.0,
        }
    }
    out.selected = chosen.len();
    out
}

/// The random numbers of one update's choice.
pub fn random_of(seed: u64, update: u64) -> Random {
    Random::new(seed, Stream::Selection, update)
}

fn select(settings: &LossSettings, columns: Columns<'_>, random: &mut Random) -> Vec<usize> {
    let Columns { new, old, advantages, weights } = columns;
    let mut tokens: Vec<usize> = (0..weights.len()).filter(|&t| weights[t] != 0.0).collect();
    if tokens.is_empty() {
        return tokens;
    }
    let Covariance { share, low, high, .. } = settings.covariance;
    let count = ((share * tokens.len() as f64) as usize).max(1);
    let mean = |column: &[f32]| {
        tokens.iter().map(|&t| f64::from(column[t])).sum::<f64>() / tokens.len() as f64
    };
    let (mean_new, mean_advantage) = (mean(new), mean(advantages));
    let covariance =
        |t: usize| (f64::from(new[t]) - mean_new) * (f64::from(advantages[t]) - mean_advantage);
    if settings.loss == PolicyLoss::KlCov {
        // A stable sort: equal ones stay in order.
        tokens.sort_by(|&a, &b| covariance(b).total_cmp(&covariance(a)));
    } else {
        let Clip { low: clip_low, high: clip_high, .. } = settings.clip;
        let clipped = |t: usize| {
            let ratio = (f64::from(new[t]) - f64::from(old[t])).exp();
            let advantage = f64::from(advantages[t]);
            let (least, most) = (f64::from(1.0 - clip_low), f64::from(1.0 + clip_high));
            -advantage * ratio.clamp(least, most) > -advantage * ratio
        };
        tokens.retain(|&t| {
            let covariance = covariance(t);
            covariance > low && covariance < high && !clipped(t)
        });
        random.shuffle(&mut tokens);
    }
    tokens.truncate(count);
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(loss: PolicyLoss, share: f64) -> LossSettings {
        LossSettings {
            loss,
            clip: Clip { low: 0.2, high: 0.2, dual: None },
            covariance: Covariance { share, penalty: 2.0, ..Covariance::PUBLISHED },
        }
    }

    /// Means -2 and 0 over the tokens that carry loss: covariances 3, -2, 6, 3, -2, and a token without a weight.
    const NEW: [f32; 6] = [-1.0, -1.0, -4.0, -5.0, 1.0, -50.0];
    const ADVANTAGES: [f32; 6] = [3.0, -2.0, -3.0, 2.0, 0.0, 90.0];

    fn columns<'a>(new: &'a [f32; 6], old: &'a [f32; 6]) -> Columns<'a> {
        const WEIGHTS: [f32; 6] = [0.25, 0.25, 0.25, 0.25, 0.25, 0.0];
        Columns { new, old, advantages: &ADVANTAGES, weights: &WEIGHTS }
    }

    #[test]
    fn kl_cov_penalises_the_tokens_of_greatest_covariance() {
        // new - mean: 1, 1, -2, -3, 3; products with the advantages: 3, -2, 6, -6, 0.
        let choose = |share| {
            let mut random = random_of(1, 0);
            weights(&settings(PolicyLoss::KlCov, share), columns(&NEW, &NEW), &mut random)
        };
        let one = choose(0.2);
        assert_eq!(one.surrogate, [0.25, 0.25, 0.25, 0.25, 0.25, 0.0]);
        assert_eq!(one.penalty, [0.0, 0.0, 0.5, 0.0, 0.0, 0.0]);
        assert_eq!(choose(1e-9), one);
        assert_eq!(choose(0.5).penalty, [0.5, 0.0, 0.5, 0.0, 0.0, 0.0]);
        // Never the token that carries no loss, however great its covariance would be.
        assert_eq!(choose(1.0).penalty, [0.5, 0.5, 0.5, 0.5, 0.5, 0.0]);
        assert_eq!(choose(0.0).penalty, [0.0; 6]);
    }

    #[test]
    fn clip_cov_takes_out_tokens_between_the_bounds_that_the_clip_does_not_hold() {
        let choose = |settings: LossSettings, old: &[f32; 6], update| {
            weights(&settings, columns(&NEW, old), &mut random_of(1, update))
        };
        // Of 3, -2, 6, -6, 0 only 3 lies between 1 and 5.
        let published = settings(PolicyLoss::ClipCov, 1.0);
        let out = choose(published, &NEW, 0);
        assert_eq!(out.surrogate, [0.0, 0.25, 0.25, 0.25, 0.25, 0.0]);
        assert_eq!((out.selected, out.penalty.len()), (1, 0));
        // Its ratio is above the bound: the clip holds it.
        let mut old = NEW;
        old[0] -= 1.0;
        assert_eq!(choose(published, &old, 0).selected, 0);
        // Bounds are excluded.
        let exact = Covariance { low: 3.0, high: 6.0, ..published.covariance };
        let exact = LossSettings { covariance: exact, ..published };
        assert_eq!(choose(exact, &NEW, 0).selected, 0);
        // The draw is the update's own.
        let wide = Covariance { low: -10.0, high: 10.0, share: 0.4, penalty: 0.0 };
        let wide = LossSettings { covariance: wide, ..published };
        let draws: Vec<_> = (0..20).map(|update| choose(wide, &NEW, update)).collect();
        assert!(draws.iter().all(|draw| draw.selected == 2));
        assert!(draws.iter().any(|draw| draw != &draws[0]));
        assert_eq!(choose(wide, &NEW, 3), draws[3]);
    }

    #[test]
    fn other_losses_weigh_as_their_aggregation_does() {
        for loss in [PolicyLoss::Ppo, PolicyLoss::Gspo, PolicyLoss::Cispo] {
            let settings = settings(loss, 1.0);
            let out = weights(&settings, columns(&NEW, &NEW), &mut random_of(1, 0));
            assert_eq!((out.selected, out.penalty.len()), (0, 0));
            assert_eq!(out.surrogate, columns(&NEW, &NEW).weights);
        }
    }
}
