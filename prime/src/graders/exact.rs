//! The whole response is the answer.

use super::{Grade, Grader};

/// Right when response and answer are the same text, blanks around them aside.
pub struct Exact;

impl Grader for Exact {
    fn name(&self) -> &'static str {
        "exact"
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        let response = response.trim();
        if response.is_empty() {
            return Grade::nothing_found();
        }
        Grade::binary(response == answer.trim(), response)
    }
}
