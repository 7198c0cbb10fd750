//! Units behind an answer: what of a text is the value and what is its unit.

use crate::graders::number::Number;

/// Words after a number that are part of its value or of a formula, not a unit.
const NOT_UNITS: &[&str] = &[
    "hundred", "thousand", "million", "billion", "trillion", "dozen", "pi", "sqrt", "log", "ln",
    "sin", "cos", "tan", "mod", "or", "and", "to", "infty", "infinity", "is", "are", "if", "when",
    "for", "where", "with",
];

/// Units of measure by the ways in which they are written, without the plural's s.
const UNITS: &[(&str, &[&str])] = &[
    ("mm", &["mm", "millimeter", "millimetre"]),
    ("cm", &["cm", "centimeter", "centimetre"]),
    ("m", &["m", "meter", "metre"]),
    ("km", &["km", "kilometer", "kilometre"]),
    ("in", &["in", "inch", "inche"]),
    ("ft", &["ft", "foot", "feet"]),
    ("yd", &["yd", "yard"]),
    ("mi", &["mi", "mile"]),
    ("s", &["s", "sec", "second"]),
    ("min", &["min", "minute"]),
    ("h", &["h", "hr", "hour"]),
    ("day", &["day"]),
    ("week", &["week"]),
    ("month", &["month"]),
    ("year", &["yr", "year"]),
    ("g", &["g", "gram"]),
    ("kg", &["kg", "kilogram"]),
    ("lb", &["lb", "pound"]),
    ("oz", &["oz", "ounce"]),
    ("ton", &["ton", "tonne"]),
    ("L", &["l", "liter", "litre"]),
    ("mL", &["ml", "milliliter", "millilitre"]),
    ("gal", &["gal", "gallon"]),
    ("$", &["dollar", "usd"]),
    ("cent", &["cent"]),
    ("degree", &["deg", "degree"]),
    ("rad", &["rad", "radian"]),
    ("mph", &["mph"]),
    ("unit", &["unit"]),
];

/// Commands that set words in a formula.
const WORD_COMMANDS: &[&str] =
    &["\\text", "\\mathrm", "\\textrm", "\\mbox", "\\textit", "\\textbf", "\\rm"];

/// Whether words may be a unit.
pub(super) fn is_unit(words: &str) -> bool {
    let mut words = words.split_whitespace().peekable();
    words.peek().is_some()
        && words.all(|word| {
            let word = word.trim_end_matches('.');
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'/')
                && !NOT_UNITS.contains(&word.to_ascii_lowercase().as_str())
        })
}

/// Whether words are a unit of measure.
fn is_known(words: &str) -> bool {
    let mut words = words
        .split_whitespace()
        .filter(|word| !["square", "sq", "cubic", "per"].contains(word))
        .peekable();
    words.peek().is_some() && words.all(|word| known(word).is_some())
}

fn known(word: &str) -> Option<&'static str> {
    let word = word.trim_end_matches('.').to_ascii_lowercase();
    let singular = word.strip_suffix('s').filter(|word| !word.is_empty()).unwrap_or(&word);
    UNITS
        .iter()
        .find(|(_, names)| names.contains(&word.as_str()) || names.contains(&singular))
        .map(|(unit, _)| *unit)
}

/// The unit in one way of writing: `square inches`, `sq in` and `in^2` alike. Empty for plain "units".
fn normal(words: &str, power: &str) -> Vec<String> {
    let mut exponent = power.trim_matches(['^', '{', '}']).to_owned();
    let mut found = Vec::new();
    for word in words.split_whitespace() {
        match word {
            "square" | "sq" | "sq." => exponent = "2".into(),
            "cubic" | "cu" => exponent = "3".into(),
            _ => {
                let lower = word.trim_end_matches('.').to_lowercase();
                let singular = lower.strip_suffix('s').unwrap_or(&lower);
                found.push(known(word).map_or_else(|| singular.to_owned(), str::to_owned));
            }
        }
    }
    if let Some(last) = found.last_mut()
        && !exponent.is_empty()
    {
        last.push_str(&exponent);
    }
    found.retain(|unit| unit.trim_end_matches(['2', '3']) != "unit");
    found
}

/// An answer without its unit, and the unit's words (none where there is no unit).
pub(super) fn split_unit(text: &str) -> (&str, Vec<String>) {
    let text = text.trim();
    let body = text.trim_end_matches(['.', ' ', '$', '~']);
    let power =
        ["^2", "^3", "^{2}", "^{3}"].into_iter().find(|power| body.ends_with(power)).unwrap_or("");
    let body = &body[..body.len() - power.len()];
    let none = (text, Vec::new());
    let (value, words) = if let Some(inner) = body.strip_suffix('}') {
        let Some(open) = inner.rfind('{') else { return none };
        let before = &inner[..open];
        let Some(command) = WORD_COMMANDS.iter().find(|command| before.ends_with(**command)) else {
            return none;
        };
        (&before[..before.len() - command.len()], &inner[open + 1..])
    } else {
        let start = body
            .trim_end_matches(|c: char| c.is_ascii_alphabetic() || matches!(c, ' ' | '/'))
            .len();
        let (value, words) = body.split_at(start);
        // A letter alone, or one that touches what is before it, is an unknown, unless it is a unit known by several letters.
        let apart = words.starts_with(' ')
            || value.ends_with(|c: char| c.is_ascii_digit()) && known(words.trim()).is_some();
        if !apart || words.trim().len() < 2 {
            return none;
        }
        (value, words)
    };
    let value = value.trim_end_matches([' ', '~']);
    let value = ["\\,", "\\;", "\\:", "\\!", "\\ "]
        .iter()
        .fold(value, |value, space| value.trim_end_matches(space))
        .trim_end();
    let plain = value.trim_matches(['$', ' ']);
    let counted = Number::parse(plain).is_some();
    if plain.is_empty()
        || !is_unit(words)
        || !(counted || is_known(words))
        || value.ends_with(['^', '_', '\\'])
    {
        return none;
    }
    (value, normal(words, power))
}

/// Whether two answers carry units that cannot be the same: metres and feet, apples and pears. One may say more than
/// the other: `5 apples left` and `5 apples`.
pub(super) fn conflict(a: &[String], b: &[String]) -> bool {
    let within = |a: &[String], b: &[String]| a.iter().all(|word| b.contains(word));
    !a.is_empty() && !b.is_empty() && !within(a, b) && !within(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_told_from_what_is_part_of_the_value() {
        for (text, value, unit) in [
            ("5 cm", "5", "cm"),
            ("5cm", "5", "cm"),
            ("5\\text{ cm}^2", "5", "cm2"),
            ("5 square inches", "5", "in2"),
            ("12\\pi\\,\\mathrm{ft}", "12\\pi", "ft"),
            ("x = 3\\text{ hours}", "x = 3", "h"),
            ("7 apples left", "7", "apple left"),
            ("7 units", "7", ""),
        ] {
            assert_eq!(
                split_unit(text),
                (value, unit.split_whitespace().map(str::to_owned).collect()),
                "{text}"
            );
        }
        for text in [
            "5 m",
            "2n",
            "3 million",
            "\\text{east}",
            "3\\text{ or }4",
            "x^{2}",
            "12 or 13",
            "",
            "}",
            "\\text{}",
        ] {
            assert_eq!(split_unit(text), (text, vec![]), "{text}");
        }
    }
}
