//! Checking the written work of a response, line by line.

use super::chain::Chain;
use crate::graders::expression::evaluate;
use crate::graders::number::Rational;
use crate::tasks::worked::{self, Line, Work};

/// Checks a response to a prompt. `None` when the prompt is none of the task's.
pub fn check_work(prompt: &str, response: &str) -> Option<Work> {
    let chain = Chain::parse(prompt.strip_suffix(':')?)?;
    let (body, answer) = worked::parts(response);
    let mut lines = Vec::new();
    // The value the response claims to have reached, and how many operations it has done for it.
    let (mut value, mut done) = (chain.first, 0);
    for (span, text, cancelled) in worked::lines(body) {
        let (left, result) = text.split_once('=').unwrap_or((text, ""));
        let evaluated = evaluate(left);
        let operations = evaluated.as_ref().map_or(0, |found| found.operations);
        let stated: Option<u32> = result.parse().ok();
        let end = (done + operations).min(chain.operations.len());
        let expected = Chain { first: value, operations: chain.operations[done..end].to_vec() };
        let line = Line {
            result: span.end - result.len()..span.end,
            operations,
            follows: operations > 0 && expected.to_string() == left,
            correct: match (evaluated, stated) {
                (Some(found), Some(stated)) => found.value == Rational::integer(i64::from(stated)),
                _ => false,
            },
            cancelled,
            span,
        };
        if !line.cancelled
            && let Some(stated) = stated
        {
            (value, done) = (stated, end);
        }
        lines.push(line);
    }
    let complete = done == chain.operations.len()
        && answer.as_ref().is_some_and(|answer| *answer == value.to_string());
    Some(Work { lines, answer, complete })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: &str = "(9-8)*5+9-3+8:";

    fn summary(response: &str) -> Vec<(usize, bool, bool, bool)> {
        let work = check_work(PROMPT, response).unwrap();
        work.lines
            .iter()
            .map(|line| (line.operations, line.follows, line.correct, line.cancelled))
            .collect()
    }

    #[test]
    fn careful_and_skipping_work_is_valid() {
        for response in [
            "9-8=1;1*5=5;5+9=14;14-3=11;11+8=19;#19",
            "(9-8)*5+9=14;14-3=11;11+8=19;#19",
            "9-8=2!9-8=1;1*5=5;5+9=14;14-3=11;11+8=19;#19",
        ] {
            assert!(check_work(PROMPT, response).unwrap().valid(), "{response}");
        }
        assert_eq!(
            summary("(9-8)*5+9=14;14-3=11;11+8=19;#19"),
            [(3, true, true, false), (1, true, true, false), (1, true, true, false)]
        );
    }

    #[test]
    fn a_mistake_is_found_where_it_is_made_and_not_after() {
        let response = "9-8=1;1*5=6;6+9=15;15-3=12;12+8=20;#20";
        let work = check_work(PROMPT, response).unwrap();
        assert_eq!(
            work.lines.iter().map(Line::right).collect::<Vec<_>>(),
            [true, false, true, true, true]
        );
        assert!(work.complete && !work.valid());
        assert_eq!(&response[work.lines[1].span.clone()], "1*5=6");
        assert_eq!(&response[work.lines[1].result.clone()], "6");
    }

    #[test]
    fn work_that_does_not_follow_is_told_from_work_that_is_wrong() {
        // A step left out, an operation changed, a bare result, a right answer by luck.
        assert_eq!(summary("1*5=5;#19"), [(1, false, true, false)]);
        assert_eq!(summary("9-7=2;#19"), [(1, false, true, false)]);
        assert_eq!(summary("19;#19"), [(0, false, false, false)]);
        assert_eq!(
            summary("=;;x=1!#"),
            [(0, false, false, false), (0, false, false, false), (0, false, false, true)]
        );
        assert!(!check_work(PROMPT, "#19").unwrap().complete);
        assert!(!check_work(PROMPT, "9-8=1;1*5=5;5+9=14;14-3=11;11+8=19;#18").unwrap().complete);
        assert_eq!(check_work(PROMPT, "9-8=1").unwrap().answer, None);
        assert_eq!(check_work("what?", "#1"), None);
    }
}
