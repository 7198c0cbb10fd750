//! Rewards, advantages and losses recomputed from recorded rollouts, under settings that need not be those of the run.
//!
//! Input: JSON Lines, a rollout each; lines of one `prompt_id` are a group, wherever they stand.
//!
//! | field | |
//! |---|---|
//! | `prompt_id` | a string or an integer |
//! | `outcome` | a number from 0 to 1 |
//! | `old_log_probs` | of each token of the response, under the policy that sampled |
//! | `prm_log_probs`, `ref_log_probs` | the same under the PRM and its reference; all lines may lack both where `process_coef` is 0 |
//! | `new_log_probs` | the same under the policy being updated; the old ones where it is missing |
//! | `values` | a critic's value of the text before each token; needed by `estimator=gae` alone |
//! | `step_ends` | the indices of the tokens that end a step; needed by `granularity=step` alone |
//! | `kl_ref_log_probs` | of each token under the policy's own reference, for KL penalties; `ref_log_probs` where all lines lack it |
//! | `finished` | whether the response ended by itself; true where it is missing, read by `mask_truncated` alone |
//!
//! Output: each line as it was with `process_rewards`, `returns` and `advantages`, where asked for with `kl` and `grad_log_prob`, and a last line
//! of losses.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::step::prm_targets::loss_of;
use crate::step::{
    Estimator, Granularity, Response, Rollouts, accuracy, advantage, implicit_reward,
};
use policy::PolicyLosses;

mod policy;
mod settings;

pub use settings::{KEYS, ReplaySettings};

/// The last line of a replay. What needs a PRM is missing where no line had its log-probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The PRM's loss on the outcomes.
    pub prm_loss: Option<f64>,
    /// [`accuracy::pairwise`].
    pub prm_accuracy: Option<f64>,
    /// [`accuracy::sign`].
    pub prm_sign_accuracy: Option<f64>,
    /// What the policy's side of the step comes to.
    #[serde(flatten)]
    pub policy: PolicyLosses,
}

/// A finished replay: nothing is written before everything is computed.
#[derive(Clone, Debug)]
pub struct Replay {
    /// The rollouts by group, with the columns that the replay computed.
    pub batch: Rollouts,
    /// The losses.
    pub summary: Summary,
    /// The divergence of the new policy from its reference at each token, where it was asked for.
    pub kl: Option<Vec<f32>>,
    /// The gradient of the total loss by each new log-probability, where it was asked for.
    pub gradient: Option<Vec<f32>>,
    lines: Vec<Source>,
}

/// A line of input, to be echoed, and the response of the batch that it became.
#[derive(Clone, Debug)]
struct Source {
    fields: Map<String, Value>,
    response: usize,
}

#[derive(Serialize)]
struct OutputLine<'a> {
    #[serde(flatten)]
    input: &'a Map<String, Value>,
    process_rewards: &'a [f32],
    returns: &'a [f32],
    advantages: &'a [f32],
    #[serde(skip_serializing_if = "Option::is_none")]
    kl: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grad_log_prob: Option<&'a [f32]>,
}

/// The fields of a line that a replay or a run computes.
const COMPUTED: [&str; 5] = ["process_rewards", "returns", "advantages", "kl", "grad_log_prob"];

impl Replay {
    /// Writes the input's lines in their order, each with what was computed for it, and the summary.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write(&self, mut out: impl Write) -> Result<()> {
        for Source { fields: input, response } in &self.lines {
            let span = self.batch.span(*response);
            let line = OutputLine {
                input,
                process_rewards: &self.batch.process_rewards[span.clone()],
                returns: &self.batch.returns[span.clone()],
                advantages: &self.batch.advantages[span.clone()],
                kl: self.kl.as_ref().map(|column| &column[span.clone()]),
                grad_log_prob: self.gradient.as_ref().map(|column| &column[span]),
            };
            serde_json::to_writer(&mut out, &line)?;
            out.write_all(b"\n")?;
        }
        serde_json::to_writer(&mut out, &self.summary)?;
        out.write_all(b"\n")?;
        out.flush()?;
        Ok(())
    }
}

/// Recomputes rewards, advantages and losses of recorded rollouts.
///
/// # Errors
/// When a line cannot be used (its number is named), the input is empty, or a result is not finite.
pub fn replay(input: impl BufRead, settings: &ReplaySettings) -> Result<Replay> {
    settings.check()?;
    let (mut batch, lines) = read(input, settings)?;
    let tokens = batch.token_count();
    let with_prm = !batch.prm_log_probs.is_empty() || tokens == 0;
    batch.process_rewards = if with_prm {
        implicit_reward::process_rewards(&batch, &settings.rewards())?
    } else {
        vec![0.0; tokens]
    };
    let longest = batch.lengths().into_iter().max().unwrap_or(0).max(1);
    let computed = advantage::advantages(&batch, &settings.returns(longest))?;
    (batch.returns, batch.advantages) = (computed.returns, computed.advantages);

    let policy = policy::losses(&batch, settings, longest)?;
    let summary = Summary {
        prm_loss: if with_prm {
            Some(loss_of(&batch, &settings.prm_loss(), settings.kto_kl)?)
        } else {
            None
        },
        prm_accuracy: if with_prm { Some(accuracy::pairwise(&batch)?) } else { None },
        prm_sign_accuracy: if with_prm { Some(accuracy::sign(&batch)?) } else { None },
        policy: policy.losses,
    };
    Ok(Replay { batch, summary, kl: policy.kl, gradient: policy.gradient, lines })
}

/// One line of input.
struct Line {
    number: usize,
    fields: Map<String, Value>,
    prompt_id: String,
    outcome: f32,
    old: Vec<f32>,
    new: Vec<f32>,
    prm: Option<(Vec<f32>, Vec<f32>)>,
    values: Option<Vec<f32>>,
    kl_reference: Option<Vec<f32>>,
    finished: bool,
    step_ends: Option<Vec<bool>>,
}

/// The batch, and the input's lines with the response that each became.
fn read(input: impl BufRead, settings: &ReplaySettings) -> Result<(Rollouts, Vec<Source>)> {
    let mut lines = Vec::new();
    for (index, bytes) in input.split(b'\n').enumerate() {
        let number = index + 1;
        let bytes = bytes.with_context(|| format!("line {number} cannot be read"))?;
        if bytes.trim_ascii().is_empty() {
            continue;
        }
        lines.push(parse(number, &bytes).map_err(|error| anyhow!("line {number}: {error}"))?);
    }
    ensure!(!lines.is_empty(), "the input has no rollouts; each line is one, as a JSON object");
    let mut group_numbers = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let group = *group_numbers.entry(line.prompt_id.as_str()).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(i);
    }

    let with_prm = settings.process_coef != 0.0 || lines.iter().any(|line| line.prm.is_some());
    let with_values = settings.estimator == Estimator::Gae;
    let own_reference = lines.iter().any(|line| line.kl_reference.is_some());
    let with_steps = settings.granularity == Granularity::Step;
    let mut batch = Rollouts::new();
    let mut response_of = vec![0; lines.len()];
    for group in &groups {
        let first = &lines[group[0]];
        ensure!(
            group.len() >= 2 || settings.estimator != Estimator::Rloo,
            "line {}: prompt `{}` has this one response; leave-one-out advantages need at least 2 to each prompt",
            first.number,
            first.prompt_id
        );
        let mut responses = Vec::with_capacity(group.len());
        for &i in group {
            let line = &lines[i];
            response_of[i] = batch.len() + responses.len();
            responses.push(Response {
                tokens: Vec::new(),
                old_log_probs: line.old.clone(),
                outcome: line.outcome,
                finished: line.finished,
            });
            batch.new_log_probs.extend_from_slice(&line.new);
            if with_prm {
                let Some((prm, reference)) = &line.prm else {
                    bail!(
                        "line {}: the fields prm_log_probs and ref_log_probs are missing",
                        line.number
                    )
                };
                batch.prm_log_probs.extend_from_slice(prm);
                batch.ref_log_probs.extend_from_slice(reference);
            }
            if settings.needs_kl_reference() {
                let reference = if own_reference {
                    line.kl_reference.as_ref()
                } else {
                    line.prm.as_ref().map(|(_, reference)| reference)
                };
                let reference = reference.with_context(|| {
                    format!(
                        "line {}: the field kl_ref_log_probs is missing; KL to a reference needs it, or ref_log_probs in all lines",
                        line.number
                    )
                })?;
                batch.kl_ref_log_probs.extend_from_slice(reference);
            }
            if with_values {
                let values = line.values.as_ref().with_context(|| {
                    format!(
                        "line {}: the field values is missing; estimator=gae needs it",
                        line.number
                    )
                })?;
                batch.values.extend_from_slice(values);
            }
            if with_steps {
                let ends = line.step_ends.as_ref().with_context(|| {
                    format!(
                        "line {}: the field step_ends is missing; granularity=step needs it",
                        line.number
                    )
                })?;
                batch.step_ends.extend_from_slice(ends);
            }
        }
        batch.push_group(first.prompt_id.clone(), Vec::new(), &responses)?;
    }
    let source = |(line, response): (Line, usize)| Source { fields: line.fields, response };
    let lines = lines.into_iter().zip(response_of).map(source).collect();
    Ok((batch, lines))
}

fn parse(number: usize, bytes: &[u8]) -> Result<Line> {
    let text = std::str::from_utf8(bytes).map_err(|_| anyhow!("not UTF-8"))?;
    let value: Value = serde_json::from_str(text).map_err(|error| {
        // The parser counts lines within this one.
        let message = error.to_string();
        let what = message.split(" at line ").next().unwrap_or_default();
        anyhow!("not JSON at column {}: {what}", error.column())
    })?;
    let Value::Object(mut fields) = value else { bail!("not a JSON object; a rollout is one") };
    let prompt_id = match fields.get("prompt_id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) if !id.is_f64() => id.to_string(),
        Some(other) => bail!("prompt_id is {other}; it must be a string or an integer"),
        None => bail!("the field prompt_id is missing"),
    };
    let outcome = match fields.get("outcome") {
        Some(value) => value
            .as_f64()
            .filter(|x| (0.0..=1.0).contains(x))
            .with_context(|| format!("outcome is {value}; it must be a number from 0 to 1"))?,
        None => bail!("the field outcome is missing"),
    };
    let old = log_probs(&fields, "old_log_probs")?.context("the field old_log_probs is missing")?;
    let of_length = |name: &str| -> Result<Option<Vec<f32>>> {
        let values = log_probs(&fields, name)?;
        if let Some(values) = &values {
            ensure!(
                values.len() == old.len(),
                "{name} has {} values and old_log_probs {}; both have one for each token of the response",
                values.len(),
                old.len()
            );
        }
        Ok(values)
    };
    let prm = match (of_length("prm_log_probs")?, of_length("ref_log_probs")?) {
        (Some(prm), Some(reference)) => Some((prm, reference)),
        (None, None) => None,
        (None, Some(_)) => bail!("the field prm_log_probs is missing"),
        (Some(_), None) => bail!("the field ref_log_probs is missing"),
    };
    let values = of_length("values")?;
    let kl_reference = of_length("kl_ref_log_probs")?;
    let finished = match fields.get("finished") {
        None => true,
        Some(value) => value
            .as_bool()
            .with_context(|| format!("finished is {value}; it must be true or false"))?,
    };
    let new = of_length("new_log_probs")?.unwrap_or_else(|| old.clone());
    let step_ends = step_ends(&fields, old.len())?;
    // What an earlier replay or the run itself computed makes room for what this one does.
    for computed in COMPUTED {
        fields.shift_remove(computed);
    }
    Ok(Line {
        number,
        prompt_id,
        outcome: outcome as f32,
        old,
        new,
        prm,
        values,
        kl_reference,
        finished,
        step_ends,
        fields,
    })
}

/// A field of finite numbers, where there is one.
fn log_probs(fields: &Map<String, Value>, name: &str) -> Result<Option<Vec<f32>>> {
    let Some(field) = fields.get(name) else { return Ok(None) };
    let Value::Array(values) = field else { bail!("{name} is not an array of numbers") };
    let mut out = Vec::with_capacity(values.len());
    for (t, value) in values.iter().enumerate() {
        let number = value.as_f64().map(|x| x as f32).filter(|x| x.is_finite());
        out.push(
            number
                .with_context(|| format!("{name}[{t}] is {value}; it must be a finite number"))?,
        );
    }
    Ok(Some(out))
}

/// The field `step_ends`, a flag for each token, where there is one.
fn step_ends(fields: &Map<String, Value>, length: usize) -> Result<Option<Vec<bool>>> {
    let Some(field) = fields.get("step_ends") else { return Ok(None) };
    let Value::Array(values) = field else { bail!("step_ends is not an array of token indices") };
    let mut flags = vec![false; length];
    for (k, value) in values.iter().enumerate() {
        let index = value.as_u64().and_then(|t| usize::try_from(t).ok()).filter(|&t| t < length);
        let index = index.with_context(|| {
            format!("step_ends[{k}] is {value}; it must be the index of one of {length} tokens")
        })?;
        flags[index] = true;
    }
    Ok(Some(flags))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Form;

    /// Two prompts, their lines mixed; powers of two, so that log-ratios are exact.
    const LINES: &str = r#"{"prompt_id":"a","outcome":1,"prm_log_probs":[-0.5,-1.0],"ref_log_probs":[-1.0,-1.0],"old_log_probs":[-1.0,-2.0],"note":{"b":[1.10]}}
{"prompt_id":7,"outcome":0.0,"prm_log_probs":[-1.0],"ref_log_probs":[-2.0],"old_log_probs":[-0.5],"advantages":[9]}

{"prompt_id":"a","outcome":0,"prm_log_probs":[-2.0],"ref_log_probs":[-1.0],"old_log_probs":[-1.0],"new_log_probs":[-0.5]}
{"prompt_id":7,"outcome":1.0,"prm_log_probs":[],"ref_log_probs":[],"old_log_probs":[]}
"#;

    fn run(lines: &str, form: Form, set: &[&str]) -> Result<Vec<Value>> {
        let mut settings = ReplaySettings::published(form);
        for assignment in set {
            settings.set(assignment)?;
        }
        let mut out = Vec::new();
        replay(lines.as_bytes(), &settings)?.write(&mut out)?;
        let text = String::from_utf8(out)?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    fn refused(lines: &str, set: &[&str]) -> String {
        run(lines, Form::PrimeRepo, set).unwrap_err().to_string()
    }

    #[test]
    fn lines_keep_their_order_and_their_fields_and_a_summary_comes_last() {
        let out = run(LINES, Form::Paper, &["beta=1"]).unwrap();
        assert_eq!(out.len(), 5);
        let keys = |line: &Value| line.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let computed = ["process_rewards", "returns", "advantages"];
        let given = ["prompt_id", "outcome", "prm_log_probs", "ref_log_probs", "old_log_probs"];
        assert_eq!(keys(&out[0]), [&given[..], &["note"], &computed].concat());
        assert_eq!(out[0]["note"].to_string(), r#"{"b":[1.1]}"#);
        assert_eq!(keys(&out[1]), [&given[..], &computed].concat());
        assert_eq!(out[1]["prompt_id"], 7);
        // Prompt a: rewards 0.5, 0 | -1, means 0.25 | -1, outcome parts 1 | -1.
        assert_eq!(out[0]["process_rewards"], serde_json::json!([0.5, 0.0]));
        assert_eq!(out[0]["returns"], serde_json::json!([3.5, 2.0]));
        assert_eq!(out[2]["advantages"], serde_json::json!([-2.25]));
        // Prompt 7: reward 1 | nothing.
        assert_eq!(out[1]["advantages"], serde_json::json!([0.0]));
        assert_eq!(out[3]["advantages"], serde_json::json!([]));
        let summary = keys(&out[4]);
        for key in ["prm_loss", "prm_accuracy", "policy_loss", "clip_fraction"] {
            assert!(summary.iter().any(|known| known == key), "{summary:?}");
        }
        // The pair of prompt a is right, that of prompt 7 wrong: the empty response scores 0, the wrong one 1.
        assert_eq!(out[4]["prm_accuracy"], 0.5);
        // One of four tokens moved, its ratio e^0.5 beyond the bound that matters for a negative advantage only below.
        assert_eq!(out[4]["clip_fraction"], 0.0);
    }

    #[test]
    fn replaying_what_a_replay_wrote_gives_the_same_bytes() {
        let settings = ReplaySettings::published(Form::Verl);
        let write = |input: &[u8]| {
            let mut out = Vec::new();
            replay(input, &settings).unwrap().write(&mut out).unwrap();
            out
        };
        let once = write(LINES.as_bytes());
        let last = once[..once.len() - 1].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        assert_eq!(write(&once[..last]), once);
    }

    #[test]
    fn without_a_process_part_the_prm_s_log_probabilities_may_be_missing_from_all_lines() {
        let bare = concat!(
            r#"{"prompt_id":"a","outcome":1,"old_log_probs":[-1.0]}"#,
            "\n",
            r#"{"prompt_id":"a","outcome":0,"old_log_probs":[-1.0]}"#
        );
        assert!(
            refused(bare, &[]).starts_with("line 1: the fields prm_log_probs and ref_log_probs")
        );
        let out = run(bare, Form::Paper, &["process_coef=0"]).unwrap();
        assert_eq!(out[0]["advantages"], serde_json::json!([1.0]));
        assert_eq!(out[2]["prm_loss"], Value::Null);
    }

    #[test]
    fn rewards_by_step_come_from_the_ends_that_the_lines_mark() {
        let lines = concat!(
            r#"{"prompt_id":0,"outcome":1,"prm_log_probs":[1,2,4],"ref_log_probs":[0,0,0],"old_log_probs":[0,0,0],"step_ends":[1]}"#,
            "\n",
            r#"{"prompt_id":0,"outcome":0,"prm_log_probs":[8],"ref_log_probs":[0],"old_log_probs":[0],"step_ends":[]}"#
        );
        let out = run(lines, Form::Paper, &["beta=1", "granularity=step"]).unwrap();
        assert_eq!(out[0]["process_rewards"], serde_json::json!([0.0, 3.0, 4.0]));
        let message = refused(LINES, &["granularity=step"]);
        assert_eq!(message, "line 1: the field step_ends is missing; granularity=step needs it");
        let message = refused(&lines.replace("[1]}", "[3]}"), &[]);
        assert!(message.starts_with("line 1: step_ends[0] is 3"), "{message}");
    }

    #[test]
    fn a_line_that_cannot_be_used_is_named_with_what_is_wrong() {
        let spoilt = |from: &str, to: &str| {
            let lines = LINES.replacen(from, to, 1);
            assert_ne!(lines, LINES, "{from}");
            refused(&lines, &[])
        };
        for (from, to, message) in [
            (
                "{\"prompt_id\":7,",
                "{prompt_id:7,",
                "line 2: not JSON at column 2: key must be a string",
            ),
            ("\n\n", "\n[1]\n", "line 3: not a JSON object; a rollout is one"),
            ("\"prompt_id\":\"a\",", "", "line 1: the field prompt_id is missing"),
            (
                "\"prompt_id\":7",
                "\"prompt_id\":7.5",
                "line 2: prompt_id is 7.5; it must be a string or an integer",
            ),
            ("\"outcome\":1,", "", "line 1: the field outcome is missing"),
            (
                "\"outcome\":1",
                "\"outcome\":1.5",
                "line 1: outcome is 1.5; it must be a number from 0 to 1",
            ),
            (
                "\"outcome\":1",
                "\"outcome\":\"1\"",
                "line 1: outcome is \"1\"; it must be a number from 0 to 1",
            ),
            ("\"old_log_probs\"", "\"old\"", "line 1: the field old_log_probs is missing"),
            ("\"ref_log_probs\"", "\"ref\"", "line 1: the field ref_log_probs is missing"),
            ("\"prm_log_probs\"", "\"prm\"", "line 1: the field prm_log_probs is missing"),
            (
                "[-0.5,-1.0]",
                "[-0.5]",
                "line 1: prm_log_probs has 1 values and old_log_probs 2; both have one for each token of the response",
            ),
            ("[-0.5,", "[null,", "line 1: prm_log_probs[0] is null; it must be a finite number"),
            ("[-0.5,", "[1e60,", "line 1: prm_log_probs[0] is 1e+60; it must be a finite number"),
            ("[-0.5,-1.0]", "-0.5", "line 1: prm_log_probs is not an array of numbers"),
            (
                "\"prompt_id\":7",
                "\"prompt_id\":8",
                "line 2: prompt `8` has this one response; leave-one-out advantages need at least 2 to each prompt",
            ),
        ] {
            assert_eq!(spoilt(from, to), message);
        }
        assert_eq!(
            refused("\n \n", &[]),
            "the input has no rollouts; each line is one, as a JSON object"
        );
        let settings = ReplaySettings::published(Form::Paper);
        let message = replay(&b"\xff{}"[..], &settings).unwrap_err().to_string();
        assert_eq!(message, "line 1: not UTF-8");
    }

    #[test]
    fn a_result_beyond_float32_is_refused_rather_than_written_as_null() {
        let lines = LINES.replace("[-2.0],\"ref", "[-1e38],\"ref").replace("[-0.5]}", "[60.0]}");
        let message = run(&lines, Form::Paper, &[]).unwrap_err().to_string();
        assert!(message.starts_with("the policy loss is inf"), "{message}");
    }
}
