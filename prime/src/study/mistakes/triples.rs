//! Matched triples: a clean solution, the same with one mistake carried on to a wrong answer, the same with the mistake repaired.
//!
//! ```text
//! clean     9-8=1;1*5=5;5+9=14;#14
//! wrong     9-8=1;1*5=6;6+9=15;#15
//! repaired  9-8=1;1*5=6!1*5=5;5+9=14;#14
//! ```

use std::ops::Range;

use prime_runtime::random::{Generator, Stream};
use serde::Serialize;

use crate::tasks::arithmetic::{Arithmetic, Chain, Mistake, plant};
use crate::tasks::{Split, Task};

/// What a piece of a version is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Lines before the one that matters.
    Before,
    /// The left of that line, up to what is right or wrong in it.
    Left,
    /// The right characters, where the mistake stands in the other two.
    Right,
    /// The wrong characters.
    Mistake,
    /// The rest of the line, its `;` included.
    LineRest,
    /// The `!` that takes the line back.
    Mark,
    /// The left of the line written again.
    RedoneLeft,
    /// The right characters of the line written again.
    Corrected,
    /// The rest of the line written again.
    RedoneRest,
    /// The lines behind.
    Rest,
    /// `#`, the answer, and the end.
    Answer,
}

/// A piece of a version's text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// What it is.
    pub role: Role,
    /// Where, in bytes.
    pub span: Range<usize>,
}

/// One of the three texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Version {
    /// The response.
    pub text: String,
    /// Its pieces, in order, without gaps; empty ones are left out.
    pub parts: Vec<Part>,
    /// Where its lines end, in bytes: behind each `;` and `!`.
    pub line_ends: Vec<usize>,
}

impl Version {
    fn push(&mut self, role: Role, text: &str) {
        let start = self.text.len();
        self.text += text;
        if !text.is_empty() {
            self.parts.push(Part { role, span: start..self.text.len() });
        }
    }

    /// A line and what ends it, in three pieces around its characters `within`.
    fn push_line(&mut self, roles: [Role; 3], line: &str, within: &Range<usize>, end: &str) {
        self.push(roles[0], &line[..within.start]);
        self.push(roles[1], &line[within.clone()]);
        self.push(roles[2], &line[within.end..]);
        // A mark is a piece of its own.
        self.push(if end == "!" { Role::Mark } else { roles[2] }, end);
        self.line_ends.push(self.text.len());
    }

    fn push_lines(&mut self, role: Role, lines: &[String]) {
        for line in lines {
            self.push(role, &format!("{line};"));
            self.line_ends.push(self.text.len());
        }
    }

    /// Where the pieces of a role lie.
    pub fn spans(&self, role: Role) -> impl Iterator<Item = Range<usize>> {
        self.parts.iter().filter(move |part| part.role == role).map(|part| part.span.clone())
    }
}

/// The three versions of one problem's solution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Triple {
    /// The problem's place among the held-out ones.
    pub problem: u64,
    /// Its prompt.
    pub prompt: String,
    /// Its answer.
    pub answer: String,
    /// What goes wrong.
    pub mistake: Mistake,
    /// In which line, from 0.
    pub line: usize,
    /// Lines of the clean version.
    pub lines: usize,
    /// Without the mistake.
    pub clean: Version,
    /// With it, carried on.
    pub wrong: Version,
    /// With it, taken back and done again.
    pub repaired: Version,
}

/// Triples of held-out problems, the kinds in turn, so that each has as many; problems that give no occasion for a kind are passed over.
/// Which mistake is made where depends on the seed and the problem alone.
pub fn triples(task: &Arithmetic, highest: u32, count: usize, seed: u64) -> Vec<Triple> {
    let mut found = Vec::with_capacity(count);
    // Enough to find a carry in: about one problem in three has one.
    for index in 0..(count as u64) * 50 {
        if found.len() == count {
            break;
        }
        let mistake = Mistake::ALL[found.len() % Mistake::ALL.len()];
        let Some(problem) = task.problem(Split::HeldOut, index) else { break };
        let chain = problem.prompt.strip_suffix(':').and_then(Chain::parse);
        let Some(chain) = chain else { continue };
        let mut random = Generator::new(seed, Stream::Tasks, (1 << 48) + index);
        if let Some(versions) = versions(&chain, mistake, highest, &mut random) {
            let (line, clean, wrong, repaired) = versions;
            found.push(Triple {
                problem: index,
                prompt: problem.prompt,
                answer: problem.answer,
                mistake,
                line,
                lines: chain.operations.len(),
                clean,
                wrong,
                repaired,
            });
        }
    }
    found
}

/// A mistake in one line of a chain's work, at the first of the lines in random order that gives occasion for it and from which work goes
/// on, within the range of values, to a wrong answer.
fn versions(
    chain: &Chain,
    mistake: Mistake,
    highest: u32,
    random: &mut Generator,
) -> Option<(usize, Version, Version, Version)> {
    let clean_lines = lines_from(chain.first, chain, 0, highest)?;
    let mut places: Vec<usize> = (0..chain.operations.len()).collect();
    random.shuffle(&mut places);
    for place in places {
        let before = Chain { first: chain.first, operations: chain.operations[..place].to_vec() };
        let part = Chain { first: before.value(), operations: vec![chain.operations[place]] };
        let Some(planted) = plant(&part, mistake, place == 0, highest, random) else { continue };
        let Some(wrong_rest) = lines_from(planted.result, chain, place + 1, highest) else {
            continue;
        };
        let answer = |lines: &[String], from: u32| {
            let last = lines.last().and_then(|line| line.split('=').nth(1)).map(str::to_owned);
            last.unwrap_or_else(|| from.to_string())
        };
        let right = answer(&clean_lines, chain.first);
        let wrong_answer = answer(&wrong_rest, planted.result);
        if right == wrong_answer {
            continue;
        }
        let (done, line, rest) =
            (&clean_lines[..place], &clean_lines[place], &clean_lines[place + 1..]);
        let finish = |mut version: Version, rest: &[String], answer: &str| {
            version.push_lines(Role::Rest, rest);
            version.push(Role::Answer, &format!("#{answer}"));
            version
        };
        let mut start = Version::default();
        start.push_lines(Role::Before, done);
        let (mut clean, mut wrong, mut repaired) = (start.clone(), start.clone(), start);
        let plain = [Role::Left, Role::Right, Role::LineRest];
        let spoilt = [Role::Left, Role::Mistake, Role::LineRest];
        let redone = [Role::RedoneLeft, Role::Corrected, Role::RedoneRest];
        clean.push_line(plain, line, &planted.right, ";");
        wrong.push_line(spoilt, &planted.text, &planted.wrong, ";");
        repaired.push_line(spoilt, &planted.text, &planted.wrong, "!");
        repaired.push_line(redone, line, &planted.right, ";");
        return Some((
            place,
            finish(clean, rest, &right),
            finish(wrong, &wrong_rest, &wrong_answer),
            finish(repaired, rest, &right),
        ));
    }
    None
}

/// The lines of one operation each from a value on; none when a value leaves the range.
fn lines_from(value: u32, chain: &Chain, place: usize, highest: u32) -> Option<Vec<String>> {
    let mut value = value;
    let mut lines = Vec::new();
    for &operation in &chain.operations[place..] {
        let part = Chain { first: value, operations: vec![operation] };
        value = part.checked_value(highest)?;
        lines.push(format!("{part}={value}"));
    }
    Some(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::arithmetic::{ArithmeticSettings, check_work};

    fn some() -> Vec<Triple> {
        let settings = ArithmeticSettings { min_operations: 3, ..ArithmeticSettings::default() };
        let highest = settings.highest;
        triples(&Arithmetic::new(settings, 1).unwrap(), highest, 200, 1)
    }

    #[test]
    fn a_triple_differs_in_one_planted_mistake_and_its_repair() {
        let triples = some();
        assert_eq!(triples.len(), 200);
        for triple in &triples {
            let work = |version: &Version| check_work(&triple.prompt, &version.text).unwrap();
            let (clean, wrong, repaired) =
                (work(&triple.clean), work(&triple.wrong), work(&triple.repaired));
            assert!(clean.valid() && repaired.valid(), "{triple:?}");
            assert_eq!(clean.answer.as_deref(), Some(&*triple.answer));
            assert_eq!(repaired.answer.as_deref(), Some(&*triple.answer));
            assert!(wrong.complete && !wrong.valid(), "{triple:?}");
            assert_ne!(wrong.answer.as_deref(), Some(&*triple.answer));
            // One line alone is not right, and it is the one that was named.
            for (place, line) in wrong.lines.iter().enumerate() {
                assert_eq!(line.right(), place != triple.line, "{triple:?}");
            }
            assert_eq!(repaired.lines.len(), clean.lines.len() + 1);
            assert!(repaired.lines[triple.line].cancelled && !repaired.lines[triple.line].right());
        }
        for mistake in Mistake::ALL {
            assert_eq!(triples.iter().filter(|triple| triple.mistake == mistake).count(), 50);
        }
    }

    #[test]
    fn pieces_cover_a_version_without_gaps_and_the_matched_ones_say_what_they_are() {
        for triple in some() {
            for version in [&triple.clean, &triple.wrong, &triple.repaired] {
                let mut at = 0;
                for part in &version.parts {
                    assert_eq!(part.span.start, at);
                    at = part.span.end;
                }
                assert_eq!(at, version.text.len());
                let ends = version.text.match_indices([';', '!']).map(|(at, _)| at + 1);
                assert_eq!(version.line_ends, ends.collect::<Vec<_>>());
            }
            let only = |version: &Version, role| {
                let spans: Vec<_> = version.spans(role).collect();
                assert_eq!(spans.len(), 1, "{role:?} of {version:?}");
                version.text[spans[0].clone()].to_string()
            };
            assert_eq!(only(&triple.clean, Role::Right), only(&triple.repaired, Role::Corrected));
            assert_ne!(only(&triple.clean, Role::Right), only(&triple.wrong, Role::Mistake));
            assert_eq!(only(&triple.wrong, Role::Mistake), only(&triple.repaired, Role::Mistake));
            assert_eq!(only(&triple.repaired, Role::Mark), "!");
        }
    }
}
