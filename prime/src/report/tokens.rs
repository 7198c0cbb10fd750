//! Answers token by token, packed for the page: a table of the texts that occur, and columns of rounded floats.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::encode;

/// Columns that the page knows how to show; `web/tokens.js` says what it makes of them.
pub const COLUMNS: [&str; 10] = [
    "old_log_probs",
    "ref_log_probs",
    "prm_log_probs",
    "new_log_probs",
    "updated_log_probs",
    "process_rewards",
    "advantages",
    "entropies",
    "values",
    "marks",
];

/// A prompt with the answers to it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// What it is called where it has no text.
    pub id: String,
    /// The prompt's text; empty where there is none.
    pub prompt: String,
    /// The answers, shown side by side.
    pub answers: Vec<Answer>,
}

/// One answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// The text of each token; empty for one that only begins a character, which the token that completes it holds.
    pub texts: Vec<String>,
    /// The grader's verdict, 0 to 1.
    pub outcome: Option<f64>,
    /// Whether it ended by itself.
    pub finished: Option<bool>,
    /// By name (of [`COLUMNS`]), a value a token.
    pub columns: Vec<(String, Vec<f32>)>,
    /// The places of tokens that end a step, where steps are told apart.
    pub step_ends: Vec<usize>,
    /// A word besides.
    pub note: String,
}

#[derive(Serialize)]
struct Step {
    label: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
    beta: Option<f64>,
    groups: Vec<Value>,
}

/// The token view: steps, each with prompts, each with answers.
pub struct Tokens {
    vocabulary: HashMap<String, u32>,
    texts: Vec<String>,
    steps: Vec<Step>,
    group_word: &'static str,
    first: usize,
    bytes: usize,
}

impl Tokens {
    /// A view of nothing yet; `group_word` is the label before the choice of a group.
    pub fn new(group_word: &'static str) -> Tokens {
        Tokens {
            vocabulary: HashMap::new(),
            texts: Vec::new(),
            steps: Vec::new(),
            group_word,
            first: 0,
            bytes: 0,
        }
    }

    /// Begins a step. Where `beta` is known, running sums are of beta * (PRM - reference), the implicit value of each prefix.
    pub fn step(&mut self, label: impl Into<String>, note: impl Into<String>, beta: Option<f64>) {
        let step = Step { label: label.into(), note: note.into(), beta, groups: Vec::new() };
        self.bytes += 100 + cost(&step.label) + cost(&step.note);
        self.steps.push(step);
    }

    /// Opens the view at the last step begun.
    pub fn open_here(&mut self) {
        self.first = self.steps.len().saturating_sub(1);
    }

    /// Adds a group to the last step begun.
    pub fn group(&mut self, group: &Group) {
        let before = self.texts.len();
        let answers: Vec<Value> =
            group.answers.iter().map(|answer| self.answer(answer, usize::MAX)).collect();
        self.push(group, answers, before);
    }

    /// Adds a group unless it makes the view larger than `most` bytes; says whether it was added.
    pub fn group_within(&mut self, group: &Group, most: usize) -> bool {
        let fits = self.bytes.saturating_add(self.cost(group)) <= most;
        if fits {
            self.group(group);
        }
        fits
    }

    /// Adds a group with its answers, and its prompt, cut to what about `most` bytes hold.
    pub fn group_cut(&mut self, group: &Group, most: usize) {
        let before = self.texts.len();
        let each = most / (group.answers.len() + 1);
        let prompt: String = group.prompt.chars().take((each / 6).max(1)).collect();
        let cut = Group { prompt, ..group.clone() };
        let answers = group.answers.iter().map(|answer| {
            let mut kept = 0;
            let mut left = each;
            for text in &answer.texts {
                let takes = 4 * (1 + answer.columns.len()) + cost(text) + 3;
                if takes > left {
                    break;
                }
                (kept, left) = (kept + 1, left - takes);
            }
            kept
        });
        let kept: Vec<usize> = answers.collect();
        let answers = group
            .answers
            .iter()
            .zip(kept)
            .map(|(answer, kept)| self.answer(answer, kept))
            .collect();
        self.push(&cut, answers, before);
    }

    fn push(&mut self, group: &Group, answers: Vec<Value>, texts_before: usize) {
        if self.steps.is_empty() {
            self.step("", "", None);
        }
        self.bytes += self.texts[texts_before..].iter().map(|text| cost(text) + 3).sum::<usize>();
        let value = json!({"id": group.id, "prompt": group.prompt, "answers": answers});
        self.bytes += encode::script(&value).map_or(0, |text| text.len());
        if let Some(step) = self.steps.last_mut() {
            step.groups.push(value);
        }
    }

    fn answer(&mut self, answer: &Answer, most: usize) -> Value {
        let kept = answer.texts.len().min(most);
        let ids = answer.texts[..kept].iter().map(|text| match self.vocabulary.get(text) {
            Some(&id) => id,
            None => {
                let id = self.texts.len() as u32;
                self.texts.push(text.clone());
                self.vocabulary.insert(text.clone(), id);
                id
            }
        });
        let tokens = encode::integers(ids.collect::<Vec<_>>());
        let mut columns = Map::new();
        for (i, (name, values)) in answer.columns.iter().enumerate() {
            let same = answer.columns[..i].iter().find(|(_, others)| others == values);
            let packed = match same {
                Some((other, _)) => format!("={other}"),
                None => encode::floats(&values[..kept.min(values.len())]),
            };
            columns.insert(name.clone(), packed.into());
        }
        let mut value = json!({"tokens": tokens, "columns": columns});
        if kept < answer.texts.len() {
            value["length"] = answer.texts.len().into();
        }
        if let Some(outcome) = answer.outcome {
            value["outcome"] = encode::rounded(outcome);
        }
        if let Some(finished) = answer.finished {
            value["finished"] = finished.into();
        }
        let ends: Vec<usize> = answer.step_ends.iter().copied().filter(|&end| end < kept).collect();
        if !ends.is_empty() {
            value["ends"] = ends.into();
        }
        if !answer.note.is_empty() {
            value["note"] = answer.note.clone().into();
        }
        value
    }

    /// At most so many bytes does a group add.
    fn cost(&self, group: &Group) -> usize {
        let fixed = 60 + cost(&group.id) + cost(&group.prompt);
        let answers = group.answers.iter().map(|answer| {
            let columns = answer.columns.len();
            let texts = answer.texts.iter().filter(|text| !self.vocabulary.contains_key(*text));
            140 + 30 * columns
                + 8 * answer.step_ends.len()
                + cost(&answer.note)
                + 4 * answer.texts.len() * (1 + columns)
                + texts.map(|text| cost(text) + 3).sum::<usize>()
        });
        fixed + answers.sum::<usize>()
    }

    /// Bytes in the page, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Steps, prompts and answers that it holds.
    pub fn counts(&self) -> (usize, usize, usize) {
        let groups = self.steps.iter().flat_map(|step| &step.groups);
        let answers =
            groups.clone().filter_map(|group| group["answers"].as_array()).map(Vec::len).sum();
        (self.steps.len(), groups.count(), answers)
    }

    pub(super) fn data(&self) -> Value {
        json!({"vocabulary": self.texts, "steps": self.steps, "groupWord": self.group_word, "first": self.first})
    }
}

/// Bytes of a text as JSON in a script, at most.
fn cost(text: &str) -> usize {
    2 + text
        .chars()
        .map(|c| match c {
            '<' | '>' | '&' | '\u{7f}' | '\u{feff}' | '\u{2028}' | '\u{2029}' => 6,
            '"' | '\\' => 2,
            c if (c as u32) < 32 => 6,
            c => c.len_utf8(),
        })
        .sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(texts: &[&str], outcome: f64) -> Group {
        let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
        let column = |value: f32| vec![value; texts.len()];
        Group {
            id: "7".into(),
            prompt: "p".into(),
            answers: vec![Answer {
                outcome: Some(outcome),
                finished: Some(true),
                columns: vec![
                    ("old_log_probs".into(), column(-1.0)),
                    ("ref_log_probs".into(), column(-1.0)),
                    ("prm_log_probs".into(), column(-0.5)),
                ],
                texts,
                ..Answer::default()
            }],
        }
    }

    #[test]
    fn texts_are_kept_once_and_equal_columns_are_named() {
        let mut tokens = Tokens::new("Prompt");
        tokens.step("1", "", Some(0.5));
        tokens.group(&group(&["a", "b", "a"], 1.0));
        tokens.group(&group(&["b"], 0.0));
        let data = tokens.data();
        assert_eq!(data["vocabulary"], json!(["a", "b"]));
        let answer = &data["steps"][0]["groups"][0]["answers"][0];
        assert_eq!(answer["tokens"], encode::integers([0, 1, 0]));
        assert_eq!(answer["columns"]["ref_log_probs"], "=old_log_probs");
        assert_eq!(answer["columns"]["prm_log_probs"], encode::floats(&[-0.5; 3]));
        assert_eq!(tokens.counts(), (1, 2, 2));
    }

    #[test]
    fn what_does_not_fit_is_refused_or_cut_and_the_bound_holds() {
        let long: Vec<String> = (0..5000).map(|i| format!("</{i}>\n")).collect();
        let long = group(&long.iter().map(String::as_str).collect::<Vec<_>>(), 1.0);
        let mut tokens = Tokens::new("Prompt");
        tokens.step("1", "", None);
        assert!(!tokens.group_within(&long, 50_000));
        assert_eq!(tokens.counts().1, 0);
        tokens.group_cut(&long, 50_000);
        let data = tokens.data();
        let answer = &data["steps"][0]["groups"][0]["answers"][0];
        assert_eq!(answer["length"], 5000);
        assert!(answer["tokens"].as_str().unwrap().len() > 400);
        let written = encode::script(&data).unwrap().len();
        assert!(
            written < 52_000 && written <= tokens.bytes() + 200,
            "{written} {}",
            tokens.bytes()
        );
        assert!(tokens.group_within(&group(&["x"], 0.0), 60_000));
    }
}
