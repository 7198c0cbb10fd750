//! Problems read from JSON Lines files: one object a line.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Problem, Split, Task};
use crate::graders::{self, Grade, Grader};

/// What a template holds in place of the prompt.
const PLACEHOLDER: &str = "{prompt}";

/// Settings of a data set. The defaults are GSM8K's, its files aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JsonlSettings {
    /// The file to train on. May be left out for evaluation alone.
    pub train: Option<PathBuf>,
    /// The file to evaluate on. Without one, part of `train` is held out, chosen by the hash of the prompt.
    pub held_out: Option<PathBuf>,
    /// One prompt in so many is held out, where there is no `held_out` file.
    pub held_out_one_in: u32,
    /// The field of the prompt.
    pub prompt_field: String,
    /// The field of the reference answer.
    pub answer_field: String,
    /// The field of the worked solution for SFT, if the data have one.
    pub solution_field: Option<String>,
    /// What the model is given, with `{prompt}` in place of the prompt.
    pub template: String,
    /// The mark in the answer field after whose last occurrence the reference answer stands; empty for the whole field.
    pub answer_after: String,
    /// The grader of the responses.
    pub grader: String,
}

impl Default for JsonlSettings {
    fn default() -> Self {
        JsonlSettings {
            train: None,
            held_out: None,
            held_out_one_in: 16,
            prompt_field: "question".into(),
            answer_field: "answer".into(),
            solution_field: Some("answer".into()),
            template: PLACEHOLDER.into(),
            answer_after: "####".into(),
            grader: "gsm8k".into(),
        }
    }
}

/// A data set, held in memory.
pub struct Jsonl {
    name: String,
    train: Vec<Problem>,
    held_out: Vec<Problem>,
    grader: Box<dyn Grader>,
    removed: usize,
}

impl Jsonl {
    /// Reads the files. A training problem whose prompt is also held out is removed.
    pub fn load(settings: &JsonlSettings) -> Result<Self> {
        ensure!(
            settings.template.contains(PLACEHOLDER),
            "the template {:?} must hold {PLACEHOLDER}, where the prompt goes",
            settings.template
        );
        ensure!(
            settings.train.is_some() || settings.held_out.is_some(),
            "the jsonl task needs a file: set train, held_out or both"
        );
        ensure!(
            settings.held_out.is_some() || settings.held_out_one_in >= 2,
            "held_out_one_in must be at least 2, and is {}: one prompt in so many is held out",
            settings.held_out_one_in
        );
        let grader = graders::by_name(&settings.grader)?;
        let read = |path: &Option<PathBuf>| match path {
            Some(path) => read_file(path, settings, &*grader),
            None => Ok(Vec::new()),
        };
        let (mut train, mut held_out) = (read(&settings.train)?, read(&settings.held_out)?);
        if settings.held_out.is_none() {
            (held_out, train) = train.into_iter().partition(|record| {
                Split::of(&record.prompt, settings.held_out_one_in) == Split::HeldOut
            });
        }
        let evaluated: HashSet<&str> =
            held_out.iter().map(|record| record.prompt.as_str()).collect();
        let before = train.len();
        train.retain(|record| !evaluated.contains(record.prompt.as_str()));
        let removed = before - train.len();
        if let Some(path) = &settings.train {
            ensure!(
                !train.is_empty(),
                "nothing is left to train on in {}: all of its {before} prompts are held out",
                path.display()
            );
        }
        let path = settings.train.as_ref().or(settings.held_out.as_ref());
        let name = path
            .and_then(|path| path.file_stem())
            .map_or("jsonl".into(), |stem| stem.to_string_lossy().into());
        Ok(Jsonl { name, train: number(train), held_out: number(held_out), grader, removed })
    }

    /// How many problems were removed from the training part because their prompts are held out.
    pub fn removed_duplicates(&self) -> usize {
        self.removed
    }

    fn problems(&self, split: Split) -> &[Problem] {
        match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        }
    }
}

/// Numbers the problems of a split by their places in it.
fn number(mut problems: Vec<Problem>) -> Vec<Problem> {
    for (id, problem) in problems.iter_mut().enumerate() {
        problem.id = id as u64;
    }
    problems
}

fn read_file(path: &Path, settings: &JsonlSettings, grader: &dyn Grader) -> Result<Vec<Problem>> {
    let shown = path.display();
    let file =
        File::open(path).with_context(|| format!("the data set {shown} cannot be opened"))?;
    let mut input = BufReader::new(file);
    let mut problems = Vec::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let length = input
            .read_until(b'\n', &mut line)
            .with_context(|| format!("the data set {shown} cannot be read"))?;
        if length == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let problem = read_line(&line, settings, grader)
            .with_context(|| format!("{shown}, line {number}"))?;
        problems.push(problem);
    }
    ensure!(
        !problems.is_empty(),
        "the data set {shown} is empty: it must hold one JSON object a line"
    );
    Ok(problems)
}

fn read_line(line: &[u8], settings: &JsonlSettings, grader: &dyn Grader) -> Result<Problem> {
    let object = graders::parse_object(line)?;
    let field = |name: &str| graders::text_field(&object, name);
    let prompt = settings.template.replace(PLACEHOLDER, &field(&settings.prompt_field)?);
    let whole = field(&settings.answer_field)?;
    let answer = match settings.answer_after.as_str() {
        "" => whole.trim(),
        mark => {
            let (_, answer) = whole.rsplit_once(mark).with_context(|| {
                format!(
                    "the field {:?} does not hold the mark {mark:?} before its answer",
                    settings.answer_field
                )
            })?;
            answer.trim()
        }
    };
    grader.check_answer(answer)?;
    let solution = settings.solution_field.as_deref().map(field).transpose()?;
    Ok(Problem { id: 0, prompt, answer: answer.to_owned(), solution, level: 0 })
}

impl Task for Jsonl {
    fn name(&self) -> &str {
        &self.name
    }

    fn len(&self, split: Split) -> Option<u64> {
        Some(self.problems(split).len() as u64)
    }

    fn problem(&self, split: Split, index: u64) -> Option<Problem> {
        self.problems(split).get(usize::try_from(index).ok()?).cloned()
    }

    /// Cut-off responses are graded as they stand.
    fn grade(&self, problem: &Problem, response: &str, _finished: bool) -> Grade {
        self.grader.grade(response, &problem.answer)
    }

    fn alphabet(&self) -> Option<&str> {
        None
    }

    fn longest_prompt(&self) -> Option<usize> {
        self.train.iter().chain(&self.held_out).map(|problem| problem.prompt.chars().count()).max()
    }

    fn longest_solution(&self) -> Option<usize> {
        let solutions =
            self.train.iter().chain(&self.held_out).filter_map(|problem| problem.solution.as_ref());
        solutions.map(|solution| solution.chars().count()).max()
    }

    fn notes(&self) -> Vec<String> {
        if self.removed == 0 {
            return Vec::new();
        }
        vec![format!(
            "{} training problems were removed: their prompts are held out.",
            self.removed
        )]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &tempfile::TempDir, name: &str, text: impl AsRef<[u8]>) -> Option<PathBuf> {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    }

    fn record(question: &str, answer: u32) -> String {
        format!("{{\"question\":\"{question}\",\"answer\":\"Count.\\n#### {answer}\"}}\n")
    }

    fn failure(settings: &JsonlSettings) -> String {
        format!("{:#}", Jsonl::load(settings).err().unwrap())
    }

    #[test]
    fn a_gsm8k_line_becomes_a_problem() {
        let folder = tempfile::tempdir().unwrap();
        let settings = JsonlSettings {
            train: write(
                &folder,
                "train.jsonl",
                format!("\u{feff}{}\n\n{}", record("One?", 1), record("Two?", 2)),
            ),
            held_out: write(&folder, "test.jsonl", record("Two?", 2) + &record("Three?", 1234)),
            template: "Q: {prompt}\nA: ".into(),
            ..Default::default()
        };
        let task = Jsonl::load(&settings).unwrap();
        let problem = task.problem(Split::Train, 0).unwrap();
        assert_eq!(problem.prompt, "Q: One?\nA: ");
        assert_eq!(
            (problem.answer.as_str(), problem.solution.as_deref()),
            ("1", Some("Count.\n#### 1"))
        );
        assert_eq!((task.len(Split::Train), task.len(Split::HeldOut)), (Some(1), Some(2)));
        assert_eq!((task.removed_duplicates(), task.notes().len()), (1, 1));
        assert_eq!(task.problem(Split::Train, 1), None);
        assert_eq!(task.problem(Split::HeldOut, u64::MAX), None);
        let last = task.problem(Split::HeldOut, 1).unwrap();
        assert_eq!((last.id, task.grade(&last, "so #### 1,234", false).score), (1, 1.0));
        assert_eq!(task.name(), "train");
    }

    #[test]
    fn one_file_is_split_by_its_prompts_whatever_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let records: Vec<String> = (0..400).map(|i| record(&format!("What is {i}?"), i)).collect();
        let reversed: String = records.iter().rev().cloned().collect();
        let load = |name, text: String| {
            Jsonl::load(&JsonlSettings {
                train: write(&folder, name, text),
                held_out_one_in: 4,
                ..Default::default()
            })
            .unwrap()
        };
        let (a, b) = (load("a.jsonl", records.concat()), load("b.jsonl", reversed + &records[7]));
        let prompts = |task: &Jsonl| -> HashSet<String> {
            task.held_out.iter().map(|problem| problem.prompt.clone()).collect()
        };
        assert_eq!(prompts(&a), prompts(&b));
        assert!((50..150).contains(&a.held_out.len()), "{}", a.held_out.len());
        assert_eq!(a.removed_duplicates(), 0);
        assert!(a.train.iter().all(|problem| !prompts(&a).contains(&problem.prompt)));
    }

    #[test]
    fn faulty_files_are_refused_with_file_line_and_field() {
        let folder = tempfile::tempdir().unwrap();
        let good = record("One?", 1);
        for (line, fault) in [
            ("{", "line 2: the line is not JSON"),
            (
                "{\"qestion\":\"x\",\"answer\":\"#### 1\"}",
                "line 2: the line has no field \"question\"; the nearest present one is \"qestion\"",
            ),
            (
                "{\"question\":\"x\"}",
                "line 2: the line has no field \"answer\"; it has \"question\"",
            ),
            (
                "{\"question\":\"x\",\"answer\":\"1\"}",
                "line 2: the field \"answer\" does not hold the mark \"####\"",
            ),
            (
                "{\"question\":[],\"answer\":\"#### 1\"}",
                "line 2: the field \"question\" must be text, and is a list",
            ),
        ] {
            let train = write(&folder, "faulty.jsonl", format!("{good}{line}\n"));
            let message = failure(&JsonlSettings { train, ..Default::default() });
            assert!(message.contains("faulty.jsonl") && message.contains(fault), "{message}");
        }
        let train = write(&folder, "empty.jsonl", "\n \n");
        assert!(
            failure(&JsonlSettings { train, ..Default::default() })
                .contains("empty.jsonl is empty")
        );
        let train = Some(folder.path().join("none.jsonl"));
        assert!(
            failure(&JsonlSettings { train, ..Default::default() })
                .contains("none.jsonl cannot be opened")
        );
        let train = write(&folder, "same.jsonl", &good);
        let settings = JsonlSettings { held_out: train.clone(), train, ..Default::default() };
        assert!(failure(&settings).contains("nothing is left to train on"));
    }

    #[test]
    fn settings_without_sense_are_refused_by_name() {
        let default = JsonlSettings::default;
        assert!(failure(&default()).contains("set train, held_out or both"));
        assert!(
            failure(&JsonlSettings { template: "Q:".into(), ..default() }).contains("{prompt}")
        );
        let train = Some("none".into());
        assert!(
            failure(&JsonlSettings { grader: "gms8k".into(), train, ..default() })
                .contains("did you mean \"gsm8k\"?")
        );
    }

    #[test]
    fn gsm8k_itself_is_read_where_it_is_at_hand() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/gsm8k");
        if !folder.exists() {
            println!("skipped: there is no {}", folder.display());
            return;
        }
        let settings = JsonlSettings {
            train: Some(folder.join("train.jsonl")),
            held_out: Some(folder.join("test.jsonl")),
            ..Default::default()
        };
        let task = Jsonl::load(&settings).unwrap();
        assert_eq!(task.len(Split::Train).unwrap() + task.removed_duplicates() as u64, 7473);
        assert_eq!(task.len(Split::HeldOut), Some(1319));
        for split in [Split::Train, Split::HeldOut] {
            for index in 0..task.len(split).unwrap() {
                let problem = task.problem(split, index).unwrap();
                let solution = problem.solution.as_ref().unwrap();
                assert_eq!(task.grade(&problem, solution, true).score, 1.0, "{problem:?}");
                assert!(
                    graders::by_name("numeric").unwrap().grade(solution, &problem.answer).score
                        == 1.0
                );
            }
        }
    }
}
