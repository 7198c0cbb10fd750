//! Pages: what a run did, in one HTML file that opens from disk.
//!
//! [`page`] has the building blocks, for any command that makes a page; [`runs`] puts together the report of runs from what [`data`] reads
//! of their folders and what [`select`] chooses of their rollouts. The scripts of `web/` draw curves and tokens with SVG and the document;
//! they are joined into the page as they are.
//!
//! ```
//! use prime::report::curves::join;
//! use prime::report::page::{Block, Page, Plots};
//!
//! let mut plots = Plots::new(0.0);
//! let name = plots.name("PRIME", "mean and range of 2 seeds");
//! let points = join([&[(1, 0.5), (2, 0.7)][..], &[(1, 0.4)]], 500);
//! plots.chart("accuracy", "", &[(name, &points)]);
//! let mut page = Page::new("A study", "What was measured, in a sentence.");
//! page.section("Accuracy", vec![Block::Text("It rises.".into()), Block::Plots(plots)]);
//! assert!(page.to_html()?.starts_with("<!doctype html>"));
//! # anyhow::Ok(())
//! ```

pub mod curves;
pub mod data;
pub mod encode;
pub mod page;
pub mod runs;
pub mod select;
pub mod tokens;

/// The most bytes of a page.
pub const MOST_BYTES: usize = 10_000_000;

/// The name that people read for a stage.
pub fn stage_name(stage: &str) -> &str {
    match stage {
        "sft" => "SFT",
        "prm_warmup" => "PRM warm-up",
        "critic_warmup" => "critic warm-up",
        "start" => "start of RL",
        "prime" => "PRIME",
        "outcome_only" => "outcome-only",
        other => other,
    }
}

/// Stages in the order of a run; those that are not known come last.
fn order(stage: &str) -> usize {
    ["sft", "start", "prm", "prm_warmup", "critic_warmup", "prime", "outcome_only"]
        .iter()
        .position(|&known| known == stage)
        .unwrap_or(usize::MAX)
}
