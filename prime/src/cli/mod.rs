//! The `prime` program: its commands, their exit codes, and how failures are said.
//!
//! One file a command; `files` and `models` are what they share.

mod bench;
mod data;
mod doctor;
mod eval;
mod files;
mod generate;
mod grade;
mod judge;
mod measure;
mod merge;
mod models;
mod plan;
mod prm;
mod replay;
mod report;
mod score;
mod score_page;
mod sft;
mod study;
mod train;
mod values;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Trains language models to reason by PRIME: reinforcement learning on outcomes, with process rewards that an
/// implicit reward model learns from the same outcomes.
#[derive(Parser)]
#[command(name = "prime", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "\
A first session:
  prime doctor                        what this machine offers, and how fast it is
  prime data                          what there is to train on, and how it looks to the model
  prime plan                          what the default run takes: memory, work, time
  prime train --out runs/first        a model from nothing: SFT, PRIME, a table of the gain
  prime eval --model runs/first       that model on held-out problems, with intervals
  prime generate --model runs/first --prompt '(9-8)*5+9-3:'
  prime replay --input runs/first/rollouts/prime-000001.jsonl --output - --form verl
                                      a recorded step under other settings
  prime watch runs/first              a run that is under way, in another terminal
  prime report runs/first             curves and tokens of the run as one HTML file

Each command's --help explains it, with examples. Exit codes: 0 done, 1 failed or stopped, 2 misuse.")]
struct Cli {
    /// Cores to use; 0 takes all [default: the configuration's `threads`, or all]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=1024))]
    threads: Option<u16>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::TrainArgs),
    Sft(sft::SftArgs),
    Prm(prm::PrmArgs),
    Eval(Box<eval::EvalArgs>),
    Generate(generate::GenerateArgs),
    Score(score::ScoreArgs),
    Grade(grade::GradeArgs),
    Merge(merge::MergeArgs),
    Replay(replay::ReplayArgs),
    Data(data::DataArgs),
    Report(report::ReportArgs),
    Watch(watch::WatchArgs),
    Plan(plan::PlanArgs),
    Study(study::StudyArgs),
    Bench(bench::BenchArgs),
    Doctor(doctor::DoctorArgs),
}

/// Why a command ended without success.
enum Failure {
    /// What was asked for makes no sense: exit code 2.
    Misuse(anyhow::Error),
    /// It could not be done: exit code 1.
    Failed(anyhow::Error),
    /// It was asked to stop, and says where it stands: exit code 1.
    Stopped(String),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Failure::Failed(error.into())
    }
}

/// Marks an error as the caller's.
fn misuse(error: impl Into<anyhow::Error>) -> Failure {
    Failure::Misuse(error.into())
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| {
        // What a data file made a reader panic with is told as a fault of that file.
        if crate::data::is_guarded() {
            return;
        }
        let payload = panic.payload();
        let message = payload.downcast_ref::<&str>().copied();
        let message = message.or(payload.downcast_ref::<String>().map(String::as_str));
        let message = message.unwrap_or("no message");
        let place = panic.location().map(|place| format!(" at {place}")).unwrap_or_default();
        say(&format!(
            "error: this is a fault in prime itself ({message}{place}); please report it with the command that caused it"
        ));
    }));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to standard output, misuse to standard error; a reader that has gone is neither's fault.
            let _ = error.print();
            return ExitCode::from(error.exit_code().clamp(0, 2) as u8);
        }
    };
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(cli)));
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(Failure::Misuse(error))) => {
            say(&format!("error: {}", sentence(&error)));
            ExitCode::from(2)
        }
        // Whoever read our output has seen enough.
        Ok(Err(Failure::Failed(error))) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Ok(Err(Failure::Failed(error))) => {
            say(&format!("error: {}", sentence(&error)));
            ExitCode::from(1)
        }
        Ok(Err(Failure::Stopped(sentence))) => {
            say(&sentence);
            ExitCode::from(1)
        }
        Err(_) => ExitCode::from(1),
    }
}

fn dispatch(cli: Cli) -> Result<(), Failure> {
    let threads = cli.threads.map(usize::from);
    match cli.command {
        Command::Train(args) => train::run(args, threads),
        Command::Sft(args) => sft::run(args, threads),
        Command::Prm(args) => prm::run(args, threads),
        Command::Eval(args) => eval::run(*args, threads),
        Command::Generate(args) => in_pool(threads, || generate::run(&args)),
        Command::Score(args) => in_pool(threads, || score::run(&args)),
        Command::Grade(args) => grade::run(&args),
        Command::Merge(args) => in_pool(threads, || merge::run(&args)),
        Command::Replay(args) => in_pool(threads, || replay::run(&args)),
        Command::Data(args) => data::run(&args, threads),
        Command::Report(args) => report::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Plan(args) => plan::run(args, threads),
        Command::Study(args) => study::run(args, threads),
        Command::Bench(args) => bench::run(&args),
        Command::Doctor(args) => in_pool(threads, || doctor::run(&args)),
    }
}

/// Runs a command inside the pool that every kernel shares, so that none of them has to enter it from outside.
fn in_pool<T: Send>(
    threads: Option<usize>,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .stack_size(8 << 20)
        .build_global()
        .context("the threads cannot be started")?;
    rayon::scope(|_| work())
}

/// A sentence for the person who watches. There is nobody to tell when it cannot be written.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// An error and its causes, each said once: some say their own cause already.
pub fn said(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        let cause = cause.trim_end();
        if text.ends_with(cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(cause);
    }
    text
}

/// What a person reads of an error, with what to do about it where that is known.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = said(error);
    if is_out_of_memory(error) {
        text.push_str(
            ". Smaller `--set train.micro_batch_tokens=N` makes the largest parts of training smaller, `--set \
             train.checkpoint_activations=true` keeps less between forward and backward, `--set rollout.slots=N` bounds what \
             generation keeps; `prime plan` lists what each takes",
        );
    }
    text
}

fn is_out_of_memory(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let runtime = cause.downcast_ref::<prime_runtime::Error>();
        let model = match cause.downcast_ref::<prime_model::Error>() {
            Some(prime_model::Error::Runtime(error)) => Some(error),
            _ => None,
        };
        runtime
            .or(model)
            .is_some_and(|error| matches!(error, prime_runtime::Error::OutOfMemory { .. }))
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_command_shows_an_example() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let help = sub.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "{}", sub.get_name());
        }
    }

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let cause = std::io::Error::other("the disk is full");
        let error = anyhow::Error::new(cause).context("cannot write x: the disk is full");
        assert_eq!(sentence(&error.context("line 3")), "line 3: cannot write x: the disk is full");
    }

    #[test]
    fn a_plan_without_room_is_told_the_settings_that_make_it_smaller() {
        let full = || prime_runtime::Error::OutOfMemory {
            device: prime_runtime::Device::Cuda(0),
            bytes: 3 << 30,
            free: Some(2 << 30),
            parts: vec![("gate_up".to_owned(), 1 << 30), ("hidden".to_owned(), 1 << 20)],
        };
        let told = [anyhow::Error::new(full()), prime_model::Error::from(full()).into()]
            .map(|error| sentence(&error.context("the activations")));
        for text in &told {
            let expected = "the activations: cuda:0 is out of memory: 3.0 GiB are needed and 2.0 GiB are free; \
                            the largest parts are gate_up with 1.0 GiB, hidden with 1.0 MiB. Smaller `--set train.micro_batch_tokens=N`";
            assert!(text.starts_with(expected), "{text}");
        }
        let other = prime_runtime::Error::Value("the rest".to_owned());
        assert_eq!(sentence(&other.into()), "the rest");
    }

    #[test]
    fn a_reader_that_has_gone_is_told_apart_from_other_failures() {
        let error = |kind| anyhow::Error::new(std::io::Error::from(kind)).context("the output");
        assert!(is_broken_pipe(&error(std::io::ErrorKind::BrokenPipe)));
        assert!(!is_broken_pipe(&error(std::io::ErrorKind::StorageFull)));
    }
}
