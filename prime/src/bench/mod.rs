//! Results of benchmarks: what a file of them holds, and the page that is made of one or of several.
//!
//! The benchmarks themselves are another crate (`bench/`), which writes [`Results`] with [`results::save`]; `prime bench report` reads
//! them with [`results::load`] and makes a [`report`]. Older files and those of `tools/peers` are read too.

pub mod change;
pub mod choose;
pub mod report;
pub mod results;
mod roofline;
pub mod statistics;
mod summary;
mod text;
pub mod tune;

pub use results::{
    Attained, Case, Ceiling, Checked, Contestant, Machine, Results, Skipped, load, save,
};
