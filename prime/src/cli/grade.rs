//! `prime grade`: responses against reference answers.

use std::path::PathBuf;

use clap::Args;

use super::train::SettingsArgs;
use super::{Failure, files, misuse, say};
use crate::graders::{self, work};

/// Grade responses against reference answers
///
/// Reads JSON Lines with the fields `response` and `answer`, and writes each line with `score`, from 0 (wrong) to 1 (right), and
/// `extracted`, the final answer as the grader read it (null when it found none). A line that could not be graded has the score null and
/// says why in `error`.
///
/// Graders, with what they take for right:
///
/// - arithmetic (also of columns), countdown: the built-in tasks
/// - gsm8k: the number after the first ####, as text; gsm8k-flexible: or else the last number, by value
/// - numeric: the number in the last box, after "answer is", or the last; within grader.numeric.tolerance
/// - math: the answer in the last box or after "answer is", by meaning: fractions, units, sets, intervals, matrices, equations, formulas
/// - exact: the whole response is the answer
/// - regex: the last match of grader.regex.pattern is the answer; without a pattern, the answer is one, and matches
/// - majority: the answer that most responses to the same prompt give; needs no `answer`, but --group-by
/// - code: the last ```python block passes tests; `answer` is {"inputs": [...], "outputs": [...]}, with "fn_name" to call a function; the
///   score is the share of tests passed. Programs run in a sandbox; `prime doctor` says what protects here
/// - command: a program of yours, grader.command.program, that answers a line of JSON with a line of JSON
///
/// Settings of the graders are those under [grader] of the configuration.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  echo '{\"response\": \"It is #### 14\", \"answer\": \"14\"}' |
    prime grade --task gsm8k --input - --output -
  echo '{\"response\": \"\\\\boxed{\\\\sqrt{8}}\", \"answer\": \"2\\\\sqrt{2}\"}' |
    prime grade --task math --input - --output -
  prime grade --task numeric --set grader.numeric.tolerance=1e-3 --input responses.jsonl --output graded.jsonl
  prime grade --task exact --input responses.jsonl --output graded.jsonl
  prime grade --task regex --set 'grader.regex.pattern=<answer>(.*?)</answer>' --input responses.jsonl --output graded.jsonl
  prime grade --task majority --group-by prompt --input responses.jsonl --output graded.jsonl
  prime grade --task code --input prime/examples/code.jsonl --output -
  prime grade --task command --set 'grader.command.program=[\"python3\", \"my_grader.py\"]' --input responses.jsonl --output graded.jsonl")]
pub(super) struct GradeArgs {
    /// The grader
    #[arg(long, value_name = "NAME")]
    task: String,
    /// JSON Lines to grade; - reads standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write; - writes to standard output. A file appears whole, or not at all
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// The field that says which responses are to one prompt, for graders that compare them
    #[arg(long, value_name = "NAME", default_value = "prompt")]
    group_by: String,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) fn run(args: &GradeArgs) -> Result<(), Failure> {
    let settings = args.settings.load(&[])?.grader;
    let grader = graders::by_name(&args.task, &settings).map_err(misuse)?;
    grader.ready()?;
    let mut input = files::open(&args.input)?;
    let mut output = files::Output::create(&args.output)?;
    let workers = work::workers(settings.workers);
    let graded = graders::grade_jsonl(&*grader, &args.group_by, workers, &mut input, &mut output)?;
    output.finish()?;
    if graded.errors + graded.timeouts > 0 {
        say(&format!(
            "of {} responses {} could not be graded because of errors and {} for want of time: see the field error",
            graded.lines, graded.errors, graded.timeouts
        ));
    }
    Ok(())
}
