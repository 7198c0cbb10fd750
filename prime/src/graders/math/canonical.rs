//! LaTeX in a canonical form, for comparison as text.

use super::units::is_unit;
use crate::graders::number::Number;

/// What words stand for as the factor of the number before them.
const SCALES: &[(&str, &str)] = &[
    ("hundred", "*100"),
    ("thousand", "*1000"),
    ("million", "*1000000"),
    ("billion", "*1000000000"),
    ("trillion", "*1000000000000"),
    ("dozen", "*12"),
];

/// Answers in words or signs that mean the same.
const NAMED: &[(&str, &[&str])] = &[
    (
        "\\emptyset",
        &[
            "\\emptyset",
            "\\varnothing",
            "no solution",
            "no solutions",
            "empty set",
            "the empty set",
            "\\{\\}",
            "∅",
        ],
    ),
    ("no real solution", &["no real solution", "no real solutions"]),
    (
        "(-\\infty,\\infty)",
        &["\\mathbb{R}", "\\mathbb R", "all real numbers", "\\R", "\\Reals", "ℝ"],
    ),
];

/// The text with what does not change its meaning taken away or written one way: spacing, dollar signs, sizes of
/// brackets and fractions, degree signs, braces around single characters.
pub(super) fn canonical(text: &str) -> String {
    let flat = flatten(text.trim().trim_end_matches('.'));
    let flat = flat.replace("^{\\circ}", "").replace("^\\circ", "");
    for (name, forms) in NAMED {
        if forms.iter().any(|form| flat.eq_ignore_ascii_case(form)) {
            return (*name).to_owned();
        }
    }
    for (word, factor) in SCALES {
        if let Some(number) = flat.strip_suffix(word)
            && Number::parse(number).is_some()
        {
            return format!("{}{factor}", number.trim_end());
        }
    }
    rebrace(&flat)
}

/// One pass over characters and commands. A blank stays, as one, only where it tells things apart: between two digits
/// (`1 1/2` is not `11/2`), two letters, and behind a comma between digits (`1, 234` is no number).
fn flatten(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut blank = false;
    while let Some(next) = rest.chars().next() {
        if next.is_whitespace() || next == '~' {
            blank = true;
            rest = &rest[next.len_utf8()..];
            continue;
        }
        let after_digit = out.ends_with(|c: char| c.is_ascii_digit());
        let tells = match next {
            _ if next.is_ascii_digit() => after_digit || ends_with_digit_and_comma(&out),
            _ if next.is_ascii_alphabetic() => out.ends_with(|c: char| c.is_ascii_alphabetic()),
            _ => false,
        };
        if blank && tells {
            out.push(' ');
        }
        blank = false;
        // A comma that LaTeX sets without its blank belongs to a number.
        let grouping = [",\\!", "{,}"].into_iter().find(|mark| rest.starts_with(mark));
        if let Some(mark) = grouping
            && after_digit
        {
            rest = rest[mark.len()..].trim_start();
            continue;
        }
        if next == '\\' {
            let letters = rest[1..].bytes().take_while(u8::is_ascii_alphabetic).count();
            let length = match letters {
                0 => rest[1..].chars().next().map_or(0, char::len_utf8),
                letters => letters,
            };
            let (command, after) = rest.split_at(1 + length);
            rest = write_command(command, after, &mut out);
            continue;
        }
        match next {
            '$' | '°' => {}
            '\u{2212}' | '\u{2013}' => out.push('-'),
            '≤' => out.push_str("\\le"),
            '≥' => out.push_str("\\ge"),
            '≠' => out.push_str("\\ne"),
            '±' => out.push_str("\\pm"),
            '∪' => out.push_str("\\cup"),
            'π' => out.push_str("\\pi"),
            '∞' => out.push_str("\\infty"),
            other => out.push(other),
        }
        rest = &rest[next.len_utf8()..];
    }
    out
}

fn ends_with_digit_and_comma(text: &str) -> bool {
    matches!(text.as_bytes(), [.., digit, b','] if digit.is_ascii_digit())
}

/// Writes a command in its canonical form; returns what is left to read.
fn write_command<'a>(command: &str, after: &'a str, out: &mut String) -> &'a str {
    match command {
        "\\!" | "\\," | "\\;" | "\\:" | "\\ " | "\\(" | "\\)" | "\\[" | "\\]" | "\\$"
        | "\\quad" | "\\qquad" | "\\displaystyle" | "\\left" | "\\right" | "\\big" | "\\Big"
        | "\\bigl" | "\\bigr" | "\\Bigl" | "\\Bigr" | "\\bigg" | "\\Bigg" | "\\biggl"
        | "\\biggr" | "\\degree" | "\\limits" | "\\textstyle" | "\\thinspace" | "\\enspace" => {}
        "\\dfrac" | "\\tfrac" | "\\cfrac" => out.push_str("\\frac"),
        "\\geq" | "\\geqslant" => out.push_str("\\ge"),
        "\\leq" | "\\leqslant" => out.push_str("\\le"),
        "\\neq" => out.push_str("\\ne"),
        "\\times" | "\\cdot" | "\\ast" => out.push('*'),
        "\\lt" => out.push('<'),
        "\\gt" => out.push('>'),
        "\\lbrack" => out.push('['),
        "\\rbrack" => out.push(']'),
        "\\dbinom" | "\\tbinom" => out.push_str("\\binom"),
        "\\%" => out.push('%'),
        "\\lbrace" => out.push_str("\\{"),
        "\\rbrace" => out.push_str("\\}"),
        "\\text" | "\\textbf" | "\\textit" | "\\textrm" | "\\mathrm" | "\\mathbf" | "\\mathit"
        | "\\mbox" | "\\operatorname" => {
            return write_words(after, out);
        }
        other => out.push_str(other),
    }
    after
}

/// Writes the words of a `\text{...}`: a unit after a number goes, with its power; "or" and "and" separate a list.
fn write_words<'a>(after: &'a str, out: &mut String) -> &'a str {
    let Some(inner) = after.trim_start().strip_prefix('{') else { return after };
    let Some(end) = inner.find('}') else { return after };
    let (words, rest) = (&inner[..end], &inner[end + 1..]);
    match words.trim() {
        "or" | "and" => out.push(','),
        _ => {
            let element = out.rsplit(',').next().unwrap_or_default();
            if is_unit(words) && Number::parse(element).is_some() {
                let power =
                    ["^2", "^3", "^{2}", "^{3}"].iter().find_map(|power| rest.strip_prefix(power));
                return power.unwrap_or(rest);
            }
            if out.ends_with(|c: char| c.is_ascii_alphabetic()) {
                out.push(' ');
            }
            for (i, word) in words.split_whitespace().enumerate() {
                out.push_str(if i > 0 { " " } else { "" });
                out.push_str(word);
            }
        }
    }
    rest
}

/// Braces around bare arguments of `\frac` and `\sqrt`, none around single characters after `^` and `_`.
fn rebrace(flat: &str) -> String {
    let bytes = flat.as_bytes();
    let is_bare = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_alphanumeric);
    let mut wrapped = vec![false; bytes.len()];
    let mut dropped = vec![false; bytes.len()];
    for at in 0..bytes.len() {
        let rest = &bytes[at..];
        let (mut next, arguments) = match rest {
            [b'\\', b'f', b'r', b'a', b'c', ..] => (at + 5, 2),
            [b'\\', b's', b'q', b'r', b't', ..] => (at + 5, 1),
            [b'^' | b'_', b'{', _, b'}', ..] => {
                (dropped[at + 1], dropped[at + 3]) = (true, true);
                continue;
            }
            _ => continue,
        };
        for _ in 0..arguments {
            if is_bare(next) {
                wrapped[next] = true;
                next += 1;
            } else if bytes.get(next) == Some(&b'{')
                && let Some(end) = super::closing(&flat[next + 1..])
            {
                next += end + 2;
            } else {
                break;
            }
        }
    }
    let mut out = String::with_capacity(flat.len() + 16);
    for (at, character) in flat.char_indices() {
        if wrapped[at] {
            out.extend(['{', character, '}']);
        } else if !dropped[at] {
            out.push(character);
        }
    }
    out
}
