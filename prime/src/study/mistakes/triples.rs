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

use crate::tasks::Split;
use crate::tasks::worked::{Mistake, Spoilt, Worked};

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
pub fn triples(task: &dyn Worked, count: usize, seed: u64) -> Vec<Triple> {
    let kinds = task.mistakes();
    let mut found = Vec::with_capacity(count);
    // Enough to find a carry of `arithmetic` in: about one problem in three has one.
    for index in 0..(count as u64) * 50 {
        if found.len() == count {
            break;
        }
        let mistake = kinds[found.len() % kinds.len()];
        let Some(problem) = task.problem(Split::HeldOut, index) else { break };
        let mut random = Generator::new(seed, Stream::Tasks, (1 << 48) + index);
        if let Some(spoilt) = task.spoil(&problem.prompt, mistake, &mut random) {
            let [clean, wrong, repaired] = versions(&spoilt);
            found.push(Triple {
                problem: index,
                prompt: problem.prompt,
                answer: problem.answer,
                mistake,
                line: spoilt.place,
                lines: spoilt.right.len(),
                clean,
                wrong,
                repaired,
            });
        }
    }
    found
}

/// The three texts: clean, with the mistake carried on, and with it taken back.
fn versions(spoilt: &Spoilt) -> [Version; 3] {
    let place = spoilt.place;
    let (line, spoilt_line) = (&spoilt.right[place], &spoilt.wrong[place]);
    let mut start = Version::default();
    start.push_lines(Role::Before, &spoilt.right[..place]);
    let (mut clean, mut wrong, mut repaired) = (start.clone(), start.clone(), start);
    let plain = [Role::Left, Role::Right, Role::LineRest];
    let with_mistake = [Role::Left, Role::Mistake, Role::LineRest];
    let redone = [Role::RedoneLeft, Role::Corrected, Role::RedoneRest];
    clean.push_line(plain, line, &spoilt.right_span, ";");
    wrong.push_line(with_mistake, spoilt_line, &spoilt.wrong_span, ";");
    repaired.push_line(with_mistake, spoilt_line, &spoilt.wrong_span, "!");
    repaired.push_line(redone, line, &spoilt.right_span, ";");
    for (version, lines, answer) in [
        (&mut clean, &spoilt.right, &spoilt.right_answer),
        (&mut wrong, &spoilt.wrong, &spoilt.wrong_answer),
        (&mut repaired, &spoilt.right, &spoilt.right_answer),
    ] {
        version.push_lines(Role::Rest, &lines[place + 1..]);
        version.push(Role::Answer, &format!("#{answer}"));
    }
    [clean, wrong, repaired]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::arithmetic::{Arithmetic, ArithmeticSettings};
    use crate::tasks::columns::{Columns, ColumnsSettings};

    fn tasks() -> [Box<dyn Worked>; 2] {
        let settings = ArithmeticSettings { min_operations: 3, ..ArithmeticSettings::default() };
        [
            Box::new(Arithmetic::new(settings, 1).unwrap()),
            Box::new(Columns::new(ColumnsSettings::default(), 1).unwrap()),
        ]
    }

    #[test]
    fn a_triple_differs_in_one_planted_mistake_and_its_repair() {
        for task in tasks() {
            let count = 60 * task.mistakes().len();
            let triples = triples(&*task, count, 1);
            assert_eq!(triples.len(), count);
            for triple in &triples {
                let work = |version: &Version| task.check(&triple.prompt, &version.text).unwrap();
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
                let taken_back = &repaired.lines[triple.line];
                assert!(taken_back.cancelled && !taken_back.right());
            }
            for &mistake in task.mistakes() {
                let of_kind = triples.iter().filter(|triple| triple.mistake == mistake).count();
                assert_eq!(of_kind, 60);
            }
        }
    }

    #[test]
    fn pieces_cover_a_version_without_gaps_and_the_matched_ones_say_what_they_are() {
        for triple in tasks().iter().flat_map(|task| triples(&**task, 120, 1)) {
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
