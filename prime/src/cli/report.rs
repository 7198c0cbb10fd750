//! `prime report`: runs as one HTML file.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;

use super::files::Output;
use super::{Failure, misuse, say};
use crate::report::runs;

/// Write a report of runs: one HTML file that opens from disk
///
/// Curves of every metric, time by phase, what the filter did, the recorded rollouts with their tokens coloured by process reward,
/// advantage, entropy or what the update changed, the settings, the machine, and the final evaluation. The file asks for no network and
/// is smaller than 10 MB however long the run; where rollouts and curves were thinned for that, it says so.
///
/// Several runs are drawn over each other. Runs whose settings differ in the seed alone are one curve with a band.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime report runs/first
  prime report runs/seed-1 runs/seed-2 runs/seed-3 --output seeds.html
  prime report runs/first --output - > first.html

prime train writes RUN/report.html at its end (train.report=false does not). A run that is under way
can be reported too.")]
pub(super) struct ReportArgs {
    /// Folders of runs
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where to write; - writes to standard output. A file appears whole, or not at all [default: report.html in the run's folder]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &ReportArgs) -> Result<(), Failure> {
    let path = match (&args.output, &args.runs[..]) {
        (Some(path), _) => path.clone(),
        (None, [run]) => run.join("report.html"),
        (None, _) => {
            return Err(misuse(anyhow!(
                "several runs have no folder of their own: name the file with --output FILE"
            )));
        }
    };
    let html = runs::html(&args.runs)?;
    let mut output = Output::create(&path)?;
    output.write_all(html.as_bytes()).context("the output cannot be written")?;
    output.finish()?;
    if path.as_os_str() != "-" {
        say(&format!("{}, {:.1} MB", path.display(), html.len() as f64 / 1e6));
    }
    Ok(())
}
