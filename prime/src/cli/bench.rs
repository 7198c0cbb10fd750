//! `prime bench`: pages of results that benchmarks have written.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use super::files::{self, Output};
use super::{Failure, say};
use crate::bench::report::{Report, name_of};
use crate::bench::results::{Found, load};

/// Pages of benchmark results
///
/// The benchmarks themselves run with `cargo bench` where the sources are, and with tools/gpu/run.sh on a machine with a GPU.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  cargo bench                                   every kernel and step, on the CPU and on a GPU where there is one
  prime bench report target/bench/results.json --output bench.html
  prime bench report new.json --against old.json --output change.html")]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Subcommand)]
enum BenchCommand {
    Report(ReportArgs),
}

/// Make one page of results: tables, roofline plots, ratios, and what became slower
///
/// The page is one HTML file that opens from disk; the same tables go to standard output as Markdown. Files may be of `cargo bench`, of
/// tools/peers, and older records, which are shown as they are.
///
/// With --against, every figure of ours is compared with the earlier one of the same case. It is called a regression when the quantiles 20 %
/// to 80 % of both lie apart and the medians by more than 5 %, on machines of one name.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime bench report bench/results/*.json --output bench.html
  prime bench report target/bench/results.json --against bench/results/2026-11-29-cpu.json --output change.html")]
struct ReportArgs {
    /// Files of results
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Earlier results to compare with
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Where the page goes; a file appears whole, or not at all
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(super) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.command {
        BenchCommand::Report(args) => report(args),
    }
}

fn report(args: &ReportArgs) -> Result<(), Failure> {
    let read = |path: &PathBuf| Ok((name_of(path), load(path)?));
    let files = args.files.iter().map(read).collect::<Result<Vec<_>>>()?;
    let mut report = Report::new(files);
    if let Some(path) = &args.against {
        report = report.against(name_of(path), earlier(path)?);
    }
    let html = report.to_html()?;
    // Standard output is the page's where it is asked to be.
    let to_standard = args.output.as_deref() == Some(Path::new("-"));
    if let Some(path) = &args.output {
        let mut output = Output::create(path)?;
        output.write_all(html.as_bytes()).context("the output cannot be written")?;
        output.finish()?;
        if !to_standard {
            say(&format!("{}, {:.1} MB", path.display(), html.len() as f64 / 1e6));
        }
    }
    if !to_standard {
        files::print(report.to_markdown())?;
    }
    Ok(())
}

fn earlier(path: &Path) -> Result<crate::bench::Results> {
    match load(path)? {
        Found::Results(results) => Ok(*results),
        Found::Other(_) => {
            bail!(
                "{} holds no figures that could be compared, expected a file of cargo bench or of tools/peers",
                path.display()
            )
        }
    }
}
