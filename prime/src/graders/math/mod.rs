//! Mathematical answers in LaTeX: the last box, in a canonical form.
//!
//! Two answers are equal when their canonical texts are, when they are the same number, or when they are lists, tuples,
//! sets or fractions of equal parts. Algebra is not done: `2x` and `x+x` differ here.

mod canonical;

use canonical::canonical;

use super::extract::{after_phrase, last_boxed};
use super::number::Number;
use super::{Grade, Grader};

/// Longer answers are compared as text alone.
const LONGEST: usize = 1024;
/// Lists nested deeper than this are compared as text alone.
const DEEPEST: usize = 12;

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
        Grade::binary(equal(found, answer), found)
    }
}

/// Whether two answers are equal.
fn equal(a: &str, b: &str) -> bool {
    if a.trim() == b.trim() {
        return true;
    }
    if a.len() > LONGEST || b.len() > LONGEST {
        return false;
    }
    same(&canonical(a), &canonical(b), 0)
}

/// Equality of canonical texts. Every pair of parts is compared at most once, so the work is at most quadratic.
fn same(a: &str, b: &str, depth: usize) -> bool {
    if a == b {
        return true;
    }
    if a.is_empty() || b.is_empty() || depth > DEEPEST {
        return false;
    }
    let numbers = (Number::parse(a), Number::parse(b));
    if let (Some(x), Some(y)) = &numbers
        && x.same(y)
    {
        return true;
    }
    let (left, right) = (split(a, b','), split(b, b','));
    if left.len() == right.len() && left.len() > 1 {
        return unordered(&left, &right, depth);
    }
    if numbers.0.is_some() && numbers.1.is_some() {
        return false;
    }
    if let (Some((kind_a, inner_a)), Some((kind_b, inner_b))) = (bracketed(a), bracketed(b)) {
        let (left, right) = (split(inner_a, b','), split(inner_b, b','));
        return kind_a == kind_b
            && left.len() == right.len()
            && if kind_a.0 == b'{' {
                unordered(&left, &right, depth)
            } else {
                left.iter().zip(&right).all(|(x, y)| same(x, y, depth + 1))
            };
    }
    if let (Some((sign_a, above_a, below_a)), Some((sign_b, above_b, below_b))) =
        (fraction(a), fraction(b))
    {
        return sign_a == sign_b
            && same(above_a, above_b, depth + 1)
            && same(below_a, below_b, depth + 1);
    }
    let (plain_a, plain_b) = (without_base(a, b), without_base(b, a));
    let (value_a, value_b) = (assigned(plain_a), assigned(plain_b));
    if (value_a, value_b) != (a, b) {
        return same(value_a, value_b, depth + 1);
    }
    let word = |text: &str| text.len() > 1 && text.bytes().all(|byte| byte.is_ascii_alphabetic());
    word(a) && word(b) && a.eq_ignore_ascii_case(b)
}

/// Whether two lists hold equal elements in any order.
fn unordered(left: &[&str], right: &[&str], depth: usize) -> bool {
    let mut free: Vec<&str> = right.to_vec();
    left.iter().all(|x| match free.iter().position(|y| same(x, y, depth + 1)) {
        Some(place) => {
            free.swap_remove(place);
            true
        }
        None => false,
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

/// A text that is one fraction as a whole, `\frac{A}{B}` or `A/B`: whether it is negative, A and B.
fn fraction(text: &str) -> Option<(bool, &str, &str)> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let negative = unsigned.len() != text.len();
    if let Some(rest) = unsigned.strip_prefix("\\frac{") {
        let close = closing(rest)?;
        let below = rest[close + 1..].strip_prefix('{')?;
        let end = closing(below)?;
        return (end + 1 == below.len()).then_some((negative, &rest[..close], &below[..end]));
    }
    if split(unsigned, b'+').len() > 1 || split(unsigned, b'-').len() > 1 {
        return None;
    }
    let [above, below] = split(unsigned, b'/')[..] else { return None };
    let bare = |part| match bracketed(part) {
        Some(((b'(', b')'), inner)) => inner,
        _ => part,
    };
    Some((negative, bare(above), bare(below)))
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

/// What a single named variable is set to or lies in (`x=5`, `x_1=5`, `x\in[0,1]`), or the text itself.
fn assigned(text: &str) -> &str {
    let parts = text.split_once('=').or_else(|| {
        text.split_once("\\in").filter(|(_, set)| set.starts_with(['(', '[', '{', '\\']))
    });
    match parts {
        Some((name, value)) if !value.is_empty() => {
            let base = name.split('_').next().unwrap_or_default();
            let variable = base.len() == 1 && base.bytes().all(|byte| byte.is_ascii_alphabetic());
            if variable && name.len() <= 5 { value } else { text }
        }
        _ => text,
    }
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
}
