//! The best policy that a run has evaluated, which is kept, and whether it is time to stop looking for a better one.
//!
//! Both are read from the recorded evaluations, so a resumed run knows what an unbroken one knows.

use std::fs;

use anyhow::{Context, Result};
use serde::Serialize;

use super::folder::RunFolder;
use super::table::Entry;
use crate::trainer::Trainer;

/// The name of its folder among the checkpoints.
const NAME: &str = "best";

/// The best evaluation of a stage, the start's included.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Best {
    /// `prime` or `outcome_only`.
    pub stage: String,
    /// Its evaluation; of two that are as good, the earlier.
    #[serde(flatten)]
    pub entry: Entry,
    /// Where the policy is, in the run's folder.
    pub policy: String,
    /// Evaluations since that were no better.
    #[serde(skip)]
    since: u64,
}

impl Best {
    /// Of the evaluations recorded so far; none before there is one.
    ///
    /// # Errors
    /// When the metrics cannot be read.
    pub(super) fn recorded(
        folder: &RunFolder,
        stage: &str,
        checkpoints: &str,
    ) -> Result<Option<Best>> {
        let mut best: Option<Best> = None;
        for line in folder.recorded()? {
            let entry = Entry::of_line(&line, "start").or_else(|| Entry::of_line(&line, stage));
            let Some(entry) = entry else { continue };
            match &mut best {
                Some(best) if entry.mean_score <= best.entry.mean_score => best.since += 1,
                _ => {
                    let policy = format!("{checkpoints}/{NAME}/policy");
                    best = Some(Best { stage: stage.to_string(), entry, policy, since: 0 });
                }
            }
        }
        Ok(best)
    }

    /// Whether `stop_after` evaluations in a row were no better; never where that is 0.
    pub(super) fn is_over(&self, stop_after: u64) -> bool {
        stop_after > 0 && self.since >= stop_after
    }
}

/// Keeps the trainer's policy as the best, where its evaluation is the best so far.
///
/// # Errors
/// When the disk refuses: the best that was kept before is as it was.
pub(super) fn keep(
    trainer: &Trainer,
    folder: &mut RunFolder,
    stage: &str,
    checkpoints: &str,
) -> Result<()> {
    let Some(best) = Best::recorded(folder, stage, checkpoints)? else { return Ok(()) };
    if best.since > 0 || best.entry.step != trainer.state().step {
        return Ok(());
    }
    folder.save(checkpoints, NAME, 0, |path| {
        trainer.save_policy(&path.join("policy"))?;
        let file = path.join("evaluation.json");
        fs::write(&file, serde_json::to_string_pretty(&best.entry)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))
    })?;
    Ok(())
}
