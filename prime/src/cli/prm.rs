//! `prime prm`: an implicit PRM from files of graded responses.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::train::{RunArgs, Stages, start};
use super::{Failure, misuse, models};

/// Train an implicit process reward model offline, on files of graded responses
///
/// The files are JSON Lines: {"prompt", "response", "outcome"}, or {"prompt", "completions": [...], "correctness": [...]}, or what `prime eval
/// --output` writes, or a run's recorded rollouts. An outcome is a number from 0 to 1; no process labels are needed. The loss is prm.loss:
/// ce, dpo, bon_acc, bon_rm, dpo-pairs, kto, nca or prefix-value; prime/configs/prm.toml holds what differs from the defaults of training.
///
/// With lora.rank an adapter is trained beside the model's weights, which are the reference's too, and saved as PEFT saves it.
///
/// The model is left in prm/ of the run's folder, for prm.path of `prime train`, for `prime score --prm` and for `prime eval --best-of`.
/// Ctrl-C saves and stops; --resume goes on, to the bits of a training that was not stopped.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime eval --model runs/first/sft/policy --split train --problems 2000 --samples 8 --output rollouts.jsonl
  prime prm --model runs/first/sft/policy --data rollouts.jsonl --out runs/prm
  prime prm --model DIR --data a.jsonl --data b.jsonl --held-out c.jsonl --set prm.loss=dpo-pairs
  prime prm --model DIR --data 'runs/first/rollouts/prime-000001.jsonl' --reference none
  prime prm --model DIR --data a.jsonl --set lora.rank=16 --out runs/adapter
  prime prm --resume --out runs/prm
  prime eval --model runs/first/sft/policy --best-of 16 --prm runs/prm/prm --ref runs/first/sft/policy")]
pub(super) struct PrmArgs {
    /// Model folder that the PRM begins as, or a run's, whose newest policy is taken
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Graded responses, as JSON Lines; may be repeated
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Graded responses never trained on [default: one prompt in offline.held_out_one_in of --data]
    #[arg(long, value_name = "FILE")]
    held_out: Option<PathBuf>,
    /// Model folder of the reference, or none [default: the model that the PRM begins as]
    #[arg(long, value_name = "DIR")]
    reference: Option<PathBuf>,
    #[command(flatten)]
    run: RunArgs,
}

pub(super) fn run(args: PrmArgs, threads: Option<usize>) -> Result<(), Failure> {
    let text = |path: &PathBuf| -> Result<toml::Value, Failure> {
        let text = path.to_str().context("a path is not UTF-8").map_err(misuse)?;
        Ok(toml::Value::String(text.to_string()))
    };
    let mut more = Vec::new();
    if let Some(model) = &args.model {
        more.push(format!("model.path={}", text(&models::of_run_or_itself(model)?)?));
    }
    if !args.data.is_empty() {
        let files = args.data.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        more.push(format!("offline.files={}", toml::Value::Array(files)));
    }
    if let Some(path) = &args.held_out {
        more.push(format!("offline.held_out={}", text(path)?));
    }
    if let Some(path) = &args.reference {
        more.push(format!("offline.reference={}", text(path)?));
    }
    start(args.run, more, threads, Stages::Prm)
}
