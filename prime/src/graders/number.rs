//! Exact numbers, and reading them in text.

/// A fraction in lowest terms, its denominator positive. Operations that leave 128 bits give `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rational {
    numerator: i128,
    denominator: i128,
}

impl Rational {
    /// `numerator / denominator`; `None` when the denominator is 0.
    pub fn new(numerator: i128, denominator: i128) -> Option<Self> {
        if denominator == 0 {
            return None;
        }
        let (mut a, mut b) = (numerator.unsigned_abs(), denominator.unsigned_abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        let divisor = i128::try_from(a).ok()?;
        let (numerator, denominator) =
            (numerator.checked_div(divisor)?, denominator.checked_div(divisor)?);
        if denominator < 0 {
            let (numerator, denominator) = (numerator.checked_neg()?, denominator.checked_neg()?);
            return Some(Rational { numerator, denominator });
        }
        Some(Rational { numerator, denominator })
    }

    /// A whole number.
    pub fn integer(value: i64) -> Self {
        Rational { numerator: i128::from(value), denominator: 1 }
    }

    /// The sum.
    pub fn checked_add(self, other: Self) -> Option<Self> {
        let left = self.numerator.checked_mul(other.denominator)?;
        let right = other.numerator.checked_mul(self.denominator)?;
        Self::new(left.checked_add(right)?, self.denominator.checked_mul(other.denominator)?)
    }

    /// The difference.
    pub fn checked_sub(self, other: Self) -> Option<Self> {
        self.checked_add(other.checked_neg()?)
    }

    /// The product.
    pub fn checked_mul(self, other: Self) -> Option<Self> {
        Self::new(
            self.numerator.checked_mul(other.numerator)?,
            self.denominator.checked_mul(other.denominator)?,
        )
    }

    /// The quotient; `None` when `other` is 0.
    pub fn checked_div(self, other: Self) -> Option<Self> {
        Self::new(
            self.numerator.checked_mul(other.denominator)?,
            self.denominator.checked_mul(other.numerator)?,
        )
    }

    /// The number with the other sign.
    pub fn checked_neg(self) -> Option<Self> {
        Some(Rational { numerator: self.numerator.checked_neg()?, denominator: self.denominator })
    }

    /// Whether it is whole.
    pub fn is_integer(self) -> bool {
        self.denominator == 1
    }

    /// Numerator and denominator, without a common divisor; the denominator is positive.
    pub fn parts(self) -> (i128, i128) {
        (self.numerator, self.denominator)
    }
}

/// A number read in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Exact(Rational),
    /// Too many digits for 128 bits, or a division by 0: equal only to the same text in canonical form.
    Opaque(String),
}

/// A number as written: its value, and whether a percent sign followed it.
#[derive(Clone, Debug)]
pub struct Number {
    value: Value,
    percent: bool,
}

impl Number {
    /// Whether both stand for the same number. Where only one carries a percent sign, the other may be either the
    /// percentage or the share: 50%, 50 and 0.5 are equal, and data sets use all three.
    pub fn same(&self, other: &Number) -> bool {
        if self.value == other.value {
            return true;
        }
        let share = |number: &Number| match number.value {
            Value::Exact(value) => value.checked_div(Rational::integer(100)),
            Value::Opaque(_) => None,
        };
        let exact = |number: &Number| match number.value {
            Value::Exact(value) => Some(value),
            Value::Opaque(_) => None,
        };
        match (self.percent, other.percent) {
            (true, false) => share(self).is_some() && share(self) == exact(other),
            (false, true) => share(other).is_some() && share(other) == exact(self),
            _ => false,
        }
    }

    /// Whether both stand for the same number, or their values differ by at most `tolerance` times the larger.
    pub fn near(&self, other: &Number, tolerance: f64) -> bool {
        let value = |number: &Number| match number.value {
            Value::Exact(value) => {
                let (above, below) = value.parts();
                Some(above as f64 / below as f64)
            }
            Value::Opaque(_) => None,
        };
        self.same(other)
            || (tolerance > 0.0 && self.percent == other.percent)
                && value(self)
                    .zip(value(other))
                    .is_some_and(|(a, b)| (a - b).abs() <= tolerance * a.abs().max(b.abs()))
    }

    /// The number that makes up the whole text, blanks and a final full stop aside.
    pub fn parse(text: &str) -> Option<Number> {
        let text = ascii_signs(text.trim());
        let text = text.strip_suffix('.').unwrap_or(&text).trim_end();
        let (number, end) = scan(text.as_bytes(), 0)?;
        (end == text.len()).then_some(number)
    }

    /// The first number of a text.
    pub fn first(text: &str) -> Option<(Number, String)> {
        all(&ascii_signs(text)).next()
    }

    /// The last number of a text.
    pub fn last(text: &str) -> Option<(Number, String)> {
        all(&ascii_signs(text)).last()
    }
}

/// The text with typographic minus signs and blanks as ASCII has them.
fn ascii_signs(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\u{2212}' | '\u{2013}' => '-',
            '\u{a0}' | '\u{2009}' | '\u{202f}' => ' ',
            other => other,
        })
        .collect()
}

/// The numbers of a text in order, each with its text. Exponents, indices and digits inside words are not numbers.
fn all(text: &str) -> impl Iterator<Item = (Number, String)> + '_ {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < bytes.len() {
            if may_start(bytes, at)
                && let Some((number, end)) = scan(bytes, at)
            {
                let found = text[at..end].to_owned();
                at = end;
                return Some((number, found));
            }
            // The rest of a run of digits that is no number is none either.
            at += 1;
            while at < bytes.len() && bytes[at - 1].is_ascii_digit() && bytes[at].is_ascii_digit() {
                at += 1;
            }
        }
        None
    })
}

/// Whether a number may start at a place in running text.
fn may_start(bytes: &[u8], at: usize) -> bool {
    let before = at.checked_sub(1).map_or(b' ', |i| bytes[i]);
    let before_brace = at.checked_sub(2).map_or(b' ', |i| bytes[i]);
    match bytes[at] {
        // After an operand, a minus is a subtraction.
        b'-' | b'+' => {
            !(before.is_ascii_alphanumeric() || matches!(before, b')' | b']' | b'}' | b'^' | b'_'))
        }
        b'0'..=b'9' | b'.' => {
            let exponent = matches!(before, b'^' | b'_')
                || (before == b'{' && matches!(before_brace, b'^' | b'_'));
            !exponent && !before.is_ascii_alphabetic()
        }
        b'$' | b'\\' => true,
        _ => false,
    }
}

/// The number that starts at a place, and where it ends.
fn scan(bytes: &[u8], start: usize) -> Option<(Number, usize)> {
    let mut at = start;
    let mut negative = false;
    // A sign and a currency, in either order, each at most once.
    let (mut signed, mut currency) = (false, false);
    loop {
        match bytes.get(at) {
            Some(&sign @ (b'-' | b'+')) if !signed => {
                (signed, negative) = (true, sign == b'-');
                at += 1;
            }
            Some(b'$') if !currency => (currency, at) = (true, at + 1),
            Some(b'\\') if !currency && bytes.get(at + 1) == Some(&b'$') => {
                (currency, at) = (true, at + 2);
            }
            _ => break,
        }
    }
    let (mut value, mut end) = match latex_fraction(bytes, at) {
        Some(found) => found,
        None => {
            let (whole, end) = decimal(bytes, at)?;
            with_fraction(bytes, whole, end)
        }
    };
    if negative {
        value = match value {
            Value::Exact(value) => Value::Exact(value.checked_neg()?),
            Value::Opaque(text) => Value::Opaque(format!("-{text}")),
        };
    }
    let after = skip_blank(bytes, end);
    let percent = match (bytes.get(after), bytes.get(after + 1)) {
        (Some(b'%'), _) => Some(after + 1),
        (Some(b'\\'), Some(b'%')) => Some(after + 2),
        _ => None,
    };
    end = percent.unwrap_or(end);
    Some((Number { value, percent: percent.is_some() }, end))
}

/// A decimal number continued: `3/4`, `1 3/4` or `1\frac{3}{4}`.
fn with_fraction(bytes: &[u8], whole: Value, end: usize) -> (Value, usize) {
    if let Some(over) = slash(bytes, end)
        && let Some((below, after)) = decimal(bytes, over)
    {
        return (quotient(whole, below), after);
    }
    let Value::Exact(integer) = whole else { return (whole, end) };
    if !integer.is_integer() {
        return (whole, end);
    }
    let mixed = latex_fraction(bytes, end).or_else(|| {
        let next = skip_blank(bytes, end);
        if next == end {
            return None;
        }
        let (above, middle) = decimal(bytes, next)?;
        let (below, after) = decimal(bytes, slash(bytes, middle)?)?;
        Some((quotient(above, below), after))
    });
    match mixed {
        Some((Value::Exact(part), after)) => match integer.checked_add(part) {
            Some(sum) => (Value::Exact(sum), after),
            None => (whole, end),
        },
        _ => (whole, end),
    }
}

fn quotient(above: Value, below: Value) -> Value {
    let exact = match (&above, &below) {
        (Value::Exact(above), Value::Exact(below)) => above.checked_div(*below),
        _ => None,
    };
    match exact {
        Some(value) => Value::Exact(value),
        None => Value::Opaque(format!("{above:?}/{below:?}")),
    }
}

/// Where the denominator starts, when a fraction's slash follows (one blank on either side allowed).
fn slash(bytes: &[u8], at: usize) -> Option<usize> {
    let at = skip_blank(bytes, at);
    (bytes.get(at) == Some(&b'/')).then(|| skip_blank(bytes, at + 1))
}

/// Past one blank, if there is one.
fn skip_blank(bytes: &[u8], at: usize) -> usize {
    at + usize::from(bytes.get(at) == Some(&b' '))
}

/// `\frac{3}{4}`, its display and text forms, and `\frac34`.
fn latex_fraction(bytes: &[u8], start: usize) -> Option<(Value, usize)> {
    let rest = bytes.get(start..)?;
    let name =
        [&b"\\frac"[..], b"\\dfrac", b"\\tfrac"].into_iter().find(|name| rest.starts_with(name))?;
    let (above, at) = latex_part(bytes, start + name.len())?;
    let (below, at) = latex_part(bytes, at)?;
    Some((quotient(above, below), at))
}

/// One argument of `\frac`: a digit, or a number in braces.
fn latex_part(bytes: &[u8], at: usize) -> Option<(Value, usize)> {
    let at = skip_blank(bytes, at);
    let first = *bytes.get(at)?;
    if first.is_ascii_digit() {
        return Some((Value::Exact(Rational::integer(i64::from(first - b'0'))), at + 1));
    }
    if first != b'{' {
        return None;
    }
    let mut at = skip_blank(bytes, at + 1);
    let negative = bytes.get(at) == Some(&b'-');
    at += usize::from(negative);
    let (value, at) = decimal(bytes, at)?;
    let at = skip_blank(bytes, at);
    if bytes.get(at) != Some(&b'}') {
        return None;
    }
    let value = match value {
        Value::Exact(value) if negative => Value::Exact(value.checked_neg()?),
        Value::Opaque(text) if negative => Value::Opaque(format!("-{text}")),
        value => value,
    };
    Some((value, at + 1))
}

/// An unsigned decimal number: `1234`, `1,234.5`, `1{,}234`, `.5`, `2e3`.
fn decimal(bytes: &[u8], start: usize) -> Option<(Value, usize)> {
    let mut at = start;
    let mut integer = Vec::new();
    take_digits(bytes, &mut at, &mut integer);
    if (1..=3).contains(&integer.len()) {
        while let Some(group) = thousands(bytes, at) {
            integer.extend_from_slice(&bytes[group..group + 3]);
            at = group + 3;
        }
    }
    let mut fraction = Vec::new();
    if bytes.get(at) == Some(&b'.') && bytes.get(at + 1).is_some_and(u8::is_ascii_digit) {
        at += 1;
        take_digits(bytes, &mut at, &mut fraction);
    }
    if integer.is_empty() && fraction.is_empty() {
        return None;
    }
    let (exponent, at) = exponent(bytes, at);
    let leading = integer.iter().take_while(|&&digit| digit == b'0').count();
    let integer = &integer[leading..];
    let trailing = fraction.iter().rev().take_while(|&&digit| digit == b'0').count();
    let fraction = &fraction[..fraction.len() - trailing];
    let value = exact(integer, fraction, exponent).map_or_else(
        || {
            let text = |digits: &[u8]| String::from_utf8_lossy(digits).into_owned();
            Value::Opaque(format!("{}.{}e{exponent}", text(integer), text(fraction)))
        },
        Value::Exact,
    );
    Some((value, at))
}

fn take_digits(bytes: &[u8], at: &mut usize, digits: &mut Vec<u8>) {
    while let Some(digit) = bytes.get(*at).filter(|byte| byte.is_ascii_digit()) {
        digits.push(*digit);
        *at += 1;
    }
}

/// Where the next group of three digits starts, when a thousands separator stands at `at`.
fn thousands(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    let separator = [&b",\\!"[..], b"{,}", b","].into_iter().find(|mark| rest.starts_with(mark))?;
    let group = &rest[separator.len()..];
    let digits = group.iter().take(4).take_while(|byte| byte.is_ascii_digit()).count();
    (digits == 3).then_some(at + separator.len())
}

/// `e5`, `E-3`: at most two digits, and no letter or digit after them.
fn exponent(bytes: &[u8], start: usize) -> (i32, usize) {
    let none = (0, start);
    if !matches!(bytes.get(start), Some(b'e' | b'E')) {
        return none;
    }
    let mut at = start + 1;
    let negative = bytes.get(at) == Some(&b'-');
    at += usize::from(matches!(bytes.get(at), Some(b'-' | b'+')));
    let first = at;
    let mut value = 0;
    while at < first + 2
        && let Some(digit) = bytes.get(at).filter(|byte| byte.is_ascii_digit())
    {
        value = value * 10 + i32::from(digit - b'0');
        at += 1;
    }
    if at == first || bytes.get(at).is_some_and(u8::is_ascii_alphanumeric) {
        return none;
    }
    (if negative { -value } else { value }, at)
}

fn exact(integer: &[u8], fraction: &[u8], exponent: i32) -> Option<Rational> {
    // 10^38 is the largest power of ten in 128 bits.
    if integer.len() + fraction.len() > 38 {
        return None;
    }
    let mut digits: i128 = 0;
    for digit in integer.iter().chain(fraction) {
        digits = digits.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    let scale = exponent - i32::try_from(fraction.len()).ok()?;
    let power = 10i128.checked_pow(scale.unsigned_abs())?;
    if scale < 0 {
        Rational::new(digits, power)
    } else {
        Rational::new(digits.checked_mul(power)?, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: &str, b: &str) -> bool {
        Number::parse(a).unwrap().same(&Number::parse(b).unwrap())
    }

    #[test]
    fn numbers_written_differently_are_the_same() {
        for (a, b) in [
            ("1,234", "1234"),
            ("1{,}234.50", "1234.5"),
            ("3,\\!986,\\!729", "3986729"),
            ("0.125", "\\frac{1}{8}"),
            ("\\dfrac12", "1/2"),
            ("-\\frac{3}{4}", "\\frac{-3}{4}"),
            ("1 1/2", "1.5"),
            ("137\\tfrac{1}{2}", "137.5"),
            ("$18.00", "18"),
            ("-$5", "$-5"),
            ("2.5e3", "2500"),
            ("007", "7"),
            ("-0", "0"),
            ("50%", "0.5"),
            ("50\\%", "50"),
            ("−7", "-7"),
            ("72.", "72"),
            (
                "123456789012345678901234567890123456789012.50",
                "123456789012345678901234567890123456789012.5",
            ),
        ] {
            assert!(same(a, b), "{a} and {b}");
        }
    }

    #[test]
    fn different_numbers_are_different_and_no_number_is_none() {
        for (a, b) in [
            ("1234", "1235"),
            ("0.333", "1/3"),
            ("50%", "5"),
            ("50%", "0.5%"),
            ("1e40", "1e41"),
            ("1/0", "1"),
        ] {
            assert!(!same(a, b), "{a} and {b}");
        }
        for text in ["", ".", "-", "1,23", "1..2", "x", "\\frac{1}", "1/", "--1", "1 2", "$"] {
            assert!(Number::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_text_yields_its_first_and_last_number() {
        let last = |text: &str| Number::last(text).map(|(_, found)| found);
        assert_eq!(last("so 48/2 = 24."), Some("24".into()));
        assert_eq!(last("16-4"), Some("4".into()));
        assert_eq!(last("it is -4 degrees"), Some("-4".into()));
        assert_eq!(last("5 cm^2 or 7 m_{3}, H2O"), Some("7".into()));
        assert_eq!(last("about $1,234.50!"), Some("$1,234.50".into()));
        assert_eq!(last("none"), None);
        assert_eq!(Number::first("3 1/2 cups of 4").map(|(_, found)| found), Some("3 1/2".into()));
    }
}
