//! `prime score`: log-probabilities, entropies and implicit process rewards of given text.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use prime_kernels::numerics::{self, Numerics};
use prime_model::Tokenizer;
use prime_runtime::{DType, Device};
use serde::Serialize;
use serde_json::{Map, Value};

use super::files::{Line, Lines, Output, at_line};
use super::score_page::{View, answer};
use super::values::{self, Precision};
use super::{Failure, models};
use crate::graders::text_field;
use crate::score::{PASS_TOKENS, Scorer, Scores, Sequence};
use crate::steps::{encode_steps, prefix_values, step_rewards};

/// Score given text: log-probability of every token, entropy, and implicit process rewards
///
/// Reads JSON Lines and writes each line with what was computed for it; its own fields stay as they are.
///
/// A line {"text"} is scored as a text: `token_ids` are its tokens, `log_probs` those of every token after the first, and `entropy` that
/// of the distribution after every token, the last included (nats).
///
/// A line {"prompt", "response"} is scored as a response: the two are tokenised apart and joined. `token_ids` are the tokens of both,
/// `log_probs` and `entropy` belong to the response's tokens.
///
/// With --prm, `process_rewards` are beta * (log-probability under the PRM - log-probability under the reference) of each scored
/// token, and `outcome_probability` is the sigmoid of their sum: how likely the PRM holds the response to be right.
///
/// With --steps, a response is cut into steps: behind each --separator, or as the list `steps` of a line {"prompt", "steps"} gives them.
/// `step_ends` is the number of response tokens up to the end of each step, `step_rewards` the sum of each step's process rewards, and
/// `prefix_values` the sum of all steps' rewards up to each.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  echo '{\"text\": \"12 + 7 = 19\"}' | prime score --model DIR --input - --output -
  prime score --model DIR --input solutions.jsonl --output scored.jsonl
  prime score --model DIR --prm PRM --ref SFT --beta 0.05 --input solutions.jsonl --output -
  prime score --model SFT --prm PRM --steps --separator ';' --input solutions.jsonl --output -
  prime score --model DIR --prm PRM --input solutions.jsonl --html tokens.html")]
pub(super) struct ScoreArgs {
    /// Model folder (Hugging Face: config.json, safetensors, tokenizer.json), or a run's, whose newest policy is taken
    #[arg(long, value_name = "DIR")]
    pub(super) model: PathBuf,
    /// An adapter's folder as PEFT writes it, to stand beside the model (a run with [lora] saves such as its policy, which --model takes too)
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// Model folder of an implicit process reward model with the same tokenizer
    #[arg(long, value_name = "DIR")]
    pub(super) prm: Option<PathBuf>,
    /// Model folder of the PRM's reference [default: --model]
    #[arg(long = "ref", value_name = "DIR", requires = "prm")]
    pub(super) reference: Option<PathBuf>,
    /// Scale of the process rewards, as the PRM was trained with
    #[arg(long, value_name = "F", default_value = "0.05", requires = "prm", allow_negative_numbers = true, value_parser = values::beta)]
    pub(super) beta: f64,
    /// Score the steps of responses too
    #[arg(long, requires = "prm")]
    steps: bool,
    /// The text that ends a step, joins the steps of a list, and belongs to the step before it; \n is a new line, and empty makes every token a step
    #[arg(long, value_name = "TEXT", default_value = "\\n", requires = "steps", allow_hyphen_values = true, value_parser = values::separator)]
    separator: String,
    /// JSON Lines to score; - reads standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write; - writes to standard output. A file appears whole, or not at all
    #[arg(long, value_name = "FILE", required_unless_present = "html")]
    output: Option<PathBuf>,
    /// Write the texts with their tokens coloured by what was computed, as one HTML file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Where to compute: cpu, cuda (the first GPU), cuda:N, or emulated (the GPU's kernels run and checked on the host, slowly)
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = values::device)]
    device: Device,
    /// How sums run on devices other than the host: fast, tf32, invariant or unordered; see `numerics` in the configuration
    #[arg(long, value_name = "HOW", default_value = "fast")]
    numerics: Numerics,
    /// What the models compute in
    #[arg(long, value_enum, default_value = "float32")]
    dtype: Precision,
    /// Temperature of --model's distribution; process rewards are always taken at 1
    #[arg(long, value_name = "T", default_value = "1", allow_negative_numbers = true, value_parser = values::positive_temperature)]
    pub(super) temperature: f32,
}

/// The fields that a line gets; older values of these names are replaced.
const ADDED: [&str; 8] = [
    "token_ids",
    "log_probs",
    "entropy",
    "process_rewards",
    "outcome_probability",
    "step_ends",
    "step_rewards",
    "prefix_values",
];

#[derive(Serialize)]
struct Scored<'a> {
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
    token_ids: &'a [u32],
    log_probs: &'a [f32],
    entropy: &'a [f32],
    #[serde(flatten)]
    reward: Option<Reward>,
}

#[derive(Serialize)]
pub(super) struct Reward {
    pub(super) process_rewards: Vec<f32>,
    pub(super) outcome_probability: f64,
    #[serde(flatten)]
    pub(super) steps: Option<StepScores>,
}

#[derive(Serialize)]
pub(super) struct StepScores {
    pub(super) step_ends: Vec<usize>,
    step_rewards: Vec<f64>,
    prefix_values: Vec<f64>,
}

/// A line's tokens, and where the steps of its response end, where they are asked for.
struct Asked {
    sequence: Sequence,
    step_ends: Option<Vec<usize>>,
}

/// The models of one call.
struct Models {
    tokenizer: Tokenizer,
    policy: Scorer,
    temperature: f32,
    prm: Option<Prm>,
    /// Where steps are scored.
    separator: Option<String>,
}

struct Prm {
    scorer: Scorer,
    /// None where --model is the reference.
    reference: Option<Scorer>,
    beta: f64,
}

pub(super) fn run(args: &ScoreArgs) -> Result<(), Failure> {
    let mut lines = Lines::open(&args.input)?;
    let mut output = args.output.as_deref().map(Output::create).transpose()?;
    let html = args.html.as_deref().map(Output::create).transpose()?;
    let mut view = html.as_ref().map(|_| View::new());
    let mut models = Models::load(args)?;
    loop {
        let (mut batch, mut tokens) = (Vec::new(), 0);
        while tokens < 2 * PASS_TOKENS {
            let Some(line) = lines.next().transpose()? else { break };
            let asked = models.asked(&line).with_context(|| at_line(line.number))?;
            tokens += asked.sequence.tokens.len();
            batch.push((line, asked));
        }
        if batch.is_empty() {
            break;
        }
        models.score(batch, output.as_mut(), view.as_mut())?;
    }
    if let (Some(mut html), Some(view)) = (html, view) {
        html.write_all(view.page(args)?.as_bytes()).context("the page cannot be written")?;
        html.finish()?;
    }
    if let Some(output) = output {
        output.finish()?;
    }
    Ok(())
}

impl Models {
    fn load(args: &ScoreArgs) -> Result<Models> {
        numerics::choose(args.numerics);
        let dtype: DType = args.dtype.dtype();
        let folder = models::of_run_or_itself(&args.model)?;
        let tokenizer = models::tokenizer(&folder)?;
        let policy = Scorer::new(models::load(
            &folder,
            args.adapter.as_deref(),
            &tokenizer,
            args.device,
            dtype,
        )?)?;
        let other = |folder: &PathBuf| -> Result<Scorer> {
            tokenizer.check_same(&models::tokenizer(folder)?)?;
            Scorer::new(models::load(folder, None, &tokenizer, args.device, dtype)?)
        };
        let prm = match &args.prm {
            None => None,
            Some(prm) => Some(Prm {
                scorer: other(&models::prm_of_run_or_itself(prm)?)?,
                reference: args.reference.as_ref().map(other).transpose()?,
                beta: args.beta,
            }),
        };
        let separator = args.steps.then(|| args.separator.clone());
        Ok(Models { tokenizer, policy, temperature: args.temperature, prm, separator })
    }

    /// What a line asks to score.
    fn asked(&self, line: &Line) -> Result<Asked> {
        let fields = &line.fields;
        let has = |name: &str| fields.contains_key(name);
        if has("text") && (has("prompt") || has("response")) {
            bail!(
                "the line has both `text` and `prompt` or `response`: give `text` alone, or `prompt` and `response`"
            );
        }
        let (mut listed, mut step_ends) = (None, None);
        if let Some(separator) = &self.separator {
            if has("steps") {
                listed = Some(encode_steps(&self.tokenizer, &steps(fields)?, separator)?);
            }
            ensure!(
                has("prompt"),
                "there is no field \"prompt\": --steps scores {{\"prompt\", \"response\"}} or {{\"prompt\", \"steps\"}}"
            );
        }
        let sequence = if has("prompt") || has("response") {
            let prompt = self.tokenizer.encode(&text_field(fields, "prompt")?, true)?;
            ensure!(
                !prompt.is_empty(),
                "the prompt is empty: the response's first token needs something before it"
            );
            let response = match listed {
                Some((response, ends)) => {
                    step_ends = Some(ends);
                    response
                }
                None => self.tokenizer.encode(&text_field(fields, "response")?, false)?,
            };
            if let (Some(separator), None) = (&self.separator, &step_ends) {
                step_ends = Some(crate::steps::step_ends(&self.tokenizer, &response, separator)?);
            }
            Sequence::response(prompt, &response)
        } else {
            let tokens = self.tokenizer.encode(&text_field(fields, "text")?, true)?;
            ensure!(!tokens.is_empty(), "the text is empty: there is nothing to score");
            Sequence::text(tokens)
        };
        let others = self.prm.iter().flat_map(|prm| [Some(&prm.scorer), prm.reference.as_ref()]);
        for scorer in others.flatten().chain([&self.policy]) {
            models::check_length(sequence.tokens.len(), &scorer.model().config)?;
        }
        Ok(Asked { sequence, step_ends })
    }

    fn score(
        &mut self,
        batch: Vec<(Line, Asked)>,
        mut output: Option<&mut Output>,
        mut view: Option<&mut View>,
    ) -> Result<()> {
        let (lines, asked): (Vec<Line>, Vec<Asked>) = batch.into_iter().unzip();
        let (sequences, step_ends): (Vec<Sequence>, Vec<Option<Vec<usize>>>) =
            asked.into_iter().map(|asked| (asked.sequence, asked.step_ends)).unzip();
        let scores = self.policy.score(&sequences, self.temperature)?;
        let rewards = match &mut self.prm {
            None => lines.iter().map(|_| None).collect(),
            Some(prm) => {
                let under_prm = prm.scorer.score(&sequences, 1.0)?;
                let under_reference = match &mut prm.reference {
                    Some(reference) => reference.score(&sequences, 1.0)?,
                    None if self.temperature == 1.0 => scores.clone(),
                    None => self.policy.score(&sequences, 1.0)?,
                };
                let pairs = under_prm.iter().zip(&under_reference);
                pairs
                    .zip(step_ends)
                    .map(|((prm_scores, reference), ends)| {
                        Some(reward(prm_scores, reference, prm.beta, ends))
                    })
                    .collect::<Vec<_>>()
            }
        };
        for (((mut line, sequence), scores), reward) in
            lines.into_iter().zip(&sequences).zip(&scores).zip(rewards)
        {
            check_finite(scores, reward.as_ref()).with_context(|| at_line(line.number))?;
            if let Some(view) = &mut view {
                view.add(&line, answer(&self.tokenizer, sequence, scores, reward.as_ref())?);
            }
            let Some(output) = &mut output else { continue };
            for name in ADDED {
                line.fields.shift_remove(name);
            }
            output.line(&Scored {
                fields: &line.fields,
                token_ids: &sequence.tokens,
                log_probs: &scores.log_probs,
                entropy: &scores.entropy,
                reward,
            })?;
        }
        Ok(())
    }
}

/// The implicit process rewards of scored tokens, and what their sum says of the outcome.
fn reward(prm: &Scores, reference: &Scores, beta: f64, step_ends: Option<Vec<usize>>) -> Reward {
    let rewards: Vec<f64> = prm
        .log_probs
        .iter()
        .zip(&reference.log_probs)
        .map(|(&prm, &reference)| beta * (f64::from(prm) - f64::from(reference)))
        .collect();
    let sum: f64 = rewards.iter().sum();
    let steps = step_ends.map(|step_ends| {
        let step_rewards = step_rewards(&rewards, &step_ends);
        StepScores { prefix_values: prefix_values(&step_rewards), step_ends, step_rewards }
    });
    Reward {
        steps,
        process_rewards: rewards.iter().map(|&x| x as f32).collect(),
        outcome_probability: 1.0 / (1.0 + (-sum).exp()),
    }
}

/// The list `steps` of a line.
fn steps(fields: &Map<String, Value>) -> Result<Vec<String>> {
    let Some(Value::Array(steps)) = fields.get("steps") else {
        bail!("the field \"steps\" is not a list")
    };
    let text = |(k, step): (usize, &Value)| match step {
        Value::String(text) if !text.is_empty() => Ok(text.clone()),
        _ => bail!("steps[{k}] is not text, or empty"),
    };
    let steps: Vec<String> = steps.iter().enumerate().map(text).collect::<Result<_>>()?;
    ensure!(!steps.is_empty(), "the list \"steps\" is empty");
    Ok(steps)
}

fn check_finite(scores: &Scores, reward: Option<&Reward>) -> Result<()> {
    let rewards = reward.map_or(&[][..], |reward| &reward.process_rewards);
    let numbers = scores.log_probs.iter().chain(&scores.entropy).chain(rewards);
    if let Some(number) = numbers.into_iter().find(|number| !number.is_finite()) {
        bail!("a score is {number}: the weights of the model are not usable");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reward_is_the_scaled_log_ratio_and_its_sum_a_probability() {
        let scores = |log_probs: &[f32]| Scores { log_probs: log_probs.to_vec(), entropy: vec![] };
        let reward = reward(&scores(&[-1.0, -0.5]), &scores(&[-3.0, -1.0]), 2.0, Some(vec![1, 2]));
        let steps = reward.steps.as_ref().unwrap();
        assert_eq!(
            (&steps.step_rewards[..], &steps.prefix_values[..]),
            (&[4.0, 1.0][..], &[4.0, 5.0][..])
        );
        assert_eq!(reward.process_rewards, [4.0, 1.0]);
        // sigmoid(5)
        assert!((reward.outcome_probability - 0.993_307_149_075_715).abs() < 1e-15);
        assert_eq!(super::reward(&scores(&[]), &scores(&[]), 2.0, None).outcome_probability, 0.5);
    }
}
