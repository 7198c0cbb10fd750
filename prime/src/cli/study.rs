//! `prime study`: controlled experiments on what process rewards do.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use prime_runtime::Device;

use super::{Failure, files, in_pool, misuse, say, values};
use crate::config::Config;
use crate::run::interrupt;
use crate::study::{QUICK, Study, StudyFolder};

/// Experiments on what process rewards do: to mistakes and repairs, and to the speed of learning
///
/// `mistakes` plants a mistake in worked solutions, carried on or repaired, and asks what an implicit PRM gives to its tokens, against the true
/// change of the chance of success. `efficiency` runs PRIME and outcome-only RL from one SFT start for several seeds. Both end in tables
/// (result.md), a page (report.html) and everything that was found (result.json).
///
/// Ctrl-C stops after the part that is running; --resume goes on with the next.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime study mistakes --quick --out runs/quick-look
  prime study mistakes --out runs/mistakes
  prime study efficiency --out runs/efficiency --set study.seeds=3
  prime study efficiency --resume --out runs/efficiency")]
pub(super) struct StudyArgs {
    /// Which study
    #[arg(value_enum)]
    study: Name,
    /// A configuration file, over the defaults; may be repeated, the later over the earlier
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// One setting, over the files, such as --set study.seeds=3; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where to compute: cpu, cuda, cuda:N or emulated [default: the configuration's, cpu]
    #[arg(long, value_name = "DEVICE", value_parser = values::device)]
    device: Option<Device>,
    /// The study's folder [default: runs/study-NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Small sizes, to see that all works: under three minutes on two cores
    #[arg(long)]
    quick: bool,
    /// Go on with a study that was stopped or killed
    #[arg(long)]
    resume: bool,
}

/// The studies by their names.
#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// What a PRM gives to mistakes and repairs
    Mistakes,
    /// PRIME against RL on outcomes alone
    Efficiency,
}

pub(super) fn run(args: StudyArgs, threads: Option<usize>) -> Result<(), Failure> {
    let study = match args.study {
        Name::Mistakes => Study::Mistakes,
        Name::Efficiency => Study::Efficiency,
    };
    let path =
        args.out.unwrap_or_else(|| PathBuf::from("runs").join(format!("study-{}", study.name())));
    let mut set = args.set;
    set.extend(args.device.map(|device| format!("device={device}")));
    set.extend(threads.map(|threads| format!("threads={threads}")));
    let begun = path.join("config.toml");
    let config = if args.resume && begun.exists() {
        let text = std::fs::read_to_string(&begun).map_err(anyhow::Error::from)?;
        Config::load_over(&text, &[], &set)
    } else {
        Config::load_over(if args.quick { QUICK } else { "" }, &args.config, &set)
    }
    .map_err(misuse)?;
    in_pool(Some(config.threads), || {
        crate::bench::tune::use_device(config.device())?;
        let folder = StudyFolder::open(&path, &config, args.resume)?;
        say(&format!("the study's folder is {}", path.display()));
        interrupt::catch()?;
        match folder.run(study, &config)? {
            Some(tables) => Ok(files::print(tables)?),
            None => Err(Failure::Stopped(format!(
                "stopped; what is finished is kept. Go on with: prime study {} --resume --out {}",
                study.name(),
                path.display()
            ))),
        }
    })
}
