//! Runs of every estimator and every loss from the same starts, in one table with intervals.
//!
//! ```sh
//! cargo run --release -p prime-tools --bin compare -- estimators --seeds 3 --out docs/results/estimators.json
//! ```
//!
//! A run is the program `prime` on one thread, in a process of its own, as many at once as there are cores; the model after SFT is made once
//! for each seed and is the start of all. What was stopped goes on where it was when the same command is given again.

mod report;
mod runs;
mod tables;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use prime_runtime::checkpoint;
use serde_json::json;

use runs::Plan;
use tables::TABLES;

/// Compares estimators, policy losses or PRM losses: the same start, seeds and rollouts for each
#[derive(Parser)]
#[command(
    name = "compare",
    after_help = "\
Examples:
  compare estimators --seeds 3 --out docs/results/estimators.json
  compare prm-losses --seeds 3 --steps 100 --out docs/results/prm-losses.json
  compare estimators --seeds 1 --steps 2 --warmup 1 --set sft.steps=50 --set eval.problems=20 --out /tmp/quick.json

Beside the JSON goes the same table as Markdown. Stopped, it goes on when the same command is given again."
)]
struct Arguments {
    /// What to compare
    #[arg(value_parser = TABLES.map(|table| table.name))]
    table: String,
    /// Seeds, from 1
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1000))]
    seeds: u64,
    /// Policy updates with process rewards
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Batches that warm the PRM up; without process rewards they are steps
    #[arg(long, default_value_t = 12)]
    warmup: u64,
    /// A setting for all runs, SFT included, such as --set sft.steps=300; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Runs at once [default: as many as there are cores]
    #[arg(long)]
    jobs: Option<usize>,
    /// Where the runs go [default: runs/compare-TABLE]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Where the table goes, as JSON; Markdown goes beside it
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

fn main() -> ExitCode {
    if std::env::var_os(runs::CHILD).is_some() {
        return prime::cli::main();
    }
    match compare(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

fn compare(arguments: &Arguments) -> Result<()> {
    let table = TABLES
        .iter()
        .find(|table| table.name == arguments.table)
        .context("a table that is not there")?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let default_work = || Path::new("runs").join(format!("compare-{}", table.name));
    let plan = Plan {
        table,
        seeds: (1..=arguments.seeds).collect(),
        steps: arguments.steps,
        warmup: arguments.warmup,
        set: arguments.set.clone(),
        work: arguments.work.clone().unwrap_or_else(default_work),
        jobs: arguments.jobs.unwrap_or(cores).max(1),
    };
    ensure!(
        arguments.out.extension().is_some_and(|extension| extension == "json"),
        "--out is {}, expected a file that ends in .json",
        arguments.out.display()
    );
    if let Some(folder) = arguments.out.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let commit = commit();
    runs::check_work(&plan, &commit)?;
    let runs = plan.runs();
    plan.make(&runs)?;

    let command: Vec<String> = std::env::args().skip(1).collect();
    let command =
        format!("cargo run --release -p prime-tools --bin compare -- {}", command.join(" "));
    let about = json!({
        "command": command,
        "commit": commit,
        "machine": { "processor": processor(), "cores": cores, "runs_at_once": plan.jobs, "threads_of_a_run": 1 },
    });
    let report = report::report(&plan, &runs, about)?;
    let text = report["markdown"].as_str().unwrap_or_default().to_string();
    checkpoint::atomic_write(&arguments.out, format!("{report:#}\n").as_bytes())?;
    let markdown =
        format!("# {}\n\n{text}\n`{command}`, commit {commit}, {}.\n", table.name, processor());
    checkpoint::atomic_write(arguments.out.with_extension("md"), markdown.as_bytes())?;
    print!("{text}");
    Ok(())
}

/// The commit that this was built from, as git tells it where the program is run.
fn commit() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_string();
    };
    let sources = ["status", "--porcelain", "--", "*.rs", "*.toml", "*.cu", "*.cuh"];
    match git(&sources).is_some_and(|changes| !changes.is_empty()) {
        true => format!("{commit} with changes"),
        false => commit,
    }
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or(std::env::consts::ARCH, |(_, name)| name).to_string()
}
