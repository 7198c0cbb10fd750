//! Programs in Python: run on tests, each in a sandbox of its own.
//!
//! The program is the text of the response's last block marked `python`. The score is the share of tests that it passes:
//! passes / tests, as in arXiv 2502.01456. A test that ends with an error, or beyond a limit, is not passed.

mod compare;
mod python;
mod tests_of_answer;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Result;
use prime_runtime::sandbox::{Ending, Limits, Mode, Sandbox};
use serde_json::{Value, json};

use super::settings::CodeSettings;
use super::{Failure, Grade, Grader};

pub use python::sandbox;
pub use tests_of_answer::{Test, Tests};

/// What runs in the sandbox.
const RUNNER: &str = include_str!("runner.py");

/// Runs programs on the tests of the answer.
pub struct Code {
    settings: CodeSettings,
    /// Found at the first program, so that a grader that is only named needs no Python.
    sandbox: OnceLock<std::result::Result<Sandbox, String>>,
}

/// How a program did on one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its output was the expected one.
    Passed,
    /// It was not; how the program ended, and the last line of its standard error.
    Failed(Ending, String),
}

impl Code {
    /// The grader of some settings.
    pub fn new(settings: &CodeSettings) -> Self {
        Code { settings: settings.clone(), sandbox: OnceLock::new() }
    }

    /// The sandbox, or why there is none.
    ///
    /// # Errors
    /// A sentence: Python is missing, or the kernel lacks what protects.
    pub fn sandbox(&self) -> std::result::Result<&Sandbox, String> {
        self.sandbox.get_or_init(|| sandbox(&self.settings)).as_ref().map_err(Clone::clone)
    }

    fn limits(&self) -> Limits {
        let settings = &self.settings;
        Limits {
            processor: Duration::from_secs_f64(settings.processor_seconds),
            wall: Duration::from_secs_f64(settings.wall_seconds),
            memory: settings.memory_mib << 20,
            output: settings.output_kib << 10,
            folder: settings.folder_mib << 20,
            files: settings.open_files,
            threads: settings.threads,
        }
    }

    /// Runs a program on one test.
    ///
    /// # Errors
    /// When it could not be run, which says nothing of the program.
    pub fn run(
        &self,
        program: &str,
        test: &Test,
        function: Option<&str>,
    ) -> std::result::Result<Verdict, String> {
        let (stdin, arguments) = match test {
            Test::Streams { input, .. } => (input.as_str(), Value::Null),
            Test::Call { arguments, .. } => ("", Value::Array(arguments.clone())),
        };
        let file =
            json!({ "program": program, "function": function, "arguments": arguments }).to_string();
        let finished = self.sandbox()?.run(
            &["-s", "-B", "-c", RUNNER],
            python::ENVIRONMENT,
            stdin.as_bytes(),
            file.as_bytes(),
            &self.limits(),
        )?;
        let output = String::from_utf8_lossy(&finished.stdout);
        let passed = finished.ending == Ending::Exited(0)
            && match test {
                Test::Streams { output: expected, .. } => {
                    compare::texts(&output, expected, self.settings.tolerance)
                }
                Test::Call { result, .. } => {
                    serde_json::from_str(&output).is_ok_and(|found: Value| {
                        compare::values(&found, result, self.settings.tolerance)
                    })
                }
            };
        if passed {
            return Ok(Verdict::Passed);
        }
        let errors = String::from_utf8_lossy(&finished.stderr);
        let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        Ok(Verdict::Failed(finished.ending, last.chars().take(200).collect()))
    }
}

/// The text of the last block that is marked as Python and closed.
pub fn last_program(response: &str) -> Option<&str> {
    let start = response.rfind("```python")? + "```python".len();
    let program = response[start..].split("```").next()?;
    (!program.trim().is_empty()).then_some(program)
}

impl Grader for Code {
    fn name(&self) -> &'static str {
        "code"
    }

    fn grade(&self, response: &str, answer: &str) -> Grade {
        let Some(program) = last_program(response) else { return Grade::nothing_found() };
        let tests = match Tests::parse(answer) {
            Ok(tests) => tests,
            Err(error) => return Grade::failed(Failure::Error(format!("{error:#}"))),
        };
        let most = if self.settings.max_tests == 0 { usize::MAX } else { self.settings.max_tests };
        let chosen = tests.tests.len().min(most);
        let started = Instant::now();
        let (mut passed, mut first) = (0, String::new());
        for (index, test) in tests.tests.iter().take(chosen).enumerate() {
            if started.elapsed().as_secs_f64() > self.settings.total_seconds {
                first = format!(
                    "{first}; after {} s the tests from {} on were not run",
                    self.settings.total_seconds,
                    index + 1
                );
                break;
            }
            match self.run(program, test, tests.function.as_deref()) {
                Ok(Verdict::Passed) => passed += 1,
                Ok(Verdict::Failed(ending, error)) if first.is_empty() => {
                    first = format!(": test {} {}", index + 1, describe(ending, &error));
                }
                Ok(Verdict::Failed(..)) => {}
                Err(error) => return Grade::failed(Failure::Error(error)),
            }
        }
        let score = passed as f32 / chosen as f32;
        Grade::scored(score, Some(format!("passed {passed} of {chosen} tests{first}")))
    }

    fn check_answer(&self, answer: &str) -> Result<()> {
        Tests::parse(answer).map(drop)
    }

    fn is_slow(&self) -> bool {
        true
    }

    fn ready(&self) -> Result<()> {
        self.sandbox().map(drop).map_err(anyhow::Error::msg)
    }
}

fn describe(ending: Ending, error: &str) -> String {
    match ending {
        Ending::Exited(0) => "gave another output".to_owned(),
        Ending::Exited(_) => format!("ended with an error: {error}"),
        Ending::Signalled(signal) => format!("was ended by signal {signal}"),
        Ending::ProcessorTime => "used up its processor time".to_owned(),
        Ending::WallTime => "used up its time".to_owned(),
        Ending::Output => "wrote too much".to_owned(),
    }
}

/// What protects here, or what is missing: a sentence for `prime doctor`.
pub fn protection(settings: &CodeSettings) -> String {
    match sandbox(settings) {
        Ok(sandbox) if sandbox.mode() == Mode::Limits => {
            "limits alone (grader.code.sandbox is \"off\")".to_owned()
        }
        Ok(sandbox) => {
            let landlock = prime_runtime::sandbox::landlock_version();
            let landlock = landlock
                .map_or("no Landlock".to_owned(), |version| format!("Landlock version {version}"));
            format!("{}; {landlock}", sandbox.mode())
        }
        Err(reason) => format!("not to be had: {reason}"),
    }
}

#[cfg(test)]
mod tests;
