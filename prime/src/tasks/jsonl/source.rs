//! One source: from the rows of its files to problems.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prime_model::Message;
use serde_json::Value;

use super::settings::{BY_SOURCE, JsonlSettings, NO_SYSTEM_PROMPT, SourceSettings, Stage};
use super::{Graders, key_of};
use crate::data::{self, Row, chat};
use crate::graders::extract;
use crate::tasks::published::{self, PLACEHOLDER};
use crate::tasks::{Problem, hash};

/// The value of `answer_after` for an answer in the last box of a worked solution.
const BOXED: &str = "\\boxed";

/// A problem on its way into the task.
pub struct Candidate {
    pub problem: Problem,
    /// What makes it the same as another: its question, and of a demonstration its solution too.
    pub key: u64,
    /// The questions that it shows, for comparison with those that are held out.
    pub questions: Vec<String>,
}

/// A source's settings, made ready.
pub struct Source<'a> {
    settings: &'a SourceSettings,
    all: &'a JsonlSettings,
    pub name: String,
    system_prompt: String,
    suffix: String,
    template: String,
}

/// What reading a file found.
#[derive(Default)]
pub struct Read {
    pub candidates: Vec<Candidate>,
    pub rows: u64,
    pub faulty: u64,
    /// The first of the faults.
    pub fault: Option<String>,
}

impl<'a> Source<'a> {
    pub fn new(settings: &'a SourceSettings, all: &'a JsonlSettings) -> Result<Source<'a>> {
        let text = |key: &str, value: &str, published| {
            published::text(&format!("task.jsonl.{key}"), value, published)
        };
        let template = text("template", &settings.template, published::TEMPLATES)?;
        ensure!(
            template.contains(PLACEHOLDER),
            "the template {template:?} must hold {PLACEHOLDER}, where the prompt goes"
        );
        let system_prompt = match settings.system_prompt.as_str() {
            NO_SYSTEM_PROMPT => NO_SYSTEM_PROMPT.to_owned(),
            value => text("system_prompt", value, published::SYSTEM_PROMPTS)?,
        };
        ensure!(
            settings.chat || system_prompt.is_empty() || system_prompt == NO_SYSTEM_PROMPT,
            "task.jsonl.system_prompt is a system message, which needs task.jsonl.chat=true"
        );
        let file = if settings.train.is_empty() { &settings.test } else { &settings.train };
        let stem = Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let name = match settings.name.as_str() {
            "" => stem.unwrap_or_else(|| "jsonl".into()),
            name => name.to_owned(),
        };
        let suffix = text("suffix", &settings.suffix, published::SUFFIXES)?;
        Ok(Source { settings, all, name, system_prompt, suffix, template })
    }

    /// Reads a file, or the files of a folder in the order of their names.
    pub fn read(&self, path: &str, graders: &mut Graders) -> Result<Read> {
        let mut read = Read::default();
        if path.is_empty() {
            return Ok(read);
        }
        for file in files(Path::new(path))? {
            for row in data::rows(&file)? {
                let row = row?;
                read.rows += 1;
                match self.candidates(&row, graders) {
                    Ok(candidates) => read.candidates.extend(candidates),
                    Err(error) if self.settings.skip_faulty => {
                        read.faulty += 1;
                        read.fault.get_or_insert_with(|| format!("{}: {error:#}", row.place()));
                    }
                    Err(error) => return Err(error.context(row.place())),
                }
            }
        }
        ensure!(
            read.rows > 0,
            "the data set {path} is empty: it must hold rows, such as one JSON object a line"
        );
        Ok(read)
    }

    /// The problem of a row; of a conversation that ends with the assistant, a demonstration for each of its turns. Template and suffix are
    /// for questions: a conversation says what it says.
    fn candidates(&self, row: &Row, graders: &mut Graders) -> Result<Vec<Candidate>> {
        match row.get(&self.settings.prompt_field)? {
            Value::Array(turns) => {
                let name = &self.settings.prompt_field;
                let mut turns =
                    chat::messages(turns).with_context(|| format!("the field {name:?}"))?;
                ensure!(
                    self.settings.chat,
                    "the field {name:?} is a conversation, which needs task.jsonl.chat=true"
                );
                self.put_system_prompt(&mut turns);
                if turns.last().is_some_and(|turn| turn.role == "assistant") {
                    return self.demonstrations(&turns, graders);
                }
                let questions = questions(&turns);
                let prompt = turns.last().map_or(String::new(), |turn| turn.content.clone());
                Ok(vec![self.problem(row, prompt, turns, questions, graders)?])
            }
            _ => {
                let question = row.text(&self.settings.prompt_field)?;
                let prompt = self.dressed(&question);
                let messages = if self.settings.chat {
                    let mut turns = vec![Message::new("user", &prompt)];
                    self.put_system_prompt(&mut turns);
                    turns
                } else {
                    Vec::new()
                };
                let questions = vec![key_of(&question)];
                Ok(vec![self.problem(row, prompt, messages, questions, graders)?])
            }
        }
    }

    /// A question in the template. One that ends with a published suffix keeps it and gets none.
    fn dressed(&self, question: &str) -> String {
        let has_one = published::without_suffix(question).len() < question.trim_end().len();
        let suffix = if has_one { "" } else { &self.suffix };
        self.template.replace(PLACEHOLDER, &format!("{question}{suffix}"))
    }

    fn put_system_prompt(&self, turns: &mut Vec<Message>) {
        if self.system_prompt.is_empty() {
            return;
        }
        turns.retain(|turn| turn.role != "system");
        if self.system_prompt != NO_SYSTEM_PROMPT {
            turns.insert(0, Message::new("system", &self.system_prompt));
        }
    }

    fn demonstrations(&self, turns: &[Message], graders: &mut Graders) -> Result<Vec<Candidate>> {
        ensure!(
            self.settings.stage == Stage::Sft,
            "the field {:?} is a conversation that ends with the assistant: it has no answer to grade, and needs stage = \"sft\"",
            self.settings.prompt_field
        );
        let group = graders.group(&self.name, None)?;
        let questions = questions(turns);
        let mut demonstrations = Vec::new();
        for (i, turn) in turns.iter().enumerate() {
            if turn.role != "assistant" {
                continue;
            }
            ensure!(
                i > 0,
                "the conversation begins with the assistant, to which there is no prompt"
            );
            let shown: String = turns[..=i]
                .iter()
                .map(|turn| format!("{}\n{}\n", turn.role, turn.content))
                .collect();
            demonstrations.push(Candidate {
                key: hash(&key_of(&shown)),
                problem: Problem {
                    prompt: turns[i - 1].content.clone(),
                    messages: turns[..i].to_vec(),
                    solution: Some(turn.content.clone()),
                    group,
                    ..Problem::default()
                },
                questions: questions.clone(),
            });
        }
        Ok(demonstrations)
    }

    fn problem(
        &self,
        row: &Row,
        prompt: String,
        messages: Vec<Message>,
        questions: Vec<String>,
        graders: &mut Graders,
    ) -> Result<Candidate> {
        let solution = match self.settings.solution_field.as_str() {
            "" => None,
            field => Some(row.text(field)?),
        };
        let mut key = questions.join("\n");
        let (answer, group) = if self.settings.stage == Stage::Sft {
            ensure!(
                solution.is_some(),
                "a source with stage = \"sft\" needs worked solutions: name their solution_field"
            );
            key.extend(solution.iter().map(|solution| key_of(solution)));
            (String::new(), graders.group(&self.name, None)?)
        } else {
            let group = match self.settings.grader.as_str() {
                BY_SOURCE => {
                    let source = row.text(&self.settings.source_field)?;
                    let grader = self.all.grader_of(&source)?.to_owned();
                    graders.group(&format!("{}: {source}", self.name), Some(&grader))?
                }
                grader => graders.group(&self.name, Some(grader))?,
            };
            let answer = match self.answer(row) {
                Err(_) if !graders.needs_answer(group) => String::new(),
                answer => answer?,
            };
            graders.check_answer(group, &answer)?;
            (answer, group)
        };
        let problem = Problem { prompt, messages, answer, solution, group, ..Problem::default() };
        Ok(Candidate { key: hash(&key), problem, questions })
    }

    fn answer(&self, row: &Row) -> Result<String> {
        let name = &self.settings.answer_field;
        // Tests of a program may be written as what they are.
        let whole = match row.get(name)? {
            tests @ (Value::Array(_) | Value::Object(_)) => tests.to_string(),
            _ => row.text(name)?,
        };
        let answer = match self.settings.answer_after.as_str() {
            "" => whole.as_str(),
            BOXED => extract::last_boxed(&whole)
                .with_context(|| format!("the field {name:?} holds no \\boxed answer"))?,
            mark => match whole.rsplit_once(mark) {
                Some((_, answer)) => answer,
                None => {
                    bail!("the field {name:?} does not hold the mark {mark:?} before its answer")
                }
            },
        };
        Ok(answer.trim().to_owned())
    }
}

/// The users' messages of a conversation, as they are compared.
fn questions(turns: &[Message]) -> Vec<String> {
    turns.iter().filter(|turn| turn.role == "user").map(|turn| key_of(&turn.content)).collect()
}

/// A file itself; of a folder, the data files in it by their names: the shards of a set.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let context = || format!("the folder {} cannot be listed", path.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).with_context(context)? {
        let file = entry.with_context(context)?.path();
        let known = ["jsonl", "json", "parquet"];
        let is_data = |kind: &std::ffi::OsStr| known.iter().any(|name| kind == *name);
        if file.extension().is_some_and(is_data) && file.is_file() {
            files.push(file);
        }
    }
    ensure!(
        !files.is_empty(),
        "the folder {} holds no file that ends in .jsonl, .json or .parquet",
        path.display()
    );
    files.sort();
    Ok(files)
}
