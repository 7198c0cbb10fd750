//! Tasks whose solutions are written line by line, can be checked line by line, and can be spoilt on purpose.
//!
//! A line ends in `;` where it stands and in `!` where it is taken back; what follows the last `#` is the answer.

use std::fmt;
use std::ops::Range;

use prime_runtime::random::Generator;
use serde::{Deserialize, Serialize};

use super::Task;

/// What goes wrong in a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mistake {
    /// Another result, at most 3 away.
    WrongResult,
    /// A carry lost or found: of `arithmetic` a result that is 10 off, of `columns` another carry than the line before left.
    WrongCarry,
    /// Another value than what is to be copied, and the right result of that.
    WrongCopy,
    /// Another operator, and the right result of that.
    WrongOperation,
}

impl Mistake {
    /// All kinds.
    pub const ALL: [Mistake; 4] =
        [Mistake::WrongResult, Mistake::WrongCarry, Mistake::WrongCopy, Mistake::WrongOperation];
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Mistake::WrongResult => "wrong result",
            Mistake::WrongCarry => "wrong carry",
            Mistake::WrongCopy => "wrong copy",
            Mistake::WrongOperation => "wrong operation",
        })
    }
}

/// What slips demonstrations hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Slips {
    /// Wrong results.
    Result,
    /// Mistakes of every kind that the task has, as the line gives occasion.
    All,
}

/// A line with a mistake in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planted {
    /// The line, without what ends it.
    pub text: String,
    /// The result that it states.
    pub result: u32,
    /// Where in the line the wrong characters are.
    pub wrong: Range<usize>,
    /// Where the right ones are in the line without the mistake.
    pub right: Range<usize>,
}

/// A solution in the smallest steps, and the same with one mistake carried on to a wrong answer. Up to the mistake's line the two are alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoilt {
    /// The line with the mistake, from 0.
    pub place: usize,
    /// The right lines, without what ends them.
    pub right: Vec<String>,
    /// As many lines; that of the mistake is in its place.
    pub wrong: Vec<String>,
    /// Where in the right line of that place the right characters are.
    pub right_span: Range<usize>,
    /// Where the wrong ones stand instead.
    pub wrong_span: Range<usize>,
    /// The answer.
    pub right_answer: String,
    /// What the mistake leads to.
    pub wrong_answer: String,
}

/// A task of worked solutions.
pub trait Worked: Task {
    /// The kinds of mistake that its lines give occasion for.
    fn mistakes(&self) -> &'static [Mistake];

    /// Makes a mistake in the solution of a prompt, in the first of its lines in random order that gives occasion for it and from which work
    /// goes on to a wrong answer. None where there is no such line.
    fn spoil(&self, prompt: &str, mistake: Mistake, random: &mut Generator) -> Option<Spoilt>;

    /// Checks a response to a prompt line by line. None when the prompt is none of the task's.
    fn check(&self, prompt: &str, response: &str) -> Option<Work>;
}

/// One written line, such as `14-3+8=19`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its place in the response in bytes, without the `;` or `!` after it.
    pub span: Range<usize>,
    /// The place of its result, the text after `=`; empty when there is none.
    pub result: Range<usize>,
    /// How many of the task's smallest steps it does (operations, columns); 0 when its left side cannot be read.
    pub operations: usize,
    /// Whether its left side is the problem's next steps on what was reached so far, as the response states
    /// that: after a wrong result, a line that goes on from it follows.
    pub follows: bool,
    /// Whether its result is the value of its left side.
    pub correct: bool,
    /// Whether a `!` after it takes it back.
    pub cancelled: bool,
}

impl Line {
    /// Whether the line does the next steps and does them right.
    pub fn right(&self) -> bool {
        self.follows && self.correct
    }
}

/// The work of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    /// The lines before the answer, in order.
    pub lines: Vec<Line>,
    /// What follows the last `#`.
    pub answer: Option<String>,
    /// Whether the lines that stand do all of the problem's steps and the answer is what they come to.
    pub complete: bool,
}

impl Work {
    /// Whether all is right: every line that stands, and the answer drawn from them.
    pub fn valid(&self) -> bool {
        self.complete && self.lines.iter().all(|line| line.cancelled || line.right())
    }
}

/// The text before the last `#`, and what follows it.
pub(super) fn parts(response: &str) -> (&str, Option<String>) {
    match response.rsplit_once('#') {
        Some((body, answer)) => (body, Some(answer.trim().to_owned())),
        None => (response, None),
    }
}

/// The lines of a body: where each lies without what ends it, its text, and whether it is taken back.
pub(super) fn lines(body: &str) -> impl Iterator<Item = (Range<usize>, &str, bool)> {
    let mut start = 0;
    body.split_inclusive([';', '!']).map(move |piece| {
        let text = piece.trim_end_matches([';', '!']);
        let span = start..start + text.len();
        start += piece.len();
        (span, text, piece.ends_with('!'))
    })
}

/// Another value at most 3 away.
pub(super) fn near_miss(right: u32, highest: u32, random: &mut Generator) -> u32 {
    let misses: Vec<u32> = (right.saturating_sub(3)..=(right + 3).min(highest))
        .filter(|&value| value != right)
        .collect();
    misses[random.below(misses.len() as u32) as usize]
}
