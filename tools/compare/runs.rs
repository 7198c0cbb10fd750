//! The runs of a comparison: a start for each seed, then every row and variant from it, each on one thread, as many at once as there are cores.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::tables::{Row, Table, Variant};

/// Set for a process that is the program `prime` and nothing else.
pub const CHILD: &str = "PRIME_COMPARE_CHILD";

/// What every run of a comparison has in common.
pub struct Plan {
    /// What is compared.
    pub table: &'static Table,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// Policy updates with process rewards.
    pub steps: u64,
    /// Batches that warm the PRM up; without one they are steps.
    pub warmup: u64,
    /// Settings of the user's, over those of the rows.
    pub set: Vec<String>,
    /// Where the runs are.
    pub work: PathBuf,
    /// Runs at once.
    pub jobs: usize,
}

/// A run of a comparison.
pub struct Run {
    /// Which line.
    pub row: &'static Row,
    /// Which variant of it.
    pub variant: Variant,
    /// Its seed.
    pub seed: u64,
    folder: PathBuf,
    settings: Vec<String>,
}

/// What a run reached.
#[derive(Clone, Debug)]
pub struct Reached {
    /// Mean score on held-out problems at the end.
    pub score: f64,
    /// The same after as many policy updates as PRIME made.
    pub at_equal_steps: f64,
    /// At temperature 0, at the end.
    pub greedy: f64,
    /// Mean tokens of a response, at the end.
    pub length: f64,
    /// Policy updates, counted in batches.
    pub steps: u64,
    /// Samples drawn, warm-up included.
    pub samples: u64,
    /// Seconds of its steps.
    pub seconds: f64,
}

impl Plan {
    /// All runs, the longest first.
    pub fn runs(&self) -> Vec<Run> {
        let mut runs = Vec::new();
        for &variant in self.table.variants {
            for &seed in &self.seeds {
                let rows = self.table.rows.iter().filter(|row| !row.without.contains(&variant));
                runs.extend(rows.map(|row| self.run(row, variant, seed)));
            }
        }
        runs
    }

    fn run(&self, row: &'static Row, variant: Variant, seed: u64) -> Run {
        let word = |text: &str| -> String {
            let plain =
                |c: char| if c.is_ascii_alphanumeric() || "+-".contains(c) { c } else { '-' };
            text.replace(", ", "-").chars().map(plain).collect()
        };
        let folder =
            self.of_seed(seed).join(format!("{}.{}", word(row.name), word(variant.name())));
        let is_outcome_only = variant == Variant::OutcomeOnly;
        // As many rollouts with a PRM as without: what warms it up is then steps, unless a critic takes it.
        let steps = self.steps + if is_outcome_only && !row.has_critic { self.warmup } else { 0 };
        let mut settings = vec![
            format!("model.path={}", self.start(seed).display()),
            "sft.steps=0".to_string(),
            "train.compare=false".to_string(),
            format!("train.outcome_only={is_outcome_only}"),
            format!("train.steps={steps}"),
            format!("prm.warmup_batches={}", self.warmup),
            format!("eval.every={}", self.steps),
            "train.keep=1".to_string(),
            "train.record_every=0".to_string(),
        ];
        let warmup = self.warmup.to_string();
        let of_row = self.table.settings.iter().chain(row.settings);
        settings.extend(of_row.map(|text| text.replace("{warmup}", &warmup)));
        // SFT has been; the rest of it is the start's alone.
        settings.extend(self.set.iter().filter(|text| !text.trim().starts_with("sft.")).cloned());
        Run { row, variant, seed, folder, settings }
    }

    fn of_seed(&self, seed: u64) -> PathBuf {
        self.work.join(format!("seed-{seed}"))
    }

    /// The model that all runs of a seed begin with.
    fn start(&self, seed: u64) -> PathBuf {
        self.of_seed(seed).join("start/sft/policy")
    }

    /// Makes the starts, then the runs. What is there already is not made again, and what was stopped goes on.
    pub fn make(&self, runs: &[Run]) -> Result<()> {
        let began = Instant::now();
        let starts = self.seeds.iter().map(|&seed| {
            let set: Vec<String> = self.set.to_vec();
            (format!("start of seed {seed}"), "sft", self.of_seed(seed).join("start"), seed, set)
        });
        self.side_by_side(starts.collect(), began)?;
        let runs = runs.iter().map(|run| {
            let name = format!("{} with {}, seed {}", run.row.name, run.variant.name(), run.seed);
            (name, "train", run.folder.clone(), run.seed, run.settings.clone())
        });
        self.side_by_side(runs.collect(), began)
    }

    fn side_by_side(
        &self,
        jobs: Vec<(String, &'static str, PathBuf, u64, Vec<String>)>,
        began: Instant,
    ) -> Result<()> {
        let left: Vec<_> =
            jobs.into_iter().filter(|job| !job.2.join("result.json").is_file()).collect();
        let (next, done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(None));
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.min(left.len()) {
                scope.spawn(|| {
                    while let Some((name, command, folder, seed, set)) =
                        left.get(next.fetch_add(1, Ordering::SeqCst))
                    {
                        let made = prime(command, folder, *seed, set);
                        let mut failed = failed.lock().unwrap_or_else(|held| held.into_inner());
                        match made {
                            Ok(()) => {
                                let done = done.fetch_add(1, Ordering::SeqCst) + 1;
                                let minutes = began.elapsed().as_secs_f64() / 60.0;
                                eprintln!("[{minutes:5.1} min] {done} of {}: {name}", left.len());
                            }
                            Err(error) => {
                                failed.get_or_insert(error.context(name.clone()));
                                // Nobody begins another.
                                next.store(left.len(), Ordering::SeqCst);
                            }
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(|held| held.into_inner()) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }
}

/// Runs the program `prime` on one thread, in a process of its own, and says what it wrote when it fails.
fn prime(command: &str, folder: &Path, seed: u64, set: &[String]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut log = folder.as_os_str().to_owned();
    log.push(".log");
    let log = PathBuf::from(log);
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = Command::new(std::env::current_exe().context("this program's own path")?);
    child.env(CHILD, "1").args([command, "--threads", "1", "--out"]).arg(folder);
    if folder.join("config.toml").is_file() {
        child.arg("--resume");
    }
    child.arg("--seed").arg(seed.to_string());
    child.args(set.iter().flat_map(|text| ["--set", text]));
    child.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let status = child.status().context("cannot start this program again")?;
    if !status.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        let last = said.lines().last().unwrap_or("nothing");
        bail!(
            "prime {command} ended with {status} and said: {last} (all of it is in {})",
            log.display()
        );
    }
    Ok(())
}

impl Run {
    /// The settings that make it what it is.
    pub fn settings(&self) -> &[String] {
        &self.settings
    }

    /// What it reached, and what its start had.
    pub fn reached(&self, steps: u64) -> Result<(f64, Reached)> {
        let entries = read_json(&self.folder.join("result.json"))?;
        let entries = entries["entries"].as_array().context("result.json has no entries")?;
        let number = |entry: &Value, name: &str| -> Result<f64> {
            entry[name].as_f64().with_context(|| format!("result.json has no {name}"))
        };
        let (Some(start), Some(last)) = (entries.first(), entries.last()) else {
            bail!("{} has no evaluations", self.folder.display())
        };
        let path = self.folder.join("metrics.jsonl");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let (mut at_equal_steps, mut seconds) = (None, 0.0);
        for line in text.lines() {
            let line: Value = serde_json::from_str(line)?;
            seconds += line["seconds/step"].as_f64().unwrap_or(0.0);
            if line["stage"] == "eval" && line["step"] == steps {
                let score = ["prime", "outcome_only"]
                    .iter()
                    .find_map(|stage| line[format!("{stage}/mean_score")].as_f64());
                at_equal_steps = score.or(at_equal_steps);
            }
        }
        let reached = Reached {
            score: number(last, "mean_score")?,
            at_equal_steps: at_equal_steps
                .with_context(|| format!("{} has no evaluation at step {steps}", path.display()))?,
            greedy: number(last, "greedy")?,
            length: number(last, "length")?,
            steps: number(last, "step")? as u64,
            samples: number(last, "samples")? as u64,
            seconds,
        };
        Ok((number(start, "mean_score")?, reached))
    }
}

fn read_json(path: &Path) -> Result<Value> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

/// Runs of other settings or of another version are not mixed with these.
pub fn check_work(plan: &Plan, commit: &str) -> Result<()> {
    let path = plan.work.join("comparison.json");
    let ours = serde_json::json!({
        "table": plan.table.name,
        "steps": plan.steps,
        "warmup": plan.warmup,
        "set": plan.set,
        "commit": commit,
    });
    if path.is_file() {
        let theirs = read_json(&path)?;
        ensure!(
            theirs == ours,
            "the runs in {} are of another comparison, {theirs}; this one is {ours}. Name another folder with --work, or remove that one",
            plan.work.display()
        );
        return Ok(());
    }
    fs::create_dir_all(&plan.work)
        .with_context(|| format!("cannot create {}", plan.work.display()))?;
    fs::write(&path, format!("{ours:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}
