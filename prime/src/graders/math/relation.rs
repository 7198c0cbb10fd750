//! Equations and inequalities: what they say, however they are turned.

use super::expression::Formula;
use super::steps::Steps;
use super::value::Value;
use super::{POINTS, bracketed, split};

/// Between two formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl Relation {
    /// The relation seen from the other side.
    fn turned(self) -> Relation {
        match self {
            Relation::Less => Relation::Greater,
            Relation::AtMost => Relation::AtLeast,
            Relation::Greater => Relation::Less,
            Relation::AtLeast => Relation::AtMost,
            same => same,
        }
    }

    fn is_greater(self) -> bool {
        matches!(self, Relation::Greater | Relation::AtLeast)
    }
}

/// Formulas with a relation between each two: `0<x\le5`.
struct Chain<'a> {
    parts: Vec<&'a str>,
    relations: Vec<Relation>,
}

impl<'a> Chain<'a> {
    /// Reads a text; `None` when no relation stands outside its brackets.
    fn parse(text: &'a str) -> Option<Chain<'a>> {
        let mut chain = Chain { parts: Vec::new(), relations: Vec::new() };
        let (mut open, mut start, mut at) = (0usize, 0, 0);
        while let Some(next) = text[at..].chars().next() {
            let rest = &text[at..];
            let found = match next {
                '(' | '[' | '{' => {
                    open += 1;
                    None
                }
                ')' | ']' | '}' => {
                    open = open.saturating_sub(1);
                    None
                }
                _ if open > 0 => None,
                '=' => Some((Relation::Equal, 1)),
                '<' if rest.starts_with("<=") => Some((Relation::AtMost, 2)),
                '>' if rest.starts_with(">=") => Some((Relation::AtLeast, 2)),
                '<' => Some((Relation::Less, 1)),
                '>' => Some((Relation::Greater, 1)),
                '\\' => command(rest),
                _ => None,
            };
            let Some((relation, length)) = found else {
                at += next.len_utf8();
                continue;
            };
            chain.parts.push(text[start..at].trim());
            chain.relations.push(relation);
            at += length;
            start = at;
        }
        chain.parts.push(text[start..].trim());
        let whole = chain.parts.iter().all(|part| !part.is_empty());
        (whole && !chain.relations.is_empty()).then_some(chain)
    }

    /// The chain read from the other end.
    fn turned(mut self) -> Self {
        self.parts.reverse();
        self.relations.reverse();
        self.relations.iter_mut().for_each(|relation| *relation = relation.turned());
        self
    }

    /// The chain with its relations towards the greater.
    fn upward(self) -> Self {
        if self.relations[0].is_greater() { self.turned() } else { self }
    }

    /// The interval of the unknown that it bounds: `0<x\le5` as `(0,5]`, `x>2` as `(2,\infty)`.
    fn interval(&self) -> Option<String> {
        let bracket = |relation| match relation {
            Relation::Less => Some(('(', ')')),
            Relation::AtMost => Some(('[', ']')),
            _ => None,
        };
        match (&self.parts[..], &self.relations[..]) {
            ([low, name, high], [first, second]) if is_name(name) => {
                let (open, close) = (bracket(*first)?.0, bracket(*second)?.1);
                Some(format!("{open}{low},{high}{close}"))
            }
            ([name, high], [relation]) if is_name(name) => {
                Some(format!("(-\\infty,{high}{}", bracket(*relation)?.1))
            }
            ([low, name], [relation]) if is_name(name) => {
                Some(format!("{}{low},\\infty)", bracket(*relation)?.0))
            }
            _ => None,
        }
    }
}

/// A relation's command, which no letter may follow.
fn command(rest: &str) -> Option<(Relation, usize)> {
    let known =
        [("\\le", Relation::AtMost), ("\\ge", Relation::AtLeast), ("\\ne", Relation::Unequal)];
    known.into_iter().find_map(|(name, relation)| {
        let after = rest.strip_prefix(name)?;
        (!after.starts_with(|c: char| c.is_ascii_alphabetic())).then_some((relation, name.len()))
    })
}

/// A single unknown, with an index or primes: `x`, `x_1`, `x_{12}`, `y'`, `\theta`.
fn is_name(text: &str) -> bool {
    let base = text.split('_').next().unwrap_or_default().trim_end_matches('\'');
    let letter = base.len() == 1 && base.bytes().all(|byte| byte.is_ascii_alphabetic());
    let greek = base.strip_prefix('\\').is_some_and(|name| {
        name.len() > 1 && name != "pi" && name.bytes().all(|byte| byte.is_ascii_alphabetic())
    });
    (letter || greek) && text.len() <= base.len() + 5
}

/// What may stand before an answer's `=`: an unknown, several in brackets, or a function of one.
fn is_head(text: &str) -> bool {
    if is_name(text) {
        return true;
    }
    let Some(open) = text.find('(') else { return false };
    let (name, arguments) = text.split_at(open);
    let named = name.is_empty() || is_name(name);
    named
        && matches!(bracketed(arguments), Some(((b'(', b')'), inner)) if split(inner, b',').iter().all(|part| is_name(part.trim())))
}

/// The value that an answer names: what follows `x=`, `f(x)=` or `x\in`.
fn named(text: &str) -> Option<(&str, &str)> {
    if let Some((name, set)) = text.split_once("\\in")
        && is_name(name.trim())
        && set.starts_with(['(', '[', '{', '\\', ' '])
    {
        return Some((name.trim(), set.trim()));
    }
    let chain = Chain::parse(text)?;
    match (&chain.parts[..], &chain.relations[..]) {
        ([name, value], [Relation::Equal]) if is_head(name) => Some((name, value)),
        ([value, name], [Relation::Equal]) if is_head(name) => Some((name, value)),
        _ => None,
    }
}

/// Whether two answers, one of which at least is a relation, say the same; `None` when neither is one.
pub(super) fn same(a: &str, b: &str, depth: usize, steps: &mut Steps) -> Option<bool> {
    let value = |x: &str, y: &str, steps: &mut Steps| super::same(x, y, depth + 1, steps);
    let (named_a, named_b) = (named(a), named(b));
    match (named_a, named_b) {
        (Some((name_a, value_a)), Some((name_b, value_b)))
            if name_a == name_b && value(value_a, value_b, steps) =>
        {
            return Some(true);
        }
        (Some((_, value_a)), None) if Chain::parse(b).is_none() => {
            return Some(value(value_a, b, steps));
        }
        (None, Some((_, value_b))) if Chain::parse(a).is_none() => {
            return Some(value(a, value_b, steps));
        }
        _ => {}
    }
    match (Chain::parse(a), Chain::parse(b)) {
        (None, None) if named_a.is_none() && named_b.is_none() => None,
        (Some(left), Some(right)) => Some(same_chains(left, right, depth, steps)),
        (Some(chain), None) => {
            Some(is_interval(chain, named_b.map_or(b, |(_, set)| set), depth, steps))
        }
        (None, Some(chain)) => {
            Some(is_interval(chain, named_a.map_or(a, |(_, set)| set), depth, steps))
        }
        (None, None) => Some(false),
    }
}

/// Whether a chain bounds its unknown to a set.
fn is_interval(chain: Chain, set: &str, depth: usize, steps: &mut Steps) -> bool {
    chain.upward().interval().is_some_and(|interval| super::same(&interval, set, depth + 1, steps))
}

fn same_chains(left: Chain, right: Chain, depth: usize, steps: &mut Steps) -> bool {
    let (left, right) = (left.upward(), right.upward());
    let falling = |chain: &Chain| chain.relations.iter().any(|relation| relation.is_greater());
    if falling(&left) || falling(&right) || left.relations != right.relations {
        return false;
    }
    let mut each = left.parts.iter().zip(&right.parts);
    if each.all(|(x, y)| super::same(x, y, depth + 1, steps)) {
        return true;
    }
    match (&left.parts[..], &right.parts[..]) {
        ([a, b], [c, d]) => proportional((a, b), (c, d), left.relations[0], steps).unwrap_or(false),
        _ => false,
    }
}

/// Whether a - b is a multiple of c - d: a positive one for inequalities.
fn proportional(
    left: (&str, &str),
    right: (&str, &str),
    relation: Relation,
    steps: &mut Steps,
) -> Option<bool> {
    let mut read = |text: &str| Formula::parse(text, steps);
    let formulas = [read(left.0)?, read(left.1)?, read(right.0)?, read(right.1)?];
    let names = |a: &Formula, b: &Formula| {
        let mut names: Vec<String> = a.names().iter().chain(b.names()).cloned().collect();
        names.sort();
        names.dedup();
        names
    };
    let unknowns = names(&formulas[0], &formulas[1]);
    if unknowns.is_empty() || unknowns != names(&formulas[2], &formulas[3]) {
        return Some(false);
    }
    let mut first: Option<(Value, Value)> = None;
    let mut agreed = 0;
    for point in 0..POINTS {
        let mut at = |formula: &Formula| formula.value(point, steps);
        let f = at(&formulas[0])?.sub(at(&formulas[1])?);
        let g = at(&formulas[2])?.sub(at(&formulas[3])?);
        if f.is_void() || g.is_void() {
            continue;
        }
        let Some((f0, g0)) = first else {
            let zero = Value::integer(0);
            if f.same(&zero) != Some(false) || g.same(&zero) != Some(false) {
                return Some(false);
            }
            let alike = f.sign()? == g.sign()?;
            if !alike && !matches!(relation, Relation::Equal | Relation::Unequal) {
                return Some(false);
            }
            first = Some((f, g));
            continue;
        };
        match f.mul(g0).same(&g.mul(f0)) {
            Some(true) => agreed += 1,
            Some(false) => return Some(false),
            None => {}
        }
    }
    Some(agreed >= 2)
}
