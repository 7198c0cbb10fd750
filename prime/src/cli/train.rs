//! `prime train`: a whole run, and what it shares with `prime sft`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::Args;
use prime_runtime::Device;

use super::{Failure, files, in_pool, misuse, plan, say, sentence, values};
use crate::config::{self, Config};
use crate::report;
use crate::run::folder::RunFolder;
use crate::run::{self, End, interrupt, session};

/// Where runs go that were given no folder.
const RUNS: &str = "runs";

/// Train a model: SFT, then PRIME, then a table of what was gained
///
/// With no configuration at all it makes a model of 0.6 million parameters from nothing: warm-up SFT on worked arithmetic, then PRIME, then
/// outcome-only RL from the same start to compare with. A configuration names another task (task.name is arithmetic, columns, countdown, or
/// jsonl for data sets), a model to start from, and every setting of the algorithm; prime/configs/default.toml lists them all with what
/// they mean.
///
/// Ctrl-C saves and stops. A run that was stopped or killed goes on with --resume, to the bits of one that was not.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime train
  prime train --out runs/long --set train.steps=200 --set train.compare=false
  prime train --config mine.toml --seed 3 --dry-run
  prime train --device cuda --set model.dtype=bfloat16
  prime train --resume --out runs/long

In the run's folder: config.toml (every setting, as resolved), run.json (machine and program),
metrics.jsonl and TensorBoard events, rollouts/ (for prime replay), sft/policy,
checkpoints/step-N/{policy,prm,critic} and checkpoints/best/policy (Hugging Face folders),
result.json (the table), report.html (all of it to look at). `prime watch` follows a run that is
under way.")]
pub(super) struct TrainArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Train on outcome rewards alone, without a PRM
    #[arg(long)]
    outcome_only: bool,
}

/// The flags of a run.
#[derive(Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    settings: SettingsArgs,
    /// Fixes every random choice: two runs of one seed on one machine end with the same bits
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: Option<u64>,
    /// Where to compute: cpu, cuda (the first GPU), cuda:N, or emulated (the GPU's kernels run and checked on the host, slowly) [default: the configuration's, cpu]
    #[arg(long, value_name = "DEVICE", value_parser = values::device)]
    device: Option<Device>,
    /// The run's folder [default: runs/TASK-TIME; with --resume, the newest in runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with a run that was stopped or killed, with the settings it was begun with
    #[arg(long)]
    resume: bool,
    /// Show the resolved configuration and what it would take, and do nothing
    #[arg(long)]
    dry_run: bool,
}

/// Where settings come from: the documented defaults, then files, then single settings.
#[derive(Args)]
pub(super) struct SettingsArgs {
    /// A configuration file, over the defaults; may be repeated, the later over the earlier
    #[arg(long, value_name = "FILE")]
    pub(super) config: Vec<PathBuf>,
    /// One setting, over the files, such as --set policy.learning_rate=1e-4; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(super) set: Vec<String>,
}

impl SettingsArgs {
    /// The configuration with `more` settings over those of the command line.
    pub(super) fn load(&self, more: &[String]) -> Result<Config, Failure> {
        self.load_over("", more)
    }

    /// The same with a built-in configuration under the files.
    pub(super) fn load_over(&self, built_in: &str, more: &[String]) -> Result<Config, Failure> {
        Config::load_over(built_in, &self.config, &[&self.set, more].concat()).map_err(misuse)
    }
}

/// What is run.
#[derive(Clone, Copy)]
pub(super) enum Stages {
    /// SFT, RL, and the run to compare with.
    All,
    /// SFT alone.
    Sft,
    /// A PRM offline.
    Prm,
}

pub(super) fn run(args: TrainArgs, threads: Option<usize>) -> Result<(), Failure> {
    let more = if args.outcome_only { vec!["train.outcome_only=true".into()] } else { vec![] };
    start(args.run, more, threads, Stages::All)
}

/// Begins or resumes a run.
pub(super) fn start(
    args: RunArgs,
    mut overrides: Vec<String>,
    threads: Option<usize>,
    stages: Stages,
) -> Result<(), Failure> {
    overrides.extend(args.seed.map(|seed| format!("seed={seed}")));
    overrides.extend(args.device.map(|device| format!("device={device}")));
    overrides.extend(threads.map(|threads| format!("threads={threads}")));
    if args.resume {
        return resume(args, overrides, stages);
    }
    let config = match stages {
        Stages::Prm => args.settings.load_over(config::PRM, &overrides)?,
        _ => args.settings.load(&overrides)?,
    };
    if matches!(stages, Stages::Sft) && config.sft.steps == 0 {
        return Err(misuse(anyhow!("sft.steps is 0: there is nothing to train")));
    }
    in_pool(Some(config.threads), || {
        // What is wrong with the task or the model is said before there is a folder.
        if matches!(stages, Stages::Prm) {
            run::offline::Data::read(&config)?;
            if args.dry_run {
                return Ok(files::print(config.to_toml()?)?);
            }
        } else {
            let outline = plan::Outline::of_run(&config)?;
            if args.dry_run {
                return dry_run(&config, &outline);
            }
        }
        crate::bench::tune::use_device(config.device())?;
        let path = args.out.unwrap_or_else(|| new_folder(&config, stages));
        let folder = RunFolder::create(&path, &config)?;
        say(&format!("the run's folder is {}", path.display()));
        train(&config, folder, stages)
    })
}

fn resume(args: RunArgs, overrides: Vec<String>, stages: Stages) -> Result<(), Failure> {
    let path = match args.out {
        Some(path) => path,
        None => newest_run(Path::new(RUNS))?,
    };
    let changes = [args.settings.set, overrides].concat();
    let wanted = if args.settings.config.is_empty() && changes.is_empty() {
        None
    } else {
        let stored = path.join("config.toml");
        let stored = stored.exists().then_some(stored);
        let files: Vec<PathBuf> = stored.into_iter().chain(args.settings.config).collect();
        Some(Config::load(&files, &changes).map_err(misuse)?)
    };
    let (folder, config) = RunFolder::resume(&path, wanted.as_ref())?;
    in_pool(Some(config.threads), || {
        if args.dry_run {
            return match stages {
                Stages::Prm => Ok(files::print(config.to_toml()?)?),
                _ => dry_run(&config, &plan::Outline::of_run(&config)?),
            };
        }
        crate::bench::tune::use_device(config.device())?;
        say(&format!("going on with {}", path.display()));
        train(&config, folder, stages)
    })
}

fn train(config: &Config, mut folder: RunFolder, stages: Stages) -> Result<(), Failure> {
    interrupt::catch()?;
    let session = session::begin(folder.path(), config.device())?;
    // Of a complete run its table, of one that was stopped where it stands.
    let of_run = |end| match end {
        End::Complete(table) => Ok(table.to_string()),
        End::Interrupted(sentence) => Err(sentence),
    };
    let end: Result<Result<String, String>> = match stages {
        Stages::All => run::train(config, &mut folder).map(of_run),
        Stages::Sft => run::sft(config, &mut folder).map(of_run),
        Stages::Prm => run::offline::prm(config, &mut folder).map(|end| match end {
            run::offline::End::Complete(report) => Ok(report.to_string()),
            run::offline::End::Interrupted(sentence) => Err(sentence),
        }),
    };
    session.end(&match &end {
        Ok(Ok(_)) => "complete".to_owned(),
        Ok(Err(_)) => "stopped".to_owned(),
        Err(error) => format!("failed: {}", sentence(error)),
    })?;
    if config.train.report {
        // A run that is whole is no failure because a picture of it could not be drawn.
        match report::runs::write(folder.path()) {
            Ok(path) => say(&format!("the report is {}", path.display())),
            Err(error) => say(&format!("no report was written: {}", sentence(&error))),
        }
    }
    match end? {
        Ok(table) => Ok(files::print(table)?),
        Err(sentence) => Err(Failure::Stopped(sentence)),
    }
}

fn dry_run(config: &Config, outline: &plan::Outline) -> Result<(), Failure> {
    files::print(format!("{}\n{}", config.to_toml()?, plan::Plan::of(config, outline)?))?;
    Ok(())
}

/// A folder for a new run, named by its task and the time.
fn new_folder(config: &Config, stages: Stages) -> PathBuf {
    let task = match stages {
        Stages::Prm => "prm",
        _ => config.task.name.name(),
    };
    let name = format!("{task}-{}", session::stamp(session::now()));
    let numbered = |n: u32| match n {
        1 => Path::new(RUNS).join(&name),
        n => Path::new(RUNS).join(format!("{name}-{n}")),
    };
    (1..).map(numbered).find(|path| !path.exists()).unwrap_or_else(|| numbered(1))
}

/// The run that was begun last.
fn newest_run(runs: &Path) -> Result<PathBuf> {
    let none = || {
        anyhow!(
            "there is no run to resume in {}/: name its folder with --out, or start one without --resume",
            runs.display()
        )
    };
    let entries = match std::fs::read_dir(runs) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(none()),
        entries => entries.with_context(|| format!("cannot list {}", runs.display()))?,
    };
    let begun = |path: PathBuf| {
        let config = path.join("config.toml").metadata().ok()?;
        Some((config.modified().ok()?, path))
    };
    let newest = entries.filter_map(|entry| begun(entry.ok()?.path())).max();
    newest.map(|(_, path)| path).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_run_is_the_one_begun_last() {
        let runs = tempfile::tempdir().unwrap();
        assert!(newest_run(runs.path()).unwrap_err().to_string().contains("no run to resume"));
        assert!(newest_run(&runs.path().join("absent")).is_err());
        let begun = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        for (name, age) in [("b", 2), ("a", 1), ("c", 3)] {
            let folder = runs.path().join(name);
            std::fs::create_dir(&folder).unwrap();
            let config = std::fs::File::create(folder.join("config.toml")).unwrap();
            config.set_modified(begun - std::time::Duration::from_secs(age)).unwrap();
        }
        std::fs::create_dir(runs.path().join("not-a-run")).unwrap();
        assert!(newest_run(runs.path()).unwrap().ends_with("a"));
    }
}
