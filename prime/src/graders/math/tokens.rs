//! The words and signs that a formula's text is cut into.

use super::steps::Steps;
use super::value::Value;
use crate::graders::number::Rational;

/// What a text is cut into.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    Number(Value),
    /// An unknown: its letter or command, with its index and primes.
    Name(String),
    Constant(Value),
    Imaginary,
    /// A function of what follows it.
    Function(&'static str),
    Fraction,
    Root,
    Binomial,
    Open(char),
    Close(char),
    Bar,
    Symbol(char),
}

/// Functions by their command, or plain word.
const FUNCTIONS: &[&str] = &[
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc",
    "ln", "log", "lg", "exp",
];
/// Greek letters, which are names.
const GREEK: &[&str] = &[
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "vartheta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "phi",
    "varphi",
    "chi",
    "psi",
    "omega",
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Sigma",
    "Phi",
    "Psi",
    "Omega",
    "ell",
];
/// Commands that are none of the above.
const OTHERS: &[&str] = &[
    "frac", "sqrt", "binom", "pi", "lfloor", "rfloor", "lceil", "rceil", "lvert", "rvert", "vert",
    "circ", "div", "cdot", "times",
];

/// Cuts a text in canonical form; `None` where it holds what is known to nobody here.
pub(super) fn tokens(text: &str, steps: &mut Steps) -> Option<Vec<Token>> {
    let mut found: Vec<Token> = Vec::new();
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        steps.take(1)?;
        if next.is_ascii_digit() || next == '.' {
            // An index without braces is one digit: \log_2 8.
            let index = next.is_ascii_digit() && found.last() == Some(&Token::Symbol('_'));
            let (value, after) = if index {
                number(&rest[..1]).map(|(value, _)| (value, &rest[1..]))?
            } else {
                number(rest)?
            };
            // Two numbers side by side are no product.
            let after_index = matches!(found[..], [.., Token::Symbol('_'), Token::Number(_)]);
            if matches!(found.last(), Some(Token::Number(_))) && !after_index {
                return None;
            }
            found.push(Token::Number(value));
            rest = after;
            continue;
        }
        if next.is_ascii_alphabetic() || next == '\\' {
            rest = word(rest, &mut found, steps)?;
            continue;
        }
        rest = &rest[next.len_utf8()..];
        if matches!(next, '²' | '³') {
            found.push(Token::Symbol('^'));
        }
        found.push(match next {
            ' ' => continue,
            '(' | '[' | '{' => Token::Open(next),
            ')' | ']' | '}' => Token::Close(next),
            '|' => Token::Bar,
            '*' if rest.starts_with('*') => {
                rest = &rest[1..];
                Token::Symbol('^')
            }
            '√' => Token::Root,
            '×' | '·' => Token::Symbol('*'),
            '÷' => Token::Symbol('/'),
            '²' => Token::Number(Value::integer(2)),
            '³' => Token::Number(Value::integer(3)),
            '+' | '-' | '*' | '/' | '^' | '_' | '!' | '%' => Token::Symbol(next),
            _ => return None,
        });
    }
    Some(found)
}

/// An unsigned decimal number with or without thousands separators.
fn number(text: &str) -> Option<(Value, &str)> {
    let bytes = text.as_bytes();
    let digits =
        |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut end = digits(0);
    let mut integer = text[..end].to_owned();
    if (1..=3).contains(&end) {
        while bytes.get(end) == Some(&b',') && digits(end + 1) == 3 {
            integer.push_str(&text[end + 1..end + 4]);
            end += 4;
        }
    }
    let mut fraction = "";
    if bytes.get(end) == Some(&b'.') {
        let length = digits(end + 1);
        fraction = &text[end + 1..end + 1 + length];
        end += 1 + length;
    }
    if integer.is_empty() && fraction.is_empty() {
        return None;
    }
    let exact = || {
        let mut value: i128 = 0;
        for digit in integer.bytes().chain(fraction.bytes()) {
            value = value.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
        }
        Rational::new(value, 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?)
    };
    let value = exact().map_or_else(|| Value::digits(&integer, fraction), Value::rational);
    Some((value, &text[end..]))
}

/// A command, or a run of letters: functions and constants by name, other letters as unknowns.
fn word<'a>(text: &'a str, found: &mut Vec<Token>, steps: &mut Steps) -> Option<&'a str> {
    let command = text.starts_with('\\');
    let start = usize::from(command);
    let length = text[start..].bytes().take_while(u8::is_ascii_alphabetic).count();
    if command && length == 0 {
        let next = text[1..].chars().next()?;
        found.push(match next {
            '{' => Token::Open('{'),
            '}' => Token::Close('}'),
            '%' => Token::Symbol('%'),
            _ => return None,
        });
        return Some(&text[1 + next.len_utf8()..]);
    }
    steps.take(length)?;
    let (name, after) = text[start..].split_at(length);
    if command {
        // A command that runs into a letter, as in \cotx, is read as far as it is known.
        let known = FUNCTIONS.iter().chain(GREEK).chain(OTHERS);
        let known =
            known.filter(|known| name.starts_with(**known)).max_by_key(|known| known.len())?;
        found.push(match *known {
            "frac" => Token::Fraction,
            "sqrt" => Token::Root,
            "binom" => Token::Binomial,
            "pi" => Token::Constant(Value::transcendental(std::f64::consts::PI)),
            "lfloor" => Token::Open('⌊'),
            "rfloor" => Token::Close('⌊'),
            "lceil" => Token::Open('⌈'),
            "rceil" => Token::Close('⌈'),
            "lvert" | "rvert" | "vert" => Token::Bar,
            "circ" => return None,
            "div" => Token::Symbol('/'),
            "cdot" | "times" => Token::Symbol('*'),
            function if FUNCTIONS.contains(&function) => Token::Function(function),
            greek => Token::Name(greek.to_owned()),
        });
        let rest = &text[start + known.len()..];
        return Some(index(rest, found));
    }
    match name {
        "pi" => found.push(Token::Constant(Value::transcendental(std::f64::consts::PI))),
        "sqrt" => found.push(Token::Root),
        _ => match FUNCTIONS.iter().find(|function| **function == name) {
            Some(function) => found.push(Token::Function(function)),
            None => {
                // Longer runs are words, and a word is not the product of its letters; the letters of a few names are.
                let product =
                    name.len() <= 2 || name.bytes().all(|byte| b"abckmnxyz".contains(&byte));
                if !product {
                    return None;
                }
                for letter in name.chars() {
                    found.push(match letter {
                        'e' => Token::Constant(Value::transcendental(std::f64::consts::E)),
                        'i' => Token::Imaginary,
                        letter => Token::Name(letter.to_string()),
                    });
                }
                return Some(index(after, found));
            }
        },
    }
    Some(after)
}

/// An index and primes behind a name become part of it.
fn index<'a>(rest: &'a str, found: &mut [Token]) -> &'a str {
    let Some(Token::Name(name)) = found.last_mut() else { return rest };
    let mut rest = rest;
    if let Some(after) = rest.strip_prefix('_') {
        let length = match after.strip_prefix('{') {
            Some(inner) => inner.find('}').map_or(0, |end| end + 2),
            None => after.chars().next().map_or(0, char::len_utf8),
        };
        let (written, left) = after.split_at(length);
        name.push('_');
        name.push_str(written.trim_matches(['{', '}']));
        rest = left;
    }
    while let Some(left) = rest.strip_prefix('\'') {
        name.push('\'');
        rest = left;
    }
    rest
}
