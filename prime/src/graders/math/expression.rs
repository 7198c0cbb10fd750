//! Formulas: LaTeX and plain text parsed into a tree, and its value at a point.

use super::steps::Steps;
use super::tokens::{Token, tokens};
use super::value::Value;
use crate::graders::number::Rational;

/// Formulas nested deeper than this are not read; parsing and evaluation recurse.
const DEEPEST: usize = 48;

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
