//! The answer of a worked chain of arithmetic: what follows the last `#`.

use super::{Grade, Grader};

/// Right when the text after the response's last `#` is the answer.
pub struct Arithmetic;

impl Grader for Arithmetic {
    fn name(&self) -> &'static str {
        "arithmetic"
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        match response.rsplit_once('#') {
            Some((_, found)) => Grade::binary(found.trim() == answer.trim(), found.trim()),
            None => Grade::nothing_found(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_follows_the_last_mark_counts() {
        assert_eq!(Arithmetic.grade("9-8=1;1*5=5;#5", "5"), Grade::binary(true, "5"));
        assert_eq!(Arithmetic.grade("#5;#6", "5"), Grade::binary(false, "6"));
        assert_eq!(Arithmetic.grade("9-8=1;1*5=5;", "5"), Grade::nothing_found());
        assert_eq!(Arithmetic.grade("#5;", "5").score, 0.0);
        assert_eq!(Arithmetic.grade("#", "5"), Grade::binary(false, ""));
        assert_eq!(Arithmetic.grade("#05", "5").score, 0.0);
    }
}
