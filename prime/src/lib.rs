//! PRIME: process reinforcement through implicit rewards.

pub mod graders;
pub mod tasks;
