//! What a run was made with: its settings, its machine, its program.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::data::{Run, defaults};
use super::super::page::{Block, Table};
use super::Setting;
use crate::run::session::date;

/// The settings as resolved, those that differ from the defaults first.
pub(super) fn configuration(settings: &[Setting<'_>]) -> Vec<Block> {
    let defaults = defaults();
    let keys: BTreeSet<&String> =
        settings.iter().flat_map(|setting| setting.runs[0].settings.keys()).collect();
    let head = |first: &str| {
        let columns: Vec<String> = match settings {
            [_] => vec!["value".to_owned()],
            _ => settings.iter().map(|setting| setting.label.clone()).collect(),
        };
        [vec![first.to_owned()], columns, vec!["default".to_owned()]].concat()
    };
    let (mut changed, mut all) =
        (Table::new(head("setting"), usize::MAX), Table::new(head("setting"), usize::MAX));
    let mut same = 0;
    for key in keys {
        let quoted = |text: &str| if text.is_empty() { "\"\"".to_owned() } else { text.to_owned() };
        let values: Vec<String> = settings
            .iter()
            .map(|setting| {
                let mut values: Vec<String> = setting
                    .runs
                    .iter()
                    .filter_map(|run| run.settings.get(key))
                    .map(|value| quoted(value))
                    .collect();
                values.dedup();
                values.join(", ")
            })
            .collect();
        let default = defaults.get(key).map(|text| quoted(text));
        let differs = values.iter().any(|value| Some(value) != default.as_ref());
        let default = default.unwrap_or_else(|| "not known to this version".to_owned());
        let row = [vec![key.clone()], values, vec![default]].concat();
        if differs {
            changed.row(row.clone());
            all.marked_row(row);
        } else {
            same += 1;
            all.row(row);
        }
    }
    let blocks = if changed.is_empty() {
        vec![Block::Text("Every setting has its default.".into())]
    } else {
        vec![Block::Note("What differs from the defaults:".into()), Block::Table(changed)]
    };
    let folded =
        format!("All settings, as resolved ({same} have their default; ● marks the others)");
    blocks.into_iter().chain([Block::Folded(folded, all)]).collect()
}

/// Where, when and with which program.
pub(super) fn machine(runs: &[Run]) -> Vec<Block> {
    let mut table =
        Table::new(["run", "begun", "took", "ended", "program", "machine", "device"], usize::MAX);
    for run in runs {
        for session in &run.sessions {
            let text = |key: &str| session.get(key).and_then(Value::as_str).unwrap_or_default();
            let whole = |key: &str| session.get(key).and_then(Value::as_u64);
            let took = match (whole("started"), whole("ended")) {
                (Some(from), Some(to)) => duration(to.saturating_sub(from)),
                _ => "–".to_owned(),
            };
            let commit = match text("commit") {
                "" => String::new(),
                commit => format!(", commit {}", commit.get(..12).unwrap_or(commit)),
            };
            let memory = whole("memory_bytes").map_or(String::new(), |bytes| {
                format!(", {:.1} GiB", bytes as f64 / f64::from(1 << 30))
            });
            table.row([
                run.name.clone(),
                whole("started").map_or("–".to_owned(), date),
                took,
                if text("end").is_empty() {
                    "not known".to_owned()
                } else {
                    text("end").to_owned()
                },
                format!("prime {}{commit}", text("version")),
                format!(
                    "{}, {} of {} cores, {}{memory}, {}",
                    text("processor"),
                    whole("threads").unwrap_or_default(),
                    whole("cores").unwrap_or_default(),
                    text("instructions"),
                    text("system")
                ),
                match text("device_name") {
                    "" => text("device").to_owned(),
                    name => format!("{}: {name}", text("device")),
                },
            ]);
        }
    }
    if table.is_empty() {
        return vec![Block::Text("Not recorded (the run has no run.json).".into())];
    }
    vec![Block::Table(table)]
}

/// A time span for people.
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}
