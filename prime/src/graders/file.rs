//! Grading JSON Lines: what `prime grade` does.

use std::io::{BufRead, Write};

use anyhow::{Context, Result, anyhow};
use serde_json::{Map, Value};

use super::{Grader, by_name, nearest};

/// Grades every line of `input`, an object with `response` and `answer`, and writes it to `output` with `score` and
/// `extracted` added (`null` when nothing was found). Blank lines are skipped. Returns how many lines were graded.
///
/// On an error, what was written so far stays in `output`: a caller that wants all or nothing writes to a temporary file.
pub fn grade_jsonl(name: &str, input: &mut dyn BufRead, output: &mut dyn Write) -> Result<usize> {
    let grader = by_name(name)?;
    let mut graded = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if input.read_until(b'\n', &mut line).context("the input cannot be read")? == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let object =
            grade_line(&*grader, &line).with_context(|| format!("line {number} of the input"))?;
        serde_json::to_writer(&mut *output, &object)
            .map_err(std::io::Error::from)
            .and_then(|()| output.write_all(b"\n"))
            .context("the output cannot be written")?;
        graded += 1;
    }
    output.flush().context("the output cannot be written")?;
    Ok(graded)
}

fn grade_line(grader: &dyn Grader, line: &[u8]) -> Result<Map<String, Value>> {
    let mut object = parse_object(line)?;
    let response = text_field(&object, "response")?;
    let answer = text_field(&object, "answer")?;
    grader.check_answer(&answer)?;
    let grade = grader.grade(&response, &answer);
    object.insert("score".into(), f64::from(grade.score).into());
    object.insert("extracted".into(), grade.extracted.into());
    Ok(object)
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

    fn grade(name: &str, input: &str) -> Result<String> {
        let mut output = Vec::new();
        grade_jsonl(name, &mut input.as_bytes(), &mut output)?;
        Ok(String::from_utf8(output)?)
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
        let error = grade_jsonl("exact", &mut input, &mut Vec::new()).unwrap_err();
        assert!(
            format!("{error:#}").contains("line 1 of the input: the line is not UTF-8"),
            "{error:#}"
        );
        let error = format!("{:#}", grade("countdown", good).unwrap_err());
        assert!(error.contains("must read numbers=target"), "{error}");
    }
}
