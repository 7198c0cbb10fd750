//! Formulas: LaTeX and plain text parsed into a tree, and its value at a point.

use super::steps::Steps;
use super::value::Value;
use crate::graders::number::Rational;

/// Formulas nested deeper than this are not read; parsing and evaluation recurse.
const DEEPEST: usize = 48;

/// What a text is cut into.
#[derive(Clone, Debug, PartialEq)]
enum Token {
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

/// A node of the tree, its operands by their places.
#[derive(Clone, Copy, Debug)]
enum Node {
    Constant(Value),
    Name(usize),
    Imaginary,
    Add(usize, usize),
    Sub(usize, usize),
    Mul(usize, usize),
    Div(usize, usize),
    Pow(usize, usize),
    Root(usize, usize),
    Binomial(usize, usize),
    Log(usize, usize),
    Neg(usize),
    Factorial(usize),
    Abs(usize),
    Floor(usize),
    Ceiling(usize),
    Call(&'static str, usize),
}

/// A parsed formula.
#[derive(Debug)]
pub(super) struct Formula {
    nodes: Vec<Node>,
    root: usize,
    names: Vec<String>,
}

impl Formula {
    /// Reads a text in canonical form; `None` when it is no formula that is known here.
    pub(super) fn parse(text: &str, steps: &mut Steps) -> Option<Formula> {
        let tokens = tokens(text, steps)?;
        let mut parser =
            Parser { tokens: &tokens, at: 0, nodes: Vec::new(), names: Vec::new(), bars: 0, steps };
        let root = parser.sum(0)?;
        (parser.at == tokens.len()).then_some(())?;
        Some(Formula { nodes: parser.nodes, root, names: parser.names })
    }

    /// The names of its unknowns.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    /// Its value at a point.
    pub(super) fn value(&self, point: u64, steps: &mut Steps) -> Option<Value> {
        self.node(self.root, point, steps)
    }

    fn node(&self, index: usize, point: u64, steps: &mut Steps) -> Option<Value> {
        steps.take(1)?;
        let mut of = |index: usize| self.node(index, point, steps);
        Some(match self.nodes[index] {
            Node::Constant(value) => value,
            Node::Name(name) => Value::unknown(&self.names[name], point),
            Node::Imaginary => Value::imaginary(point),
            Node::Add(a, b) => of(a)?.add(of(b)?),
            Node::Sub(a, b) => of(a)?.sub(of(b)?),
            Node::Mul(a, b) => of(a)?.mul(of(b)?),
            Node::Div(a, b) => of(a)?.div(of(b)?),
            Node::Pow(a, b) => {
                let (a, b) = (of(a)?, of(b)?);
                // Squarings modulo the prime and factors of 128 bits: a few hundred operations at most.
                steps.take(32)?;
                a.pow(b)
            }
            Node::Root(degree, a) => {
                let (degree, a) = (of(degree)?, of(a)?);
                match degree.exact.map(Rational::parts) {
                    Some((degree, 1)) => a.root(degree),
                    _ => a.pow(Value::integer(1).div(degree)),
                }
            }
            Node::Binomial(n, k) => {
                let (n, k) = (of(n)?, of(k)?);
                steps.take(2 * k.factors().max(1))?;
                n.binomial(k)
            }
            Node::Log(base, a) => {
                let (base, a) = (of(base)?, of(a)?);
                steps.take(16)?;
                a.log(base)
            }
            Node::Neg(a) => of(a)?.neg(),
            Node::Factorial(a) => {
                let a = of(a)?;
                steps.take(a.factors())?;
                a.factorial()
            }
            Node::Abs(a) => of(a)?.abs(),
            Node::Floor(a) => of(a)?.rounded(false),
            Node::Ceiling(a) => of(a)?.rounded(true),
            Node::Call("ln", a) => of(a)?.ln(),
            Node::Call("lg", a) => of(a)?.log(Value::integer(10)),
            Node::Call("exp", a) => Value::transcendental(std::f64::consts::E).pow(of(a)?),
            Node::Call(name, a) => of(a)?.trigonometric(name),
        })
    }
}

fn tokens(text: &str, steps: &mut Steps) -> Option<Vec<Token>> {
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

struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    nodes: Vec<Node>,
    names: Vec<String>,
    /// Open bars of absolute values.
    bars: usize,
    steps: &'a mut Steps,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn takes(&mut self, symbol: char) -> bool {
        let found = self.peek() == Some(&Token::Symbol(symbol));
        self.at += usize::from(found);
        found
    }

    fn push(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn constant(&mut self, value: i64) -> usize {
        self.push(Node::Constant(Value::integer(value)))
    }

    fn sum(&mut self, depth: usize) -> Option<usize> {
        self.steps.take(1)?;
        (depth < DEEPEST).then_some(())?;
        let mut left = self.signed(depth)?;
        loop {
            if self.takes('+') {
                let right = self.signed(depth)?;
                left = self.push(Node::Add(left, right));
            } else if self.takes('-') {
                let right = self.signed(depth)?;
                left = self.push(Node::Sub(left, right));
            } else {
                return Some(left);
            }
        }
    }

    /// A product behind any number of signs.
    fn signed(&mut self, depth: usize) -> Option<usize> {
        let mut negative = false;
        loop {
            self.steps.take(1)?;
            if self.takes('-') {
                negative = !negative;
            } else if !self.takes('+') {
                break;
            }
        }
        let product = self.product(depth)?;
        Some(if negative { self.push(Node::Neg(product)) } else { product })
    }

    fn product(&mut self, depth: usize) -> Option<usize> {
        let mut left = self.power(depth)?;
        loop {
            self.steps.take(1)?;
            if self.takes('*') {
                let right = self.factor(depth)?;
                left = self.push(Node::Mul(left, right));
            } else if self.takes('/') {
                let right = self.factor(depth)?;
                left = self.push(Node::Div(left, right));
            } else if self.starts_factor() {
                let mixed = self.is_mixed();
                let right = self.power(depth)?;
                left =
                    self.push(if mixed { Node::Add(left, right) } else { Node::Mul(left, right) });
            } else {
                return Some(left);
            }
        }
    }

    /// A factor that may carry a sign, as in `2*-3`.
    fn factor(&mut self, depth: usize) -> Option<usize> {
        if self.takes('-') {
            let factor = self.power(depth)?;
            return Some(self.push(Node::Neg(factor)));
        }
        self.power(depth)
    }

    /// Whether a factor follows without a sign between.
    fn starts_factor(&self) -> bool {
        match self.peek() {
            Some(Token::Bar) => self.bars == 0,
            Some(Token::Symbol(_) | Token::Close(_) | Token::Number(_)) | None => false,
            Some(_) => true,
        }
    }

    /// Whether a fraction of numbers follows a whole number: `1\frac{1}{2}` is a sum.
    fn is_mixed(&self) -> bool {
        let is_number = |token: &Token| matches!(token, Token::Number(value) if value.exact.is_some_and(Rational::is_integer));
        let is = |offset: usize, test: &dyn Fn(&Token) -> bool| {
            self.tokens.get(self.at + offset).is_some_and(test)
        };
        let begins = self.at == 1
            || !matches!(self.tokens.get(self.at - 2), Some(Token::Symbol('^' | '*' | '/')));
        begins
            && self.at >= 1
            && is_number(&self.tokens[self.at - 1])
            && is(0, &|token| *token == Token::Fraction)
            && is(1, &|token| *token == Token::Open('{'))
            && is(2, &is_number)
            && is(3, &|token| *token == Token::Close('}'))
            && is(4, &|token| *token == Token::Open('{'))
            && is(5, &is_number)
            && is(6, &|token| *token == Token::Close('}'))
    }

    fn power(&mut self, depth: usize) -> Option<usize> {
        (depth < DEEPEST).then_some(())?;
        let mut base = self.primary(depth + 1)?;
        loop {
            self.steps.take(1)?;
            if self.takes('!') {
                base = self.push(Node::Factorial(base));
            } else if self.takes('%') {
                let hundred = self.constant(100);
                base = self.push(Node::Div(base, hundred));
            } else if self.takes('^') {
                let exponent = self.exponent(depth + 1)?;
                base = self.push(Node::Pow(base, exponent));
                // A tower needs brackets here.
                if self.peek() == Some(&Token::Symbol('^')) {
                    return None;
                }
            } else {
                return Some(base);
            }
        }
    }

    fn exponent(&mut self, depth: usize) -> Option<usize> {
        if self.takes('-') {
            let exponent = self.primary(depth)?;
            return Some(self.push(Node::Neg(exponent)));
        }
        self.primary(depth)
    }

    fn primary(&mut self, depth: usize) -> Option<usize> {
        self.steps.take(1)?;
        (depth < DEEPEST).then_some(())?;
        let token = self.tokens.get(self.at)?;
        self.at += 1;
        match token {
            Token::Number(value) | Token::Constant(value) => {
                Some(self.push(Node::Constant(*value)))
            }
            Token::Imaginary => Some(self.push(Node::Imaginary)),
            Token::Name(name) => {
                let place =
                    self.names.iter().position(|other| other == name).unwrap_or_else(|| {
                        self.names.push(name.clone());
                        self.names.len() - 1
                    });
                Some(self.push(Node::Name(place)))
            }
            Token::Open(bracket) => {
                let bars = std::mem::take(&mut self.bars);
                let inner = self.sum(depth + 1)?;
                self.bars = bars;
                let closing = match bracket {
                    '(' => ')',
                    '[' => ']',
                    '{' => '}',
                    other => *other,
                };
                self.closes(closing)?;
                Some(match bracket {
                    '⌊' => self.push(Node::Floor(inner)),
                    '⌈' => self.push(Node::Ceiling(inner)),
                    _ => inner,
                })
            }
            Token::Bar => {
                self.bars += 1;
                let inner = self.sum(depth + 1)?;
                self.bars -= 1;
                (self.peek() == Some(&Token::Bar)).then(|| self.at += 1)?;
                Some(self.push(Node::Abs(inner)))
            }
            Token::Fraction => {
                let (above, below) = (self.argument(depth)?, self.argument(depth)?);
                Some(self.push(Node::Div(above, below)))
            }
            Token::Binomial => {
                let (n, k) = (self.argument(depth)?, self.argument(depth)?);
                Some(self.push(Node::Binomial(n, k)))
            }
            Token::Root => {
                let degree = if self.peek() == Some(&Token::Open('[')) {
                    self.argument(depth)?
                } else {
                    self.constant(2)
                };
                let inner = self.argument(depth)?;
                Some(self.push(Node::Root(degree, inner)))
            }
            Token::Function(name) => self.call(name, depth),
            Token::Close(_) | Token::Symbol(_) => None,
        }
    }

    fn closes(&mut self, bracket: char) -> Option<()> {
        (self.peek() == Some(&Token::Close(bracket))).then(|| self.at += 1)
    }

    /// What a command takes: a group in brackets, or one token.
    fn argument(&mut self, depth: usize) -> Option<usize> {
        match self.peek()? {
            Token::Open(_)
            | Token::Number(_)
            | Token::Name(_)
            | Token::Constant(_)
            | Token::Imaginary => self.primary(depth + 1),
            _ => None,
        }
    }

    /// A function: its power, its base, and the factors that it is taken of.
    fn call(&mut self, name: &'static str, depth: usize) -> Option<usize> {
        let mut base = None;
        let mut power = None;
        let mut inverse = false;
        for _ in 0..2 {
            if name == "log" && self.takes('_') {
                base = Some(self.argument(depth)?);
            } else if self.takes('^') {
                let start = self.at;
                let exponent = self.exponent(depth + 1)?;
                let written = &self.tokens[start..self.at];
                let minus_one = Token::Number(Value::integer(1));
                inverse = written.contains(&Token::Symbol('-')) && written.contains(&minus_one);
                power = Some(exponent);
            }
        }
        let bracketed = matches!(self.peek(), Some(Token::Open(_)));
        let mut argument = self.power(depth + 1)?;
        while !bracketed
            && matches!(
                self.peek(),
                Some(
                    Token::Name(_)
                        | Token::Constant(_)
                        | Token::Imaginary
                        | Token::Fraction
                        | Token::Root
                )
            )
        {
            self.steps.take(1)?;
            let factor = self.power(depth + 1)?;
            argument = self.push(Node::Mul(argument, factor));
        }
        let name = match (name, inverse) {
            ("sin", true) => "arcsin",
            ("cos", true) => "arccos",
            ("tan", true) => "arctan",
            (_, true) => return None,
            (name, false) => name,
        };
        let value = match (name, base) {
            ("log", Some(base)) => self.push(Node::Log(base, argument)),
            ("log", None) => {
                // Whether this is the natural or the decimal logarithm differs between fields: an unknown base decides nothing wrongly.
                let place =
                    self.names.iter().position(|other| other == "log_").unwrap_or_else(|| {
                        self.names.push("log_".to_owned());
                        self.names.len() - 1
                    });
                let scale = self.push(Node::Name(place));
                let ln = self.push(Node::Call("ln", argument));
                self.push(Node::Mul(scale, ln))
            }
            _ => self.push(Node::Call(name, argument)),
        };
        Some(match power {
            Some(power) if !inverse => self.push(Node::Pow(value, power)),
            _ => value,
        })
    }
}
