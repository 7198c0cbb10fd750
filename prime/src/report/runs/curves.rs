//! Curves of every metric: one chart a metric, seeds of a setting as a band, PRIME and outcome-only RL over each other.

use std::collections::{BTreeMap, BTreeSet};

use super::super::curves::{Points, join};
use super::super::data::{Run, Series};
use super::super::page::{Block, Plots};
use super::super::{order, stage_name};
use super::{Setting, label};

/// More places than a curve can show.
const MOST_PLACES: usize = 800;
/// Metrics that stand before all others, in this order.
const FIRST: [&str; 8] = [
    "held-out mean score",
    "reward/accuracy",
    "response/length",
    "policy/entropy",
    "prm/pairwise_accuracy",
    "process_reward/std",
    "policy/kl",
    "seconds/step",
];

/// A curve before it is drawn: chart, and series by the number of their name.
type Chart = (String, Vec<(usize, Points)>);

/// Line plots of every metric, with what was left out of them.
pub(super) fn curves(settings: &[Setting<'_>], bytes: usize) -> (Vec<Block>, Vec<String>) {
    let stages = |settings: &[Setting<'_>]| -> Vec<String> {
        let all: BTreeSet<&String> = settings
            .iter()
            .flat_map(|setting| &setting.runs)
            .flat_map(|run| run.metrics.keys())
            .collect();
        let mut all: Vec<String> =
            all.into_iter().filter(|stage| *stage != "eval").cloned().collect();
        all.sort_by_key(|stage| order(stage));
        all
    };
    let stages = stages(settings);
    let series: usize = settings
        .iter()
        .flat_map(|setting| &setting.runs)
        .flat_map(|run| run.metrics.values())
        .map(BTreeMap::len)
        .sum();
    // A place of a curve takes up to three numbers of some eight bytes.
    let places = (bytes / (24 * series.max(1))).clamp(20, MOST_PLACES);
    let mut longest = 0;
    let mut blocks = Vec::new();
    // The two ways of RL are drawn over each other; every other stage counts steps of its own.
    let rl: Vec<&str> = stages
        .iter()
        .map(String::as_str)
        .filter(|stage| matches!(*stage, "prime" | "outcome_only"))
        .collect();
    let others = stages.iter().map(String::as_str).filter(|stage| !rl.contains(stage));
    let sets: Vec<Vec<&str>> = [rl.clone()]
        .into_iter()
        .filter(|set| !set.is_empty())
        .chain(others.map(|stage| vec![stage]))
        .collect();
    for set in sets {
        let is_rl = set == rl;
        let mut plots = Plots::new(if is_rl { 0.6 } else { 0.0 });
        let mut charts: Vec<Chart> = Vec::new();
        for setting in settings {
            for &stage in &set {
                let metrics: Vec<&str> = {
                    let mut seen = BTreeSet::new();
                    setting
                        .runs
                        .iter()
                        .filter_map(|run| run.metrics.get(stage))
                        .flat_map(BTreeMap::keys)
                        .map(String::as_str)
                        .filter(|&name| seen.insert(name))
                        .collect()
                };
                if metrics.is_empty() {
                    continue;
                }
                let name = plots.name(label(settings, setting, stage), setting.note());
                let mut add = |title: &str, points: Points| match charts
                    .iter_mut()
                    .find(|(known, _)| known == title)
                {
                    Some((_, series)) => series.push((name, points)),
                    None => charts.push((title.to_owned(), vec![(name, points)])),
                };
                for metric in metrics {
                    let seeds = setting.series(stage, metric);
                    longest = longest.max(seeds.iter().map(|seed| seed.len()).max().unwrap_or(0));
                    add(metric, join(seeds, places));
                }
                for (title, points) in evaluations(setting, stage, is_rl, places) {
                    add(&title, points);
                }
            }
        }
        // The first ones, then by kind.
        let place =
            |title: &str| FIRST.iter().position(|&first| first == title).unwrap_or(FIRST.len());
        let kind = |title: &str| title.split_once('/').map_or("other", |(kind, _)| kind).to_owned();
        charts.sort_by_key(|(title, _)| (place(title), kind(title)));
        for (title, series) in &charts {
            let group =
                if !is_rl || place(title) < FIRST.len() { String::new() } else { kind(title) };
            let series: Vec<(usize, &Points)> =
                series.iter().map(|(name, points)| (*name, points)).collect();
            plots.chart(title, group, &series);
        }
        if !plots.is_empty() {
            if !is_rl {
                blocks.push(Block::Heading(stage_name(set[0]).to_owned()));
            }
            blocks.push(Block::Plots(plots));
        }
    }
    let mut left_out = Vec::new();
    if longest > places {
        left_out.push(format!(
            "Curves: up to {longest} steps are drawn as {places} places, each with the mean, the least and the greatest value of its steps."
        ));
    }
    (blocks, left_out)
}

/// What evaluations measured of a stage, with `from_start` from the model that RL started from. One run's mean score has its interval as its band.
fn evaluations(
    setting: &Setting<'_>,
    stage: &str,
    from_start: bool,
    places: usize,
) -> Vec<(String, Points)> {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for run in &setting.runs {
        let of_stage = run.metrics.get("eval").into_iter().flat_map(BTreeMap::keys);
        names.extend(of_stage.filter_map(|name| name.strip_prefix(stage)?.strip_prefix('/')));
    }
    let with_start = |name: &str| -> Vec<Series> {
        let of_run = |run: &&Run| {
            let start = if from_start { run.series("eval", &format!("start/{name}")) } else { &[] };
            [start, run.series("eval", &format!("{stage}/{name}"))].concat()
        };
        setting.runs.iter().map(of_run).collect()
    };
    let curve = |name: &str| join(with_start(name).iter().map(Vec::as_slice), places);
    let mut out = Vec::new();
    for name in names
        .iter()
        .copied()
        .filter(|name| !name.ends_with("_low") && !name.ends_with("_high") && *name != "samples")
    {
        let mut points = curve(name);
        let bounds = [format!("{name}_low"), format!("{name}_high")];
        if setting.runs.len() == 1 && bounds.iter().all(|bound| names.contains(bound.as_str())) {
            let [low, high] = bounds.map(|bound| curve(&bound));
            if low.x == points.x && high.x == points.x {
                points.band = Some((low.mean, high.mean));
            }
        }
        let title = match name {
            "mean_score" => "held-out mean score".to_owned(),
            name => format!("held-out/{name}"),
        };
        out.push((title, points));
    }
    out
}
