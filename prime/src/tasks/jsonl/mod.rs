//! Problems read from files: JSON Lines, JSON or Parquet, one source or a mix of several.

mod settings;
mod source;

use std::collections::HashSet;
use std::ops::Range;

use anyhow::{Result, bail, ensure};

use super::published::without_suffix;
use super::{Problem, Purpose, Share, Split, Task, hash};
use crate::graders::{self, Grade, Grader, GraderSettings};

pub use settings::{BY_SOURCE, JsonlSettings, SourceSettings, Stage};
use source::{Candidate, Source};

/// Data sets, held in memory.
pub struct Jsonl {
    name: String,
    sources: Vec<Part>,
    graders: Graders,
    /// Source by source; those for RL first, then those for SFT alone.
    train: Vec<Problem>,
    held_out: Vec<Problem>,
    /// How many of `train` are for RL.
    gradable: usize,
}

/// What became of one source.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Rows of its files.
    pub rows: u64,
    /// Rows that could not be used, and what the first lacked.
    pub faulty: u64,
    /// What was wrong with the first of them.
    pub fault: Option<String>,
    /// Training problems that were there already.
    pub duplicates: u64,
    /// Training problems whose questions are held out, in this source or another.
    pub overlaps: u64,
    /// Training problems that share a run of words with one that is held out.
    pub similar: u64,
    /// Training problems left: where they lie in the task.
    pub train: Range<u64>,
    /// Held-out problems.
    pub held_out: u64,
    weight: f64,
    stage: Stage,
    has_solutions: bool,
}

/// The groups that problems are graded and reported in: a source, or a `data_source` within one.
#[derive(Default)]
struct Graders {
    groups: Vec<(String, Option<usize>)>,
    settings: GraderSettings,
    /// Each under the name that it was asked for.
    graders: Vec<(String, Box<dyn Grader>)>,
}

impl Graders {
    /// The group of a name; the grader is made when it is first asked for.
    fn group(&mut self, name: &str, grader: Option<&str>) -> Result<u32> {
        let index = match grader {
            None => None,
            Some(spec) => Some(match self.graders.iter().position(|(known, _)| known == spec) {
                Some(index) => index,
                None => {
                    self.graders.push((spec.to_owned(), graders::by_name(spec, &self.settings)?));
                    self.graders.len() - 1
                }
            }),
        };
        let same = |(known, grader): &(String, Option<usize>)| known == name && *grader == index;
        let group = self.groups.iter().position(same).unwrap_or_else(|| {
            self.groups.push((name.to_owned(), index));
            self.groups.len() - 1
        });
        Ok(group as u32)
    }

    fn of(&self, group: u32) -> Option<&dyn Grader> {
        let (_, grader) = self.groups.get(group as usize)?;
        grader.map(|index| &*self.graders[index].1)
    }

    fn needs_answer(&self, group: u32) -> bool {
        self.of(group).is_some_and(Grader::needs_answer)
    }

    fn check_answer(&self, group: u32, answer: &str) -> Result<()> {
        self.of(group)
            .filter(|grader| grader.needs_answer())
            .map_or(Ok(()), |grader| grader.check_answer(answer))
    }
}

/// A question as it is compared with others: white space is one space, a published suffix is left out.
fn key_of(question: &str) -> String {
    without_suffix(question).split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Jsonl {
    /// Reads the files of all sources. Training problems that are there twice are removed, and those that are held out anywhere.
    pub fn load(settings: &JsonlSettings) -> Result<Self> {
        Jsonl::load_with(settings, &GraderSettings::default())
    }

    /// The same with settings of the graders.
    pub fn load_with(settings: &JsonlSettings, grading: &GraderSettings) -> Result<Self> {
        let list = settings.sources()?;
        let mut graders = Graders { settings: grading.clone(), ..Graders::default() };
        // A slip in a name is told before anything is read.
        for source in &list {
            if source.grader != BY_SOURCE {
                graders::by_name(&source.grader, grading)?;
            }
        }
        let mut parts = Vec::new();
        let mut training: Vec<Vec<Candidate>> = Vec::new();
        let mut held_out: Vec<Candidate> = Vec::new();
        for settings_of in &list {
            let source = Source::new(settings_of, settings)?;
            let mut part = Part {
                name: source.name.clone(),
                weight: settings_of.weight,
                stage: settings_of.stage,
                ..Part::default()
            };
            let mut read = |path: &str| -> Result<Vec<Candidate>> {
                let read = source.read(path, &mut graders)?;
                part.rows += read.rows;
                part.faulty += read.faulty;
                part.fault = part.fault.take().or(read.fault);
                Ok(read.candidates)
            };
            let train = read(&settings_of.train)?;
            let test =
                if settings_of.stage == Stage::Sft { Vec::new() } else { read(&settings_of.test)? };
            let one_in = settings_of.held_out_one_in;
            let splits =
                settings_of.test.is_empty() && settings_of.stage != Stage::Sft && one_in > 0;
            let (apart, train): (Vec<_>, Vec<_>) = train.into_iter().partition(|candidate| {
                let question = candidate.questions.join("\n");
                splits && Split::of(&question, one_in) == Split::HeldOut
            });
            part.held_out = (test.len() + apart.len()) as u64;
            held_out.extend(test);
            held_out.extend(apart);
            training.push(train);
            parts.push(part);
        }
        let left = remove_doubles(settings, &mut parts, training, &held_out);
        let before: u64 = parts.iter().map(|part| part.rows).sum();
        let name = parts.iter().map(|part| part.name.as_str()).collect::<Vec<_>>().join("+");

        // Those for RL first: the others have no answers, and come after the end of the split.
        let mut train: Vec<Problem> = Vec::new();
        let mut gradable = 0;
        for for_sft_alone in [false, true] {
            for (part, problems) in parts.iter_mut().zip(&left) {
                if (part.stage == Stage::Sft) == for_sft_alone {
                    let start = train.len() as u64;
                    train.extend(problems.iter().cloned());
                    part.train = start..train.len() as u64;
                    part.has_solutions =
                        problems.first().is_some_and(|problem| problem.solution.is_some());
                }
            }
            if !for_sft_alone {
                gradable = train.len();
            }
        }
        ensure!(
            train.len() < u32::MAX as usize,
            "{name} has {} training problems, more than are counted here",
            train.len()
        );
        if train.is_empty() && list.iter().any(|source| !source.train.is_empty()) {
            bail!(
                "nothing is left to train on in {name}: all of its {before} rows are held out, duplicates, or unusable"
            );
        }
        let held_out = held_out.into_iter().map(|candidate| candidate.problem).collect();
        Ok(Jsonl {
            name,
            sources: parts,
            graders,
            train: number(train),
            held_out: number(held_out),
            gradable,
        })
    }

    fn problems(&self, split: Split) -> &[Problem] {
        match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        }
    }
}

/// What is left of each source's training problems.
fn remove_doubles(
    settings: &JsonlSettings,
    parts: &mut [Part],
    training: Vec<Vec<Candidate>>,
    held_out: &[Candidate],
) -> Vec<Vec<Problem>> {
    let hashed = |candidate: &Candidate| -> Vec<u64> {
        candidate.questions.iter().map(|question| hash(question)).collect()
    };
    let evaluated: HashSet<u64> = held_out.iter().flat_map(hashed).collect();
    let words = settings.overlap_words;
    let runs: HashSet<u64> = held_out
        .iter()
        .flat_map(|candidate| &candidate.questions)
        .flat_map(|question| runs_of_words(question, words))
        .collect();
    let mut seen: HashSet<u64> = HashSet::new();
    let mut left = Vec::new();
    for (part, candidates) in parts.iter_mut().zip(training) {
        let mut kept = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let similar = |question: &String| {
                runs_of_words(question, words).iter().any(|run| runs.contains(run))
            };
            if hashed(&candidate).iter().any(|question| evaluated.contains(question)) {
                part.overlaps += 1;
            } else if !runs.is_empty() && candidate.questions.iter().any(similar) {
                part.similar += 1;
            } else if settings.deduplicate && !seen.insert(candidate.key) {
                part.duplicates += 1;
            } else {
                kept.push(candidate.problem);
            }
        }
        left.push(kept);
    }
    left
}

/// Hashes of all runs of so many words, in small letters and without punctuation; none where `count` is 0.
fn runs_of_words(question: &str, count: usize) -> Vec<u64> {
    if count == 0 {
        return Vec::new();
    }
    let lower = question.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    words.windows(count).map(|run| hash(&run.join(" "))).collect()
}

/// Numbers the problems of a split by their places in it.
fn number(mut problems: Vec<Problem>) -> Vec<Problem> {
    for (id, problem) in problems.iter_mut().enumerate() {
        problem.id = id as u64;
    }
    problems
}

impl Task for Jsonl {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self, split: Split) -> Option<u64> {
        Some(match split {
            Split::Train => self.gradable as u64,
            Split::HeldOut => self.held_out.len() as u64,
        })
    }

    fn problem(&self, split: Split, index: u64) -> Option<Problem> {
        self.problems(split).get(usize::try_from(index).ok()?).cloned()
    }

    /// Cut-off responses are graded as they stand.
    fn grade(&self, problem: &Problem, response: &str, _finished: bool) -> Grade {
        match self.graders.of(problem.group) {
            Some(grader) => grader.grade(response, &problem.answer),
            None => Grade::nothing_found(),
        }
    }

    fn grade_group(&self, problem: &Problem, responses: &[(&str, bool)]) -> Vec<Grade> {
        let texts: Vec<&str> = responses.iter().map(|(text, _)| *text).collect();
        match self.graders.of(problem.group) {
            Some(grader) => grader.grade_group(&texts, &problem.answer),
            None => texts.iter().map(|_| Grade::nothing_found()).collect(),
        }
    }

    fn compares(&self) -> bool {
        self.graders.graders.iter().any(|(_, grader)| grader.compares())
    }

    fn ready(&self) -> Result<()> {
        self.graders.graders.iter().try_for_each(|(_, grader)| grader.ready())
    }

    fn is_slow(&self) -> bool {
        self.graders.graders.iter().any(|(_, grader)| grader.is_slow())
    }

    /// An epoch has as many draws as there are problems. Without weights each problem is drawn once; with them, each source in proportion
    /// to its weight, its problems in turn.
    fn shares(&self, purpose: Purpose) -> Vec<Share> {
        let serves = |part: &&Part| {
            let fits = match purpose {
                Purpose::Sft => part.stage != Stage::Rl && part.has_solutions,
                Purpose::Rl => part.stage != Stage::Sft,
            };
            fits && !part.train.is_empty()
        };
        let parts: Vec<&Part> = self.sources.iter().filter(serves).collect();
        let length = |part: &Part| part.train.end - part.train.start;
        let total: u64 = parts.iter().map(|part| length(part)).sum();
        let weights: f64 = parts.iter().map(|part| part.weight).sum();
        let share = |part: &Part| Share {
            problems: part.train.clone(),
            draws: if weights == 0.0 {
                length(part)
            } else {
                ((part.weight / weights * total as f64).round() as u64).max(1)
            },
        };
        parts.into_iter().map(share).collect()
    }

    fn group(&self, problem: &Problem) -> (&str, Option<&str>) {
        let Some((name, grader)) = self.graders.groups.get(problem.group as usize) else {
            return ("", None);
        };
        (name, grader.map(|index| self.graders.graders[index].0.as_str()))
    }

    fn parts(&self) -> &[Part] {
        &self.sources
    }

    fn alphabet(&self) -> Option<&str> {
        None
    }

    fn longest_prompt(&self) -> Option<usize> {
        let length = |problem: &Problem| match problem.messages.as_slice() {
            [] => problem.prompt.chars().count(),
            turns => turns.iter().map(|turn| turn.content.chars().count()).sum(),
        };
        self.train.iter().chain(&self.held_out).map(length).max()
    }

    fn longest_solution(&self) -> Option<usize> {
        let solutions =
            self.train.iter().chain(&self.held_out).filter_map(|problem| problem.solution.as_ref());
        solutions.map(|solution| solution.chars().count()).max()
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for part in &self.sources {
            let name = &part.name;
            let mut note = |count: u64, what: &str| {
                if count > 0 {
                    let (problems, were) =
                        if count == 1 { ("problem", "was") } else { ("problems", "were") };
                    notes.push(format!(
                        "{name}: {count} training {problems} {were} removed: {what}."
                    ));
                }
            };
            note(part.overlaps, "their questions are held out");
            note(part.similar, "they share a run of words with what is held out");
            note(part.duplicates, "their questions are there already");
            if part.faulty > 0 {
                let fault = part.fault.as_deref().unwrap_or_default();
                notes.push(format!(
                    "{name}: {} of {} rows were left out as unusable; the first is {fault}.",
                    part.faulty, part.rows
                ));
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests;
