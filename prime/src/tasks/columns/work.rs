//! Checking the written columns of a response, line by line.

use super::sum::{Reached, Sum};
use crate::tasks::worked::{self, Line, Work};

/// Checks a response to a prompt. `None` when the prompt is none of the task's.
pub fn check_work(prompt: &str, response: &str) -> Option<Work> {
    let sum = Sum::parse(prompt.strip_suffix(':')?)?;
    let (body, answer) = worked::parts(response);
    let (mut lines, mut reached) = (Vec::new(), Reached::default());
    for (span, text, cancelled) in worked::lines(body) {
        let (left, result) = text.split_once('=').unwrap_or((text, ""));
        let value = added(left);
        // Each number shows as many digits as the line does columns.
        let first = left.split('+').next().unwrap_or_default();
        let operations = if value.is_some() { first.len() } else { 0 };
        // "+14" would be read as a number too.
        let stated: Option<u32> = result.parse().ok().filter(|_| !result.starts_with('+'));
        let width = operations.min(sum.columns() - reached.columns);
        let line = Line {
            result: span.end - result.len()..span.end,
            operations,
            follows: width > 0 && width == operations && sum.left(&reached, width) == left,
            correct: value.is_some() && value == stated.map(u64::from),
            cancelled,
            span,
        };
        if !cancelled
            && width > 0
            && let Some(stated) = stated
        {
            reached.next(width, stated, &sum);
        }
        lines.push(line);
    }
    let complete = reached.columns == sum.columns() && answer.as_ref() == Some(&reached.digits);
    Some(Work { lines, answer, complete })
}

/// The value of numbers with plus signs between them, of any length that a response may have; none of anything else.
fn added(text: &str) -> Option<u64> {
    text.split('+').try_fold(0u64, |sum, part| {
        let digits = (1..=18).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        sum.checked_add(digits.then(|| part.parse().ok()).flatten()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: &str = "478+296:";

    fn summary(response: &str) -> Vec<(usize, bool, bool, bool)> {
        let work = check_work(PROMPT, response).unwrap();
        let of = |line: &Line| (line.operations, line.follows, line.correct, line.cancelled);
        work.lines.iter().map(of).collect()
    }

    #[test]
    fn careful_and_skipping_work_is_valid() {
        for response in [
            "8+6=14;7+9+1=17;4+2+1=7;#774",
            "78+96=174;4+2+1=7;#774",
            "8+6=14;47+29+1=77;#774",
            "478+296=774;#774",
            "8+6=14;7+9+1=16!7+9+1=17;4+2+1=7;#774",
        ] {
            assert!(check_work(PROMPT, response).unwrap().valid(), "{response}");
        }
        assert_eq!(
            summary("78+96=174;4+2+1=7;#774"),
            [(2, true, true, false), (1, true, true, false)]
        );
        // A result whose leading zero belongs to the answer.
        assert!(check_work("101+204:", "01+04=5;1+2+0=3;#305").unwrap().valid());
    }

    #[test]
    fn a_mistake_is_found_where_it_is_made_and_not_after() {
        for (response, right) in [
            ("8+6=14;7+9+1=18;4+2+1=7;#784", [true, false, true]),
            // A wrong carry and a wrong digit: the sum is right, but it is not the next one.
            ("8+6=14;7+9+0=16;4+2+1=7;#764", [true, false, true]),
            ("8+6=14;7+8+1=16;4+2+1=7;#764", [true, false, true]),
            ("8+6=24;7+9+2=18;4+2+1=7;#784", [false, true, true]),
        ] {
            let work = check_work(PROMPT, response).unwrap();
            assert_eq!(work.lines.iter().map(Line::right).collect::<Vec<_>>(), right, "{response}");
            assert!(work.complete && !work.valid(), "{response}");
        }
    }

    #[test]
    fn work_that_does_not_follow_is_told_from_work_that_is_wrong() {
        assert_eq!(summary("7+9=16;#774"), [(1, false, true, false)]);
        assert_eq!(summary("774;#774"), [(3, false, false, false)]);
        assert_eq!(
            summary("=;;x=1!8+6+=14;8-6=2;#"),
            [
                (0, false, false, false),
                (0, false, false, false),
                (0, false, false, true),
                (0, false, false, false),
                (0, false, false, false)
            ]
        );
        // Columns beyond the last, and numbers beyond any.
        let long = "8+6=14;7+9+1=17;4+2+1=7;0+0+0=0;99999999999999999999+1=4294967296;#774";
        assert_eq!(summary(long)[3..], [(1, false, true, false), (0, false, false, false)]);
        assert_eq!(summary("8+6=+14;"), [(1, true, false, false)]);
        let nines = ["999999999"; 9].join("+");
        let work = check_work(&format!("{nines}:"), &format!("{nines}=8999999991;#8999999991"));
        assert!(work.unwrap().lines[0].follows);
        assert!(!check_work(PROMPT, "#774").unwrap().complete);
        assert!(!check_work(PROMPT, "8+6=14;7+9+1=17;4+2+1=7;#775").unwrap().complete);
        assert_eq!(check_work(PROMPT, "8+6=14").unwrap().answer, None);
        for prompt in ["what?", "478+296", "(9-8)*5:"] {
            assert_eq!(check_work(prompt, "#1"), None);
        }
    }
}
