//! The short of it: how far each operation is from what the device can do, and from the fastest other that did the same work.

use std::collections::{BTreeMap, BTreeSet};

use super::results::{Case, Contestant, Machine, Results};
use super::statistics::{Spread, quantile, spread};
use super::text;
use crate::report::page::{Block, Table};

/// So many of those that are behind the fastest other are listed.
const MOST_BEHIND: usize = 12;

/// One of our figures.
struct Figure<'a> {
    case: &'a Case,
    contestant: &'a Contestant,
    /// The least time by the ceilings, in parts of its time.
    of_roof: Option<f64>,
    /// The fastest other, and how many times as fast as it ours is.
    beside: Option<(&'a str, Spread)>,
}

impl Figure<'_> {
    fn ratio(&self) -> Option<f64> {
        self.beside.map(|(_, lead)| lead.median)
    }

    /// Whether the other was faster in four of five rounds.
    fn is_behind(&self) -> bool {
        self.beside.is_some_and(|(_, lead)| lead.high < 1.0)
    }
}

fn figures<'a>(results: &'a Results, machine: &Machine) -> Vec<Figure<'a>> {
    let of_device = results.cases.iter().filter(|case| case.device == machine.device);
    of_device
        .flat_map(|case| {
            let ours = case.contestants.iter().filter(|who| who.ours && !who.seconds.is_empty());
            ours.map(move |contestant| Figure {
                case,
                contestant,
                of_roof: case.attained(&results.machines, contestant).map(|found| found.fraction),
                beside: case
                    .baseline()
                    .and_then(|other| Some((other.name.as_str(), case.lead(contestant)?))),
            })
        })
        .collect()
}

/// What a page says first of results.
pub(super) fn blocks(results: &Results) -> Vec<Block> {
    let mut blocks = Vec::new();
    for machine in &results.machines {
        let figures = figures(results, machine);
        blocks.push(Block::Text(sentence(machine, &figures)));
        if !figures.is_empty() {
            blocks.push(Block::Table(by_operation(&figures)));
        }
        let behind = behind(&figures);
        if !behind.is_empty() {
            blocks.push(Block::Note(
                "Farthest behind the fastest other, in four of five rounds or more:".to_owned(),
            ));
            blocks.push(Block::Table(behind));
        }
        if figures.iter().any(|figure| figure.of_roof.is_some_and(|part| part > 1.0)) {
            blocks.push(Block::Note(
                "Above 100 % of the roof is what was found in a cache, or moved in a better moment than that in which the roof was measured.".to_owned(),
            ));
        }
    }
    blocks
}

fn sentence(machine: &Machine, figures: &[Figure]) -> String {
    let Machine { device, name, .. } = machine;
    if figures.is_empty() {
        return format!("{device}, {name}: none of ours was timed.");
    }
    let mut said = format!("{device}, {name}: {} of ours", text::count(figures.len(), "figure"));
    let parts: Vec<f64> = figures.iter().filter_map(|figure| figure.of_roof).collect();
    if let Some(middle) = quantile(&parts, 0.5) {
        said += &format!(", at {} of the roof in the median", text::percent(middle));
    }
    let ratios: Vec<f64> = figures.iter().filter_map(Figure::ratio).collect();
    match quantile(&ratios, 0.5) {
        None => said + ". Nobody else ran beside them.",
        Some(middle) => {
            let behind = figures.iter().filter(|figure| figure.is_behind()).count();
            format!(
                "{said}. {} had another beside them ({}): they are {} times as fast in the median, and {behind} of them slower.",
                ratios.len(),
                names(figures).join("; "),
                text::three(middle),
            )
        }
    }
}

fn names<'a>(figures: &[Figure<'a>]) -> Vec<&'a str> {
    let names: BTreeSet<&str> =
        figures.iter().filter_map(|figure| Some(figure.beside?.0)).collect();
    names.into_iter().collect()
}

/// A row an operation and dtype, in the order in which they were measured.
fn by_operation(figures: &[Figure]) -> Table {
    let mut order: Vec<[&str; 2]> = Vec::new();
    let mut of: BTreeMap<[&str; 2], Vec<&Figure>> = BTreeMap::new();
    for figure in figures {
        let key = [figure.case.operation.as_str(), figure.case.dtype.as_str()];
        if !of.contains_key(&key) {
            order.push(key);
        }
        of.entry(key).or_default().push(figure);
    }
    let head = [
        "operation",
        "dtype",
        "figures",
        "of the roof",
        "lowest to highest",
        "times as fast as the best other",
        "lowest to highest",
        "slower",
    ];
    let mut table = Table::new(head, 2);
    for key in order {
        let figures = &of[&key];
        let of_roof: Vec<f64> = figures.iter().filter_map(|figure| figure.of_roof).collect();
        let ratios: Vec<f64> = figures.iter().filter_map(|figure| figure.ratio()).collect();
        let behind = figures.iter().filter(|figure| figure.is_behind()).count();
        let middle = |values: &[f64], text: fn(f64) -> String| {
            quantile(values, 0.5).map_or(String::new(), text)
        };
        let range = |values: &[f64], text: fn(f64) -> String| {
            let ends = quantile(values, 0.0).zip(quantile(values, 1.0));
            let ends = ends.filter(|_| values.len() > 1);
            ends.map_or(String::new(), |(low, high)| format!("{} to {}", text(low), text(high)))
        };
        table.row([
            key[0].to_owned(),
            key[1].to_owned(),
            figures.len().to_string(),
            middle(&of_roof, text::percent),
            range(&of_roof, text::percent),
            middle(&ratios, text::three),
            range(&ratios, text::three),
            if ratios.is_empty() { String::new() } else { format!("{behind} of {}", ratios.len()) },
        ]);
    }
    table
}

/// Those that the fastest other leaves farthest behind.
fn behind(figures: &[Figure]) -> Table {
    let mut behind: Vec<(f64, &Figure)> = figures
        .iter()
        .filter(|figure| figure.is_behind())
        .filter_map(|figure| Some((figure.ratio()?, figure)))
        .collect();
    behind.sort_by(|a, b| a.0.total_cmp(&b.0));
    let head = ["operation", "case", "who", "beside", "time", "ratio", "of the roof"];
    let mut table = Table::new(head, 4);
    for (ratio, figure) in behind.into_iter().take(MOST_BEHIND) {
        let time = spread(&figure.contestant.seconds);
        table.row([
            figure.case.operation.clone(),
            figure.case.title(),
            figure.contestant.name.clone(),
            figure.beside.map_or(String::new(), |(name, _)| name.to_owned()),
            time.map_or(String::new(), |time| text::seconds(time.median)),
            text::three(ratio),
            figure.of_roof.map_or(String::new(), text::percent),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::change::tests::results;
    use super::super::results::Ceiling;
    use super::*;

    fn shown(results: &Results) -> String {
        let of = |block: Block| match block {
            Block::Text(text) | Block::Note(text) => text,
            Block::Table(table) => table.to_markdown(),
            _ => String::new(),
        };
        blocks(results).into_iter().map(of).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_distance_to_the_roof_and_to_the_best_other_is_said_first() {
        let mut results = results("m", &[2e-3; 5], &[1e-3; 5]);
        results.machines[0].ceilings =
            vec![Ceiling { what: "f32".into(), rate: 524288.0 / 0.5e-3, how: String::new() }];
        let text = shown(&results);
        assert!(
            text.starts_with(
                "cpu, m: 1 figure of ours, at 25.0 % of the roof in the median. 1 had another beside them (library): \
                 they are 0.50 times as fast in the median, and 1 of them slower."
            ),
            "{text}"
        );
        assert!(text.contains("| matmul | f32 | 1 | 25.0 % |  | 0.50 |  | 1 of 1 |"), "{text}");
        let row = "| matmul | NT 64x64x64, f32 | prime | library | 2.00 ms | 0.50 | 25.0 % |";
        assert!(text.contains(row), "{text}");
        assert!(!text.contains("Above 100 %"));
        results.machines[0].ceilings[0].rate /= 8.0;
        assert!(shown(&results).contains("Above 100 %"));
    }

    #[test]
    fn only_what_is_slower_in_most_rounds_is_called_slower() {
        let even = results("m", &[1.0, 1.1, 0.9, 1.2, 0.8], &[1.0; 5]);
        let text = shown(&even);
        assert!(text.contains("| 0 of 1 |") && !text.contains("Farthest behind"), "{text}");
        let alone = results("m", &[1.0], &[]);
        assert!(shown(&alone).contains("Nobody else ran beside them."));
        let untimed = results("m", &[], &[]);
        assert!(shown(&untimed).contains("none of ours was timed"));
    }
}
