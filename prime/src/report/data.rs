//! What a run folder holds, read without asking that all of it be there: reports are made of runs that go on, that failed, and that other
//! versions of the program wrote.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};
use toml::Table;

use super::select::{self, Recorded};
use crate::config;
use crate::run::folder::FREE;

/// Values of one metric: (step, value), in the order of the file.
pub type Series = Vec<(u64, f64)>;

/// Metrics by stage and name. Those of evaluations are in stage `eval` under `stage/name`.
pub type Metrics = BTreeMap<String, BTreeMap<String, Series>>;

/// A run.
pub struct Run {
    /// Its folder.
    pub path: PathBuf,
    /// The folder's name.
    pub name: String,
    /// Every setting, as `section.key`.
    pub settings: BTreeMap<String, String>,
    /// What its steps and evaluations measured.
    pub metrics: Metrics,
    /// The rows of the final table; none before the run is complete.
    pub result: Vec<Map<String, Value>>,
    /// When and where the program worked on it: `run.json`.
    pub sessions: Vec<Map<String, Value>>,
    /// Its recorded rollouts.
    pub recorded: Vec<Recorded>,
}

impl Run {
    /// Reads a run folder.
    ///
    /// # Errors
    /// When it is not one, or a file of it cannot be read.
    pub fn read(path: &Path) -> Result<Run> {
        let settings = Run::settings(path)?;
        let result = object(&path.join("result.json"))?;
        let sessions = object(&path.join("run.json"))?;
        let list = |object: Option<Map<String, Value>>, key: &str| -> Vec<Map<String, Value>> {
            let list = object.and_then(|mut object| object.remove(key));
            let list = list.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
            list.into_iter().filter_map(|one| one.as_object().cloned()).collect()
        };
        let name = path
            .canonicalize()
            .ok()
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        Ok(Run {
            path: path.to_path_buf(),
            name: name.unwrap_or_else(|| path.display().to_string()),
            settings,
            metrics: metrics(&path.join("metrics.jsonl"))?,
            result: list(result, "entries"),
            sessions: list(sessions, "sessions"),
            recorded: select::recorded(path)?,
        })
    }

    /// The settings of a run folder, as `section.key`.
    ///
    /// # Errors
    /// When it is not one, or its configuration cannot be read.
    pub fn settings(path: &Path) -> Result<BTreeMap<String, String>> {
        let shown = path.display();
        if !path.is_dir() {
            bail!("there is no run folder {shown}");
        }
        let config = path.join("config.toml");
        if !config.exists() {
            bail!("{shown} is not the folder of a run: it has no config.toml");
        }
        let table: Table = read(&config)?.parse().with_context(|| config.display().to_string())?;
        Ok(flat(&table))
    }

    /// A metric of a stage.
    pub fn series(&self, stage: &str, metric: &str) -> &[(u64, f64)] {
        self.metrics.get(stage).and_then(|metrics| metrics.get(metric)).map_or(&[], Vec::as_slice)
    }

    /// A setting that is a number.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.settings.get(key)?.parse().ok()
    }

    /// What makes runs the same but for chance: every setting except the seed and those that change no result.
    pub fn identity(&self) -> BTreeMap<&str, &str> {
        let counts = |key: &&String| *key != "seed" && !FREE.contains(&key.as_str());
        self.settings
            .iter()
            .filter(|(key, _)| counts(key))
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect()
    }
}

/// The documented defaults.
pub fn defaults() -> BTreeMap<String, String> {
    config::DEFAULT.parse().map(|table| flat(&table)).unwrap_or_default()
}

/// Every setting by its full name, values as TOML writes them but texts bare.
fn flat(table: &Table) -> BTreeMap<String, String> {
    fn walk(table: &Table, prefix: &str, out: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                toml::Value::Table(inner) => walk(inner, &key, out),
                toml::Value::String(text) => _ = out.insert(key, text.clone()),
                toml::Value::Float(number) => _ = out.insert(key, number.to_string()),
                other => _ = out.insert(key, other.to_string()),
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(table, "", &mut out);
    out
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A file that holds a JSON object, where there is one.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.exists() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&read(path)?).with_context(|| path.display().to_string())?))
}

/// Adds a line of `metrics.jsonl` and says of which stage it was; a line that a killed run left unfinished is not a line.
pub fn add_line(metrics: &mut Metrics, line: &[u8]) -> Option<String> {
    let fields = serde_json::from_slice::<Map<String, Value>>(line).ok()?;
    let stage = fields.get("stage").and_then(Value::as_str).unwrap_or_default().to_owned();
    let step = fields.get("step").and_then(Value::as_u64).unwrap_or_default();
    let of_stage = metrics.entry(stage.clone()).or_default();
    for (name, value) in fields.iter().filter(|(name, _)| *name != "stage" && *name != "step") {
        let value = value.as_f64().unwrap_or(f64::NAN);
        match of_stage.get_mut(name) {
            Some(series) => series.push((step, value)),
            None => _ = of_stage.insert(name.clone(), vec![(step, value)]),
        }
    }
    Some(stage)
}

fn metrics(path: &Path) -> Result<Metrics> {
    let mut out = Metrics::new();
    if !path.exists() {
        return Ok(out);
    }
    let shown = || format!("cannot read {}", path.display());
    let mut input = BufReader::new(File::open(path).with_context(shown)?);
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line).with_context(shown)? > 0 {
        add_line(&mut out, &line);
        line.clear();
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_read_as_far_as_it_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert!(
            Run::read(&path.join("absent")).err().unwrap().to_string().contains("no run folder")
        );
        assert!(Run::read(path).err().unwrap().to_string().contains("no config.toml"));
        std::fs::write(
            path.join("config.toml"),
            "seed = 2\n[prm]\nbeta = 0.5\n[future]\nkey = \"x\"\n",
        )
        .unwrap();
        let run = Run::read(path).unwrap();
        assert_eq!((run.number("prm.beta"), run.settings["future.key"].as_str()), (Some(0.5), "x"));
        assert!(run.metrics.is_empty() && run.result.is_empty() && run.recorded.is_empty());
        assert!(!run.identity().contains_key("seed"));

        let lines = "{\"stage\":\"prime\",\"step\":1,\"a/b\":0.5,\"c\":null}\n{\"stage\":\"prime\",\"step\":2,\"a/b\":1}\n{\"stage\":";
        std::fs::write(path.join("metrics.jsonl"), lines).unwrap();
        std::fs::write(path.join("result.json"), "{\"entries\":[{\"stage\":\"start\"}]}").unwrap();
        let run = Run::read(path).unwrap();
        assert_eq!(run.series("prime", "a/b"), [(1, 0.5), (2, 1.0)]);
        assert!(run.series("prime", "c")[0].1.is_nan() && run.series("sft", "c").is_empty());
        assert_eq!(run.result.len(), 1);
        std::fs::write(path.join("run.json"), "{").unwrap();
        assert!(format!("{:#}", Run::read(path).err().unwrap()).contains("run.json"));
    }
}
