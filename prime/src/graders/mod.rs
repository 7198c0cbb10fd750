//! Graders: from a response and a reference answer to a score.
//!
//! A grader is a total function. Whatever the response holds, it returns, in time at most quadratic in a bounded part
//! of the text and linear in the rest: a policy that is being trained writes anything at all. Those that run programs (`code`,
//! `command`) end them after a set time. Where a grader fails, it says so ([`Failure`]): that is not a score of 0.

pub mod arithmetic;
pub mod code;
mod command;
pub mod countdown;
mod exact;
pub mod expression;
pub mod extract;
mod file;
mod gsm8k;
mod majority;
mod math;
mod names;
pub mod number;
mod numeric;
mod regex;
pub mod settings;
pub mod work;

use anyhow::{Result, bail};

pub use code::Code;
pub use command::Command;
pub use exact::Exact;
pub use file::{Graded, grade_jsonl};
pub(crate) use file::{kind, parse_object, text_field};
pub use gsm8k::Gsm8k;
pub use majority::Majority;
pub use math::Math;
pub use names::nearest;
pub use numeric::Numeric;
pub use regex::Regex;
pub use settings::{GraderSettings, OnFailure};

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

    /// Whether [`Grader::grade_group`] compares the responses with each other.
    fn compares(&self) -> bool {
        false
    }

    /// Whether a response takes so long that several are worth grading at once.
    fn is_slow(&self) -> bool {
        false
    }

    /// Checks that what the grader needs of the machine is there.
    ///
    /// # Errors
    /// A sentence about what is missing.
    fn ready(&self) -> Result<()> {
        Ok(())
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
pub const NAMES: &[&str] = &[
    "arithmetic",
    "code",
    "command",
    "countdown",
    "exact",
    "gsm8k",
    "gsm8k-flexible",
    "majority",
    "math",
    "numeric",
    "regex",
];

/// The grader of a name, with its settings.
///
/// # Errors
/// When there is none of that name, or its settings are not right.
pub fn by_name(name: &str, settings: &GraderSettings) -> Result<Box<dyn Grader>> {
    Ok(match name {
        "arithmetic" => Box::new(arithmetic::Arithmetic),
        "code" => Box::new(Code::new(&settings.code)),
        "command" => Box::new(Command::new(&settings.command, work::workers(settings.workers))?),
        "countdown" => Box::new(countdown::Countdown),
        "exact" => Box::new(Exact),
        "gsm8k" => Box::new(Gsm8k { flexible: false }),
        "gsm8k-flexible" => Box::new(Gsm8k { flexible: true }),
        "majority" if settings.majority.by == "majority" => {
            bail!(
                "grader.majority.by is \"majority\", expected a grader whose answers can be compared, such as math"
            )
        }
        "majority" => Box::new(Majority::new(by_name(&settings.majority.by, settings)?)?),
        "math" => Box::new(Math),
        "numeric" => Box::new(Numeric { tolerance: settings.numeric.tolerance }),
        "regex" => Box::new(Regex::new(&settings.regex.pattern)?),
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

    /// Every grader, those that run programs with settings that suit a test.
    fn graders() -> Vec<Box<dyn Grader>> {
        let mut settings = GraderSettings::default();
        settings.command.program = vec!["cat".to_owned()];
        NAMES.iter().map(|name| by_name(name, &settings).unwrap()).collect()
    }

    /// Those that run no program.
    fn pure() -> impl Iterator<Item = Box<dyn Grader>> {
        graders().into_iter().filter(|grader| !grader.is_slow())
    }

    #[test]
    fn every_name_is_found_under_itself() {
        let names: Vec<&str> = graders().iter().map(|grader| grader.name()).collect();
        assert_eq!(names, NAMES);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_nearest_known_one() {
        let message = by_name("gsm8", &GraderSettings::default()).err().unwrap().to_string();
        assert!(message.contains("did you mean \"gsm8k\"?"), "{message}");
        let message = by_name("weather", &GraderSettings::default()).err().unwrap().to_string();
        assert!(!message.contains("did you mean") && message.contains("countdown"), "{message}");
    }

    /// Pieces that reach deep into the graders, where random characters never would.
    fn hostile() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            4 => prop::sample::select(vec![
                "\\boxed{", "\\fbox", "\\frac", "\\dfrac{", "\\sqrt", "\\text{", "{", "}", "(", ")", "[", "]", "\\{", "\\}",
                ",", "#", "####", "#### ", "$", "%", "\\%", "/", "-", "−", "+", "*", "=", ";", "!", ":", ".", "e9", "E-40",
                "^", "_", "\\", " ", "\n", "answer is ", "Answer:", "x=", "1,000", "{,}", ",\\!", "\\left(", "\\right)",
                "99999999999999999999999999999999999999999", "\\pm", "\\cup", "\\le ", "<", "\\in", "\\binom{", "\\log_", "!", "|",
                "\\begin{pmatrix}", "\\end{pmatrix}", "&", "\\\\", "\\pi", "x", "e", "i", "^{", "\\sin^{-1}", "\\lfloor", "\\rceil", " cm", "million",
                "```python", "```", "{\"inputs\":[", "]}", "0.00000000000000000000000000000000000000001",
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
            for grader in pure() {
                let grade = grader.grade(&response, &answer);
                prop_assert_eq!((0.0..=1.0).contains(&grade.score), grade.failure.is_none());
                prop_assert!(grade.score != 1.0 || grade.extracted.is_some());
                let _ = grader.check_answer(&answer);
                grader.grade(&answer, &answer);
                let group = [&*response, &*answer, &*response];
                prop_assert_eq!(grader.grade_group(&group, &answer).len(), 3);
            }
            let _ = code::Tests::parse(&response);
            let _ = code::last_program(&response);
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
            for grader in pure() {
                grader.grade(&response, "1");
                grader.grade("#1", &response);
            }
        }
        // Quadratic work on 256 KiB would be 7 * 10^10 steps for a piece and grader, minutes for all 224 gradings;
        // linear passes take about a second.
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
    }
}
