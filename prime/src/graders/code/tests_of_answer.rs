//! Tests as data sets write them: `{"inputs": [...], "outputs": [...], "fn_name": "..."}`.

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

/// One test.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// What the program reads, and what it is to write.
    Streams {
        /// Its standard input.
        input: String,
        /// Its standard output.
        output: String,
    },
    /// What the function is called with, and what it is to return.
    Call {
        /// The arguments, in order.
        arguments: Vec<Value>,
        /// The result.
        result: Value,
    },
}

/// The tests of a problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Tests {
    /// At least one.
    pub tests: Vec<Test>,
    /// The function to call; none for programs that read and write.
    pub function: Option<String>,
}

impl Tests {
    /// Reads the reference answer of a problem.
    ///
    /// A text among `inputs` or `outputs` is taken as it is, a list of texts as lines. The arguments of a call are a list, or a text
    /// with one JSON value a line; a text that is no JSON is the one argument.
    ///
    /// # Errors
    /// A sentence with what is missing or of another kind.
    pub fn parse(answer: &str) -> Result<Tests> {
        let value: Value =
            serde_json::from_str(answer).map_err(|error| anyhow!("{error}")).context(
                "the answer holds no tests: expected {\"inputs\": [...], \"outputs\": [...]}",
            )?;
        let list = |name: &str| match &value[name] {
            Value::Array(list) => Ok(list),
            Value::Null => Err(anyhow!(
                "the tests have no {name:?}: expected {{\"inputs\": [...], \"outputs\": [...]}}"
            )),
            _ => Err(anyhow!("the {name:?} of the tests must be a list")),
        };
        let (inputs, outputs) = (list("inputs")?, list("outputs")?);
        ensure!(
            inputs.len() == outputs.len() && !inputs.is_empty(),
            "the tests have {} inputs and {} outputs: there must be as many of both, and one at least",
            inputs.len(),
            outputs.len()
        );
        let function = match &value["fn_name"] {
            Value::Null => None,
            Value::String(name) if name.is_empty() => None,
            Value::String(name) => Some(name.clone()),
            _ => return Err(anyhow!("\"fn_name\" of the tests must be the name of a function")),
        };
        let tests = inputs.iter().zip(outputs).enumerate().map(|(index, (input, output))| {
            Ok(match function {
                Some(_) => Test::Call { arguments: arguments(input), result: output.clone() },
                None => Test::Streams {
                    input: text(input)
                        .with_context(|| format!("input {} of the tests", index + 1))?,
                    output: text(output)
                        .with_context(|| format!("output {} of the tests", index + 1))?,
                },
            })
        });
        Ok(Tests { tests: tests.collect::<Result<_>>()?, function })
    }
}

fn text(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Array(lines) => {
            let lines = lines.iter().map(text).collect::<Result<Vec<String>>>()?;
            Ok(lines.join("\n"))
        }
        _ => Err(anyhow!("it must be a text, or a list of lines")),
    }
}

fn arguments(input: &Value) -> Vec<Value> {
    match input {
        Value::Array(list) => list.clone(),
        Value::String(text) => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            let values: std::result::Result<Vec<Value>, _> =
                lines.map(serde_json::from_str).collect();
            values.ok().filter(|values| !values.is_empty()).unwrap_or_else(|| vec![input.clone()])
        }
        other => vec![other.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_forms_are_read() {
        let tests = Tests::parse(r#"{"inputs":["1 2\n",["a","b"]],"outputs":["3",5]}"#).unwrap();
        assert_eq!(tests.function, None);
        assert_eq!(tests.tests[1], Test::Streams { input: "a\nb".into(), output: "5".into() });
        let tests = Tests::parse(
            r#"{"fn_name":"add","inputs":[[1,2],"[1]\n2","word"],"outputs":[3,[4],"x"]}"#,
        )
        .unwrap();
        assert_eq!(tests.function.as_deref(), Some("add"));
        assert_eq!(
            tests.tests[0],
            Test::Call { arguments: vec![json!(1), json!(2)], result: json!(3) }
        );
        assert_eq!(
            tests.tests[1],
            Test::Call { arguments: vec![json!([1]), json!(2)], result: json!([4]) }
        );
        assert_eq!(
            tests.tests[2],
            Test::Call { arguments: vec![json!("word")], result: json!("x") }
        );
    }

    #[test]
    fn what_is_no_test_is_refused_with_what_would_be_right() {
        for (answer, fault) in [
            ("5", "have no \"inputs\""),
            ("{", "holds no tests"),
            (r#"{"inputs":[],"outputs":[]}"#, "one at least"),
            (r#"{"inputs":["1"],"outputs":[]}"#, "1 inputs and 0 outputs"),
            (r#"{"inputs":"1","outputs":[]}"#, "must be a list"),
            (r#"{"inputs":[{}],"outputs":["1"]}"#, "input 1 of the tests"),
            (r#"{"inputs":["1"],"outputs":["1"],"fn_name":3}"#, "name of a function"),
        ] {
            let message = format!("{:#}", Tests::parse(answer).unwrap_err());
            assert!(message.contains(fault), "{answer}: {message}");
        }
    }
}
