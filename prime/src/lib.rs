//! PRIME: process reinforcement through implicit rewards, on a transformer runtime written from scratch.
//!
//! [`trainer`] is the life of a step, each arrow of it a function of [`step`]; [`run`] is a whole run, from SFT to the
//! final table.

pub mod adapters;
pub mod bench;
pub mod best_of;
pub mod cli;
pub mod config;
pub mod data;
pub mod engine;
pub mod evaluate;
mod frozen;
pub mod graded;
pub mod graders;
pub mod memory;
pub mod metrics;
pub mod order;
pub mod prm;
pub mod process_bench;
pub mod prompts;
pub mod replay;
pub mod report;
pub mod run;
pub mod score;
pub mod setup;
pub mod sft;
pub mod step;
pub mod steps;
pub mod study;
pub mod tasks;
pub mod tensorboard;
pub mod trainer;
