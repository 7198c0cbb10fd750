//! Mathematical answers in LaTeX or plain text: the last box, compared by meaning.
//!
//! Two answers are equal when their canonical texts are (`canonical`), when they are the same number, when they are lists, tuples,
//! sets, intervals or matrices of equal parts, equations or inequalities with the same solutions (`relation`), or formulas with the
//! same values (`expression`, `value`). A decimal is the fraction that it writes: 0.333 is not 1/3, and 3.14 is not pi.
//!
//! Work is counted in steps (`steps`): a comparison that would need more than its budget fails, with that as the reason.

mod canonical;
mod expression;
#[cfg(test)]
mod fuzz;
mod relation;
mod steps;
mod tokens;
mod units;
mod value;

use canonical::canonical;
use expression::Formula;
use steps::{BUDGET, Steps};

use super::extract::{after_phrase, last_boxed};
use super::number::Number;
use super::{Failure, Grade, Grader};

/// Longer answers are compared as text alone.
const LONGEST: usize = 1024;
/// Lists nested deeper than this are compared as text alone.
const DEEPEST: usize = 12;
/// At how many points two formulas are compared at most.
const POINTS: u64 = 6;

/// Right when the response's final answer (its last box or, without one, what follows "answer is") equals the
/// reference: see the module.
pub struct Math;

impl Grader for Math {
    fn name(&self) -> &'static str {
        "math"
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        let boxed = response.contains("\\boxed") || response.contains("\\fbox");
        let found = if boxed { last_boxed(response) } else { after_phrase(response) };
        let Some(found) = found else { return Grade::nothing_found() };
        let answer = last_boxed(answer).unwrap_or(answer);
        match equal(found, answer) {
            Some(right) => Grade::binary(right, found),
            None => Grade::failed(Failure::Timeout(format!(
                "comparing the answers takes more than {BUDGET} steps"
            ))),
        }
    }
}

/// Whether two answers are equal; `None` when that cannot be found out within the budget.
fn equal(a: &str, b: &str) -> Option<bool> {
    let mut steps = Steps::new();
    let equal = equal_within(a, b, &mut steps);
    (equal || !steps.exhausted()).then_some(equal)
}

fn equal_within(a: &str, b: &str, steps: &mut Steps) -> bool {
    let (a, b) = (a.trim(), b.trim());
    if a == b {
        return true;
    }
    if a.len() > LONGEST || b.len() > LONGEST {
        return false;
    }
    let ((value_a, unit_a), (value_b, unit_b)) = (units::split_unit(a), units::split_unit(b));
    if units::conflict(&unit_a, &unit_b) {
        return false;
    }
    let (a, b) = (canonical(value_a), canonical(value_b));
    if let Some(letter) = choice(&b) {
        return chosen(&a) == Some(letter);
    }
    same(&a, &b, 0, steps)
}

/// The letter of a multiple-choice answer that is nothing else: `C` or `(C)`.
fn choice(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [b'(', letter @ b'A'..=b'J', b')'] | [letter @ b'A'..=b'J'] => Some(*letter),
        _ => None,
    }
}

/// The letter that an answer chooses, with or without the text of the choice: `C`, `(C)`, `(C) 12`, `C. 12`, `C) 12`, `C: 12`.
fn chosen(text: &str) -> Option<u8> {
    choice(text).or(match text.as_bytes() {
        [b'(', letter @ b'A'..=b'J', b')', ..] | [letter @ b'A'..=b'J', b')' | b'.' | b':', ..] => {
            Some(*letter)
        }
        _ => None,
    })
}

/// Equality of canonical texts. Every pair of parts is compared at most once, so the work is at most quadratic.
fn same(a: &str, b: &str, depth: usize, steps: &mut Steps) -> bool {
    if a == b {
        return true;
    }
    if a.is_empty() || b.is_empty() || depth > DEEPEST || steps.take(a.len() + b.len()).is_none() {
        return false;
    }
    let numbers = (Number::parse(a), Number::parse(b));
    if let (Some(x), Some(y)) = &numbers
        && x.same(y)
    {
        return true;
    }
    let (left, right) = (elements(a), elements(b));
    if left.len() == right.len() && left.len() > 1 {
        return unordered(&left, &right, depth, steps);
    }
    if numbers.0.is_some() && numbers.1.is_some() {
        return false;
    }
    match (bracketed(a), bracketed(b)) {
        (Some((kind_a, inner_a)), Some((kind_b, inner_b))) => {
            let (left, right) = (elements(inner_a), elements(inner_b));
            if left.len() > 1 || right.len() > 1 || kind_a.0 == b'{' {
                return kind_a == kind_b
                    && left.len() == right.len()
                    && if kind_a.0 == b'{' {
                        unordered(&left, &right, depth, steps)
                    } else {
                        left.iter().zip(&right).all(|(x, y)| same(x, y, depth + 1, steps))
                    };
            }
        }
        // The elements of a set may be listed without its braces.
        (Some(((b'{', _), inner)), None) => {
            return unordered(&elements(inner), &right, depth, steps);
        }
        (None, Some(((b'{', _), inner))) => {
            return unordered(&left, &elements(inner), depth, steps);
        }
        _ => {}
    }
    if left.len() != right.len() {
        // What looks like a list may be a number with thousands separators within a formula.
        return same_value(a, b, steps).unwrap_or(false);
    }
    let (left, right) = (parts(a, "\\cup"), parts(b, "\\cup"));
    if left.len() > 1 || right.len() > 1 {
        return unordered(&left, &right, depth, steps);
    }
    match (matrix(a), matrix(b)) {
        (Some(left), Some(right)) => {
            return left.len() == right.len()
                && left.iter().zip(&right).all(|(x, y)| {
                    x.len() == y.len() && x.iter().zip(y).all(|(x, y)| same(x, y, depth + 1, steps))
                });
        }
        (None, None) => {}
        _ => return false,
    }
    let (plain_a, plain_b) = (without_base(a, b), without_base(b, a));
    if (plain_a, plain_b) != (a, b) {
        return same(plain_a, plain_b, depth + 1, steps);
    }
    if let Some(same) = relation::same(a, b, depth, steps) {
        return same;
    }
    let word = |text: &str| {
        text.len() > 1
            && text.bytes().all(|byte| byte.is_ascii_alphabetic() || matches!(byte, b' ' | b'-'))
    };
    if word(a) && word(b) && a.eq_ignore_ascii_case(b) {
        return true;
    }
    same_value(a, b, steps).unwrap_or(false)
}

/// Whether two formulas have the same value wherever they have one; `None` when one of them is no formula that is known here.
fn same_value(a: &str, b: &str, steps: &mut Steps) -> Option<bool> {
    let (left, right) = (Formula::parse(a, steps)?, Formula::parse(b, steps)?);
    let constant = left.names().is_empty() && right.names().is_empty();
    let mut agreed = 0;
    for point in 0..POINTS {
        match left.value(point, steps)?.same(&right.value(point, steps)?) {
            Some(true) => agreed += 1,
            Some(false) => return Some(false),
            None => {}
        }
        if agreed == if constant { 1 } else { 3 } {
            return Some(true);
        }
    }
    Some(agreed >= 2)
}

/// The elements of a list; one with `\pm` counts as two.
fn elements(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for part in split(text, b',') {
        if part.contains("\\pm") || part.contains("\\mp") {
            found.push(part.replace("\\pm", "+").replace("\\mp", "-"));
            found.push(part.replace("\\pm", "-").replace("\\mp", "+"));
        } else {
            found.push(part.trim().to_owned());
        }
    }
    found
}

/// The parts of a text between separators of several characters that stand outside all brackets.
fn parts(text: &str, separator: &str) -> Vec<String> {
    let mut parts = Vec::new();
    let (mut open, mut start) = (0usize, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ if open == 0
                && at >= start
                && text.as_bytes()[at..].starts_with(separator.as_bytes()) =>
            {
                parts.push(text[start..at].to_owned());
                start = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(text[start..].to_owned());
    parts
}

/// The rows of a matrix.
fn matrix(text: &str) -> Option<Vec<Vec<String>>> {
    let inner = text.strip_prefix("\\begin{")?;
    let (kind, inner) = inner.split_once('}')?;
    let inner = inner.strip_suffix(&format!("\\end{{{kind}}}"))?;
    let inner = match kind {
        "pmatrix" | "bmatrix" | "matrix" | "smallmatrix" => inner,
        "array" => inner.strip_prefix('{')?.split_once('}')?.1,
        _ => return None,
    };
    let rows = parts(inner, "\\\\");
    let rows = rows.iter().filter(|row| !row.is_empty());
    Some(rows.map(|row| parts(row, "&")).collect())
}

/// Whether two lists hold equal elements in any order.
fn unordered(left: &[String], right: &[String], depth: usize, steps: &mut Steps) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let mut free: Vec<&str> = right.iter().map(String::as_str).collect();
    left.iter().all(|x| {
        let alike = free.iter().position(|y| x == y);
        match alike.or_else(|| free.iter().position(|y| same(x, y, depth + 1, steps))) {
            Some(place) => {
                free.swap_remove(place);
                true
            }
            None => false,
        }
    })
}

/// The parts of a text between separators that stand outside all brackets.
fn split(text: &str, separator: u8) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut open, mut start) = (0usize, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ if byte == separator && open == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The two brackets and the content of a text that is bracketed as a whole; `\{` counts as `{`.
fn bracketed(text: &str) -> Option<((u8, u8), &str)> {
    let bytes = text.as_bytes();
    let escaped = usize::from(text.starts_with("\\{") && text.ends_with("\\}"));
    let (first, last) = (*bytes.get(escaped)?, *bytes.last()?);
    if !matches!(first, b'(' | b'[' | b'{') || !matches!(last, b')' | b']' | b'}') {
        return None;
    }
    let mut open = 0usize;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => {
                open = open.checked_sub(1)?;
                if open == 0 && at + 1 < bytes.len() {
                    return None;
                }
            }
            _ => {}
        }
    }
    let inner = text.get(1 + escaped..text.len().checked_sub(1 + escaped)?)?;
    Some(((first, last), inner))
}

/// Where the brace closes that was opened before the text.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1usize;
    for (at, byte) in text.bytes().enumerate() {
        open = match byte {
            b'{' => open + 1,
            b'}' => open - 1,
            _ => open,
        };
        if open == 0 {
            return Some(at);
        }
    }
    None
}

/// A number without the base it is written in (`204_5`), when the other answer gives no base.
fn without_base<'a>(text: &'a str, other: &str) -> &'a str {
    match text.split_once('_') {
        Some((digits, _))
            if !other.contains('_') && digits.bytes().all(|byte| byte.is_ascii_digit()) =>
        {
            digits
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(response: &str, answer: &str) -> bool {
        Math.grade(&format!("So $\\boxed{{{response}}}$."), answer).score == 1.0
    }

    #[test]
    fn the_same_answer_written_differently_is_right() {
        for (response, answer) in [
            ("\\dfrac{3}{4}", "\\frac34"),
            ("0.75", "\\frac{3}{4}"),
            ("3,\\!986,\\!729", "3986729"),
            ("125\\text{ cm}", "125"),
            ("125\\text{ cm}^2", "125"),
            ("125 square inches", "125"),
            ("45^\\circ", "45"),
            ("x = 48", "48"),
            ("\\left(2,\\infty\\right)", "(2, \\infty)"),
            ("2, -1", "-1,2"),
            ("\\{3, 1\\}", "\\{1,3\\}"),
            ("(\\tfrac12, 0.5)", "(\\frac{1}{2},\\frac{1}{2})"),
            ("\\pi/4", "\\frac{\\pi}{4}"),
            ("-(n+1)/2", "-\\frac{n+1}{2}"),
            ("\\frac{-1+\\sqrt5}{2}", "\\dfrac{-1 + \\sqrt{5}}{2}"),
            ("x^{2} + 1", "x^2+1"),
            ("k \\geqslant 2", "k \\ge 2"),
            ("\\text{east}", "East"),
            ("3\\text{ or }4", "3,4"),
            ("x \\in [-2,7]", "[-2,7]"),
            ("204_5", "204"),
            ("204_{5}", "204_5"),
            ("\\frac{2016}{2017^{2}}", "\\dfrac{2016}{2017^2}"),
            ("\\$18.00", "18"),
            ("1 1/2", "\\frac{3}{2}"),
            ("5", "Thus it is $\\boxed{5}$"),
            ("2\\sqrt{2}", "\\sqrt{8}"),
            ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"),
            ("(x+1)^2", "x^2+2x+1"),
            ("\\frac{a b}{2}", "ab/2"),
            ("50\\%", "\\frac12"),
            ("3 million", "3,000,000"),
            ("1\\pm\\sqrt{19}", "1-\\sqrt{19}, 1+\\sqrt{19}"),
            ("\\{-2, 1+\\sqrt5, 1-\\sqrt5\\}", "\\{1\\pm\\sqrt{5},-2\\}"),
            ("(3,\\infty)\\cup(-\\infty,2)", "(-\\infty,2)\\cup(3,\\infty)"),
            (
                "\\begin{bmatrix} -0.5 \\\\ 2 \\end{bmatrix}",
                "\\begin{pmatrix}-1/2\\\\2\\end{pmatrix}",
            ),
            ("2y = 4x+6", "y=2x+3"),
            ("2x+3", "y=2x+3"),
            ("f(x) = 2x+3", "2x+3"),
            ("10x-14y+22z+8=0", "5x-7y+11z+4=0"),
            ("x > 5", "(5,\\infty)"),
            ("5 < x", "x>5"),
            ("[2,7)", "2 \\le x < 7"),
            ("-2x > -10", "x<5"),
            ("E", "\\text{(E)}"),
            ("\\text{(E) } 12", "(E)"),
            ("E. 12", "E"),
            ("\\cot x", "\\cotx"),
            ("\\dfrac{\\cos x}{\\sin x}", "\\cot x"),
            ("137\\frac{1}{2}", "\\frac{275}{2}"),
            ("\\binom{6}{2}", "15"),
            ("4!", "24"),
            ("2^{2013}-1", "2\\cdot 2^{2012}-1"),
            ("\\log_2 8", "3"),
            ("e^{2\\ln 3}", "9"),
            ("1+2i", "2i+1"),
            ("(1+i)^2", "2i"),
            ("\\frac{270}7", "\\frac{270}{7}"),
            ("12\\pi\\text{ cm}^2", "12\\pi"),
            ("5\\text{ inches}", "5\\text{ in}"),
            ("no solution", "\\emptyset"),
            ("\\text{all real numbers}", "(-\\infty, \\infty)"),
            ("100, 200, 300", "100,200,300"),
            ("(x, y) = (1, 2)", "(1,2)"),
            ("\\frac{x^2-1}{x-1}", "x+1"),
            ("3 \\times 10^5", "300000"),
            ("\\lfloor 7/2 \\rfloor", "3"),
            ("|x|", "\\sqrt{x^2}"),
            ("30^\\circ", "30\\text{ degrees}"),
            ("x=-1 \\text{ or } x=1", "\\pm 1"),
        ] {
            assert!(right(response, answer), "{response} and {answer}");
        }
    }

    #[test]
    fn another_answer_is_wrong() {
        for (response, answer) in [
            ("\\frac{5}{14}", "\\frac{14}{5}"),
            ("(3,2)", "(2,3)"),
            ("[2,3)", "(2,3)"),
            ("1 1/2", "11/2"),
            ("2,3", "2,3,3"),
            ("2,2,3", "2,3,3"),
            ("3\\text{ million}", "3"),
            ("3 million", "3"),
            ("2019", "-2019"),
            ("x^{12}", "x^1 2"),
            ("2\\pi", "2"),
            ("204_5", "204_6"),
            ("", "_5"),
            ("C", "c"),
            ("f(z)=z", "2"),
            ("-\\frac{x}{2}", "\\frac{x}{2}"),
            ("", "5"),
            ("0.333", "\\frac{1}{3}"),
            ("3.14", "\\pi"),
            ("1.41421356", "\\sqrt{2}"),
            ("1, 234", "1234"),
            ("5\\text{ cm}", "5\\text{ m}"),
            ("5 cm", "5 cm^2"),
            ("2^{2013}", "2^{2013}-1"),
            ("seat", "east"),
            ("y=5", "x=5"),
            ("x<5", "x>5"),
            ("x<5", "x\\le5"),
            ("-2x > -10", "x>5"),
            ("[5,\\infty)", "x>5"),
            ("x^2=25", "x=5"),
            ("\\sqrt{x^2}", "x"),
            ("x^2+1", "x^2+2"),
            ("1+i", "1-i"),
            ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1&2\\end{pmatrix}"),
            ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"),
            ("D", "\\text{(E)}"),
            ("(E) and (D)", "(D)"),
            ("2,3", "(2,3)"),
            ("\\{1,2\\}", "(1,2)"),
            ("\\pm 1", "1"),
            ("\\frac{1}{0}", "\\frac{2}{0}"),
            ("x_1", "x_2"),
            ("\\sin x", "\\cos x"),
            ("10!", "3628801"),
        ] {
            assert!(!right(response, answer), "{response} and {answer}");
        }
    }

    #[test]
    fn without_a_box_the_phrase_is_read_and_nothing_else() {
        assert_eq!(
            Math.grade("The answer is $\\frac{1}{2}$.", "0.5"),
            Grade::binary(true, "$\\frac{1}{2}$")
        );
        assert_eq!(Math.grade("so we get 5", "5"), Grade::nothing_found());
        assert_eq!(Math.grade("\\boxed{5", "5"), Grade::nothing_found());
    }

    #[test]
    fn labelled_answers_are_graded_as_labelled() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared/vectors/grading.json");
        let Ok(text) = std::fs::read_to_string(&path) else {
            println!("skipped: there is no {}", path.display());
            return;
        };
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let differing: Vec<&serde_json::Value> = cases
            .iter()
            .filter(|case| {
                let field = |name: &str| case[name].as_str().unwrap();
                let right = Math.grade(field("response"), field("answer")).score == 1.0;
                right != case["equivalent"].as_bool().unwrap()
            })
            .collect();
        for case in &differing {
            println!("{case}");
        }
        println!("{} of {} agree", cases.len() - differing.len(), cases.len());
        assert!(differing.is_empty(), "{} differ", differing.len());
    }

    #[test]
    fn answers_of_real_data_equal_what_their_own_solutions_end_with() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../shared/data/math500/math500.json");
        let Ok(text) = std::fs::read_to_string(&path) else {
            println!("skipped: there is no {}", path.display());
            return;
        };
        let columns: serde_json::Value = serde_json::from_str(&text).unwrap();
        let column = |name: &str| -> Vec<String> {
            match &columns[name] {
                serde_json::Value::Array(list) => {
                    list.iter().map(|x| x.as_str().unwrap().to_owned()).collect()
                }
                serde_json::Value::Object(map) => {
                    map.values().map(|x| x.as_str().unwrap().to_owned()).collect()
                }
                _ => panic!("no column {name}"),
            }
        };
        let (solutions, answers) = (column("solution"), column("expected_answer"));
        assert_eq!((solutions.len(), answers.len()), (500, 500));
        let mut right = 0;
        for (solution, answer) in solutions.iter().zip(&answers) {
            let grade = Math.grade(solution, answer);
            if grade.score == 1.0 {
                right += 1;
            } else {
                println!("{:?} and {answer:?}", grade.extracted);
            }
        }
        assert_eq!(right, 500);
        // Different answers of one data set are different by meaning too, but for a few that are the same by chance.
        let plain: Vec<String> = answers.iter().map(|answer| canonical(answer)).collect();
        let mut alike = Vec::new();
        for (i, a) in answers.iter().enumerate() {
            for (j, b) in answers.iter().enumerate().take(i) {
                if plain[i] != plain[j] && equal(a, b) != Some(false) {
                    alike.push(format!("{a} and {b}"));
                }
            }
        }
        assert!(alike.len() <= 1, "{alike:#?}");
    }
}
