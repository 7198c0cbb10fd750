//! Countdown: an expression of given numbers, each used at most once, whose value is the target.

use anyhow::{Context, Result};

use super::expression::evaluate;
use super::number::Rational;
use super::{Grade, Grader};

/// Reads a problem, written `3,5,7=22`: the numbers and the target.
pub fn parse_problem(text: &str) -> Option<(Vec<u64>, u64)> {
    let (numbers, target) = text.split_once('=')?;
    let numbers = numbers
        .split(',')
        .map(|number| number.trim().parse().ok())
        .collect::<Option<Vec<u64>>>()?;
    Some((numbers, target.trim().parse().ok()?))
}

/// Right when the text after the response's last `#` is an expression with the target's exact value that takes
/// every number at most as often as it is given. The answer is the problem, as [`parse_problem`] reads it.
pub struct Countdown;

impl Grader for Countdown {
    fn name(&self) -> &'static str {
        "countdown"
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        let Some((_, found)) = response.rsplit_once('#') else { return Grade::nothing_found() };
        Grade::binary(reaches(found, answer).is_some(), found.trim())
    }

    fn check_answer(&self, answer: &str) -> Result<()> {
        parse_problem(answer).map(drop).with_context(|| {
            format!("the answer {answer:?} is no countdown problem: it must read numbers=target, such as 3,5,7=22")
        })
    }
}

fn reaches(expression: &str, answer: &str) -> Option<()> {
    let (mut given, target) = parse_problem(answer)?;
    let found = evaluate(expression.trim())?;
    for number in found.numbers {
        let place = given.iter().position(|&other| other == number)?;
        given.swap_remove(place);
    }
    (found.value == Rational::integer(i64::try_from(target).ok()?)).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_given_numbers_reach_the_target() {
        let right = |response: &str| Countdown.grade(response, "3,5,7,3=22").score == 1.0;
        assert!(right("5*3=15;15+7=22;#5*3+7"));
        assert!(right("# 7 + (3 * 5) "));
        assert!(!right("#7+5*3*3/3"), "3 is given twice, not three times");
        assert!(!right("#5*3+7-0"));
        assert!(!right("#22"));
        assert!(!right("5*3+7"));
        assert!(!right("#5*3+7=22"));
        assert!(!right("#5*3+7;#"));
        assert_eq!(
            Countdown.grade("#(8/(3-8/3))", "8,3,8,3=24"),
            Grade::binary(true, "(8/(3-8/3))")
        );
    }

    #[test]
    fn a_reference_that_is_no_problem_is_refused() {
        assert!(Countdown.check_answer("3, 5,7 = 22").is_ok());
        for answer in ["", "22", "3,5", "3,,5=2", "a=1", "1=-1", "99999999999999999999=1"] {
            assert!(Countdown.check_answer(answer).is_err(), "{answer}");
        }
    }
}
