//! The table: means over seeds with 95 % intervals, as JSON and as Markdown.

use std::fmt::Write;

use anyhow::Result;
use prime::study::statistics::OverRuns;
use serde_json::{Value, json};

use crate::runs::{Plan, Reached, Run};
use crate::tables::Variant;

/// A mean over seeds and half the width of its 95 % interval (Student's t); none of one seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub mean: f64,
    pub half: Option<f64>,
}

impl Estimate {
    /// Of one number a seed.
    pub fn of(numbers: &[f64]) -> Estimate {
        let over = OverRuns::of(numbers);
        let mean = over.map_or(f64::NAN, |over| over.mean);
        let half = over.and_then(|over| Some(over.high? - over.mean));
        Estimate { mean, half }
    }

    fn json(self) -> Value {
        json!({ "mean": self.mean, "half_width_95": self.half })
    }

    /// In percent; `signed` for differences.
    fn percent(self, signed: bool) -> String {
        let mean = 100.0 * self.mean;
        let mean = if signed { format!("{mean:+.1}") } else { format!("{mean:.1}") };
        self.half.map_or(mean.clone(), |half| format!("{mean} ± {:.1}", 100.0 * half))
    }
}

/// What all seeds of a row in a variant reached, in the order of the seeds.
struct Cell<'a> {
    runs: Vec<&'a Run>,
    starts: Vec<f64>,
    reached: Vec<Reached>,
}

impl Cell<'_> {
    fn over_seeds(&self, number: impl Fn(&Reached) -> f64) -> Vec<f64> {
        self.reached.iter().map(number).collect()
    }

    fn json(&self, seeds: &[u64]) -> Value {
        let score = self.over_seeds(|reached| reached.score);
        let gain: Vec<f64> = score.iter().zip(&self.starts).map(|(a, b)| a - b).collect();
        let seeds = seeds.iter().zip(&self.reached).zip(&self.starts);
        json!({
            "row": self.runs[0].row.name,
            "variant": self.runs[0].variant.name(),
            "settings": self.runs[0].settings().iter().filter(|text| !text.starts_with("model.path")).collect::<Vec<_>>(),
            "score": Estimate::of(&score).json(),
            "gain_over_start": Estimate::of(&gain).json(),
            "seeds": seeds.map(|((seed, reached), start)| json!({
                "seed": seed,
                "start": start,
                "score": reached.score,
                "score_at_equal_steps": reached.at_equal_steps,
                "greedy": reached.greedy,
                "length": reached.length,
                "steps": reached.steps,
                "samples": reached.samples,
                "seconds": reached.seconds,
            })).collect::<Vec<_>>(),
        })
    }
}

/// The comparison's JSON, whose field `markdown` is the table.
pub fn report(plan: &Plan, runs: &[Run], about: Value) -> Result<Value> {
    let mut cells: Vec<Cell<'_>> = Vec::new();
    for row in plan.table.rows {
        for &variant in plan.table.variants {
            let mut cell = Cell { runs: Vec::new(), starts: Vec::new(), reached: Vec::new() };
            for &seed in &plan.seeds {
                let is_it = |run: &&Run| {
                    run.row.name == row.name && run.variant == variant && run.seed == seed
                };
                let Some(run) = runs.iter().find(is_it) else { continue };
                let (start, reached) = run.reached(plan.steps)?;
                cell.runs.push(run);
                cell.starts.push(start);
                cell.reached.push(reached);
            }
            if !cell.runs.is_empty() {
                cells.push(cell);
            }
        }
    }
    let mut text = String::new();
    let starts = Estimate::of(&cells[0].starts);
    writeln!(
        text,
        "Held-out pass@1 in percent, mean ± half of the 95 % interval over {} seeds. ",
        plan.seeds.len()
    )?;
    writeln!(text, "Start of all: {}. Differences are paired by seed.\n", starts.percent(false))?;
    let differences = if plan.table.variants.len() > 1 {
        pairs(plan, &cells, &mut text)?
    } else {
        list(plan, &cells, &mut text)?
    };
    let mut all = json!({
        "table": plan.table.name,
        "seeds": plan.seeds,
        "steps": plan.steps,
        "warmup_batches": plan.warmup,
        "start": starts.json(),
        "rows": cells.iter().map(|cell| cell.json(&plan.seeds)).collect::<Vec<_>>(),
        "differences": differences,
        "markdown": text,
    });
    if let (Some(all), Value::Object(about)) = (all.as_object_mut(), about) {
        all.extend(about);
    }
    Ok(all)
}

/// A line a row: with process rewards, and the same without them at equal steps and at equal rollouts.
fn pairs(plan: &Plan, cells: &[Cell<'_>], text: &mut String) -> Result<Vec<Value>> {
    writeln!(
        text,
        "| {} | with process rewards | outcomes alone, equal rollouts | difference | outcomes alone, equal steps | difference |",
        plan.table.what
    )?;
    writeln!(text, "|---|---|---|---|---|---|")?;
    let mut differences = Vec::new();
    for row in plan.table.rows {
        let of = |variant: Variant| {
            cells.iter().find(|c| c.runs[0].row.name == row.name && c.runs[0].variant == variant)
        };
        let Some(process) = of(Variant::Process) else { continue };
        let ours = process.over_seeds(|reached| reached.score);
        let ours_text = Estimate::of(&ours).percent(false);
        let Some(outcome) = of(Variant::OutcomeOnly) else {
            writeln!(text, "| {} | {ours_text} | | | | |", row.name)?;
            continue;
        };
        let rollouts = outcome.over_seeds(|reached| reached.score);
        let steps = outcome.over_seeds(|reached| reached.at_equal_steps);
        let minus = |theirs: &[f64]| {
            Estimate::of(&ours.iter().zip(theirs).map(|(a, b)| a - b).collect::<Vec<_>>())
        };
        let (by_rollouts, by_steps) = (minus(&rollouts), minus(&steps));
        writeln!(
            text,
            "| {} | {ours_text} | {} | {} | {} | {} |",
            row.name,
            Estimate::of(&rollouts).percent(false),
            by_rollouts.percent(true),
            Estimate::of(&steps).percent(false),
            by_steps.percent(true),
        )?;
        differences.push(json!({
            "row": row.name,
            "process_minus_outcomes_at_equal_rollouts": by_rollouts.json(),
            "process_minus_outcomes_at_equal_steps": by_steps.json(),
        }));
    }
    Ok(differences)
}

/// A line a row, each beside the first.
fn list(plan: &Plan, cells: &[Cell<'_>], text: &mut String) -> Result<Vec<Value>> {
    let first = cells[0].over_seeds(|reached| reached.score);
    let first_name = cells[0].runs[0].row.name;
    writeln!(text, "| {} | pass@1 | over {first_name} | greedy | tokens |", plan.table.what)?;
    writeln!(text, "|---|---|---|---|---|")?;
    let mut differences = Vec::new();
    for (i, cell) in cells.iter().enumerate() {
        let ours = cell.over_seeds(|reached| reached.score);
        let over = Estimate::of(&ours.iter().zip(&first).map(|(a, b)| a - b).collect::<Vec<_>>());
        let name = cell.runs[0].row.name;
        writeln!(
            text,
            "| {name} | {} | {} | {} | {:.1} |",
            Estimate::of(&ours).percent(false),
            if i == 0 { String::new() } else { over.percent(true) },
            Estimate::of(&cell.over_seeds(|reached| reached.greedy)).percent(false),
            Estimate::of(&cell.over_seeds(|reached| reached.length)).mean,
        )?;
        if i > 0 {
            differences.push(json!({ "row": name, "over": first_name, "score": over.json() }));
        }
    }
    Ok(differences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_student_s_and_there_is_none_of_one_seed() {
        assert_eq!(Estimate::of(&[0.5]), Estimate { mean: 0.5, half: None });
        // Deviation 1 of 3 numbers: 4.303 / sqrt(3).
        let of_three = Estimate::of(&[1.0, 2.0, 3.0]);
        assert_eq!(of_three.mean, 2.0);
        assert!((of_three.half.unwrap() - 4.303 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(Estimate { mean: 0.1, half: Some(0.01) }.percent(true), "+10.0 ± 1.0");
    }

    #[test]
    fn every_table_has_rows_of_different_names_and_a_first_variant_that_none_lacks() {
        for table in &crate::tables::TABLES {
            let mut names: Vec<_> = table.rows.iter().map(|row| row.name).collect();
            assert!(table.rows.iter().all(|row| !row.without.contains(&table.variants[0])));
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), table.rows.len(), "{}", table.name);
        }
    }
}
