//! The final evaluation of runs: a table, bars, and means over seeds.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::data::Run;
use super::super::encode::shown;
use super::super::page::{Bars, Block, Table};
use super::super::{order, stage_name};
use super::Setting;

/// The final table, and the mean scores as bars.
pub(super) fn evaluation(runs: &[Run], settings: &[Setting<'_>]) -> Vec<Block> {
    let number = |row: &Map<String, Value>, key: &str| {
        row.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN)
    };
    let percent = |value: f64| {
        if value.is_finite() { format!("{:.1} %", 100.0 * value) } else { "–".to_owned() }
    };
    let several = runs.len() > 1;
    let mut head = vec![
        "model",
        "steps",
        "rollouts",
        "mean score",
        "95 % interval",
        "over the start",
        "greedy",
        "tokens",
    ];
    if several {
        head.insert(0, "run");
    }
    let mut table = Table::new(head, 1 + usize::from(several));
    let mut bars = Bars {
        title: "Held-out mean score with 95 % intervals".into(),
        unit: "share right".into(),
        rows: vec![],
    };
    for run in runs {
        let start = run.result.first().map_or(f64::NAN, |row| number(row, "mean_score"));
        for (i, row) in run.result.iter().enumerate() {
            let stage = row.get("stage").and_then(Value::as_str).unwrap_or("?");
            let score = number(row, "mean_score");
            let (low, high) = (number(row, "low"), number(row, "high"));
            let gain = if i == 0 {
                String::new()
            } else {
                format!("{:+.1}", 100.0 * (score - start)).replace('-', "−")
            };
            let mut cells = vec![
                stage_name(stage).to_owned(),
                shown(number(row, "step")),
                shown(number(row, "samples")),
                percent(score),
                format!("{} to {}", percent(low), percent(high)),
                gain,
                percent(number(row, "greedy")),
                shown((10.0 * number(row, "length")).round() / 10.0),
            ];
            let name = if several { format!("{}: ", run.name) } else { String::new() };
            if several {
                cells.insert(0, run.name.clone());
            }
            table.row(cells);
            let steps = number(row, "step");
            let after = if steps > 0.0 { format!(" after {steps} steps") } else { String::new() };
            bars.rows.push((
                format!("{name}{}{after}", stage_name(stage)),
                score,
                Some((low, high)),
            ));
        }
    }
    if table.is_empty() {
        return vec![Block::Text("The run has no final table yet: it is written when the run is complete. Evaluations made so far are among the curves.".into())];
    }
    let mut blocks = Vec::new();
    if let Some(table) = over_seeds(settings) {
        blocks.extend([
            Block::Heading("Over seeds".into()),
            Block::Table(table),
            Block::Heading("By run".into()),
        ]);
    }
    bars.rows.truncate(60);
    blocks.extend([Block::Table(table), Block::Bars(bars)]);
    let raw: Vec<Value> =
        runs.iter().map(|run| json!({"run": run.name, "entries": run.result})).collect();
    blocks.push(Block::Json("The same as JSON".into(), Value::Array(raw)));
    blocks
}

/// Means of the final scores over seeds, where there are several.
fn over_seeds(settings: &[Setting<'_>]) -> Option<Table> {
    let mut table =
        Table::new(["setting", "model", "steps", "seeds", "mean score", "least to greatest"], 2);
    for setting in settings.iter().filter(|setting| setting.runs.len() > 1) {
        let mut scores: BTreeMap<(usize, String, u64), Vec<f64>> = BTreeMap::new();
        for row in setting.runs.iter().flat_map(|run| &run.result) {
            let stage = row.get("stage").and_then(Value::as_str).unwrap_or("?");
            let step = row.get("step").and_then(Value::as_u64).unwrap_or(0);
            let score = row.get("mean_score").and_then(Value::as_f64);
            scores.entry((order(stage), stage.to_owned(), step)).or_default().extend(score);
        }
        for ((_, stage, step), scores) in scores {
            let mean = scores.iter().sum::<f64>() / scores.len() as f64;
            let ends = scores.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| {
                (low.min(x), high.max(x))
            });
            table.row([
                setting.label.clone(),
                stage_name(&stage).to_owned(),
                step.to_string(),
                scores.len().to_string(),
                format!("{:.1} %", 100.0 * mean),
                format!("{:.1} % to {:.1} %", 100.0 * ends.0, 100.0 * ends.1),
            ]);
        }
    }
    (!table.is_empty()).then_some(table)
}
