//! How much arithmetic the stages of a run are.

use anyhow::Result;
use prime_model::Config as ModelConfig;

use super::Outline;
use crate::config::{Config, PrmUpdate, Refill};
use crate::prompts::Prompts;
use crate::step::PolicyLoss;
use crate::step::filter::Refill as Selector;
use crate::tasks::{Purpose, Split};

/// Problems looked at to learn how long texts are.
const LOOKED_AT: u64 = 64;

/// Mean tokens of a prompt and of a response.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lengths {
    prompt: f64,
    response: f64,
    assumption: String,
}

impl Lengths {
    /// Those of the task's worked solutions; where there are none, or no task, the limits.
    pub(super) fn of(config: &Config, prompts: Option<&Prompts>) -> Result<Lengths> {
        let limits = (config.rollout.max_prompt_tokens, config.rollout.max_new_tokens);
        let bound = || Lengths {
            prompt: limits.0 as f64,
            response: limits.1 as f64,
            assumption: format!(
                "assuming the longest prompts, {} tokens, and responses, {}; most runs need less",
                limits.0, limits.1
            ),
        };
        let Some(prompts) = prompts else { return Ok(bound()) };
        let (mut prompt, mut prompts_seen) = (0, 0);
        let (mut response, mut responses_seen) = (0, 0);
        for place in 0..LOOKED_AT {
            let index = prompts.training_index(place, config.seed, Purpose::Rl);
            let Some(found) = prompts.prompt(Split::Train, index)? else { continue };
            (prompt, prompts_seen) = (prompt + found.tokens.len(), prompts_seen + 1);
            if let Some(solution) = &found.problem.solution {
                let tokens = prompts.tokenizer().encode(solution, false)?.len() + 1;
                // A longer one is cut off when the model writes it.
                (response, responses_seen) = (response + tokens.min(limits.1), responses_seen + 1);
            }
        }
        if prompts_seen == 0 || responses_seen == 0 {
            return Ok(bound());
        }
        let mean = |sum: usize, count: usize| sum as f64 / count as f64;
        let (prompt, response) = (mean(prompt, prompts_seen), mean(response, responses_seen));
        let assumption = format!(
            "assuming prompts of {prompt:.0} tokens and responses of {response:.0}, as the task's worked solutions have"
        );
        Ok(Lengths { prompt, response, assumption })
    }
}

/// One stage of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stage {
    /// Its name.
    pub(super) name: &'static str,
    /// Its steps.
    pub(super) steps: u64,
    /// Floating-point operations of one.
    pub(super) flops: f64,
}

/// The arithmetic of a run.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Work {
    /// The stages, in order.
    pub(super) stages: Vec<Stage>,
    /// What it assumes of the texts.
    pub(super) assumption: String,
}

/// Operations of a forward pass of a model.
struct Forward {
    /// Of the layers' products, a token.
    layers: f64,
    /// Of the final projection, a token that is scored or drawn.
    head: f64,
    /// Of attention, a pair of a token and one that it sees.
    pair: f64,
}

impl Forward {
    fn of(model: &ModelConfig) -> Forward {
        let f = |size: usize| size as f64;
        let (q, kv) = (f(model.num_heads * model.head_dim), f(model.num_kv_heads * model.head_dim));
        let (hidden, layers) = (f(model.hidden_size), f(model.num_layers));
        let weights = hidden * (2.0 * q + 2.0 * kv) + 3.0 * hidden * f(model.intermediate_size);
        Forward {
            layers: 2.0 * layers * weights,
            head: 2.0 * hidden * f(model.vocab_size),
            pair: 4.0 * layers * q,
        }
    }

    /// Of sequences of a prompt and a response that is scored.
    fn sequences(&self, count: f64, lengths: &Lengths) -> f64 {
        let tokens = lengths.prompt + lengths.response - 1.0;
        let pairs = tokens * (tokens + 1.0) / 2.0;
        count * (tokens * self.layers + lengths.response * self.head + pairs * self.pair)
    }

    /// Of the same, forward and backward.
    fn training(&self, count: f64, lengths: &Lengths, checkpointed: bool) -> f64 {
        // Each product has two on the way back; with checkpoints all is computed twice on the way.
        let passes = if checkpointed { 4.0 } else { 3.0 };
        passes * self.sequences(count, lengths)
    }

    /// Of drawing samples: a prompt passes once, however many samples it has.
    fn rollouts(&self, prompts: f64, samples: f64, lengths: &Lengths) -> f64 {
        let (p, r) = (lengths.prompt, lengths.response);
        let prompt = p * self.layers + p * (p + 1.0) / 2.0 * self.pair;
        let pairs = r * p + r * (r + 1.0) / 2.0;
        prompts * prompt + prompts * samples * (r * (self.layers + self.head) + pairs * self.pair)
    }
}

impl Work {
    /// Of a run.
    pub(super) fn of(config: &Config, outline: &Outline) -> Work {
        let lengths = &outline.lengths;
        let checkpointed = config.train.checkpoint_activations;
        let policy = Forward::of(&outline.policy);
        let f = |count: usize| count as f64;
        let round = match config.filter.refill {
            Refill::Oversample => Selector::draw(config.filter.groups, config.filter.oversample),
            Refill::Once | Refill::Resample => config.rollout.prompts,
        };
        let kept = config.filter.groups.min(round) * config.rollout.samples;
        let rollouts = policy.rollouts(f(round), f(config.rollout.samples), lengths);
        let kl_reference = outline
            .kl_reference
            .as_ref()
            .map_or(0.0, |model| Forward::of(model).sequences(f(kept), lengths));
        // The losses that choose by covariance score every minibatch but the first once more.
        let rescored = match config.policy.loss {
            PolicyLoss::ClipCov | PolicyLoss::KlCov => {
                let passes = f(config.policy.epochs) - 1.0 / f(config.policy.minibatches);
                passes * policy.sequences(f(kept), lengths)
            }
            _ => 0.0,
        };
        let update = f(config.policy.epochs) * policy.training(f(kept), lengths, checkpointed)
            + kl_reference
            + rescored;
        let prm = outline.prm.as_ref().map_or(0.0, |prm| {
            let prm = Forward::of(prm);
            let scored = match config.prm.update {
                PrmUpdate::After => 0.0,
                PrmUpdate::Before | PrmUpdate::Reverse => prm.sequences(f(kept), lengths),
            };
            let reference = match &outline.reference {
                Some(reference) => Forward::of(reference).sequences(f(kept), lengths),
                None if config.rollout.temperature == 1.0 => 0.0,
                None => policy.sequences(f(kept), lengths),
            };
            let training = prm.training(f(kept), lengths, checkpointed);
            f(config.prm.epochs) * training + scored + reference
        });
        // A head of one column instead of the vocabulary's.
        let critic = match &outline.critic {
            Some(critic) => {
                let critic = Forward { head: 2.0 * f(critic.hidden_size), ..Forward::of(critic) };
                let training = critic.training(f(kept), lengths, checkpointed);
                critic.sequences(f(kept), lengths) + f(config.critic.epochs) * training
            }
            None => 0.0,
        };
        let critic_warmup = if outline.critic.is_some() { config.critic.warmup_batches } else { 0 };
        let stage = |name, steps, flops| Stage { name, steps, flops };
        let sft = policy.training(f(config.sft.batch_size), lengths, checkpointed);
        let mut stages = vec![stage("SFT", config.sft.steps, sft)];
        let steps = config.train.steps;
        if outline.prm.is_none() {
            if critic_warmup > 0 {
                stages.push(stage("critic warm-up", critic_warmup, rollouts + critic));
            }
            stages.push(stage("outcome-only", steps, rollouts + critic + update));
        } else {
            let (of_prm, warmup) =
                (config.prm.warmup_batches, config.prm.warmup_batches.max(critic_warmup));
            let of_both = f(of_prm as usize) * prm + f(critic_warmup as usize) * critic;
            let mean = rollouts + of_both / f(warmup.max(1) as usize);
            stages.push(stage("PRM warm-up", warmup, mean));
            stages.push(stage("PRIME", steps, rollouts + prm + critic + update));
            if config.train.compare {
                let batch = rollouts + critic + update;
                stages.push(stage("outcome-only", steps + warmup, batch));
            }
        }
        Work { stages, assumption: lengths.assumption.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(overrides: &[&str]) -> Work {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        let config = Config::load(&[], &overrides).unwrap();
        let outline = Outline::of_run(&config).unwrap();
        Work::of(&config, &outline)
    }

    fn flops(work: &Work, name: &str) -> f64 {
        work.stages.iter().find(|stage| stage.name == name).unwrap().flops
    }

    #[test]
    fn a_forward_pass_counts_two_operations_a_weight_and_token() {
        let config = Config::load(&[], &[]).unwrap();
        let model = Outline::of_run(&config).unwrap().policy;
        let forward = Forward::of(&model);
        // Everything but the embedding, which is looked up, and the norms.
        let norms = (2 * model.num_layers + 1) * model.hidden_size;
        let embedding = model.vocab_size * model.hidden_size;
        let multiplied = (model.parameters() - norms - embedding) as f64;
        assert_eq!(forward.layers + forward.head, 2.0 * multiplied);
        let lengths = Lengths { prompt: 3.0, response: 2.0, assumption: String::new() };
        // Four tokens pass, two are scored, and they see 1 + 2 + 3 + 4.
        let expected = 4.0 * forward.layers + 2.0 * forward.head + 10.0 * forward.pair;
        assert_eq!(forward.sequences(1.0, &lengths), expected);
        // Drawn: the prompt's three tokens, then two with 4 and 5 in sight.
        let drawn = 5.0 * forward.layers + 2.0 * forward.head + 15.0 * forward.pair;
        assert_eq!(forward.rollouts(1.0, 1.0, &lengths), drawn);
    }

    #[test]
    fn what_a_step_does_more_costs_more() {
        let base = work(&[]);
        let prime = flops(&base, "PRIME");
        assert!(prime > flops(&base, "outcome-only") && prime > flops(&base, "PRM warm-up"));
        for more in [
            "prm.reference=frozen",
            "prm.update=before",
            "policy.kl_coef=0.1",
            "advantage.kl_coef=0.1",
            "prm.epochs=2",
            "rollout.temperature=0.9",
            "filter.refill=oversample",
            "train.checkpoint_activations=true",
        ] {
            assert!(flops(&work(&[more]), "PRIME") > prime, "{more}");
        }
    }
}
