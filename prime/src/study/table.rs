//! Tables of results, as Markdown and for reports.

use serde_json::Value;

use super::statistics::OverRuns;

/// A table with its caption.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What it shows, and how to read it.
    pub caption: String,
    /// The columns' names.
    pub header: Vec<String>,
    /// The cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(caption: impl Into<String>, header: &[&str]) -> Table {
        let header = header.iter().map(|name| name.to_string()).collect();
        Table { caption: caption.into(), header, rows: Vec::new() }
    }

    /// As Markdown, the caption above it.
    pub fn to_markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let mut text = format!("{}\n\n{}", self.caption, line(&self.header));
        text += &format!("|{}\n", "---|".repeat(self.header.len()));
        for row in &self.rows {
            text += &line(row);
        }
        text
    }
}

/// A number over seeds as people read it: mean and half the width of its 95 % interval.
pub fn shown(value: Option<OverRuns>, scale: f64, digits: usize) -> String {
    let Some(value) = value else { return "-".to_string() };
    let mean = value.mean * scale;
    match value.high {
        Some(high) => {
            format!("{mean:+.digits$} ± {:.digits$}", (high - value.mean) * scale)
        }
        None => format!("{mean:+.digits$}"),
    }
}

/// As [`shown`], without a sign before positive numbers: for shares.
pub fn share(value: Option<OverRuns>, scale: f64, digits: usize) -> String {
    shown(value, scale, digits).trim_start_matches('+').to_string()
}

/// A value inside JSON by its keys and places.
pub fn at<'a>(value: &'a Value, pointer: &str) -> Option<&'a Value> {
    value.pointer(pointer).filter(|value| !value.is_null())
}

/// The number that a pointer leads to in each seed's result, over the seeds that have it.
pub fn over_seeds(seeds: &[Value], pointer: &str) -> Option<OverRuns> {
    let values: Vec<f64> = seeds.iter().filter_map(|seed| at(seed, pointer)?.as_f64()).collect();
    OverRuns::of(&values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_is_markdown_with_its_caption() {
        let mut table = Table::new("What it is.", &["a", "b"]);
        table.rows.push(vec!["1".into(), "2".into()]);
        assert_eq!(table.to_markdown(), "What it is.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n");
    }

    #[test]
    fn numbers_over_seeds_leave_out_seeds_that_have_none() {
        let seeds = [json!({"x": {"y": [1.0]}}), json!({"x": {"y": [3.0]}}), json!({"x": null})];
        let found = over_seeds(&seeds, "/x/y/0").unwrap();
        assert_eq!((found.mean, found.runs), (2.0, 2));
        assert_eq!(shown(OverRuns::of(&[0.5]), 100.0, 1), "+50.0");
        // Two runs 1 and 3: standard error 1, t of one degree of freedom 12.706.
        assert_eq!(share(Some(found), 1.0, 1), "2.0 ± 12.7");
        assert_eq!(shown(None, 1.0, 1), "-");
    }
}
