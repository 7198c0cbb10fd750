//! A pattern of the user's.

use anyhow::{Context, Result};
use regex::{Regex as Pattern, RegexBuilder};

use super::{Grade, Grader};

/// The most memory that a compiled pattern may take.
const LARGEST: usize = 1 << 20;

/// With a pattern: right when its last match in the response (its first group, where it has one) is the answer, blanks around both
/// aside. Without one, the answer is the pattern: right when it matches anywhere in the response. The engine takes time linear in the
/// response, whatever the pattern.
pub struct Regex {
    pattern: Option<Pattern>,
}

impl Regex {
    /// The grader of a pattern; an empty one takes each answer as its pattern.
    ///
    /// # Errors
    /// When the pattern is none.
    pub fn new(pattern: &str) -> Result<Self> {
        let pattern = (!pattern.is_empty()).then(|| compile(pattern)).transpose();
        Ok(Regex { pattern: pattern.context("grader.regex.pattern")? })
    }
}

fn compile(pattern: &str) -> Result<Pattern> {
    let compiled = RegexBuilder::new(pattern).size_limit(LARGEST).dfa_size_limit(LARGEST).build();
    compiled.map_err(|error| {
        let message = error.to_string();
        let reason = message.lines().last().unwrap_or_default().trim_start_matches("error: ");
        anyhow::anyhow!("{pattern:?} is no regular expression: {reason}")
    })
}

impl Grader for Regex {
    fn name(&self) -> &'static str {
        "regex"
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        match &self.pattern {
            Some(pattern) => {
                let Some(found) = pattern.captures_iter(response).last() else {
                    return Grade::nothing_found();
                };
                let text = found.get(1).or(found.get(0)).map_or("", |part| part.as_str()).trim();
                Grade::binary(text == answer.trim(), text)
            }
            None => match compile(answer) {
                Ok(pattern) => match pattern.find(response) {
                    Some(found) => Grade::binary(true, found.as_str()),
                    None => Grade::nothing_found(),
                },
                Err(error) => Grade::failed(super::Failure::Error(format!("{error:#}"))),
            },
        }
    }

    fn check_answer(&self, answer: &str) -> Result<()> {
        if self.pattern.is_none() {
            compile(answer).context(
                "the answer is taken as the pattern, because grader.regex.pattern is empty",
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_match_is_compared_or_the_answer_is_the_pattern() {
        let grader = Regex::new(r"<answer>(.*?)</answer>").unwrap();
        assert_eq!(
            grader.grade("<answer>4</answer> no <answer> 5 </answer>", "5"),
            Grade::binary(true, "5")
        );
        assert_eq!(grader.grade("<answer>4</answer>", "5"), Grade::binary(false, "4"));
        assert_eq!(grader.grade("5", "5"), Grade::nothing_found());
        let grader = Regex::new("").unwrap();
        assert_eq!(grader.grade("it is  yes", r"(?i)\bYES\b"), Grade::binary(true, "yes"));
        assert_eq!(grader.grade("yesterday", r"\byes\b"), Grade::nothing_found());
        assert!(grader.grade("x", "(").failure.is_some());
        let message = format!("{:#}", grader.check_answer("(").unwrap_err());
        assert!(message.contains("is no regular expression: unclosed group"), "{message}");
        assert!(Regex::new("(").is_err() && Regex::new("(a{1000}){1000}").is_err());
    }
}
