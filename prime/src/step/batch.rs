//! The ragged batch that a step works on: responses packed end to end, grouped by prompt.
//!
//! Columns that a later arrow of the step fills are empty until it has run. A column is read through
//! [`Rollouts::column`], which refuses one that is missing or holds a value that is not finite, and names the response.

use std::io::Write;
use std::ops::Range;

use anyhow::{Result, bail, ensure};
use prime_runtime::Device;
use serde::Serialize;

use crate::engine::Sample;

/// The responses to one prompt. Groups may differ in size.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What the prompt is called in records.
    pub prompt_id: String,
    /// The prompt's tokens; empty where they are not known, as in a replay.
    pub prompt_tokens: Vec<u32>,
    /// Which responses of the batch.
    pub responses: Range<usize>,
}

/// One sampled response, as it enters the batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Token ids up to and including the stop token; empty where they are not known, as in a replay.
    pub tokens: Vec<u32>,
    /// The sampler's log-probability of each token.
    pub old_log_probs: Vec<f32>,
    /// The grader's verdict, 0 to 1.
    pub outcome: f32,
    /// Whether the response ended by itself, not at the limit of its length.
    pub finished: bool,
}

/// A ragged batch of rollouts. Per-token columns hold the responses end to end, cut by `cu_seqlens`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rollouts {
    /// Which device runs operations on the columns, which lie on the host.
    pub device: Device,
    /// The prompts, each with its contiguous range of responses.
    pub groups: Vec<Group>,
    /// Where each response begins in the per-token columns, and the end: (responses + 1).
    pub cu_seqlens: Vec<u32>,
    /// The grader's verdict, 0 to 1: (responses).
    pub outcomes: Vec<f32>,
    /// Whether the response ended by itself: (responses).
    pub finished: Vec<bool>,
    /// Token ids: (tokens), or empty where they are not known.
    pub tokens: Vec<u32>,
    /// Whether a token is the last of a step of its response: (tokens), or empty where steps are not told apart.
    pub step_ends: Vec<bool>,
    /// Log-probabilities under the policy that sampled: (tokens).
    pub old_log_probs: Vec<f32>,
    /// Entropies of the sampling distribution, nats: (tokens), or empty.
    pub entropies: Vec<f32>,
    /// Log-probabilities under the PRM: (tokens), or empty.
    pub prm_log_probs: Vec<f32>,
    /// Log-probabilities under the PRM's reference: (tokens), or empty.
    pub ref_log_probs: Vec<f32>,
    /// Log-probabilities under the policy's own reference, which KL penalties are measured from: (tokens), or empty.
    pub kl_ref_log_probs: Vec<f32>,
    /// Implicit process rewards: (tokens), or empty.
    pub process_rewards: Vec<f32>,
    /// A critic's value of the text before each token: (tokens), or empty.
    pub values: Vec<f32>,
    /// Returns: (tokens), or empty.
    pub returns: Vec<f32>,
    /// What multiplies the ratio in the policy loss: (tokens), or empty.
    pub advantages: Vec<f32>,
    /// Log-probabilities under the policy being updated: (tokens), or empty.
    pub new_log_probs: Vec<f32>,
}

impl Default for Rollouts {
    fn default() -> Self {
        Rollouts {
            device: Device::Cpu,
            groups: Vec::new(),
            cu_seqlens: vec![0],
            outcomes: Vec::new(),
            finished: Vec::new(),
            tokens: Vec::new(),
            step_ends: Vec::new(),
            old_log_probs: Vec::new(),
            entropies: Vec::new(),
            prm_log_probs: Vec::new(),
            ref_log_probs: Vec::new(),
            kl_ref_log_probs: Vec::new(),
            process_rewards: Vec::new(),
            values: Vec::new(),
            returns: Vec::new(),
            advantages: Vec::new(),
            new_log_probs: Vec::new(),
        }
    }
}

impl Rollouts {
    /// A batch of nothing, to push groups onto.
    pub fn new() -> Self {
        Rollouts::default()
    }

    /// Adds the responses to one prompt. Only the columns known at sampling are filled, so groups are pushed before
    /// any later column is computed.
    ///
    /// # Errors
    /// When the group is empty, a response has not one log-probability per token or one that is not finite, or an
    /// outcome is outside 0 to 1.
    pub fn push_group(
        &mut self,
        prompt_id: impl Into<String>,
        prompt_tokens: Vec<u32>,
        responses: &[Response],
    ) -> Result<()> {
        let prompt_id = prompt_id.into();
        ensure!(!responses.is_empty(), "prompt `{prompt_id}` has no responses");
        for (i, response) in responses.iter().enumerate() {
            let name = || format!("response {} to prompt `{prompt_id}`", i + 1);
            let length = response.old_log_probs.len();
            ensure!(
                response.tokens.is_empty() || response.tokens.len() == length,
                "{}: {} tokens but {length} old_log_probs; every token has one",
                name(),
                response.tokens.len()
            );
            ensure!(
                (0.0..=1.0).contains(&response.outcome),
                "{}: the outcome is {}; it must be within 0 to 1",
                name(),
                response.outcome
            );
            if let Some(t) = response.old_log_probs.iter().position(|x| !x.is_finite()) {
                let value = response.old_log_probs[t];
                bail!("{}: old_log_probs[{t}] is {value}; it must be finite", name());
            }
        }
        let added: usize = responses.iter().map(|r| r.old_log_probs.len()).sum();
        let added_ids: usize = responses.iter().map(|r| r.tokens.len()).sum();
        let ids = self.tokens.len() + added_ids;
        ensure!(
            ids == 0 || ids == self.token_count() + added,
            "prompt `{prompt_id}`: either all responses of a batch come with tokens or none does"
        );
        ensure!(
            u32::try_from(self.token_count() + added).is_ok(),
            "prompt `{prompt_id}`: a batch holds at most {} tokens",
            u32::MAX
        );

        let first = self.len();
        for response in responses {
            self.tokens.extend_from_slice(&response.tokens);
            self.old_log_probs.extend_from_slice(&response.old_log_probs);
            self.cu_seqlens.push(self.old_log_probs.len() as u32);
            self.outcomes.push(response.outcome);
            self.finished.push(response.finished);
        }
        self.groups.push(Group { prompt_id, prompt_tokens, responses: first..self.len() });
        Ok(())
    }

    /// How many responses.
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Whether there are no responses.
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// How many tokens all responses have together.
    pub fn token_count(&self) -> usize {
        self.cu_seqlens[self.len()] as usize
    }

    /// Where a response lies in the per-token columns.
    pub fn span(&self, response: usize) -> Range<usize> {
        self.cu_seqlens[response] as usize..self.cu_seqlens[response + 1] as usize
    }

    /// Every response behind its prompt, as a model scores it.
    pub fn samples(&self) -> Vec<Sample<'_>> {
        let mut samples = Vec::with_capacity(self.len());
        for group in &self.groups {
            for response in group.responses.clone() {
                samples.push(Sample {
                    prompt: &group.prompt_tokens,
                    response: &self.tokens[self.span(response)],
                });
            }
        }
        samples
    }

    /// The number of tokens of each response.
    pub fn lengths(&self) -> Vec<usize> {
        self.cu_seqlens.windows(2).map(|w| (w[1] - w[0]) as usize).collect()
    }

    /// The group that a response belongs to.
    pub fn group_of(&self, response: usize) -> usize {
        self.groups.partition_point(|group| group.responses.end <= response)
    }

    /// What a response is called in messages.
    pub fn name(&self, response: usize) -> String {
        let group = &self.groups[self.group_of(response)];
        format!("response {} to prompt `{}`", response - group.responses.start + 1, group.prompt_id)
    }

    /// A per-token column of this batch, once it is known to have a finite value for every token. `name` is what the
    /// message calls it.
    ///
    /// # Errors
    /// When a value is missing or not finite.
    pub fn column<'a>(&self, name: &str, values: &'a [f32]) -> Result<&'a [f32]> {
        ensure!(
            values.len() == self.token_count(),
            "{name} has {} values; the batch has {} tokens",
            values.len(),
            self.token_count()
        );
        if let Some(t) = values.iter().position(|x| !x.is_finite()) {
            // The last response that begins at or before the token: those before it may be empty.
            let response = self.cu_seqlens.partition_point(|&start| start as usize <= t) - 1;
            bail!(
                "{}: {name}[{}] is {}; it must be finite",
                self.name(response),
                t - self.span(response).start,
                values[t]
            );
        }
        Ok(values)
    }

    /// Whether everything agrees: the groups follow each other and cover all responses, and every column has one value
    /// per token or none.
    ///
    /// # Errors
    /// A sentence about the first thing that does not.
    pub fn check(&self) -> Result<()> {
        let responses = self.len();
        ensure!(
            self.cu_seqlens.len() == responses + 1 && self.finished.len() == responses,
            "{responses} outcomes, {} finished flags and {} boundaries do not describe one batch",
            self.finished.len(),
            self.cu_seqlens.len()
        );
        ensure!(
            self.cu_seqlens[0] == 0 && self.cu_seqlens.is_sorted(),
            "cu_seqlens must begin at 0 and never fall"
        );
        let mut next = 0;
        for group in &self.groups {
            ensure!(
                group.responses.start == next && group.responses.end > next,
                "prompt `{}` has responses {:?}; the next group begins at response {next}",
                group.prompt_id,
                group.responses
            );
            next = group.responses.end;
        }
        ensure!(next == responses, "the groups cover {next} of {responses} responses");
        let tokens = self.token_count();
        let mut columns = vec![("tokens", self.tokens.len()), ("step_ends", self.step_ends.len())];
        columns.extend(self.float_columns().map(|(name, values)| (name, values.len())));
        for (name, length) in columns {
            ensure!(
                length == tokens || length == 0 && name != "old_log_probs",
                "{name} has {length} values; the batch has {tokens} tokens"
            );
        }
        Ok(())
    }

    fn float_columns(&self) -> [(&'static str, &Vec<f32>); 10] {
        [
            ("old_log_probs", &self.old_log_probs),
            ("entropies", &self.entropies),
            ("prm_log_probs", &self.prm_log_probs),
            ("ref_log_probs", &self.ref_log_probs),
            ("kl_ref_log_probs", &self.kl_ref_log_probs),
            ("process_rewards", &self.process_rewards),
            ("values", &self.values),
            ("returns", &self.returns),
            ("advantages", &self.advantages),
            ("new_log_probs", &self.new_log_probs),
        ]
    }

    fn float_columns_mut(&mut self) -> [&mut Vec<f32>; 10] {
        [
            &mut self.old_log_probs,
            &mut self.entropies,
            &mut self.prm_log_probs,
            &mut self.ref_log_probs,
            &mut self.kl_ref_log_probs,
            &mut self.process_rewards,
            &mut self.values,
            &mut self.returns,
            &mut self.advantages,
            &mut self.new_log_probs,
        ]
    }

    /// Gives every further group of one prompt a name of its own. A prompt comes twice in a batch that begins in one epoch and ends in the next, and
    /// a replay tells groups apart by their names.
    pub fn tell_groups_apart(&mut self) {
        let mut seen = std::collections::HashMap::new();
        for group in &mut self.groups {
            let times = seen.entry(group.prompt_id.clone()).or_insert(0);
            *times += 1;
            if *times > 1 {
                group.prompt_id = format!("{} ({times})", group.prompt_id);
            }
        }
    }

    /// A batch of some of the groups, in the order given.
    ///
    /// # Panics
    /// When a group is out of range.
    pub fn select(&self, groups: &[usize]) -> Rollouts {
        let mut out = Rollouts::new();
        for &g in groups {
            let Group { prompt_id, prompt_tokens, responses } = &self.groups[g];
            let first = out.len();
            for response in responses.clone() {
                let span = self.span(response);
                copy_span(&mut out.tokens, &self.tokens, &span);
                copy_span(&mut out.step_ends, &self.step_ends, &span);
                for (to, (_, from)) in out.float_columns_mut().into_iter().zip(self.float_columns())
                {
                    copy_span(to, from, &span);
                }
                out.cu_seqlens.push(out.token_count() as u32 + span.len() as u32);
                out.outcomes.push(self.outcomes[response]);
                out.finished.push(self.finished[response]);
            }
            out.groups.push(Group {
                prompt_id: prompt_id.clone(),
                prompt_tokens: prompt_tokens.clone(),
                responses: first..out.len(),
            });
        }
        out
    }

    /// Puts another batch behind this one: what a further round of sampling brought.
    ///
    /// # Errors
    /// When one batch has a column that the other lacks.
    pub fn append(&mut self, other: Rollouts) -> Result<()> {
        let (tokens, responses) = (self.token_count(), self.len());
        let total = tokens + other.token_count();
        let mut lengths = vec![
            ("tokens", self.tokens.len() + other.tokens.len()),
            ("step_ends", self.step_ends.len() + other.step_ends.len()),
        ];
        let ours = self.float_columns().into_iter();
        lengths.extend(
            ours.zip(other.float_columns()).map(|((name, a), (_, b))| (name, a.len() + b.len())),
        );
        for (name, length) in lengths {
            ensure!(
                length == 0 || length == total,
                "only one of two batches to be joined has {name}"
            );
        }
        ensure!(u32::try_from(total).is_ok(), "a batch holds at most {} tokens", u32::MAX);

        self.tokens.extend_from_slice(&other.tokens);
        self.step_ends.extend_from_slice(&other.step_ends);
        for (to, (_, from)) in self.float_columns_mut().into_iter().zip(other.float_columns()) {
            to.extend_from_slice(from);
        }
        self.cu_seqlens.extend(other.cu_seqlens[1..].iter().map(|&end| end + tokens as u32));
        self.outcomes.extend(other.outcomes);
        self.finished.extend(other.finished);
        self.groups.extend(other.groups.into_iter().map(|group| Group {
            responses: group.responses.start + responses..group.responses.end + responses,
            ..group
        }));
        Ok(())
    }

    /// What is recorded of a response: one line of a rollout file, which `prime replay` reads.
    pub fn record(&self, response: usize) -> Record<'_> {
        let span = self.span(response);
        let total = self.token_count();
        Record {
            prompt_id: &self.groups[self.group_of(response)].prompt_id,
            prompt_token_ids: Some(&self.groups[self.group_of(response)].prompt_tokens[..])
                .filter(|_| !self.tokens.is_empty()),
            outcome: self.outcomes[response],
            finished: self.finished[response],
            token_ids: part(&self.tokens, &span, total),
            step_ends: part(&self.step_ends, &span, total)
                .map(|ends| (0..ends.len()).filter(|&t| ends[t]).collect()),
            prm_log_probs: part(&self.prm_log_probs, &span, total),
            ref_log_probs: part(&self.ref_log_probs, &span, total),
            kl_ref_log_probs: part(&self.kl_ref_log_probs, &span, total),
            old_log_probs: &self.old_log_probs[span.clone()],
            new_log_probs: part(&self.new_log_probs, &span, total),
            process_rewards: part(&self.process_rewards, &span, total),
            values: part(&self.values, &span, total),
            returns: part(&self.returns, &span, total),
            advantages: part(&self.advantages, &span, total),
            entropies: part(&self.entropies, &span, total),
        }
    }

    /// Writes every response as a line of JSON.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write_json_lines(&self, mut out: impl Write) -> Result<()> {
        for response in 0..self.len() {
            serde_json::to_writer(&mut out, &self.record(response))?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// A line of a rollout file. What is not known is left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record<'a> {
    /// Groups the lines.
    pub prompt_id: &'a str,
    /// The grader's verdict, 0 to 1.
    pub outcome: f32,
    /// Whether the response ended by itself.
    pub finished: bool,
    /// The prompt's tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    /// The response's tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<&'a [u32]>,
    /// Which of its tokens end a step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_ends: Option<Vec<usize>>,
    /// Under the PRM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prm_log_probs: Option<&'a [f32]>,
    /// Under the PRM's reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_log_probs: Option<&'a [f32]>,
    /// Under the policy's own reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_ref_log_probs: Option<&'a [f32]>,
    /// Under the policy that sampled.
    pub old_log_probs: &'a [f32],
    /// Under the policy being updated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new_log_probs: Option<&'a [f32]>,
    /// Implicit process rewards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process_rewards: Option<&'a [f32]>,
    /// A critic's values of the text before each token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<&'a [f32]>,
    /// Returns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returns: Option<&'a [f32]>,
    /// What multiplied the ratio in the policy loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantages: Option<&'a [f32]>,
    /// Of the sampling distribution, nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropies: Option<&'a [f32]>,
}

/// A response's part of a column that may be empty; `total` is the length of a column that is not.
fn part<'a, T>(column: &'a [T], span: &Range<usize>, total: usize) -> Option<&'a [T]> {
    (column.len() == total).then(|| &column[span.clone()])
}

/// Appends a response's part of a column that may be empty.
fn copy_span<T: Copy>(to: &mut Vec<T>, from: &[T], span: &Range<usize>) {
    if !from.is_empty() {
        to.extend_from_slice(&from[span.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(log_probs: &[f32], outcome: f32) -> Response {
        Response { tokens: Vec::new(), old_log_probs: log_probs.to_vec(), outcome, finished: true }
    }

    fn batch() -> Rollouts {
        let mut batch = Rollouts::new();
        batch
            .push_group("a", vec![7], &[response(&[-0.5, -0.25], 1.0), response(&[], 0.0)])
            .unwrap();
        batch.push_group("b", vec![8, 9], &[response(&[-1.0], 0.5)]).unwrap();
        batch
    }

    #[test]
    fn a_batch_knows_the_span_the_group_and_the_name_of_each_response() {
        let batch = batch();
        batch.check().unwrap();
        assert_eq!(batch.lengths(), [2, 0, 1]);
        assert_eq!((batch.span(1), batch.span(2)), (2..2, 2..3));
        assert_eq!([0, 1, 2].map(|i| batch.group_of(i)), [0, 0, 1]);
        assert_eq!(batch.name(1), "response 2 to prompt `a`");
    }

    #[test]
    fn a_value_that_is_not_finite_is_refused_by_the_name_of_its_response() {
        let batch = batch();
        let message = batch.column("prm_log_probs", &[0.0, 0.0, f32::NAN]).unwrap_err().to_string();
        assert_eq!(message, "response 1 to prompt `b`: prm_log_probs[0] is NaN; it must be finite");
        let message = batch.column("prm_log_probs", &[]).unwrap_err().to_string();
        assert_eq!(message, "prm_log_probs has 0 values; the batch has 3 tokens");
    }

    #[test]
    fn responses_that_contradict_themselves_do_not_enter_a_batch() {
        let refused = |response: Response| {
            let mut batch = batch();
            let before = batch.clone();
            let message = batch.push_group("c", vec![], &[response]).unwrap_err().to_string();
            assert_eq!(batch, before);
            message
        };
        let tokens = Response { tokens: vec![1], ..response(&[-1.0, -1.0], 1.0) };
        assert!(refused(tokens).contains("1 tokens but 2 old_log_probs"));
        let tokens = Response { tokens: vec![1], ..response(&[-1.0], 1.0) };
        assert!(refused(tokens).contains("all responses of a batch come with tokens or none"));
        assert!(refused(response(&[-1.0], 1.5)).contains("the outcome is 1.5"));
        assert!(refused(response(&[-1.0], f32::NAN)).contains("the outcome is NaN"));
        assert!(refused(response(&[f32::NEG_INFINITY], 1.0)).contains("old_log_probs[0] is -inf"));
        assert!(Rollouts::new().push_group("d", vec![], &[]).is_err());
    }

    #[test]
    fn selecting_and_joining_groups_gives_the_batch_that_pushing_them_gives() {
        let mut whole = batch();
        whole.prm_log_probs = vec![0.1, 0.2, 0.3];
        let mut joined = whole.select(&[1]);
        joined.append(whole.select(&[0])).unwrap();
        joined.check().unwrap();
        assert_eq!(joined, whole.select(&[1, 0]));
        assert_eq!(joined.prm_log_probs, [0.3, 0.1, 0.2]);
        assert_eq!(joined.lengths(), [1, 2, 0]);

        let before = joined.clone();
        assert!(joined.append(batch()).unwrap_err().to_string().contains("prm_log_probs"));
        assert_eq!(joined, before);
    }

    #[test]
    fn a_prompt_that_comes_twice_makes_two_groups_of_different_names() {
        let mut twice = batch();
        twice.append(batch()).unwrap();
        twice.tell_groups_apart();
        let names: Vec<&str> = twice.groups.iter().map(|group| &*group.prompt_id).collect();
        assert_eq!(names, ["a", "b", "a (2)", "b (2)"]);
    }

    #[test]
    fn a_record_holds_what_is_known_and_prints_numbers_in_their_shortest_form() {
        let mut batch = batch();
        batch.prm_log_probs = vec![-0.1, -0.2, -0.3];
        batch.step_ends = vec![false, true, true];
        let mut lines = Vec::new();
        batch.write_json_lines(&mut lines).unwrap();
        let lines = String::from_utf8(lines).unwrap();
        assert_eq!(
            lines.lines().next().unwrap(),
            r#"{"prompt_id":"a","outcome":1.0,"finished":true,"step_ends":[1],"#.to_owned()
                + r#""prm_log_probs":[-0.1,-0.2],"old_log_probs":[-0.5,-0.25]}"#
        );
        assert_eq!(lines.lines().count(), 3);
    }

    #[test]
    fn groups_that_leave_a_gap_and_columns_of_another_length_are_found() {
        let mut gap = batch();
        gap.groups[1].responses = 1..3;
        assert!(gap.check().unwrap_err().to_string().contains("prompt `b`"));
        let mut short = batch();
        short.returns = vec![0.0];
        assert!(short.check().unwrap_err().to_string().contains("returns has 1 values"));
    }
}
