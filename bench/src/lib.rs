//! Benchmarks of every kernel and of whole steps, on the host and on a GPU, beside the best others.
//!
//! ```text
//! cargo bench                         # everything that this machine can run, and a page of it
//! cargo bench -- matmul               # cases by criterion's filter, a regular expression
//! cargo bench -- 'cpu/attention.*7B'
//! cargo bench -- --list               # the names of all
//! ```
//!
//! [`shapes`] is the one table of shapes, [`cases`] makes the work of each operation, [`harness`] runs its rounds, [`suite`] puts them together,
//! and `prime::bench` makes pages of the results.

pub mod baselines;
pub mod cases;
pub mod ceilings;
pub mod clocks;
pub mod harness;
pub mod record;
pub mod selection;
pub mod shapes;
pub mod steps;
pub mod suite;
pub mod work;
