//! Grading JSON Lines: what `prime grade` does.

use std::io::{BufRead, Write};

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};

use super::{Failure, Grade, Grader, majority, nearest, work};

/// Lines that are graded at once.
const BATCH: usize = 1024;

/// What was graded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Graded {
    /// Lines.
    pub lines: usize,
    /// Those that could not be graded because the grader failed.
    pub errors: usize,
    /// Those that could not be graded within a limit.
    pub timeouts: usize,
}

/// A line to grade.
struct Item {
    object: Map<String, Value>,
    response: String,
    answer: String,
    /// The value of the field that groups responses, where the grader compares them.
    group: Option<String>,
}

/// Grades every line of `input`, an object with `response` and `answer`, and writes it to `output` with `score` and
/// `extracted` added (`null` when nothing was found). A line that could not be graded has the score `null` and says why in `error`. Blank
/// lines are skipped. Slow graders work on `workers` lines at once; the order is kept. A grader that compares responses is given those
/// together whose field `group_by` is the same.
///
/// On an error, what was written so far stays in `output`: a caller that wants all or nothing writes to a temporary file.
///
/// # Errors
/// When a line is not as described, or the output cannot be written.
pub fn grade_jsonl(
    grader: &dyn Grader,
    group_by: &str,
    workers: usize,
    input: &mut dyn BufRead,
    output: &mut dyn Write,
) -> Result<Graded> {
    let mut graded = Graded::default();
    let mut items = Vec::new();
    let mut line = Vec::new();
    let mut number = 0;
    loop {
        line.clear();
        number += 1;
        let more = input.read_until(b'\n', &mut line).context("the input cannot be read")? > 0;
        if more && !line.iter().all(u8::is_ascii_whitespace) {
            let item = read_line(grader, group_by, &line);
            items.push(item.with_context(|| format!("line {number} of the input"))?);
        }
        // Which responses belong together is known at the end only.
        if !more || (items.len() == BATCH && !grader.compares()) {
            let grades = grade_items(grader, workers, &items);
            for (item, grade) in items.drain(..).zip(grades) {
                graded.count(&grade);
                write_line(output, item.object, grade)?;
            }
        }
        if !more {
            break;
        }
    }
    output.flush().context("the output cannot be written")?;
    Ok(graded)
}

impl Graded {
    fn count(&mut self, grade: &Grade) {
        self.lines += 1;
        match grade.failure {
            Some(Failure::Error(_)) => self.errors += 1,
            Some(Failure::Timeout(_)) => self.timeouts += 1,
            None => {}
        }
    }
}

fn grade_items(grader: &dyn Grader, workers: usize, items: &[Item]) -> Vec<Grade> {
    if !grader.compares() {
        let workers = if grader.is_slow() { workers } else { 1 };
        return work::in_order(items, workers, |item| grader.grade(&item.response, &item.answer));
    }
    let mut grades: Vec<Option<Grade>> = vec![None; items.len()];
    let mut groups: Vec<(&str, Vec<usize>)> = Vec::new();
    let mut places: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let Some(group) = &item.group else { continue };
        let place = *places.entry(group).or_insert(groups.len());
        if place == groups.len() {
            groups.push((group, Vec::new()));
        }
        groups[place].1.push(index);
    }
    for (_, members) in groups {
        let responses: Vec<&str> = members.iter().map(|&index| &*items[index].response).collect();
        let graded = grader.grade_group(&responses, &items[members[0]].answer);
        members.iter().zip(graded).for_each(|(&index, grade)| grades[index] = Some(grade));
    }
    let alone = || Grade::failed(majority::alone(grader.name()));
    grades.into_iter().map(|grade| grade.unwrap_or_else(alone)).collect()
}

fn read_line(grader: &dyn Grader, group_by: &str, line: &[u8]) -> Result<Item> {
    let object = parse_object(line)?;
    let response = text_field(&object, "response")?;
    let answer =
        if grader.needs_answer() { answer_field(&object, "answer")? } else { String::new() };
    if grader.needs_answer() {
        grader.check_answer(&answer)?;
    }
    let group = if grader.compares() { Some(answer_field(&object, group_by)?) } else { None };
    Ok(Item { object, response, answer, group })
}

fn write_line(output: &mut dyn Write, mut object: Map<String, Value>, grade: Grade) -> Result<()> {
    let score = if grade.failure.is_some() { Value::Null } else { f64::from(grade.score).into() };
    object.insert("score".into(), score);
    object.insert("extracted".into(), grade.extracted.into());
    if let Some(failure) = grade.failure {
        object.insert("error".into(), failure.to_string().into());
    }
    serde_json::to_writer(&mut *output, &object)
        .map_err(std::io::Error::from)
        .and_then(|()| output.write_all(b"\n"))
        .context("the output cannot be written")
}

/// A reference answer: text, a number as it is written, or a list or object (such as tests of a program) as JSON.
fn answer_field(object: &Map<String, Value>, name: &str) -> Result<String> {
    match object.get(name) {
        Some(value @ (Value::Array(_) | Value::Object(_))) => Ok(value.to_string()),
        _ => text_field(object, name),
    }
}

/// One line of JSON Lines as an object.
pub(crate) fn parse_object(line: &[u8]) -> Result<Map<String, Value>> {
    let text = std::str::from_utf8(line).context("the line is not UTF-8")?;
    let value: Value =
        serde_json::from_str(text.trim_start_matches('\u{feff}')).map_err(|error| {
            // The parser counts lines within what it is given; only the column means anything here.
            let message = error.to_string();
            let reason = message.rsplit_once(" at line").map_or(&*message, |(reason, _)| reason);
            anyhow!("the line is not JSON ({reason}, at column {})", error.column())
        })?;
    match value {
        Value::Object(object) => Ok(object),
        other => Err(anyhow!("the line must be a JSON object, and is {}", kind(&other))),
    }
}

/// A field that holds text, or a number, which is taken as it is written.
pub(crate) fn text_field(object: &Map<String, Value>, name: &str) -> Result<String> {
    match object.get(name) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        Some(other) => Err(anyhow!("the field {name:?} must be text, and is {}", kind(other))),
        None => {
            let present = match nearest(name, object.keys().map(String::as_str)) {
                Some(near) => format!("the nearest present one is {near:?}"),
                None if object.is_empty() => "it has no fields".to_owned(),
                None => {
                    let names: Vec<String> =
                        object.keys().take(16).map(|key| format!("{key:?}")).collect();
                    format!("it has {}", names.join(", "))
                }
            };
            Err(anyhow!("the line has no field {name:?}; {present}"))
        }
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::graders::{GraderSettings, by_name};

    fn grade(name: &str, input: &str) -> Result<String> {
        let mut output = Vec::new();
        let grader = by_name(name, &GraderSettings::default())?;
        grade_jsonl(&*grader, "prompt", 2, &mut input.as_bytes(), &mut output)?;
        Ok(String::from_utf8(output)?)
    }

    #[test]
    fn responses_to_one_prompt_are_compared_wherever_they_stand() {
        let line = |prompt: &str, found: u32| {
            format!("{{\"prompt\":\"{prompt}\",\"response\":\"\\\\boxed{{{found}}}\"}}\n")
        };
        let input = [line("a", 1), line("b", 2), line("a", 3), line("b", 2), line("a", 3)].concat();
        let output = grade("majority", &input).unwrap();
        let scores: Vec<f64> = output
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["score"].as_f64().unwrap())
            .collect();
        assert_eq!(scores, [0.0, 1.0, 1.0, 1.0, 1.0]);
        let message = format!("{:#}", grade("majority", "{\"response\":\"x\"}").unwrap_err());
        assert!(message.contains("no field \"prompt\""), "{message}");
    }

    #[test]
    fn a_line_that_could_not_be_graded_says_why_and_has_no_score() {
        struct Failing;
        impl Grader for Failing {
            fn name(&self) -> &'static str {
                "failing"
            }
            fn grade(&self, _: &str, _: &str) -> Grade {
                Grade::failed(Failure::Timeout("too slow".into()))
            }
        }
        let mut output = Vec::new();
        let input = "{\"response\":\"x\",\"answer\":{\"inputs\":[]}}\n";
        let graded =
            grade_jsonl(&Failing, "prompt", 1, &mut input.as_bytes(), &mut output).unwrap();
        assert_eq!(graded, Graded { lines: 1, errors: 0, timeouts: 1 });
        let expected = "{\"response\":\"x\",\"answer\":{\"inputs\":[]},\"score\":null,\"extracted\":null,\"error\":\"too slow\"}\n";
        assert_eq!(String::from_utf8(output).unwrap(), expected);
    }

    #[test]
    fn lines_are_echoed_with_score_and_extracted_answer() {
        let input = concat!(
            "{\"id\":7,\"response\":\"#### 72\",\"answer\":\"72\",\"x\":[1]}\n",
            "\n",
            "{\"response\":\"no\",\"answer\":72}",
        );
        let expected = concat!(
            "{\"id\":7,\"response\":\"#### 72\",\"answer\":\"72\",\"x\":[1],\"score\":1.0,\"extracted\":\"72\"}\n",
            "{\"response\":\"no\",\"answer\":72,\"score\":0.0,\"extracted\":null}\n",
        );
        assert_eq!(grade("gsm8k", input).unwrap(), expected);
    }

    #[test]
    fn a_bad_line_is_named_with_its_number_and_fault() {
        let good = "{\"response\":\"#1\",\"answer\":\"1\"}\n";
        for (line, fault) in [
            ("{\"response\":", "not JSON"),
            ("[1]", "must be a JSON object, and is a list"),
            (
                "{\"respnse\":\"#1\",\"answer\":\"1\"}",
                "no field \"response\"; the nearest present one is \"respnse\"",
            ),
            (
                "{\"text\":\"#1\",\"answer\":\"1\"}",
                "no field \"response\"; it has \"text\", \"answer\"",
            ),
            ("{}", "it has no fields"),
            ("{\"response\":null,\"answer\":\"1\"}", "\"response\" must be text, and is null"),
            (&"[".repeat(100_000), "not JSON"),
        ] {
            let error =
                format!("{:#}", grade("arithmetic", &format!("{good}{line}\n")).unwrap_err());
            assert!(error.starts_with("line 2 of the input: ") && error.contains(fault), "{error}");
        }
        let mut input = &b"{\"response\":\"\xff\"}"[..];
        let exact = crate::graders::Exact;
        let error = grade_jsonl(&exact, "", 1, &mut input, &mut Vec::new()).unwrap_err();
        assert!(
            format!("{error:#}").contains("line 1 of the input: the line is not UTF-8"),
            "{error:#}"
        );
        let error = format!("{:#}", grade("countdown", good).unwrap_err());
        assert!(error.contains("must read numbers=target"), "{error}");
    }
}
