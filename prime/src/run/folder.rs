//! A run's folder: what is in it, who may write to it, and how a resumed run finds its place.
//!
//! ```text
//! config.toml                 as resolved
//! run.json                    sessions: when, where, with which program
//! metrics.jsonl               a line a step
//! events.out.tfevents.*       the same for TensorBoard
//! sft-checkpoints/step-N/     while SFT lasts
//! sft/                        the model after SFT
//! base/                       the weights beside adapters, where they were made here
//! checkpoints/step-N/         policy, prm, critic, trainer
//! checkpoints/best/           the best policy evaluated, and its evaluation
//! prm/                        of `prime prm`: the PRM when it is complete
//! outcome-only/checkpoints/   of the run that PRIME is compared with
//! rollouts/                   a file a recorded step, as `prime replay` reads it
//! result.json                 the final table
//! report.html                 all of it to look at
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use prime_model::Tokenizer;
use prime_runtime::Device;
use prime_runtime::checkpoint::{self, FolderLock};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::step::Rollouts;
use crate::tensorboard::EventFile;

/// Settings that a resumed run may change: they do not change what is computed.
pub(crate) const FREE: [&str; 6] = [
    "threads",
    "train.save_every",
    "train.keep",
    "train.record_every",
    "train.record_update_every",
    "train.report",
];

/// An open run folder, locked against other runs.
pub struct RunFolder {
    path: PathBuf,
    _lock: FolderLock,
    metrics: File,
    events: EventFile,
}

/// What a checkpoint remembers of the run around it.
#[derive(Serialize, Deserialize)]
struct Place {
    /// Length of `metrics.jsonl` when the checkpoint was made: what came later is repeated.
    metrics_bytes: u64,
}

impl RunFolder {
    /// A new run.
    ///
    /// # Errors
    /// When a run is there already, another program writes to it, or the disk refuses.
    pub fn create(path: &Path, config: &Config) -> Result<Self> {
        fs::create_dir_all(path)
            .with_context(|| format!("cannot create the run folder {}", path.display()))?;
        let was_begun = path.join(".lock").exists();
        let lock = FolderLock::acquire(path)?;
        ensure!(
            !path.join("config.toml").exists(),
            "there is a run in {} already: continue it with --resume, or choose another folder with --out",
            path.display()
        );
        if was_begun {
            // By a run that was killed before it had a configuration.
            checkpoint::remove_stale(path)?;
        }
        checkpoint::atomic_write(path.join("config.toml"), config.to_toml()?.as_bytes())?;
        Self::open(path, lock)
    }

    /// A run that goes on, with the configuration it was begun with.
    ///
    /// # Errors
    /// When there is no run, another program writes to it, or `wanted` differs from its configuration in more than may change.
    pub fn resume(path: &Path, wanted: Option<&Config>) -> Result<(Self, Config)> {
        let file = path.join("config.toml");
        ensure!(
            file.exists(),
            "there is no run to resume in {}: it has no config.toml. Start one without --resume",
            path.display()
        );
        let lock = FolderLock::acquire(path)?;
        let mut config = Config::load_resolved(&file)?;
        if let Some(wanted) = wanted {
            let differences = differences(&config, wanted)?;
            if !differences.is_empty() {
                bail!(
                    "the run in {} was begun with other settings: {}. Resume without changing them, or start a run of its own with --out",
                    path.display(),
                    differences.join("; ")
                );
            }
            config = wanted.clone();
        }
        checkpoint::remove_stale(path)?;
        if path.join("rollouts").is_dir() {
            checkpoint::remove_stale(path.join("rollouts"))?;
        }
        for folder in ["sft-checkpoints", "checkpoints", "outcome-only/checkpoints"] {
            if path.join(folder).is_dir() {
                checkpoint::remove_stale(path.join(folder))?;
                checkpoint::prune(path.join(folder), config.train.keep)?;
            }
        }
        let mut folder = Self::open(path, lock)?;
        folder.rewind()?;
        Ok((folder, config))
    }

    fn open(path: &Path, lock: FolderLock) -> Result<Self> {
        let file = path.join("metrics.jsonl");
        let metrics = File::options()
            .create(true)
            .append(true)
            .open(&file)
            .with_context(|| format!("cannot write {}", file.display()))?;
        let events = EventFile::create(path)
            .with_context(|| format!("cannot write events to {}", path.display()))?;
        Ok(RunFolder { path: path.to_path_buf(), _lock: lock, metrics, events })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Records the metrics of a step.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn record(&mut self, metrics: &Metrics) -> Result<()> {
        let line = metrics.to_json() + "\n";
        let path = self.path.join("metrics.jsonl");
        self.metrics
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        let values =
            metrics.values().map(|(name, value)| (format!("{}/{name}", metrics.stage()), value));
        self.events
            .scalars(metrics.step(), values)
            .with_context(|| "cannot write the TensorBoard events")
    }

    /// The metrics recorded so far, a JSON object a line.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn recorded(&self) -> Result<Vec<Value>> {
        let path = self.path.join("metrics.jsonl");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // A line that a killed run left unfinished is not a line.
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    /// Records a step's rollouts, whole or not at all; `updated` are their log-probabilities after the step's update, where they are known.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn record_rollouts(
        &self,
        stage: &str,
        step: u64,
        batch: &Rollouts,
        tokenizer: &Tokenizer,
        updated: Option<&[f32]>,
    ) -> Result<()> {
        let folder = self.path.join("rollouts");
        fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut bytes = Vec::new();
        record::write(&mut bytes, batch, tokenizer, updated)?;
        checkpoint::atomic_write(folder.join(format!("{stage}-{step:06}.jsonl")), &bytes)?;
        Ok(())
    }

    /// Saves a checkpoint of which a crash leaves the whole or nothing.
    ///
    /// # Errors
    /// When the disk refuses: the checkpoints that were there stay.
    pub fn save(
        &mut self,
        folder: &str,
        name: &str,
        keep: usize,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        self.metrics.sync_data().context("cannot flush metrics.jsonl")?;
        let place = Place { metrics_bytes: self.metrics.metadata()?.len() };
        let parent = self.path.join(folder);
        fs::create_dir_all(&parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        checkpoint::save(&parent, name, keep, |folder: &Path| -> Result<()> {
            write(folder)?;
            let path = folder.join("run.json");
            fs::write(&path, serde_json::to_string(&place)?)
                .with_context(|| format!("cannot write {}", path.display()))
        })
        .with_context(|| {
            format!("checkpoint {name} was not saved; those saved before are as they were")
        })
    }

    /// Removes a folder of checkpoints that nothing needs any more.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn remove(&self, folder: &str) -> Result<()> {
        let path = self.path.join(folder);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// The newest whole checkpoint of a folder, verified.
    ///
    /// # Errors
    /// When it is damaged.
    pub fn newest(&self, folder: &str) -> Result<Option<PathBuf>> {
        let found = checkpoint::latest(self.path.join(folder))?;
        if let Some(found) = &found {
            checkpoint::verify(found)?;
        }
        Ok(found)
    }

    /// Drops the metrics recorded after the newest checkpoint of the run's last stage: those steps are made again.
    fn rewind(&mut self) -> Result<()> {
        let sft = self.path.join("sft");
        let newest = match self.newest("outcome-only/checkpoints")? {
            None => self.newest("checkpoints")?,
            found => found,
        };
        let newest = match newest {
            None if sft.is_dir() => Some(sft),
            None => self.newest("sft-checkpoints")?,
            found => found,
        };
        let kept = match newest {
            None => 0,
            Some(checkpoint) => {
                let path = checkpoint.join("run.json");
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                serde_json::from_str::<Place>(&text)
                    .with_context(|| format!("{}", path.display()))?
                    .metrics_bytes
            }
        };
        let length = self.metrics.metadata()?.len().min(kept);
        self.metrics.set_len(length).context("cannot cut metrics.jsonl back to the checkpoint")
    }
}

/// Whether two devices compute with the same kernels: GPUs do, whatever their numbers. Host, GPU and emulated device round differently,
/// and a run begun on one would go on with the bits of neither.
fn same_kind(old: &toml::Value, new: &toml::Value) -> bool {
    let kind = |device: &toml::Value| {
        let device = device.as_str().and_then(|name| Device::parse(name).ok());
        device.map(|device| std::mem::discriminant(&device))
    };
    kind(old) == kind(new)
}

/// The settings in which two configurations differ, apart from those that may.
fn differences(old: &Config, new: &Config) -> Result<Vec<String>> {
    fn walk(old: &toml::Value, new: &toml::Value, path: &str, found: &mut Vec<String>) {
        match (old, new) {
            (toml::Value::Table(old), toml::Value::Table(new)) => {
                for (key, old) in old {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    if let Some(new) = new.get(key) {
                        walk(old, new, &path, found);
                    }
                }
            }
            _ if path == "device" && same_kind(old, new) => {}
            _ if old != new && !FREE.contains(&path) => {
                found.push(format!("{path} was {old}, now {new}"))
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(&toml::Value::try_from(old)?, &toml::Value::try_from(new)?, "", &mut found);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(overrides: &[&str]) -> Config {
        let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
        Config::load(&[], &overrides).unwrap()
    }

    #[test]
    fn a_second_run_in_one_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunFolder::create(folder.path(), &config(&[])).unwrap();
        assert!(RunFolder::resume(folder.path(), None).is_err(), "two runs at once");
        drop(first);
        let message = RunFolder::create(folder.path(), &config(&[])).err().unwrap().to_string();
        assert!(message.contains("--resume"), "{message}");
        assert!(RunFolder::resume(folder.path(), None).is_ok());
    }

    #[test]
    fn a_resume_with_other_settings_names_them() {
        let folder = tempfile::tempdir().unwrap();
        drop(RunFolder::create(folder.path(), &config(&[])).unwrap());
        let message = RunFolder::resume(folder.path(), Some(&config(&["prm.beta=0.25"])))
            .err()
            .unwrap()
            .to_string();
        assert!(message.contains("prm.beta was 0.5, now 0.25"), "{message}");
        assert!(RunFolder::resume(folder.path(), Some(&config(&["train.keep=7"]))).is_ok());
    }

    #[test]
    fn a_run_may_go_on_with_another_gpu_but_not_with_another_kind_of_device() {
        let differ = |old: &str, new: &str| {
            let [old, new] = [old, new].map(|device| config(&[&format!("device={device}")]));
            differences(&old, &new).unwrap()
        };
        assert!(differ("cuda", "cuda:0").is_empty());
        assert!(differ("cuda:1", "cuda:0").is_empty());
        assert_eq!(differ("cpu", "cuda"), ["device was \"cpu\", now \"cuda\""]);
        assert_eq!(differ("emulated", "cuda").len(), 1);
    }

    #[test]
    fn metrics_recorded_after_a_checkpoint_are_dropped_on_resume() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = RunFolder::create(folder.path(), &config(&[])).unwrap();
        run.record(&Metrics::new("prime", 1)).unwrap();
        run.save("checkpoints", "step-1", 2, |_| Ok(())).unwrap();
        run.record(&Metrics::new("prime", 2)).unwrap();
        assert_eq!(run.recorded().unwrap().len(), 2);
        drop(run);
        let (mut run, _) = RunFolder::resume(folder.path(), None).unwrap();
        assert!(run.newest("checkpoints").unwrap().unwrap().ends_with("step-1"));
        assert_eq!(run.recorded().unwrap().len(), 1);
        run.record(&Metrics::new("prime", 2)).unwrap();
        assert_eq!(run.recorded().unwrap().len(), 2);
    }
}
