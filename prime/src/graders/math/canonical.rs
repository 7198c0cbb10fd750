//! LaTeX in a canonical form, for comparison as text.

use crate::graders::number::Number;

/// Words after a number that are part of its value or of a formula, not a unit.
const NOT_UNITS: &[&str] = &[
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "pi", "sqrt", "log", "ln",
    "sin", "cos", "tan", "mod", "or", "and", "to", "infty", "infinity",
];

/// The text with what does not change its meaning taken away or written one way: spacing, dollar signs, sizes of
/// brackets and fractions, units, degree signs, braces around single characters.
pub(super) fn canonical(text: &str) -> String {
    let flat = flatten(without_unit(text.trim().trim_end_matches('.')));
    let flat = flat.replace("^{\\circ}", "").replace("^\\circ", "");
    rebrace(&flat)
}

/// A number and words after it without the words: `5 square inches`.
fn without_unit(text: &str) -> &str {
    let words_start = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ').len();
    let (number, words) = text.split_at(words_start);
    let unit = words.starts_with(' ') && is_unit(words) && words.trim().len() > 1;
    if unit && Number::parse(number.trim_matches('$')).is_some() { number } else { text }
}

fn is_unit(words: &str) -> bool {
    let mut words = words.split_whitespace().peekable();
    words.peek().is_some()
        && words.all(|word| {
            let word = word.trim_end_matches('.');
            word.bytes().all(|byte| byte.is_ascii_alphabetic())
                && !NOT_UNITS.contains(&word.to_ascii_lowercase().as_str())
        })
}

/// One pass over characters and commands. A blank stays, as one, only between two digits: `1 1/2` is not `11/2`.
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
        if blank && next.is_ascii_digit() && out.ends_with(|c: char| c.is_ascii_digit()) {
            out.push(' ');
        }
        blank = false;
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
            '\u{2212}' => out.push('-'),
            'π' => out.push_str("\\pi"),
            '∞' => out.push_str("\\infty"),
            other => out.push(other),
        }
        rest = &rest[next.len_utf8()..];
    }
    out
}

/// Writes a command in its canonical form; returns what is left to read.
fn write_command<'a>(command: &str, after: &'a str, out: &mut String) -> &'a str {
    match command {
        "\\!" | "\\," | "\\;" | "\\:" | "\\ " | "\\(" | "\\)" | "\\[" | "\\]" | "\\$"
        | "\\quad" | "\\qquad" | "\\displaystyle" | "\\left" | "\\right" | "\\big" | "\\Big"
        | "\\bigl" | "\\bigr" | "\\degree" => {}
        "\\dfrac" | "\\tfrac" | "\\cfrac" => out.push_str("\\frac"),
        "\\geq" | "\\geqslant" => out.push_str("\\ge"),
        "\\leq" | "\\leqslant" => out.push_str("\\le"),
        "\\neq" => out.push_str("\\ne"),
        "\\times" | "\\cdot" | "\\ast" => out.push('*'),
        "\\%" => out.push('%'),
        "\\lbrace" => out.push_str("\\{"),
        "\\rbrace" => out.push_str("\\}"),
        "\\text" | "\\textbf" | "\\textit" | "\\mathrm" | "\\mathbf" | "\\mbox"
        | "\\operatorname" => {
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
            out.extend(words.chars().filter(|c| !c.is_whitespace()));
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
