//! CUDA devices: the one door to the driver and its compiler.
//!
//! Nothing of CUDA is linked. The driver (`libcuda`) and the compiler (NVRTC) are loaded by the first call that needs
//! them, so that one program runs on machines with and without a GPU; where something is missing, the call says what was
//! looked for, where, and what would help. Types and signatures are those of the crate cudarc.
//!
//! A device has one stream: everything that is started on it runs in the order in which it was started. Copies to the
//! host wait for what they copy; nothing else waits. Kernels are compiled from text for the chip found, instance by
//! instance, and kept on disk.
//!
//! Environment: `PRIME_CUDA_LIBRARIES` names folders with the libraries, `PRIME_KERNEL_CACHE` the folder of compiled
//! kernels, `PRIME_KERNELS` a folder of edited device code.

mod cache;
mod context;
mod diagnostics;
mod driver;
mod event;
mod graph;
mod kernel;
mod library;
mod nvrtc;
mod program;
mod staging;
mod tensor_map;
#[cfg(test)]
mod tests;
mod transfer;

use std::path::PathBuf;

pub use cache::{CACHE_VARIABLE, kernel_cache};
pub use context::{Chip, Properties, device_count, memory, properties, ready, stream, synchronize};
pub use event::Event;
pub use graph::Graph;
pub use kernel::{Function, Geometry, Resources, launch};
pub use library::{LIBRARIES_VARIABLE, find_library};
pub use nvrtc::{Compiled, OPTIONS};
pub use program::{KERNELS_VARIABLE, Program, compile, compile_all, function, warm};
pub use tensor_map::{MOST_TENSOR_DIMS, TensorTiles, tensor_map};
pub(crate) use transfer::{Block, clear, download, move_rows, upload};

use crate::Result;

/// A library that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Its path, or its name where the system's loader knew it.
    pub path: PathBuf,
    /// The version of CUDA that it supports or belongs to.
    pub version: (u32, u32),
}

/// The driver of this machine.
///
/// # Errors
/// A sentence that says what is missing, where it was looked for, and what would help.
pub fn driver_library() -> Result<Library> {
    let driver = driver::driver()?;
    Ok(Library { path: driver.path().to_path_buf(), version: driver.version() })
}

/// The compiler of this machine.
///
/// # Errors
/// A sentence that says what is missing, where it was looked for, and what would help.
pub fn compiler_library() -> Result<Library> {
    let nvrtc = nvrtc::nvrtc()?;
    Ok(Library { path: nvrtc.path().to_path_buf(), version: nvrtc.version() })
}
