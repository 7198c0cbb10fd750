//! `prime merge`: an adapter multiplied into the weights beside which it was trained.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use prime_model::{folder, lora};
use prime_runtime::Device;

use super::values::Precision;
use super::{Failure, models};
use crate::adapters;

/// Merge a low-rank adapter into its model
///
/// Writes a Hugging Face folder whose weights are W + (alpha / rank) B A, summed in float32 and rounded once, with the tokenizer of --model.
/// It needs no adapter any more. Its numbers are those of model and adapter up to that rounding, not to the bit.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime merge --model runs/first --out merged
  prime merge --model runs/prm --out merged-prm
  prime merge --model models/Qwen2.5-0.5B --adapter runs/first/checkpoints/step-100/policy --out merged")]
pub(super) struct MergeArgs {
    /// Model folder, an adapter's folder that names its model, or a run's, whose newest policy is taken, or else its PRM
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// An adapter's folder as PEFT writes it, to stand beside the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The folder to write
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the merged weights are held in
    #[arg(long, value_enum, default_value = "float32")]
    dtype: Precision,
}

pub(super) fn run(args: &MergeArgs) -> Result<(), Failure> {
    // Of a run without a policy, the PRM.
    let from = models::prm_of_run_or_itself(&models::of_run_or_itself(&args.model)?)?;
    let tokenizer = models::tokenizer(&from)?;
    let adapter = args.adapter.as_deref();
    let model = models::load(&from, adapter, &tokenizer, Device::Cpu, args.dtype.dtype())?;
    check(model.weights.adapter().is_some(), &from)?;
    let merged = lora::merge(&model.config, &model.weights)?;
    let companions = folder::Companions::Of(&from);
    folder::save(&args.out, &model.config, &merged, companions)
        .with_context(|| format!("{} was not written", args.out.display()))?;
    super::say(&format!(
        "merged the adapter into the weights of {}",
        adapters::model_folder(&from)?.display()
    ));
    Ok(())
}

fn check(has_adapter: bool, from: &std::path::Path) -> Result<()> {
    ensure!(has_adapter, "{} has no adapter to merge: name one with --adapter DIR", from.display());
    Ok(())
}
