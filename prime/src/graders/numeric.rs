//! A number as the final answer, however it is written.

use anyhow::{Context, Result};

use super::extract::{after_phrase, last_boxed};
use super::number::Number;
use super::{Grade, Grader};

/// Compares numbers by value: integers, decimals, fractions, mixed numbers, thousands separators, percent signs. The
/// response's number is the one in its last box; without a box, the one after its last "answer is"; without that
/// phrase, its last. In a box or after the phrase, what follows the last `=` counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numeric {
    /// How far the response may be off, relative to the larger of the two; 0 compares exactly.
    pub tolerance: f64,
}

impl Grader for Numeric {
    fn name(&self) -> &'static str {
        "numeric"
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        let Some((found, text)) = extract(response) else { return Grade::nothing_found() };
        let expected = expected(answer);
        Grade::binary(expected.is_some_and(|expected| found.near(&expected, self.tolerance)), text)
    }

    fn check_answer(&self, answer: &str) -> Result<()> {
        expected(answer).map(drop).with_context(|| format!("the answer {answer:?} holds no number"))
    }
}

fn extract(text: &str) -> Option<(Number, String)> {
    if text.contains("\\boxed") || text.contains("\\fbox") {
        return final_number(last_boxed(text)?);
    }
    after_phrase(text).and_then(final_number).or_else(|| Number::last(text))
}

/// The first number after the last `=`.
fn final_number(text: &str) -> Option<(Number, String)> {
    Number::first(text.rsplit_once('=').map_or(text, |(_, right)| right))
}

fn expected(answer: &str) -> Option<Number> {
    Number::parse(answer).or_else(|| extract(answer).map(|(number, _)| number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn box_phrase_and_last_number_are_tried_in_this_order() {
        let exactly = Numeric::default();
        let graded = |response: &str, answer: &str| exactly.grade(response, answer);
        assert_eq!(graded("The answer is 5. \\boxed{6} or 7", "6"), Grade::binary(true, "6"));
        assert_eq!(
            graded("The answer is x = 5 apples. It took 7 steps.", "5"),
            Grade::binary(true, "5")
        );
        assert_eq!(graded("First 3, then 12.", "12"), Grade::binary(true, "12"));
        assert_eq!(graded("\\boxed{\\frac{3}{4}}", "0.75").score, 1.0);
        assert_eq!(graded("It is 1,250.00 dollars", "$1250").score, 1.0);
        assert_eq!(graded("\\boxed{none} 5", "5"), Grade::nothing_found());
        assert_eq!(graded("I do not know", "5"), Grade::nothing_found());
        assert_eq!(graded("5", "steps\n#### 5").score, 1.0);
        assert_eq!(graded("5", "unknown").score, 0.0);
        assert!(exactly.check_answer("unknown").is_err());
    }

    #[test]
    fn a_tolerance_is_relative() {
        let near = Numeric { tolerance: 1e-3 };
        assert_eq!(near.grade("3.141", "3.14159").score, 1.0);
        assert_eq!(near.grade("3.13", "3.14159").score, 0.0);
        assert_eq!(near.grade("0.00001", "0.00002").score, 0.0);
        assert_eq!(near.grade("1/3", "0.3333").score, 1.0);
        assert_eq!(Numeric::default().grade("1/3", "0.3333").score, 0.0);
    }
}
