//! What a replay computes with, and how settings are written on the command line.

use crate::graders::nearest;
use anyhow::{Context, Result, anyhow, bail, ensure};
use prime_kernels::policy_loss::Clip;

use crate::step::policy_loss::{Covariance, KlPenalty, LossSettings};
use crate::step::prm_targets::Loss;
use crate::step::{
    Aggregation, Estimator, Form, Granularity, KlKind, PolicyLoss, PrmLoss, ProcessNorm, advantage,
    implicit_reward,
};

/// The settings of a replay, by the names that [`ReplaySettings::set`] takes, with what they mean.
pub const KEYS: &[(&str, &str)] = &[
    (
        "beta",
        "scale of the PRM's log-ratio, in its loss and, but for prime-repo, in the process rewards",
    ),
    ("prm_loss", "ce, dpo, bon_acc, bon_rm, dpo-pairs, kto, nca or prefix-value"),
    ("prm_margin", "the margin of prm_loss=prefix-value"),
    ("kto_desirable", "the weight of right responses in prm_loss=kto"),
    ("kto_undesirable", "the weight of wrong responses in prm_loss=kto"),
    (
        "kto_kl",
        "the KL of prm_loss=kto, which recorded rollouts do not hold: beta times a sum of log-ratios, 0 or more",
    ),
    ("process_norm", "what process rewards are divided by: batch_norm or none"),
    ("granularity", "where process rewards are given: token, step or whole"),
    (
        "estimator",
        "how advantages are estimated: rloo, reinforce, grpo, dr-grpo, reinforce++, gae or prm-value",
    ),
    ("gae_lambda", "lambda of gae, 0 to 1"),
    ("outcome_coef", "weight of the outcome part of the return"),
    ("process_coef", "weight of the process part of the return"),
    ("process_gamma", "discount of the process part of the return, 0 to 1; of gae, of time"),
    ("outcome_gamma", "discount of the outcome, which stands at the last token, 0 to 1"),
    (
        "process_lambda",
        "how much of the next token's (or step's) process reward joins a token's own, 0 to 1",
    ),
    (
        "process_use_outcome",
        "true: the last token's (or step's) process reward is what the others lack of the outcome",
    ),
    (
        "overlong_buffer",
        "tokens before max_response_length in which the outcome falls by overlong_factor; 0 is off",
    ),
    ("overlong_factor", "the soft length penalty at max_response_length"),
    ("reward_kl_coef", "takes so much of the KL to the policy's reference off the rewards"),
    ("reward_kl_kind", "kl, abs, mse or low_var_kl"),
    ("loss", "the policy's: ppo, gspo, cispo, clip-cov or kl-cov"),
    ("clip", "sets clip_low and clip_high alike"),
    ("clip_low", "the ratio's lower bound is 1 - clip_low"),
    ("clip_high", "the ratio's upper bound is 1 + clip_high"),
    ("dual_clip", "ppo's bound on the loss where the advantage is negative, above 1; or none"),
    ("cov_share", "clip-cov, kl-cov: the share of tokens taken"),
    ("cov_low", "clip-cov: a token's covariance is above this"),
    ("cov_high", "clip-cov: and below this"),
    ("cov_penalty", "kl-cov: the penalty's coefficient"),
    ("seed", "of clip-cov's draw"),
    (
        "aggregation",
        "token-mean, seq-mean-token-sum, seq-mean-token-mean, seq-mean-token-sum-norm, or auto: seq-mean-token-mean for gspo, token-mean for others",
    ),
    (
        "max_response_length",
        "divisor of seq-mean-token-sum-norm; the longest response where it is not given",
    ),
    ("mask_truncated", "true: responses whose field finished is false carry no loss"),
    (
        "kl",
        "kl, abs, mse or low_var_kl: writes each token's KL of the new policy to the reference, and kl_loss; or none",
    ),
    ("kl_coef", "weight of kl_loss in total_loss and in the gradient"),
    (
        "gradients",
        "true: writes grad_log_prob, the gradient of total_loss by each token's new log-probability",
    ),
];

/// Other names that settings are known by: those of configuration files and of other programs.
const ALIASES: &[(&str, &str)] = &[
    ("policy_loss", "loss"),
    ("loss_mode", "loss"),
    ("loss_aggregation", "aggregation"),
    ("loss_agg_mode", "aggregation"),
    ("kl_kind", "kl"),
    ("kl_loss_coef", "kl_coef"),
    ("kl_loss_type", "kl"),
    ("adv_estimator", "estimator"),
    ("advantage_estimator", "estimator"),
    ("clip_ratio", "clip"),
    ("clip_ratio_low", "clip_low"),
    ("clip_ratio_high", "clip_high"),
    ("clip_ratio_c", "dual_clip"),
];

/// What a replay computes with. [`ReplaySettings::published`] gives the values each form was published with.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplaySettings {
    /// The published form.
    pub form: Form,
    /// Scale of the log-ratio.
    pub beta: f64,
    /// The PRM's loss.
    pub prm_loss: PrmLoss,
    /// The margin of [`PrmLoss::PrefixValue`].
    pub prm_margin: f64,
    /// The weight of right responses in [`PrmLoss::Kto`].
    pub kto_desirable: f64,
    /// That of wrong ones.
    pub kto_undesirable: f64,
    /// The KL of [`PrmLoss::Kto`].
    pub kto_kl: f64,
    /// What process rewards are divided by.
    pub process_norm: ProcessNorm,
    /// Where process rewards are given.
    pub granularity: Granularity,
    /// How advantages are estimated.
    pub estimator: Estimator,
    /// Lambda of [`Estimator::Gae`].
    pub gae_lambda: f64,
    /// Weight of the outcome part of the return.
    pub outcome_coef: f64,
    /// Weight of the process part of the return.
    pub process_coef: f64,
    /// Discount of the process part of the return.
    pub process_gamma: f64,
    /// Discount of the outcome.
    pub outcome_gamma: f64,
    /// How much of the next unit's process reward joins a unit's own.
    pub process_lambda: f64,
    /// Whether the last unit's process reward is what the others lack of the outcome.
    pub process_use_outcome: bool,
    /// Tokens of the soft length penalty; 0 is off.
    pub overlong_buffer: usize,
    /// The soft length penalty at the greatest length.
    pub overlong_factor: f64,
    /// The KL penalty in the rewards.
    pub reward_kl: KlPenalty,
    /// The policy's loss.
    pub loss: PolicyLoss,
    /// The ratio's lower bound is 1 - this.
    pub clip_low: f64,
    /// The ratio's upper bound is 1 + this.
    pub clip_high: f64,
    /// For negative advantages the loss is at most -A times this.
    pub dual_clip: Option<f64>,
    /// For the losses that choose tokens by covariance.
    pub covariance: Covariance,
    /// Of the draw of `clip-cov`.
    pub seed: u64,
    /// How token losses make the loss of the batch; the loss's own where it is not given.
    pub aggregation: Option<Aggregation>,
    /// The divisor of [`Aggregation::SeqMeanTokenSumNorm`]; the longest response where it is not given.
    pub max_response_length: Option<usize>,
    /// Whether truncated responses carry no loss.
    pub mask_truncated: bool,
    /// The KL that is written and that joins the total loss.
    pub kl: Option<KlKind>,
    /// Its weight there.
    pub kl_coef: f64,
    /// Whether gradients are written.
    pub gradients: bool,
}

impl ReplaySettings {
    /// The settings that a form was published with. In all: beta 0.05, rewards at every token, no discount, clipping
    /// at 0.2 on both sides, token-mean. `paper`: no normalisation, coefficients 1. `prime-repo`: `batch_norm`,
    /// coefficients 1. `verl`: `batch_norm`, coefficients 5, dual clip at 3.
    pub fn published(form: Form) -> Self {
        let coef = if form == Form::Verl { 5.0 } else { 1.0 };
        ReplaySettings {
            form,
            beta: 0.05,
            prm_loss: PrmLoss::Ce,
            prm_margin: 0.0,
            kto_desirable: 1.0,
            kto_undesirable: 1.0,
            kto_kl: 0.0,
            process_norm: match form {
                Form::Paper => ProcessNorm::None,
                Form::PrimeRepo | Form::Verl => ProcessNorm::BatchNorm,
            },
            granularity: Granularity::Token,
            estimator: Estimator::Rloo,
            gae_lambda: 1.0,
            outcome_coef: coef,
            process_coef: coef,
            process_gamma: 1.0,
            outcome_gamma: 1.0,
            process_lambda: 0.0,
            process_use_outcome: false,
            overlong_buffer: 0,
            overlong_factor: 1.0,
            reward_kl: KlPenalty { coef: 0.0, kind: KlKind::Kl },
            loss: PolicyLoss::Ppo,
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: (form == Form::Verl).then_some(3.0),
            covariance: Covariance::PUBLISHED,
            seed: 1,
            aggregation: None,
            max_response_length: None,
            mask_truncated: false,
            kl: None,
            kl_coef: 0.0,
            gradients: false,
        }
    }

    /// Changes one setting, written `key=value`. See [`KEYS`].
    ///
    /// # Errors
    /// When there is no `=`, the key is unknown (the nearest known one is named), or the value is not one the key takes.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let (key, value) = assignment
            .split_once('=')
            .with_context(|| format!("`{assignment}` is not a setting; write key=value"))?;
        let (key, value) = (key.trim(), value.trim());
        let key = ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |(_, key)| *key);
        let mut changed = self.clone();
        match key {
            "beta" => changed.beta = number(key, value)?,
            "prm_loss" => changed.prm_loss = value.parse()?,
            "prm_margin" => changed.prm_margin = number(key, value)?,
            "kto_desirable" => changed.kto_desirable = number(key, value)?,
            "kto_undesirable" => changed.kto_undesirable = number(key, value)?,
            "kto_kl" => changed.kto_kl = number(key, value)?,
            "process_norm" => changed.process_norm = value.parse()?,
            "granularity" => changed.granularity = value.parse()?,
            "estimator" => changed.estimator = hyphenated(value).parse()?,
            "gae_lambda" => changed.gae_lambda = number(key, value)?,
            "outcome_coef" => changed.outcome_coef = number(key, value)?,
            "process_coef" => changed.process_coef = number(key, value)?,
            "process_gamma" => changed.process_gamma = number(key, value)?,
            "outcome_gamma" => changed.outcome_gamma = number(key, value)?,
            "process_lambda" => changed.process_lambda = number(key, value)?,
            "process_use_outcome" => changed.process_use_outcome = flag(key, value)?,
            "overlong_buffer" => changed.overlong_buffer = whole(key, value)?,
            "overlong_factor" => changed.overlong_factor = number(key, value)?,
            "reward_kl_coef" => changed.reward_kl.coef = number(key, value)?,
            "reward_kl_kind" => changed.reward_kl.kind = kl_kind(value)?,
            "loss" if value == "vanilla" => changed.loss = PolicyLoss::Ppo,
            "loss" => changed.loss = hyphenated(value).parse()?,
            "cov_share" => changed.covariance.share = number(key, value)?,
            "cov_low" => changed.covariance.low = number(key, value)?,
            "cov_high" => changed.covariance.high = number(key, value)?,
            "cov_penalty" => changed.covariance.penalty = number(key, value)?,
            "seed" => changed.seed = whole(key, value)?,
            "mask_truncated" => changed.mask_truncated = flag(key, value)?,
            "kl" if value == "none" => changed.kl = None,
            "kl" => changed.kl = Some(kl_kind(value)?),
            "kl_coef" => {
                changed.kl_coef = number(key, value)?;
                changed.kl = changed.kl.or(Some(KlKind::LowVarKl));
            }
            "gradients" => changed.gradients = flag(key, value)?,
            "clip" => {
                changed.clip_low = number(key, value)?;
                changed.clip_high = changed.clip_low;
            }
            "clip_low" => changed.clip_low = number(key, value)?,
            "clip_high" => changed.clip_high = number(key, value)?,
            "dual_clip" if value == "none" => changed.dual_clip = None,
            "dual_clip" => changed.dual_clip = Some(number(key, value)?),
            "aggregation" if value == "auto" => changed.aggregation = None,
            "aggregation" => changed.aggregation = Some(hyphenated(value).parse()?),
            "max_response_length" => changed.max_response_length = Some(whole(key, value)?),
            _ => {
                let known: Vec<&str> = KEYS.iter().map(|(known, _)| *known).collect();
                let hint = nearest(key, known.iter().copied())
                    .map(|near| format!(": did you mean `{near}`?"))
                    .unwrap_or_default();
                bail!("there is no setting `{key}`{hint} All are {}", known.join(", "))
            }
        }
        changed.check()?;
        *self = changed;
        Ok(())
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(self.beta > 0.0, "beta is {}; it must be positive", self.beta);
        for (key, value) in [
            ("prm_margin", self.prm_margin),
            ("kto_desirable", self.kto_desirable),
            ("kto_undesirable", self.kto_undesirable),
            ("kto_kl", self.kto_kl),
        ] {
            ensure!(value >= 0.0, "{key} is {value}; it must not be negative");
        }
        self.covariance.check()?;
        for (name, value) in [
            ("process_gamma", self.process_gamma),
            ("outcome_gamma", self.outcome_gamma),
            ("process_lambda", self.process_lambda),
            ("gae_lambda", self.gae_lambda),
        ] {
            ensure!((0.0..=1.0).contains(&value), "{name} is {value}; it must be within 0 to 1");
        }
        for (name, value) in [
            ("outcome_coef", self.outcome_coef),
            ("process_coef", self.process_coef),
            ("overlong_factor", self.overlong_factor),
            ("reward_kl_coef", self.reward_kl.coef),
            ("kl_coef", self.kl_coef),
        ] {
            ensure!(value >= 0.0, "{name} is {value}; it must not be negative");
        }
        ensure!(
            (0.0..=1.0).contains(&self.clip_low),
            "clip_low is {}; it must be within 0 to 1",
            self.clip_low
        );
        ensure!(self.clip_high >= 0.0, "clip_high is {}; it must not be negative", self.clip_high);
        ensure!(
            self.dual_clip.is_none_or(|dual| dual > 1.0),
            "dual_clip is {}; it must be above 1, or none",
            self.dual_clip.unwrap_or_default()
        );
        ensure!(self.max_response_length != Some(0), "max_response_length must not be 0");
        Ok(())
    }

    pub(super) fn prm_loss(&self) -> Loss {
        Loss {
            name: self.prm_loss,
            beta: self.beta,
            margin: self.prm_margin,
            desirable: self.kto_desirable,
            undesirable: self.kto_undesirable,
        }
    }

    pub(super) fn rewards(&self) -> implicit_reward::Settings {
        let Self { form, beta, process_norm, granularity, .. } = *self;
        let (lambda, use_outcome) = (self.process_lambda, self.process_use_outcome);
        implicit_reward::Settings { form, beta, process_norm, granularity, lambda, use_outcome }
    }

    /// `longest` is the greatest length of a response where none is given.
    pub(super) fn returns(&self, longest: usize) -> advantage::Settings {
        let length_penalty = advantage::LengthPenalty {
            max_length: self.max_response_length.unwrap_or(longest),
            buffer: self.overlong_buffer,
            factor: self.overlong_factor,
        };
        let Self { estimator, form, outcome_coef, process_coef, process_gamma, gae_lambda, .. } =
            *self;
        advantage::Settings {
            estimator,
            form,
            outcome_coef,
            process_coef,
            process_gamma,
            outcome_gamma: self.outcome_gamma,
            length_penalty: (self.overlong_buffer > 0).then_some(length_penalty),
            kl: (self.reward_kl.coef > 0.0).then_some(self.reward_kl),
            gae_lambda,
        }
    }

    pub(super) fn loss(&self) -> LossSettings {
        let clip = Clip {
            low: self.clip_low as f32,
            high: self.clip_high as f32,
            dual: self.dual_clip.map(|dual| dual as f32),
        };
        LossSettings { loss: self.loss, clip, covariance: self.covariance }
    }

    pub(super) fn aggregation(&self) -> Aggregation {
        self.aggregation.unwrap_or(self.loss.aggregation())
    }

    /// Whether log-probs under the policy's reference are needed.
    pub(super) fn needs_kl_reference(&self) -> bool {
        self.kl.is_some() || self.reward_kl.coef > 0.0
    }
}

/// Names are written with hyphens; underscores are as good.
fn hyphenated(value: &str) -> String {
    value.replace('_', "-")
}

/// A kind of KL by its name, or by Schulman's.
fn kl_kind(value: &str) -> Result<KlKind> {
    match value {
        "k1" => Ok(KlKind::Kl),
        "k2" => Ok(KlKind::Mse),
        "k3" => Ok(KlKind::LowVarKl),
        name => name.parse(),
    }
}

fn flag(key: &str, value: &str) -> Result<bool> {
    value.parse().map_err(|_| anyhow!("{key}: `{value}` is neither true nor false"))
}

fn whole<T: std::str::FromStr>(key: &str, value: &str) -> Result<T> {
    value.parse().map_err(|_| anyhow!("{key}: `{value}` is not a whole number"))
}

fn number(key: &str, value: &str) -> Result<f64> {
    let number: f64 = value.parse().map_err(|_| anyhow!("{key}: `{value}` is not a number"))?;
    ensure!(number.is_finite(), "{key}: {value} is not a finite number");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_key_is_taken_and_others_are_answered_with_the_nearest() {
        let published = ReplaySettings::published(Form::Verl);
        for (key, _) in KEYS {
            let value = match *key {
                "process_norm" => "none",
                "prm_loss" => "nca",
                "granularity" => "whole",
                "estimator" => "grpo",
                "aggregation" => "seq-mean-token-mean",
                "max_response_length" | "overlong_buffer" | "seed" => "64",
                "loss" => "gspo",
                "cov_high" => "9",
                "kl" => "mse",
                "reward_kl_kind" => "abs",
                "process_use_outcome" | "mask_truncated" | "gradients" => "true",
                "dual_clip" => "2.5",
                _ => "0.25",
            };
            let mut settings = published.clone();
            settings.set(&format!("{key} = {value}")).unwrap();
            assert_ne!(settings, published, "{key}");
        }
        let mut settings = published.clone();
        settings.set("clip=0.1").unwrap();
        settings.set("dual_clip=none").unwrap();
        assert_eq!((settings.clip_low, settings.clip_high, settings.dual_clip), (0.1, 0.1, None));

        for (alias, key) in ALIASES {
            assert!(KEYS.iter().any(|(known, _)| known == key), "{alias}");
        }
        for assignment in ["loss_mode=kl_cov", "loss_agg_mode=token_mean", "kl_loss_type=k3"] {
            settings.set(assignment).unwrap();
        }
        assert_eq!((settings.loss, settings.kl), (PolicyLoss::KlCov, Some(KlKind::LowVarKl)));
        assert_eq!(settings.aggregation(), Aggregation::TokenMean);

        let before = settings.clone();
        let mut refused = |assignment: &str| settings.set(assignment).unwrap_err().to_string();
        assert!(refused("process_gama=1").contains("did you mean `process_gamma`?"));
        assert_eq!(refused("beta"), "`beta` is not a setting; write key=value");
        assert_eq!(refused("beta=x"), "beta: `x` is not a number");
        assert!(refused("beta=0").contains("beta is 0"));
        assert!(refused("beta=nan").contains("not a finite number"));
        assert!(refused("process_norm=mean").contains("batch_norm, none"));
        assert!(refused("clip=2").contains("clip_low is 2"));
        assert!(refused("dual_clip=1").contains("dual_clip is 1"));
        assert!(refused("process_gamma=2").contains("process_gamma is 2"));
        assert!(refused("max_response_length=0").contains("must not be 0"));
        assert!(refused("loss=grpo").contains("ppo, gspo, cispo, clip-cov, kl-cov"));
        assert!(refused("kl=k4").contains("kl, abs, mse, low_var_kl"));
        assert!(refused("kl_coef=-1").contains("kl_coef is -1"));
        assert!(refused("cov_share=2").contains("cov_share is 2"));
        assert!(refused("gradients=yes").contains("neither true nor false"));
        assert_eq!(settings, before);
    }
}
