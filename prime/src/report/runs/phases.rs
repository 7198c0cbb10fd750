//! Where a step's time went, and what the filter did with prompts: parts of a whole over steps.

use std::collections::{BTreeMap, BTreeSet};

use super::super::page::{Block, Stack, Table};
use super::{Setting, label};

const STAGES: [&str; 4] = ["prm_warmup", "critic_warmup", "prime", "outcome_only"];
const PHASES: [&str; 6] = ["rollout", "grade", "reference", "prm", "policy", "critic"];
const FILTER: [&str; 5] = ["kept", "too_easy", "too_hard", "truncated", "too_long"];

/// Parts of a whole by step: the mean over seeds, in at most `most` places.
fn stacked(
    setting: &Setting<'_>,
    stage: &str,
    parts: &[String],
    most: usize,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let mut steps: BTreeMap<u64, (f64, Vec<f64>)> = BTreeMap::new();
    for run in &setting.runs {
        let mut seen = BTreeSet::new();
        for (i, part) in parts.iter().enumerate() {
            for &(step, value) in
                run.series(stage, part).iter().filter(|(_, value)| value.is_finite())
            {
                let (count, sums) = steps.entry(step).or_insert((0.0, vec![0.0; parts.len()]));
                sums[i] += value;
                *count += f64::from(u8::from(seen.insert(step)));
            }
        }
    }
    let all: Vec<(u64, (f64, Vec<f64>))> = steps.into_iter().collect();
    let places = all.len().min(most);
    let (mut x, mut values) = (Vec::new(), vec![Vec::new(); parts.len()]);
    for place in 0..places {
        let part = &all[place * all.len() / places..(place + 1) * all.len() / places];
        x.push(part[part.len() / 2].0 as f64);
        for (i, values) in values.iter_mut().enumerate() {
            values.push(
                part.iter().map(|(_, (count, sums))| sums[i] / count).sum::<f64>()
                    / part.len() as f64,
            );
        }
    }
    (x, values)
}

/// A phase's place, and its colour, in every picture.
fn phase(name: &str) -> usize {
    PHASES.iter().position(|&known| known == name).unwrap_or(PHASES.len())
}

/// Seconds to the tenth of a millisecond.
fn seconds(value: f64) -> String {
    format!("{value:.4}")
}

/// Where a step's time went.
pub(super) fn time(settings: &[Setting<'_>]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut table = Table::new(["stage", "phase", "seconds a step", "share"], 2);
    for setting in settings.iter().take(8) {
        for stage in STAGES {
            let mut parts: Vec<String> = setting
                .runs
                .iter()
                .filter_map(|run| run.metrics.get(stage))
                .flat_map(BTreeMap::keys)
                .filter(|name| name.starts_with("seconds/") && *name != "seconds/step")
                .cloned()
                .collect();
            parts.sort();
            parts.dedup();
            parts.sort_by_key(|part| phase(&part["seconds/".len()..]));
            if parts.is_empty() {
                continue;
            }
            let named = parts.len();
            let (x, mut values) = stacked(
                setting,
                stage,
                &[parts.clone(), vec!["seconds/step".to_owned()]].concat(),
                300,
            );
            // What the phases leave of the whole.
            let whole = values.pop().unwrap_or_default();
            let rest = whole.iter().enumerate().map(|(i, whole)| {
                (whole - values.iter().map(|part| part[i]).sum::<f64>()).max(0.0)
            });
            let rest: Vec<f64> = rest.collect();
            values.push(rest);
            let labels: Vec<String> = parts[..named]
                .iter()
                .map(|part| part["seconds/".len()..].to_owned())
                .chain(["other".to_owned()])
                .collect();
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
            let name = label(settings, setting, stage);
            for (label, values) in labels.iter().zip(&values) {
                table.row([
                    name.clone(),
                    label.clone(),
                    seconds(mean(values)),
                    format!("{:.1} %", 100.0 * mean(values) / mean(&whole).max(1e-12)),
                ]);
            }
            table.row([
                name.clone(),
                "whole step".to_owned(),
                seconds(mean(&whole)),
                String::new(),
            ]);
            if !stage.ends_with("warmup") {
                blocks.push(Block::Stack(Stack {
                    title: name,
                    unit: "seconds a step".into(),
                    x,
                    parts: labels
                        .into_iter()
                        .zip(values)
                        .map(|(label, values)| (label.clone(), phase(&label), values))
                        .collect(),
                }));
            }
        }
    }
    if !table.is_empty() {
        blocks.push(Block::Table(table));
    }
    blocks
}

/// What became of the prompts that were drawn.
pub(super) fn filter(settings: &[Setting<'_>]) -> Vec<Block> {
    let mut blocks = Vec::new();
    let parts: Vec<String> = FILTER.iter().map(|name| format!("filter/{name}")).collect();
    let labels = ["kept", "too easy", "too hard", "cut off", "too long"];
    let mut table =
        Table::new(["stage", "drawn", "kept", "too easy", "too hard", "cut off", "too long"], 1);
    for setting in settings.iter().take(8) {
        for stage in STAGES {
            let (x, values) = stacked(setting, stage, &parts, 300);
            let sums: Vec<f64> = parts
                .iter()
                .map(|part| {
                    setting
                        .series(stage, part)
                        .iter()
                        .flat_map(|seed| seed.iter())
                        .map(|&(_, value)| value)
                        .filter(|value| value.is_finite())
                        .sum()
                })
                .collect();
            let all: f64 = sums.iter().sum();
            if x.is_empty() || all == 0.0 {
                continue;
            }
            let name = label(settings, setting, stage);
            let share = |sum: &f64| format!("{} ({:.0} %)", sum, 100.0 * sum / all);
            table.row(
                [vec![name.clone(), all.to_string()], sums.iter().map(share).collect()].concat(),
            );
            if !stage.ends_with("warmup") {
                let parts = labels.iter().enumerate().zip(values);
                let parts =
                    parts.map(|((i, label), values)| (label.to_string(), i, values)).collect();
                blocks.push(Block::Stack(Stack {
                    title: name,
                    unit: "prompts a step".into(),
                    x,
                    parts,
                }));
            }
        }
    }
    if !table.is_empty() {
        blocks.insert(0, Block::Note("The filter keeps prompts whose answers teach something: not all right, not all wrong, as far as its bounds say. Sums are over all steps and seeds.".into()));
        blocks.insert(1, Block::Table(table));
    }
    blocks
}
