//! The report of one run, or of several side by side.
//!
//! Runs whose settings differ in the seed alone are one setting: their curves are drawn as a mean with a band.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use prime_runtime::checkpoint::atomic_write;
use serde_json::Value;

use super::data::Run;
use super::page::{Block, Page};
use super::select::{self, Source};
use super::tokens::Tokens;
use super::{MOST_BYTES, stage_name};

mod about;
mod curves;
mod evaluation;
mod phases;

pub use about::duration;

/// Bytes for curves and for tokens in the first attempt at a page; what is too large even so is attempted with half of both.
const BUDGETS: (usize, usize) = (2_000_000, 6_500_000);
/// Writes the report of a run into its folder.
///
/// # Errors
/// When the folder cannot be read or written.
pub fn write(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("report.html");
    atomic_write(&path, html(&[folder.to_path_buf()])?.as_bytes())?;
    Ok(path)
}

/// The report of runs, as a file of at most [`MOST_BYTES`].
///
/// # Errors
/// When a folder is not that of a run or cannot be read.
pub fn html(folders: &[PathBuf]) -> Result<String> {
    let runs = folders.iter().map(|folder| Run::read(folder)).collect::<Result<Vec<_>>>()?;
    let (mut curves, mut tokens) = BUDGETS;
    while curves > 10_000 {
        let text = page(&runs, curves, tokens)?.to_html()?;
        if text.len() < MOST_BYTES {
            return Ok(text);
        }
        (curves, tokens) = (curves / 2, tokens / 2);
    }
    bail!("{} runs do not fit in one report: name fewer", runs.len())
}

/// Runs that differ in their seed alone.
struct Setting<'a> {
    label: String,
    runs: Vec<&'a Run>,
}

impl Setting<'_> {
    /// A metric of a stage, a series a seed.
    fn series(&self, stage: &str, metric: &str) -> Vec<&[(u64, f64)]> {
        self.runs
            .iter()
            .map(|run| run.series(stage, metric))
            .filter(|series| !series.is_empty())
            .collect()
    }

    fn note(&self) -> String {
        match self.runs.len() {
            1 => String::new(),
            n => format!("mean and range of {n} seeds"),
        }
    }
}

fn page(runs: &[Run], curve_bytes: usize, token_bytes: usize) -> Result<Page> {
    let settings = settings(runs);
    let title = match runs {
        [run] => format!("Run {}", run.name),
        runs => format!("{} runs", runs.len()),
    };
    let mut page = Page::new(title, lead(runs, &settings));
    page.section("Evaluation", evaluation::evaluation(runs, &settings));
    let (blocks, thinned) = curves::curves(&settings, curve_bytes);
    page.section("Curves", blocks);
    page.section("Time", phases::time(&settings));
    page.section("Prompts", phases::filter(&settings));
    let mut tokens = Tokens::new("Prompt");
    let sources: Vec<Source> = runs
        .iter()
        .map(|run| Source {
            label: if runs.len() == 1 { String::new() } else { run.name.clone() },
            beta: run.number("prm.beta"),
            recorded: run.recorded.clone(),
        })
        .collect();
    let seen = select::select(&sources, token_bytes, &mut tokens)?;
    let (steps, groups, answers) = tokens.counts();
    let mut left_out = thinned;
    if steps > 0 {
        left_out.push(format!(
            "Rollouts: {answers} answers to {groups} prompts of {steps} steps, of the {} steps recorded; the steps looked into had {} prompts. The first and last steps of a stage and evenly spread ones between are taken, and of a step the prompts that were answered both rightly and wrongly before others.",
            seen.steps, seen.groups
        ));
        if seen.unreadable > 0 {
            left_out.push(format!("{} lines of rollouts could not be read.", seen.unreadable));
        }
        page.section(
            "Rollouts",
            vec![
                Block::Note("What was sampled, with what each token was given. Without a text of its own: · is a token that only begins a character.".into()),
                Block::Tokens(tokens),
            ],
        );
    }
    page.section("Settings", about::configuration(&settings));
    page.section("Machine", about::machine(runs));
    left_out.push("Numbers: five significant digits.".to_owned());
    page.section("What is not in this file", left_out.into_iter().map(Block::Text).collect());
    Ok(page)
}

fn settings(runs: &[Run]) -> Vec<Setting<'_>> {
    let mut found: Vec<Setting<'_>> = Vec::new();
    for run in runs {
        match found.iter_mut().find(|setting| setting.runs[0].identity() == run.identity()) {
            Some(setting) => setting.runs.push(run),
            None => found.push(Setting { label: String::new(), runs: vec![run] }),
        }
    }
    // Named by what tells them apart, or by their folders where that is too much to say.
    let keys: BTreeSet<&str> =
        found.iter().flat_map(|setting| setting.runs[0].identity().into_keys()).collect();
    let value = |setting: &Setting<'_>, key: &str| {
        setting.runs[0].settings.get(key).cloned().unwrap_or_else(|| "unset".to_owned())
    };
    let differ: Vec<&str> = keys
        .into_iter()
        .filter(|key| found.iter().any(|setting| value(setting, key) != value(&found[0], key)))
        .collect();
    let labels: Vec<String> = found
        .iter()
        .map(|setting| match differ.len() {
            0 if setting.runs.len() > 1 => String::new(),
            0 => setting.runs[0].name.clone(),
            1..=3 => differ
                .iter()
                .map(|key| {
                    format!("{}={}", key.rsplit('.').next().unwrap_or(key), value(setting, key))
                })
                .collect::<Vec<_>>()
                .join(", "),
            _ => setting.runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(", "),
        })
        .collect();
    for (setting, label) in found.iter_mut().zip(labels) {
        setting.label = label;
    }
    found
}

/// The stage of a setting, as a legend names it.
fn label(settings: &[Setting<'_>], setting: &Setting<'_>, stage: &str) -> String {
    match settings.len() {
        1 => stage_name(stage).to_owned(),
        _ => format!("{}, {}", setting.label, stage_name(stage)),
    }
}

fn lead(runs: &[Run], settings: &[Setting<'_>]) -> String {
    let run = &runs[0];
    let get = |key: &str| run.settings.get(key).map_or("?", String::as_str);
    let model = match get("model.path") {
        "" | "?" => format!(
            "a new {} of {} layers of width {}",
            get("model.architecture"),
            get("model.num_layers"),
            get("model.hidden_size")
        ),
        path => path.to_owned(),
    };
    let made = run
        .series("prime", "seconds/step")
        .len()
        .max(run.series("outcome_only", "seconds/step").len());
    let state =
        match run.sessions.last().and_then(|session| session.get("end")).and_then(Value::as_str) {
            Some("complete") => "complete".to_owned(),
            Some(end) => end.to_owned(),
            None if !run.result.is_empty() => "complete".to_owned(),
            None => "under way, or ended without a word".to_owned(),
        };
    let one = format!(
        "Task {}, {model}, on {}; {made} of {} steps, {state}.",
        get("task.name"),
        get("device"),
        get("train.steps")
    );
    match runs.len() {
        1 => one,
        n => format!("{n} runs of {} settings. The first, {}: {one}", settings.len(), run.name),
    }
}

#[cfg(test)]
mod tests {
    use super::phases::{filter, time};
    use super::*;
    use serde_json::{Map, json};

    fn run(folder: &Path, name: &str, settings: &str, lines: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("config.toml"), settings).unwrap();
        std::fs::write(path.join("metrics.jsonl"), lines).unwrap();
        path
    }

    fn line(stage: &str, step: u64, value: f64) -> String {
        json!({"stage": stage, "step": step, "reward/accuracy": value, "filter/kept": 3, "filter/too_easy": 1, "seconds/rollout": 1.0, "seconds/policy": 2.0, "seconds/step": 4.0})
            .to_string()
            + "\n"
    }

    #[test]
    fn seeds_are_one_setting_and_settings_are_named_by_what_tells_them_apart() {
        let folder = tempfile::tempdir().unwrap();
        let paths = [
            run(
                folder.path(),
                "a",
                "seed = 1\n[prm]\nbeta = 0.5\n[train]\nkeep = 1\n",
                &line("prime", 1, 0.25),
            ),
            run(
                folder.path(),
                "b",
                "seed = 2\n[prm]\nbeta = 0.5\n[train]\nkeep = 2\n",
                &line("prime", 1, 0.75),
            ),
            run(
                folder.path(),
                "c",
                "seed = 1\n[prm]\nbeta = 0.05\n",
                &line("outcome_only", 1, 0.5),
            ),
        ];
        let runs: Vec<Run> = paths.iter().map(|path| Run::read(path).unwrap()).collect();
        let found = settings(&runs);
        let labels: Vec<(&str, usize)> =
            found.iter().map(|setting| (setting.label.as_str(), setting.runs.len())).collect();
        assert_eq!(labels, [("beta=0.5", 2), ("beta=0.05", 1)]);
        let text = html(&paths).unwrap();
        for part in ["3 runs", "mean and range of 2 seeds", "beta=0.05, outcome-only"] {
            assert!(text.contains(part), "{part}");
        }
        // The mean of the two seeds with their range.
        assert!(
            text.contains("\"y\":[0.5]")
                && text.contains("\"low\":[0.25]")
                && text.contains("\"high\":[0.75]")
        );
    }

    #[test]
    fn phases_and_what_they_leave_make_the_whole_step() {
        let folder = tempfile::tempdir().unwrap();
        let path = run(
            folder.path(),
            "a",
            "seed = 1\n",
            &(line("prime", 1, 0.5) + &line("prime", 2, 0.5)),
        );
        let runs = [Run::read(&path).unwrap()];
        let blocks = time(&settings(&runs));
        let Some(Block::Stack(stack)) = blocks.first() else { panic!("a stack") };
        let parts: Vec<(&str, f64)> =
            stack.parts.iter().map(|(label, _, y)| (label.as_str(), y[1])).collect();
        assert_eq!(parts, [("rollout", 1.0), ("policy", 2.0), ("other", 1.0)]);
        let Some(Block::Stack(stack)) = filter(&settings(&runs)).pop() else { panic!("a stack") };
        assert_eq!(
            (stack.parts[0].2.as_slice(), stack.parts[1].2.as_slice()),
            (&[3.0, 3.0][..], &[1.0, 1.0][..])
        );
    }

    #[test]
    fn a_long_run_stays_small_and_says_what_was_thinned() {
        let folder = tempfile::tempdir().unwrap();
        let mut lines = String::new();
        for step in 1..=20_000_u64 {
            let mut line = Map::new();
            line.insert("stage".into(), "prime".into());
            line.insert("step".into(), step.into());
            for metric in 0..12 {
                line.insert(
                    format!("kind/metric_{metric}"),
                    ((step * 7919 % 10_007) as f64 / 3.0 + metric as f64).into(),
                );
            }
            lines += &(Value::Object(line).to_string() + "\n");
        }
        let path = run(folder.path(), "long", "seed = 1\n", &lines);
        let text = html(std::slice::from_ref(&path)).unwrap();
        assert!(text.len() < 2_500_000, "{}", text.len());
        assert!(text.contains("up to 20000 steps are drawn as 800 places"));
        assert_eq!(text, html(&[path]).unwrap(), "the same file for the same run");
    }
}
