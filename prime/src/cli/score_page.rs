//! What `prime score --html` shows: texts with their tokens coloured by what was computed.

use anyhow::Result;
use prime_model::Tokenizer;
use serde_json::Value;

use super::files::Line;
use super::score::{Reward, ScoreArgs};
use crate::report::encode::shown;
use crate::report::page::{Block, Page};
use crate::report::tokens::{Answer, Group, Tokens};
use crate::score::{Scores, Sequence};

/// Bytes for tokens, of a page of at most 10 MB.
const BUDGET: usize = 8_500_000;

/// The texts scored so far, as far as a page has room for them.
pub(super) struct View {
    tokens: Tokens,
    /// The prompt of the last lines: answers to one prompt stand side by side.
    group: Group,
    lines: usize,
    left_out: usize,
}

impl View {
    /// A view of nothing yet.
    pub(super) fn new() -> View {
        let mut tokens = Tokens::new("Text");
        tokens.step("", "", None);
        View { tokens, group: Group::default(), lines: 0, left_out: 0 }
    }

    /// Adds a line. Lines of one prompt that follow each other are a group.
    pub(super) fn add(&mut self, line: &Line, mut answer: Answer) {
        let text = |key: &str| line.fields.get(key).and_then(Value::as_str).unwrap_or_default();
        let number = |key: &str| line.fields.get(key).and_then(Value::as_f64);
        let prompt = text("prompt");
        self.lines += 1;
        answer.outcome = number("outcome").or(number("score"));
        if prompt.is_empty() || prompt != self.group.prompt {
            self.close();
            let id = line
                .fields
                .get("id")
                .map_or_else(|| format!("line {}", line.number), Value::to_string);
            self.group = Group { id, prompt: prompt.to_owned(), answers: Vec::new() };
        }
        self.group.answers.push(answer);
    }

    fn close(&mut self) {
        let group = std::mem::take(&mut self.group);
        if group.answers.is_empty() || self.tokens.group_within(&group, BUDGET) {
            return;
        }
        // Nothing at all would be a poor view of one long text.
        if self.tokens.counts().1 == 0 {
            self.tokens.group_cut(&group, BUDGET);
        } else {
            self.left_out += group.answers.len();
        }
    }

    /// The page.
    pub(super) fn page(mut self, args: &ScoreArgs) -> Result<String> {
        self.close();
        let mut facts = vec![("model".to_owned(), args.model.display().to_string())];
        if let Some(prm) = &args.prm {
            let reference = args.reference.as_ref().unwrap_or(&args.model);
            facts.push(("PRM".to_owned(), prm.display().to_string()));
            facts.push(("its reference".to_owned(), reference.display().to_string()));
            facts.push(("beta".to_owned(), shown(args.beta)));
        }
        facts.push(("temperature".to_owned(), shown(f64::from(args.temperature))));
        let mut page = Page::new(
            "Scored text",
            match args.prm {
                Some(_) => {
                    "Each token by its implicit process reward, its log-probability, or the entropy it was drawn from."
                }
                None => {
                    "Each token by its log-probability, or the entropy of the distribution it was drawn from."
                }
            },
        );
        let mut blocks = Vec::new();
        if self.left_out > 0 {
            blocks.push(Block::Note(format!(
                "{} of {} lines are not in this file: it would be larger than 10 MB.",
                self.left_out, self.lines
            )));
        }
        blocks.push(Block::Tokens(self.tokens));
        page.section("Tokens", blocks);
        page.section("Models", vec![Block::Facts(facts)]);
        page.to_html()
    }
}

/// A scored sequence as an answer: the tokens after its prompt, or all of a text, whose first has nothing before it to be scored by.
pub(super) fn answer(
    tokenizer: &Tokenizer,
    sequence: &Sequence,
    scores: &Scores,
    reward: Option<&Reward>,
) -> Result<Answer> {
    let begin = if sequence.open_end { 0 } else { sequence.scored.start };
    let (before, shown_tokens) = sequence.tokens.split_at(begin);
    let column = |values: &[f32]| -> Vec<f32> {
        let unscored = sequence.scored.start - begin;
        std::iter::repeat_n(f32::NAN, unscored)
            .chain(values.iter().copied())
            .take(shown_tokens.len())
            .collect()
    };
    let mut columns = vec![
        ("old_log_probs".to_owned(), column(&scores.log_probs)),
        ("entropies".to_owned(), column(&scores.entropy[..scores.log_probs.len()])),
    ];
    columns.extend(
        reward.map(|reward| ("process_rewards".to_owned(), column(&reward.process_rewards))),
    );
    Ok(Answer {
        texts: tokenizer.pieces(before, shown_tokens)?,
        outcome: None,
        finished: None,
        step_ends: reward.and_then(|reward| reward.steps.as_ref()).map_or(Vec::new(), |steps| {
            steps.step_ends.iter().filter_map(|end| end.checked_sub(1)).collect()
        }),
        columns,
        note: reward.map_or(String::new(), |reward| {
            format!("right with probability {} by the PRM", shown(reward.outcome_probability))
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_stands_beside_what_was_computed_for_it() {
        let tokenizer = Tokenizer::characters("abc", "<pad>", "<eos>").unwrap();
        let scores = Scores { log_probs: vec![-1.0, -2.0], entropy: vec![0.5, 0.25, 9.0] };
        let text = Sequence::text(vec![2, 3, 1]);
        let of_text = answer(&tokenizer, &text, &scores, None).unwrap();
        assert_eq!(of_text.texts, ["a", "b", "<eos>"]);
        let (name, values) = &of_text.columns[0];
        assert!(name == "old_log_probs" && values[0].is_nan() && values[1..] == [-1.0, -2.0]);
        assert_eq!(of_text.columns[1].1[1..], [0.5, 0.25]);

        let scores = Scores { log_probs: vec![-1.0, -2.0], entropy: vec![0.5, 0.25] };
        let response = Sequence::response(vec![4], &[2, 3]);
        let of_response = answer(&tokenizer, &response, &scores, None).unwrap();
        assert_eq!(
            (of_response.texts, of_response.columns[0].1.clone()),
            (vec!["a".to_owned(), "b".to_owned()], vec![-1.0, -2.0])
        );
    }
}
