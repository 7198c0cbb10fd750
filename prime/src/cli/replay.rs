//! `prime replay`: rewards, advantages and losses of recorded rollouts under other settings.

use std::path::PathBuf;

use clap::Args;
use clap::builder::PossibleValuesParser;

use super::{Failure, files, misuse};
use crate::replay::{KEYS, ReplaySettings, replay};
use crate::step::Form;

/// Recompute rewards, advantages and losses of recorded rollouts
///
/// Reads JSON Lines, a rollout each: `prompt_id`, `outcome`, and per token of the response `prm_log_probs`, `ref_log_probs`,
/// `old_log_probs` and, where there are any, `new_log_probs`. Lines of one `prompt_id` are a group. A run writes its rollouts in this
/// form, in the folder rollouts/.
///
/// Writes each line with `process_rewards`, `returns` and `advantages`, and a last line with `prm_loss`, `prm_accuracy`,
/// `policy_loss` and `clip_fraction`.
#[derive(Args)]
#[command(after_long_help = after_help())]
pub(super) struct ReplayArgs {
    /// Rollouts to replay; - reads standard input
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write; - writes to standard output. A file appears whole, or not at all
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// The published form of the algorithm, with the settings it was published with
    #[arg(long, default_value = "paper", value_parser = forms())]
    form: String,
    /// A setting other than the form's; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

fn forms() -> PossibleValuesParser {
    PossibleValuesParser::new(Form::ALL.iter().map(|form| form.name()))
}

fn after_help() -> String {
    let width = KEYS.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let keys: String =
        KEYS.iter().map(|(key, meaning)| format!("  {key:width$}  {meaning}\n")).collect();
    format!(
        "Settings for --set:\n{keys}\n\
        Examples:\n  \
        prime replay --input runs/first/rollouts/prime-000001.jsonl --output -\n  \
        prime replay --input rollouts.jsonl --output - --form verl --set beta=0.1 --set clip=0.3"
    )
}

pub(super) fn run(args: &ReplayArgs) -> Result<(), Failure> {
    let mut settings = ReplaySettings::published(args.form.parse().map_err(misuse)?);
    for assignment in &args.set {
        settings.set(assignment).map_err(misuse)?;
    }
    let input = files::open(&args.input)?;
    let mut output = files::Output::create(&args.output)?;
    replay(input, &settings)?.write(&mut output)?;
    output.finish()?;
    Ok(())
}
