//! Graders: from a response and a reference answer to a score.
//!
//! A grader is a total function. Whatever the response holds, it returns, in time at most quadratic in a bounded part
//! of the text and linear in the rest: a policy that is being trained writes anything at all.

pub mod arithmetic;
pub mod countdown;
mod exact;
pub mod expression;
pub mod extract;
mod file;
mod gsm8k;
mod math;
mod names;
pub mod number;
mod numeric;

use anyhow::{Result, bail};

pub use exact::Exact;
pub use file::grade_jsonl;
pub(crate) use file::{kind, parse_object, text_field};
pub use gsm8k::Gsm8k;
pub use math::Math;
pub use names::nearest;
pub use numeric::Numeric;

/// Why a response could not be graded. Neither is a verdict on the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The grader itself failed: a sentence that says how.
    Error(String),
    /// The grader did not come to an end within its limit.
    Timeout(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Error(reason) | Failure::Timeout(reason) => f.write_str(reason),
        }
    }
}

/// What a grader says of a response.
#[derive(Clone, Debug, PartialEq)]
pub struct Grade {
    /// From 0 (wrong) to 1 (right). Not a number where there is a failure, so that no mean can take it for a score.
    pub score: f32,
    /// The final answer as the grader read it in the response; `None` when it found none.
    pub extracted: Option<String>,
    /// Why there is no score.
    pub failure: Option<Failure>,
}

impl Grade {
    /// A score with what was extracted.
    pub fn scored(score: f32, extracted: Option<String>) -> Self {
        Grade { score, extracted, failure: None }
    }

    /// A score of 1 or 0 with what was extracted.
    pub fn binary(right: bool, extracted: impl Into<String>) -> Self {
        Grade::scored(f32::from(u8::from(right)), Some(extracted.into()))
    }

    /// The grade of a response in which no answer was found.
    pub fn nothing_found() -> Self {
        Grade::scored(0.0, None)
    }

    /// No grade, and why.
    pub fn failed(failure: Failure) -> Self {
        Grade { score: f32::NAN, extracted: None, failure: Some(failure) }
    }

    /// The grade of a response that was cut off, for a task in which such a response has no answer.
    pub fn cut_off(self) -> Self {
        if self.failure.is_some() { self } else { Grade { score: 0.0, ..self } }
    }
}

/// Scores responses against reference answers.
pub trait Grader: Send + Sync {
    /// The name under which [`by_name`] finds it.
    fn name(&self) -> &'static str;

    /// The grade of a response. Never panics, whatever the two texts hold.
    fn grade(&self, response: &str, answer: &str) -> Grade;

    /// The grades of all responses to one prompt, in order. A grader that compares them with each other does it here;
    /// others grade one by one.
    fn grade_group(&self, responses: &[&str], answer: &str) -> Vec<Grade> {
        responses.iter().map(|response| self.grade(response, answer)).collect()
    }

    /// Whether grading needs a reference answer.
    fn needs_answer(&self) -> bool {
        true
    }

    /// Refuses a reference answer that the grader cannot read, so that a faulty data set is reported, rather than
    /// every response to it scored 0.
    fn check_answer(&self, _answer: &str) -> Result<()> {
        Ok(())
    }
}

/// The names that [`by_name`] knows.
pub const NAMES: &[&str] =
    &["arithmetic", "countdown", "exact", "gsm8k", "gsm8k-flexible", "math", "numeric"];

/// The grader of a name.
pub fn by_name(name: &str) -> Result<Box<dyn Grader>> {
    Ok(match name {
        "arithmetic" => Box::new(arithmetic::Arithmetic),
        "countdown" => Box::new(countdown::Countdown),
        "exact" => Box::new(Exact),
        "gsm8k" => Box::new(Gsm8k { flexible: false }),
        "gsm8k-flexible" => Box::new(Gsm8k { flexible: true }),
        "math" => Box::new(Math),
        "numeric" => Box::new(Numeric),
        _ => {
            let hint = match nearest(name, NAMES.iter().copied()) {
                Some(near) => format!("; did you mean {near:?}?"),
                None => String::new(),
            };
            bail!("there is no grader {name:?}{hint} The graders are {}.", NAMES.join(", "));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_name_is_found_under_itself() {
        for name in NAMES {
            assert_eq!(&by_name(name).unwrap().name(), name);
        }
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest_known_one() {
        let message = by_name("gsm8").err().unwrap().to_string();
        assert!(message.contains("did you mean \"gsm8k\"?"), "{message}");
        let message = by_name("weather").err().unwrap().to_string();
        assert!(!message.contains("did you mean") && message.contains("countdown"), "{message}");
    }

    /// Pieces that reach deep into the graders, where random characters never would.
    fn hostile() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![
                "\\boxed{", "\\fbox", "\\frac", "\\dfrac{", "\\sqrt", "\\text{", "{", "}", "(", ")", "[", "]", "\\{", "\\}",
                ",", "#", "####", "#### ", "$", "%", "\\%", "/", "-", "−", "+", "*", "=", ";", "!", ":", ".", "e9", "E-40",
                "^", "_", "\\", " ", "\n", "answer is ", "Answer:", "x=", "1,000", "{,}", ",\\!", "\\left(", "\\right)",
                "99999999999999999999999999999999999999999", "0.00000000000000000000000000000000000000001",
                "170141183460469231731687303715884105727", "1/0", "0", "7", "12", "π", "°", "é", "\u{10FFFF}",
            ])
            .prop_map(str::to_owned),
            1 => any::<String>(),
        ];
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_grader_panics_or_leaves_its_range(response in hostile(), answer in hostile()) {
            for name in NAMES {
                let grader = by_name(name).unwrap();
                let grade = grader.grade(&response, &answer);
                prop_assert!((0.0..=1.0).contains(&grade.score));
                prop_assert!(grade.score == 0.0 || grade.extracted.is_some());
                let _ = grader.check_answer(&answer);
                grader.grade(&answer, &answer);
            }
        }
    }

    #[test]
    fn long_responses_of_any_repeated_piece_take_linear_time() {
        let start = std::time::Instant::now();
        for piece in [
            "(",
            "\\boxed{",
            "\\boxed",
            "1",
            "-",
            "1,",
            "\\frac",
            "\\text{",
            "#",
            "#### ",
            "answer is ",
            "{",
            "é",
            "1/",
            "1 1/",
            ".",
        ] {
            let response = piece.repeat((1 << 18) / piece.len());
            for name in NAMES {
                by_name(name).unwrap().grade(&response, "1");
                by_name(name).unwrap().grade("#1", &response);
            }
        }
        // Quadratic work on 256 KiB would be 7 * 10^10 steps for a piece and grader, minutes for all 224 gradings;
        // linear passes take about a second.
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }
}
