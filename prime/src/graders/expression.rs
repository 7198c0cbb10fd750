//! Arithmetic expressions evaluated exactly: `(3+5)*2-8/4`.

use super::number::Rational;

/// Longer expressions are refused.
const LONGEST: usize = 512;
/// Deeper nesting of brackets and signs is refused: the evaluator recurses once a level.
const DEEPEST: usize = 32;

/// An evaluated expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// The exact value.
    pub value: Rational,
    /// The numbers written in it, in order.
    pub numbers: Vec<u64>,
    /// The two-sided operators in it.
    pub operations: usize,
}

/// Evaluates whole numbers joined by `+ - * /`, brackets and signs, with the usual precedence; blanks are allowed between
/// them. `None` when the text is anything else, divides by 0, is too long or too deep, or its value leaves 128 bits.
pub fn evaluate(text: &str) -> Option<Evaluation> {
    if text.len() > LONGEST {
        return None;
    }
    let mut reader = Reader { bytes: text.as_bytes(), at: 0, numbers: Vec::new(), operations: 0 };
    let value = reader.sum(0)?;
    (reader.peek().is_none()).then_some(Evaluation {
        value,
        numbers: reader.numbers,
        operations: reader.operations,
    })
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    numbers: Vec<u64>,
    operations: usize,
}

impl Reader<'_> {
    /// The next byte that is not blank.
    fn peek(&mut self) -> Option<u8> {
        while self.bytes.get(self.at) == Some(&b' ') {
            self.at += 1;
        }
        self.bytes.get(self.at).copied()
    }

    /// Takes an operator, if one of these comes next.
    fn operator(&mut self, either: u8, or: u8) -> Option<u8> {
        let next = self.peek().filter(|&byte| byte == either || byte == or)?;
        self.at += 1;
        self.operations += 1;
        Some(next)
    }

    fn sum(&mut self, depth: usize) -> Option<Rational> {
        let mut value = self.product(depth)?;
        while let Some(operator) = self.operator(b'+', b'-') {
            let right = self.product(depth)?;
            value = if operator == b'+' {
                value.checked_add(right)?
            } else {
                value.checked_sub(right)?
            };
        }
        Some(value)
    }

    fn product(&mut self, depth: usize) -> Option<Rational> {
        let mut value = self.operand(depth)?;
        while let Some(operator) = self.operator(b'*', b'/') {
            let right = self.operand(depth)?;
            value = if operator == b'*' {
                value.checked_mul(right)?
            } else {
                value.checked_div(right)?
            };
        }
        Some(value)
    }

    fn operand(&mut self, depth: usize) -> Option<Rational> {
        if depth > DEEPEST {
            return None;
        }
        match self.peek()? {
            b'(' => {
                self.at += 1;
                let value = self.sum(depth + 1)?;
                (self.peek()? == b')').then(|| self.at += 1)?;
                Some(value)
            }
            b'-' => {
                self.at += 1;
                self.operand(depth + 1)?.checked_neg()
            }
            b'0'..=b'9' => {
                let start = self.at;
                while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
                    self.at += 1;
                }
                let digits = std::str::from_utf8(&self.bytes[start..self.at]).ok()?;
                let number: i64 = digits.parse().ok()?;
                self.numbers.push(number.unsigned_abs());
                Some(Rational::integer(number))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<Rational> {
        evaluate(text).map(|found| found.value)
    }

    #[test]
    fn precedence_brackets_and_fractions_are_exact() {
        assert_eq!(value("(9-8)*5+9-3+8"), Some(Rational::integer(19)));
        assert_eq!(value("2+3*4"), Some(Rational::integer(14)));
        assert_eq!(value("8/3*3"), Some(Rational::integer(8)));
        assert_eq!(value("8/(3-8/3)"), Some(Rational::integer(24)));
        assert_eq!(value("7-5-1"), Some(Rational::integer(1)));
        assert_eq!(value("-(2 - 5)"), Some(Rational::integer(3)));
        let found = evaluate("3*(5+7)").unwrap();
        assert_eq!((found.numbers, found.operations), (vec![3, 5, 7], 2));
    }

    #[test]
    fn what_is_no_expression_has_no_value() {
        for text in [
            "",
            "()",
            "1+",
            "*2",
            "1 2",
            "1/0",
            "1/(2-2)",
            "(1",
            "1)",
            "1=1",
            "٣",
            "1.5",
            "99999999999999999999",
        ] {
            assert_eq!(value(text), None, "{text}");
        }
        assert_eq!(value(&"(".repeat(300)), None);
        assert_eq!(value(&"-".repeat(300)), None);
        assert_eq!(value(&vec!["9999999999"; 30].join("*")), None);
        let deep = format!("{}1{}", "(".repeat(DEEPEST), ")".repeat(DEEPEST));
        assert_eq!(value(&deep), Some(Rational::integer(1)));
        assert_eq!(value(&format!("({deep})")), None);
    }
}
