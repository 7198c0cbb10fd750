//! Devices, tensors, planned memory, memory-mapped checkpoints and counter-based random numbers.
//!
//! This crate knows nothing of transformers. It answers four questions for the crates above it:
//! where a buffer lives ([`Device`], [`Plan`], [`Tensor`]), what shape it has ([`NamedDims`]), how it
//! gets to and from disk ([`safetensors`], [`checkpoint`]), and where randomness comes from ([`random`]).

pub mod checkpoint;
mod copy;
pub mod cuda;
mod device;
mod dtype;
pub mod emulated;
mod error;
mod memory;
mod plan;
pub mod process;
pub mod random;
pub mod safetensors;
pub mod sandbox;
mod shape;
mod tensor;
pub mod terminal;

pub use device::Device;
pub use dtype::{DType, Element, bf16, f16};
pub use error::{Error, Result};
pub use plan::{Memory, Plan, Slot};
pub use shape::{MAX_RANK, NamedDims, Shape};
pub use tensor::{SharedMut, Tensor, View, ViewMut};
