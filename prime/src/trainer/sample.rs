//! The first arrows of a step: prompts to a graded, filtered batch.

use std::time::Instant;

use anyhow::Result;
use prime_model::{Completion, Sampling};

use super::Trainer;
use crate::config::Refill;
use crate::metrics::Metrics;
use crate::step::curriculum::ByGroup;
use crate::step::filter::{self, Bounds, Counts, Refill as Selector};
use crate::step::rollout::{self, Prompt};
use crate::step::{Granularity, Rollouts, grade, steps};

/// One batch on its way through a step, with what was counted of it.
pub(super) struct Sampled {
    batch: Rollouts,
    counts: Counts,
    /// Prompts left out before sampling.
    pub(super) too_long: u64,
    /// Those left out because they are solved.
    pub(super) solved: u64,
    rounds: u64,
    sampled_tokens: usize,
    /// Of all responses sampled, before the filter.
    accuracy: f64,
    by_group: ByGroup,
    truncated: f64,
    length: f64,
    /// Responses that could not be graded, and groups left out because of them.
    errors: usize,
    timeouts: usize,
    ungraded_groups: usize,
    seconds_rollout: f64,
    seconds_grade: f64,
}

impl Trainer {
    /// Prompts to a graded, filtered batch.
    pub(super) fn sample(
        &mut self,
        progress: &mut dyn FnMut(usize),
        metrics: &mut Metrics,
    ) -> Result<Rollouts> {
        let (rollout, filter_config) = (self.config.rollout.clone(), self.config.filter.clone());
        let bounds = Bounds {
            lower: filter_config.lower,
            upper: filter_config.upper,
            drop_truncated: filter_config.drop_truncated,
        };
        let (selector, round_prompts, max_rounds) = match filter_config.refill {
            Refill::Once => (Selector::Resample, rollout.prompts, 1),
            Refill::Resample => (Selector::Resample, rollout.prompts, filter_config.max_rounds),
            Refill::Oversample => {
                let prompts = Selector::draw(filter_config.groups, filter_config.oversample);
                (Selector::Oversample, prompts, 1)
            }
        };
        self.generator.load_weights(&self.policy.weights)?;
        let mut sampled = Sampled {
            batch: Rollouts::new(),
            counts: Counts::default(),
            too_long: 0,
            solved: 0,
            rounds: 0,
            sampled_tokens: 0,
            accuracy: 0.0,
            by_group: ByGroup::default(),
            truncated: 0.0,
            length: 0.0,
            errors: 0,
            timeouts: 0,
            ungraded_groups: 0,
            seconds_rollout: 0.0,
            seconds_grade: 0.0,
        };
        let mut responses = 0.0;
        while sampled.rounds < max_rounds as u64
            && sampled.batch.groups.len() < filter_config.groups
        {
            let prompts = self.draw_prompts(round_prompts, &mut sampled)?;
            let settings = rollout::Settings {
                samples: rollout.samples,
                sampling: Sampling {
                    temperature: rollout.temperature,
                    top_k: rollout.top_k,
                    top_p: rollout.top_p,
                    min_p: rollout.min_p,
                    seed: self.config.seed,
                },
                max_new_tokens: rollout.max_new_tokens,
                first_sequence: self.state.samples,
            };
            self.state.samples += (prompts.len() * rollout.samples) as u64;
            let started = Instant::now();
            let (task, tokenizer) = (self.prompts.task(), self.prompts.tokenizer());
            let (grading, mut seconds) = (&self.config.grader, 0.0);
            let (completions, judged) =
                grade::beside(task, tokenizer, &prompts, rollout.samples, grading, |finished| {
                    let mut done = 0;
                    let mut each = |request: usize, completion: &Completion| {
                        done += 1;
                        progress(done);
                        finished(request, completion);
                    };
                    let (generator, stop) = (&mut self.generator, &self.stop);
                    let drawn = rollout::rollout(generator, &prompts, &settings, stop, &mut each);
                    seconds = started.elapsed().as_secs_f64();
                    drawn
                })?;
            sampled.seconds_rollout += seconds;
            let collected = grade::collect(&prompts, completions, &judged, grading.on_failure)?;
            sampled.seconds_grade += started.elapsed().as_secs_f64() - seconds;
            sampled.errors += collected.errors;
            sampled.timeouts += collected.timeouts;
            sampled.ungraded_groups += collected.dropped_groups;
            // Groups that could not be graded are gone: from here on a prompt stands beside each group.
            let mut round = collected.batch;
            let prompts: Vec<Prompt> =
                collected.prompts.iter().map(|&place| prompts[place].clone()).collect();
            if self.config.advantage.granularity == Granularity::Step && self.prm.is_some() {
                let separator = &self.config.advantage.step_separator;
                steps::mark(&mut round, self.prompts.tokenizer(), separator)?;
            }
            sampled.rounds += 1;
            sampled.sampled_tokens += round.token_count();
            sampled.accuracy +=
                round.outcomes.iter().map(|&outcome| f64::from(outcome)).sum::<f64>();
            sampled.truncated +=
                round.finished.iter().filter(|&&finished| !finished).count() as f64;
            responses += round.len() as f64;
            sampled.by_group.add(self.prompts.task(), &prompts, &round);
            if filter_config.skip_solved {
                self.state.curriculum.learn(&prompts, &round);
            }
            let verdicts = filter::verdicts(&round, &bounds);
            sampled.counts.add(&verdicts);
            let selection =
                selector.select(&verdicts, sampled.batch.groups.len(), filter_config.groups);
            sampled.batch.append(round.select(&selection.take))?;
            if filter_config.refill == Refill::Resample {
                self.state
                    .buffer
                    .extend(selection.surplus.iter().map(|&group| prompts[group].index));
            }
        }
        sampled.length = sampled.sampled_tokens as f64 / f64::max(responses, 1.0);
        sampled.accuracy /= f64::max(responses, 1.0);
        sampled.truncated /= f64::max(responses, 1.0);
        metrics_of_sampling(metrics, &sampled);
        if filter_config.skip_solved {
            metrics.set("filter/skipped_as_solved", sampled.solved as f64);
            metrics.set("curriculum/solved", self.state.curriculum.solved() as f64);
            metrics.set("curriculum/seen", self.state.curriculum.seen() as f64);
        }
        sampled.batch.tell_groups_apart();
        sampled.batch.device = self.config.device();
        Ok(sampled.batch)
    }
}

fn metrics_of_sampling(metrics: &mut Metrics, sampled: &Sampled) {
    let groups = &sampled.batch.groups;
    let reward: f64 = sampled.batch.outcomes.iter().map(|&outcome| f64::from(outcome)).sum();
    metrics.set("reward/accuracy", sampled.accuracy);
    for (name, accuracy) in sampled.by_group.accuracies() {
        metrics.set(format!("reward/accuracy/{name}"), accuracy);
    }
    metrics.set("reward/batch_accuracy", reward / sampled.batch.len().max(1) as f64);
    metrics.set("filter/kept", sampled.counts.kept as f64);
    metrics.set("filter/too_easy", sampled.counts.too_easy as f64);
    metrics.set("filter/too_hard", sampled.counts.too_hard as f64);
    metrics.set("filter/truncated", sampled.counts.truncated as f64);
    metrics.set("filter/too_long", sampled.too_long as f64);
    metrics.set("filter/groups", groups.len() as f64);
    metrics.set("filter/rounds", sampled.rounds as f64);
    metrics.set("response/length", sampled.length);
    metrics.set("response/truncated", sampled.truncated);
    metrics.set("grade/errors", sampled.errors as f64);
    metrics.set("grade/timeouts", sampled.timeouts as f64);
    metrics.set("grade/dropped_groups", sampled.ungraded_groups as f64);
    metrics.set("seconds/rollout", sampled.seconds_rollout);
    metrics.set("seconds/grade", sampled.seconds_grade);
    let rate = sampled.sampled_tokens as f64 / sampled.seconds_rollout.max(1e-9);
    metrics.set("throughput/rollout_tokens_per_second", rate);
}
