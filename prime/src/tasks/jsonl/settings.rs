//! The settings of data sets from files, `[task.jsonl]`.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::graders::nearest;

/// The value of `grader` that leaves the choice to each row.
pub const BY_SOURCE: &str = "by-source";

/// The value of `system_prompt` that takes away the one that the data have.
pub const NO_SYSTEM_PROMPT: &str = "none";

/// What a source is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// SFT (where it has worked solutions) and RL.
    #[default]
    Both,
    /// Demonstrations alone: no answers are read, nothing is held out.
    Sft,
    /// RL and evaluation alone.
    Rl,
}

/// One source of problems. `configs/default.toml` documents every key once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct SourceSettings {
    pub name: String,
    pub train: String,
    pub test: String,
    pub held_out_one_in: u32,
    pub weight: f64,
    pub stage: Stage,
    pub prompt_field: String,
    pub answer_field: String,
    pub solution_field: String,
    pub answer_after: String,
    pub system_prompt: String,
    pub suffix: String,
    pub template: String,
    pub chat: bool,
    pub grader: String,
    pub source_field: String,
    pub skip_faulty: bool,
}

/// `[task.jsonl]`: a source, or what the sources of a mix take where they say nothing; and what holds for all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct JsonlSettings {
    #[serde(flatten)]
    pub source: SourceSettings,
    pub deduplicate: bool,
    pub overlap_words: usize,
    /// Patterns of data sources with their graders; the first that fits decides. `*` stands for any text.
    pub graders: Vec<(String, String)>,
    pub mix: Vec<SourceSettings>,
}

impl Default for SourceSettings {
    fn default() -> Self {
        SourceSettings {
            name: String::new(),
            train: String::new(),
            test: String::new(),
            held_out_one_in: 16,
            weight: 0.0,
            stage: Stage::Both,
            prompt_field: "question".into(),
            answer_field: "answer".into(),
            solution_field: "answer".into(),
            answer_after: "####".into(),
            system_prompt: String::new(),
            suffix: String::new(),
            template: "{prompt}".into(),
            chat: false,
            grader: "gsm8k".into(),
            source_field: "data_source".into(),
            skip_faulty: false,
        }
    }
}

impl Default for JsonlSettings {
    fn default() -> Self {
        let pair = |(pattern, grader): (&str, &str)| (pattern.to_owned(), grader.to_owned());
        JsonlSettings {
            source: SourceSettings::default(),
            deduplicate: true,
            overlap_words: 0,
            graders: DISPATCH.map(pair).into(),
            mix: Vec::new(),
        }
    }
}

/// Who grades which `data_source`, as verl dispatches them.
const DISPATCH: [(&str, &str); 8] = [
    ("numina_*", "math"),
    ("openai/gsm8k", "gsm8k"),
    ("lighteval/MATH", "math"),
    ("*MATH*", "math"),
    ("codecontests", "code"),
    ("apps", "code"),
    ("codeforces", "code"),
    ("taco", "code"),
];

impl JsonlSettings {
    /// The sources: that of the section itself, where it names a file, and those of the mix.
    pub fn sources(&self) -> Result<Vec<SourceSettings>> {
        let own = !self.source.train.is_empty() || !self.source.test.is_empty();
        ensure!(
            own || !self.mix.is_empty(),
            "the jsonl task needs a file: set train, test or both, or list sources in task.jsonl.mix"
        );
        let own = own.then(|| self.source.clone());
        let sources: Vec<SourceSettings> =
            own.into_iter().chain(self.mix.iter().cloned()).collect();
        for (i, source) in sources.iter().enumerate() {
            ensure!(
                !source.train.is_empty() || !source.test.is_empty(),
                "source {} of task.jsonl.mix names no file: set its train, test or both",
                i + 1
            );
            ensure!(
                source.held_out_one_in != 1 || !source.test.is_empty(),
                "held_out_one_in must be 0, which holds nothing out, or at least 2, and is 1: one prompt in so many is held out"
            );
            ensure!(
                (0.0..=1e9).contains(&source.weight),
                "weight is {}, expected 0 (its number of problems) to 1e9",
                source.weight
            );
        }
        let weighed = sources.iter().filter(|source| source.weight > 0.0).count();
        ensure!(
            weighed == 0
                || sources.iter().all(|source| source.weight > 0.0 || source.train.is_empty()),
            "some sources of task.jsonl.mix have a weight and some have none: set it for all or for none"
        );
        Ok(sources)
    }

    /// The grader of a row's data source.
    ///
    /// # Errors
    /// When no pattern fits.
    pub fn grader_of(&self, data_source: &str) -> Result<&str> {
        if let Some((_, grader)) =
            self.graders.iter().find(|(pattern, _)| fits(pattern, data_source))
        {
            return Ok(grader);
        }
        let patterns = self.graders.iter().map(|(pattern, _)| pattern.as_str());
        let hint = nearest(data_source, patterns.clone())
            .map(|near| format!("; the nearest is {near:?}"))
            .unwrap_or_default();
        bail!(
            "no pattern of task.jsonl.graders fits the data source {data_source:?} (they are {}){hint}",
            patterns.collect::<Vec<_>>().join(", ")
        )
    }
}

/// Whether a text is what a pattern says, `*` standing for any text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_what_its_stars_leave_open() {
        for (pattern, text, expected) in [
            ("numina_*", "numina_olympiads", true),
            ("numina_*", "numina", false),
            ("taco", "taco", true),
            ("taco", "taco2", false),
            ("*", "", true),
            ("*MATH*", "lighteval/MATH-hard", true),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*ba", "aba", false),
            ("", "", true),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} and {text}");
        }
    }

    #[test]
    fn a_data_source_finds_its_grader_as_verl_dispatches_it() {
        let settings = JsonlSettings::default();
        for (source, grader) in [
            ("numina_cn_k12", "math"),
            ("openai/gsm8k", "gsm8k"),
            ("lighteval/MATH", "math"),
            ("codecontests", "code"),
            ("apps", "code"),
            ("codeforces", "code"),
            ("taco", "code"),
        ] {
            assert_eq!(settings.grader_of(source).unwrap(), grader);
        }
        let message = settings.grader_of("tacos").unwrap_err().to_string();
        assert!(
            message.contains("\"tacos\"") && message.contains("nearest is \"taco\""),
            "{message}"
        );
    }
}
