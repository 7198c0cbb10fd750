//! The table at the end of a run: what SFT, PRIME and outcome-only RL reach on held-out problems.

use std::fmt;

use anyhow::Result;
use prime_runtime::checkpoint;
use serde::Serialize;
use serde_json::Value;

use super::best::Best;
use super::folder::RunFolder;

/// One evaluated model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// `sft`, `start`, `prime` or `outcome_only`.
    pub stage: String,
    /// Policy updates, counted in batches.
    pub step: u64,
    /// Samples drawn for training, the PRM's warm-up included.
    pub samples: u64,
    /// Mean score of a sample at the evaluation's temperature.
    pub mean_score: f64,
    /// Lower end of its 95 % interval over problems.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Score at temperature 0.
    pub greedy: f64,
    /// Mean tokens of a response.
    pub length: f64,
}

impl Entry {
    /// The evaluation of a stage and step, where the run has recorded it.
    ///
    /// # Errors
    /// When the metrics cannot be read.
    pub fn recorded(folder: &RunFolder, stage: &str, step: u64) -> Result<Option<Entry>> {
        let of_stage = |line: Value| Entry::of_line(&line, stage);
        let mut found = folder.recorded()?.into_iter().rev().filter_map(of_stage);
        Ok(found.find(|entry| entry.step == step))
    }

    /// The evaluation of a stage that a line of the metrics records, if it does.
    pub(super) fn of_line(line: &Value, stage: &str) -> Option<Entry> {
        let value = |name: &str| line.get(format!("{stage}/{name}"))?.as_f64();
        if line.get("stage")? != "eval" {
            return None;
        }
        Some(Entry {
            stage: stage.to_string(),
            step: line.get("step")?.as_u64()?,
            samples: value("samples")? as u64,
            mean_score: value("mean_score")?,
            low: value("mean_score_low")?,
            high: value("mean_score_high")?,
            greedy: value("greedy")?,
            length: value("length")?,
        })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pass@1 {:.1} % ({:.1} to {:.1}), greedy {:.1} %, {:.1} tokens",
            100.0 * self.mean_score,
            100.0 * self.low,
            100.0 * self.high,
            100.0 * self.greedy,
            self.length
        )
    }
}

/// All evaluated models of a run, the start first.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Table {
    /// The rows.
    pub entries: Vec<Entry>,
    /// The best policy that each stage of RL evaluated.
    pub best: Vec<Best>,
}

impl Table {
    /// Adds a row.
    pub fn push(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Writes `result.json` in the run folder.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, folder: &RunFolder) -> Result<()> {
        let text = serde_json::to_string_pretty(&self)? + "\n";
        checkpoint::atomic_write(folder.path().join("result.json"), text.as_bytes())?;
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| model | steps | rollouts | held-out pass@1 (95 % interval) | over the start | greedy | tokens |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        let start = self.entries.first().map_or(0.0, |entry| entry.mean_score);
        for (i, entry) in self.entries.iter().enumerate() {
            let name = stage_name(&entry.stage);
            let gain = if i == 0 {
                String::new()
            } else {
                format!("{:+.1}", 100.0 * (entry.mean_score - start))
            };
            writeln!(
                f,
                "| {name} | {} | {} | {:.1} % ({:.1} to {:.1}) | {gain} | {:.1} % | {:.1} |",
                entry.step,
                entry.samples,
                100.0 * entry.mean_score,
                100.0 * entry.low,
                100.0 * entry.high,
                100.0 * entry.greedy,
                entry.length
            )?;
        }
        for Best { stage, entry, policy, .. } in &self.best {
            let step = match entry.step {
                0 => "the start".to_string(),
                step => format!("step {step}"),
            };
            let score = 100.0 * entry.mean_score;
            writeln!(f, "best of {}: {step}, {score:.1} %, in {policy}", stage_name(stage))?;
        }
        Ok(())
    }
}

fn stage_name(stage: &str) -> &str {
    match stage {
        "start" => "start of RL",
        "sft" => "SFT",
        "prime" => "PRIME",
        "outcome_only" => "outcome-only",
        other => other,
    }
}
