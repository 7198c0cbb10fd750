//! `prime sft`: the warm-up alone.

use clap::Args;

use super::Failure;
use super::train::{RunArgs, Stages, start};

/// Fine-tune on worked solutions, without RL
///
/// The first stage of prime train: it leaves the model in sft/policy of the run's folder, and evaluates it. `prime train --resume` with the
/// same folder goes on from there with RL.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime sft --out runs/warm
  prime sft --config mine.toml --set sft.steps=500 --set sft.learning_rate=1e-4
  prime train --resume --out runs/warm")]
pub(super) struct SftArgs {
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn run(args: SftArgs, threads: Option<usize>) -> Result<(), Failure> {
    start(args.run, Vec::new(), threads, Stages::Sft)
}
