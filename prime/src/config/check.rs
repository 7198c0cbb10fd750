//! What a configuration must be: every value by name and range, and what goes together.

use anyhow::{Result, bail, ensure};
use prime_kernels::numerics::Numerics;

use super::{Config, TaskName};
use crate::graders::nearest;
use crate::step::{Estimator, Granularity, PolicyLoss};
use crate::study::mistakes;

impl Config {
    pub(super) fn check(&self) -> Result<()> {
        prime_runtime::Device::parse(&self.device)?;
        if let Err(message) = self.numerics.parse::<Numerics>() {
            bail!("numerics: {message}");
        }
        self.grader.check()?;
        self.lora.check()?;
        let (dtype, device) = (&self.model.dtype, &self.device);
        self.sft.optimizer.check("sft", dtype, device)?;
        self.prm.optimizer.check("prm", dtype, device)?;
        self.policy.optimizer.check("policy", dtype, device)?;
        self.critic.optimizer.check("critic", dtype, device)?;
        ensure!(
            self.lora.rank == 0 || self.advantage.estimator != Estimator::Gae,
            "lora.rank is {}, but advantage.estimator is \"gae\", whose critic trains all weights: take another estimator, or lora.rank=0",
            self.lora.rank
        );
        // Generous, and small enough that no size computed from them overflows.
        const MANY: usize = 1 << 24;
        let counts = [
            ("sft.batch_size", self.sft.batch_size, MANY),
            ("rollout.prompts", self.rollout.prompts, MANY),
            ("rollout.samples", self.rollout.samples, 1 << 16),
            ("rollout.max_new_tokens", self.rollout.max_new_tokens, 1 << 20),
            ("rollout.max_prompt_tokens", self.rollout.max_prompt_tokens, 1 << 20),
            ("rollout.slots", self.rollout.slots, 1 << 14),
            ("rollout.pass_tokens", self.rollout.pass_tokens, 1 << 22),
            ("filter.groups", self.filter.groups, MANY),
            ("filter.max_rounds", self.filter.max_rounds, MANY),
            ("prm.minibatches", self.prm.minibatches, 1 << 16),
            ("prm.epochs", self.prm.epochs, 1 << 16),
            ("critic.minibatches", self.critic.minibatches, 1 << 16),
            ("critic.epochs", self.critic.epochs, 1 << 16),
            ("offline.max_tokens", self.offline.max_tokens, 1 << 21),
            ("offline.batch_size", self.offline.batch_size, MANY),
            ("offline.epochs", self.offline.epochs, 1 << 16),
            ("policy.minibatches", self.policy.minibatches, 1 << 16),
            ("policy.epochs", self.policy.epochs, 1 << 16),
            ("train.micro_batch_tokens", self.train.micro_batch_tokens, 1 << 22),
            ("eval.problems", self.eval.problems, MANY),
            ("eval.samples", self.eval.samples, 1 << 16),
            ("study.seeds", self.study.seeds as usize, 1 << 10),
            ("study.triples", self.study.triples, MANY),
            ("study.continuations", self.study.continuations, 1 << 16),
        ];
        for (name, value, most) in counts {
            ensure!((1..=most).contains(&value), "{name} is {value}, expected 1 to {most}");
        }
        let steps = [
            ("sft.steps", self.sft.steps),
            ("sft.warmup", self.sft.optimizer.warmup),
            ("prm.warmup", self.prm.optimizer.warmup),
            ("prm.warmup_batches", self.prm.warmup_batches),
            ("critic.warmup", self.critic.optimizer.warmup),
            ("critic.warmup_batches", self.critic.warmup_batches),
            ("policy.warmup", self.policy.optimizer.warmup),
            ("train.steps", self.train.steps),
            ("train.save_every", self.train.save_every),
            ("train.stop_after", self.train.stop_after),
            ("train.record_every", self.train.record_every),
            ("train.record_update_every", self.train.record_update_every),
        ];
        for (name, value) in steps {
            ensure!(value <= 1 << 30, "{name} is {value}, expected at most {}", 1 << 30);
        }
        ensure!(
            self.sft.max_solution_tokens <= 1 << 20,
            "sft.max_solution_tokens is {}, expected at most {}",
            self.sft.max_solution_tokens,
            1 << 20
        );
        ensure!(self.threads <= 1024, "threads is {}, expected 0 to 1024", self.threads);
        ensure!(
            self.rollout.samples >= 2,
            "rollout.samples is {}, expected at least 2: each sample is compared with the others of its prompt",
            self.rollout.samples
        );
        ensure!(
            self.rollout.pass_tokens >= self.rollout.slots,
            "rollout.pass_tokens is {}, expected at least rollout.slots, {}: each sequence under way feeds a token a pass",
            self.rollout.pass_tokens,
            self.rollout.slots
        );
        within("rollout.temperature", f64::from(self.rollout.temperature), 1e-3, 100.0)?;
        within("rollout.top_p", f64::from(self.rollout.top_p), 1e-6, 1.0)?;
        within("rollout.min_p", f64::from(self.rollout.min_p), 0.0, 1.0)?;
        within("filter.lower", self.filter.lower, 0.0, 1.0)?;
        within("filter.upper", self.filter.upper, self.filter.lower, 1.0)?;
        within("filter.oversample", self.filter.oversample, 1.0, 65536.0)?;
        ensure!(
            !self.rollout.stop.iter().any(String::is_empty),
            "rollout.stop holds an empty text, which every response would end with"
        );
        ensure!(
            !self.filter.skip_solved || self.task.name == TaskName::Jsonl,
            "filter.skip_solved needs a data set, whose problems come again: a built-in task never runs out of new ones"
        );
        ensure!(
            !self.prm.reference_offload || self.device != "cpu",
            "prm.reference_offload moves the reference from a device's memory to the host's, where it is already on the cpu"
        );
        within("prm.beta", self.prm.beta, 1e-9, 1e9)?;
        within("prm.margin", self.prm.margin, 0.0, 1e9)?;
        within("prm.kto_desirable", self.prm.kto_desirable, 0.0, 1e9)?;
        within("prm.kto_undesirable", self.prm.kto_undesirable, 0.0, 1e9)?;
        within("advantage.process_coef", self.advantage.process_coef, 0.0, 1e9)?;
        within("advantage.gae_lambda", self.advantage.gae_lambda, 0.0, 1.0)?;
        self.critic.check(self.advantage.estimator, &self.policy)?;
        ensure!(
            self.train.stop_after == 0 || self.eval.every > 0,
            "train.stop_after is {}, but eval.every is 0: without evaluations there is nothing to stop for",
            self.train.stop_after
        );
        within("advantage.outcome_coef", self.advantage.outcome_coef, 0.0, 1e9)?;
        within("advantage.process_gamma", self.advantage.process_gamma, 0.0, 1.0)?;
        within("policy.clip_low", f64::from(self.policy.clip_low), 0.0, 1.0)?;
        within("policy.clip_high", f64::from(self.policy.clip_high), 0.0, 1e6)?;
        within("policy.entropy_coef", f64::from(self.policy.entropy_coef), -10.0, 10.0)?;
        self.check_losses()?;
        known("study.conditions", &self.study.conditions, mistakes::CONDITIONS.map(|it| it.name))?;
        known("study.teachings", &self.study.teachings, mistakes::TEACHINGS.map(|it| it.name))?;
        for name in ["ce", "online"] {
            ensure!(
                self.study.conditions.iter().any(|condition| condition == name),
                "study.conditions lacks \"{name}\", which the tables compare the others with"
            );
        }
        within("eval.temperature", f64::from(self.eval.temperature), 0.0, 100.0)?;
        ensure!(
            self.policy.dual_clip == 0.0 || self.policy.dual_clip > 1.0,
            "policy.dual_clip is {}, expected 0 (off) or more than 1",
            self.policy.dual_clip
        );
        if prime_runtime::DType::parse(&self.model.dtype)
            .is_none_or(|dtype| dtype == prime_runtime::DType::F16)
        {
            bail!("model.dtype is \"{}\", expected \"float32\" or \"bfloat16\"", self.model.dtype);
        }
        Ok(())
    }

    fn check_losses(&self) -> Result<()> {
        let (advantage, policy) = (&self.advantage, &self.policy);
        within("advantage.outcome_gamma", advantage.outcome_gamma, 0.0, 1.0)?;
        within("advantage.process_lambda", advantage.process_lambda, 0.0, 1.0)?;
        within("advantage.overlong_factor", advantage.overlong_factor, 0.0, 1e9)?;
        within("advantage.kl_coef", advantage.kl_coef, 0.0, 1e9)?;
        within("policy.kl_coef", policy.kl_coef, 0.0, 1e9)?;
        within("policy.cov_share", policy.cov_share, 0.0, 1.0)?;
        within("policy.cov_low", policy.cov_low, -1e9, 1e9)?;
        within("policy.cov_high", policy.cov_high, policy.cov_low, 1e9)?;
        within("policy.cov_penalty", policy.cov_penalty, 0.0, 1e9)?;
        ensure!(
            advantage.overlong_buffer <= self.rollout.max_new_tokens,
            "advantage.overlong_buffer is {}, expected at most rollout.max_new_tokens, {}",
            advantage.overlong_buffer,
            self.rollout.max_new_tokens
        );
        ensure!(
            advantage.granularity != Granularity::Step || !advantage.step_separator.is_empty(),
            "advantage.granularity is \"step\", which needs a text that separates steps in advantage.step_separator"
        );
        ensure!(
            policy.dual_clip == 0.0 || policy.loss == PolicyLoss::Ppo,
            "policy.dual_clip is {}, but policy.loss is \"{}\": the dual clip is of \"ppo\" alone",
            policy.dual_clip,
            policy.loss
        );
        ensure!(
            policy.kl_reference.is_empty() || self.needs_kl_reference(),
            "policy.kl_reference is \"{}\", but neither policy.kl_coef nor advantage.kl_coef is above 0",
            policy.kl_reference
        );
        Ok(())
    }
}

pub(super) fn within(name: &str, value: f64, low: f64, high: f64) -> Result<()> {
    ensure!(value >= low && value <= high, "{name} is {value}, expected {low} to {high}");
    Ok(())
}

/// Refuses names in a list that are none of the known ones.
fn known<const N: usize>(key: &str, names: &[String], all: [&str; N]) -> Result<()> {
    for name in names {
        let hint = || match nearest(name, all) {
            Some(near) => format!("; did you mean \"{near}\"?"),
            None => format!(", expected some of {}", all.join(", ")),
        };
        ensure!(all.contains(&name.as_str()), "{key} holds \"{name}\"{}", hint());
    }
    Ok(())
}
