//! PRIME: process reinforcement through implicit rewards.

pub mod graders;
pub mod replay;
pub mod step;
pub mod tasks;
