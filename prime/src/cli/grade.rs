//! `prime grade`: responses against reference answers.

use std::path::PathBuf;

use clap::Args;

use super::{Failure, files, misuse};
use crate::graders;

/// Grade responses against reference answers
///
/// Reads JSON Lines with the fields `response` and `answer`, and writes each line with `score`, from 0 (wrong) to 1 (right), and
/// `extracted`, the final answer as the grader read it (null when it found none).
///
/// Graders: arithmetic and countdown (the built-in tasks), gsm8k (after ####), gsm8k-flexible (the last number), numeric (the last
/// number, by value), math (boxed or stated answers, by meaning), exact (the same text).
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  echo '{\"response\": \"It is #### 14\", \"answer\": \"14\"}' |
    prime grade --task gsm8k --input - --output -
  prime grade --task math --input responses.jsonl --output graded.jsonl")]
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
}

pub(super) fn run(args: &GradeArgs) -> Result<(), Failure> {
    graders::by_name(&args.task).map_err(misuse)?;
    let mut input = files::open(&args.input)?;
    let mut output = files::Output::create(&args.output)?;
    graders::grade_jsonl(&args.task, &mut input, &mut output)?;
    output.finish()?;
    Ok(())
}
