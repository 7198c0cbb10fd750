//! GSM8K: the number after `####`.

use super::number::Number;
use super::{Grade, Grader};

/// Grades as the data set's own program does: the first match of `#### (\-?[0-9\.\,]+)` in the response and in the answer, without
/// commas, as text. An answer without the mark is taken whole.
pub struct Gsm8k {
    /// Takes a dollar sign after the mark, the response's last number where the mark is missing, and compares by value, not as text.
    pub flexible: bool,
}

impl Grader for Gsm8k {
    fn name(&self) -> &'static str {
        if self.flexible { "gsm8k-flexible" } else { "gsm8k" }
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        let found = marked(response, self.flexible).or_else(|| {
            self.flexible.then(|| Number::last(response).map(|(_, text)| text)).flatten()
        });
        let Some(found) = found else { return Grade::nothing_found() };
        let expected = marked(answer, self.flexible).unwrap_or_else(|| plain(answer.trim()));
        let by_value = || match (Number::parse(&found), Number::parse(&expected)) {
            (Some(found), Some(expected)) => found.same(&expected),
            _ => false,
        };
        let right = found == expected || (self.flexible && by_value());
        Grade::binary(right, found)
    }
}

/// The first number after `#### `, without commas and dollar signs.
fn marked(text: &str, priced: bool) -> Option<String> {
    text.match_indices("#### ").find_map(|(at, mark)| {
        let rest = &text[at + mark.len()..];
        let unpriced =
            |text| if priced { str::strip_prefix(text, '$').unwrap_or(text) } else { text };
        let unsigned = unpriced(rest);
        let unsigned = unpriced(unsigned.strip_prefix('-').unwrap_or(unsigned));
        let length =
            unsigned.bytes().take_while(|b| b.is_ascii_digit() || matches!(b, b'.' | b',')).count();
        let end = rest.len() - unsigned.len() + length;
        (length > 0).then(|| plain(&rest[..end]))
    })
}

fn plain(number: &str) -> String {
    number.chars().filter(|c| !matches!(c, ',' | '$')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: Gsm8k = Gsm8k { flexible: false };
    const FLEXIBLE: Gsm8k = Gsm8k { flexible: true };

    #[test]
    fn the_strict_form_wants_the_mark() {
        assert_eq!(STRICT.grade("48+24 = 72\n#### 72", "72"), Grade::binary(true, "72"));
        assert_eq!(STRICT.grade("#### 1,234", "#### 1234"), Grade::binary(true, "1234"));
        assert_eq!(STRICT.grade("#### -3", "steps\n#### -3"), Grade::binary(true, "-3"));
        assert_eq!(STRICT.grade("#### $3", "3"), Grade::nothing_found());
        assert_eq!(STRICT.grade("#### 3. So", "3"), Grade::binary(false, "3."));
        assert_eq!(STRICT.grade("#### 5\n\nQuestion: ...\n#### 6", "5"), Grade::binary(true, "5"));
        assert_eq!(STRICT.grade("#### none\n#### 6", "6"), Grade::binary(true, "6"));
        assert_eq!(STRICT.grade("the answer is 72", "72"), Grade::nothing_found());
        assert_eq!(STRICT.grade("####72", "72"), Grade::nothing_found());
        assert_eq!(STRICT.grade("#### 72.00", "72").score, 0.0);
    }

    #[test]
    fn the_flexible_form_takes_the_last_number_by_value() {
        assert_eq!(FLEXIBLE.grade("so she sold 48+24 = 72.", "72"), Grade::binary(true, "72"));
        assert_eq!(FLEXIBLE.grade("#### 72.00 and then 5", "72"), Grade::binary(true, "72.00"));
        assert_eq!(FLEXIBLE.grade("she has $1,000 left", "#### 1000").score, 1.0);
        assert_eq!(FLEXIBLE.grade("#### $-3", "-3").score, 1.0);
        assert_eq!(FLEXIBLE.grade("none", "72"), Grade::nothing_found());
    }
}
