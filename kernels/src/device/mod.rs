//! Device code and how it is started: what the launchers of all rooms share.
//!
//! A room's `.cu` text runs on a GPU, compiled at run time for the chip found, and on the emulated device, compiled as C++ when this
//! crate is built with the feature `emulated`. Its `cuda.rs` fills one argument struct a kernel and starts it through `Launch`, which
//! is the same for both.

use prime_runtime::cuda::{self, Chip, Program};
use prime_runtime::{Device, Result};

mod chip;
#[cfg(feature = "emulated")]
mod emulator;
#[cfg(all(test, feature = "emulator-tests"))]
mod faults;
#[cfg(all(test, feature = "emulator-tests"))]
mod hopper_gemm;
pub mod instructions;
mod launch;
#[cfg(all(test, feature = "emulator-tests"))]
mod pipelines;
mod preferences;
#[cfg(all(test, feature = "emulated"))]
mod prelude_tests;
mod rows;
mod structs;
mod tensor_map;
#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) use chip::{HOPPER, on_chip};
pub(crate) use chip::{Tier, tier};
pub(crate) use launch::{Launch, Pointer};
pub(crate) use preferences::Preferences;
pub(crate) use rows::{THREADS, aligned, row_grid, rows_and_columns, vectorised};
pub(crate) use structs::{DeviceStruct, StructLayout, device_struct};
pub(crate) use tensor_map::{Swizzle, TensorMap, Tiling};

/// The text of one `.cu` file.
pub struct Source {
    /// Its path below `kernels/src`, as messages and the override folder name it.
    pub name: &'static str,
    /// Its text, as it was when this program was built.
    pub text: &'static str,
}

impl Source {
    /// Whether a chip has the instructions of the text: a file named `_sm90.cu` is for Hopper alone.
    fn runs_on(&self, chip: Chip) -> bool {
        !self.name.ends_with("_sm90.cu") || chip == chip::HOPPER
    }

    fn program(&self) -> Program {
        Program { name: self.name, source: self.text, headers: HEADERS }
    }
}

/// All device code of a room.
pub struct Code {
    /// Its `.cu` files.
    pub sources: &'static [Source],
    /// The argument structs of its kernels as Rust lays them out.
    pub structs: &'static [StructLayout],
}

/// Names a `.cu` file of the room in which this stands: `source!("swiglu", "swiglu.cu")`.
macro_rules! source {
    ($room:literal, $file:literal) => {
        $crate::device::Source { name: concat!($room, "/", $file), text: include_str!($file) }
    };
}
pub(crate) use source;

/// The name of a kernel's instance for a float dtype: `by_dtype!(dtype, "swiglu_forward<", ">")`.
macro_rules! by_dtype {
    ($dtype:expr, $before:literal, $after:expr) => {
        match $dtype {
            prime_runtime::DType::BF16 => concat!($before, "bf16", $after),
            _ => concat!($before, "float", $after),
        }
    };
}
pub(crate) use by_dtype;

/// [`by_dtype`] with whether rows are aligned as the next template argument: `by_dtype_and_alignment!(dtype, aligned, "fill<", ">")`.
macro_rules! by_dtype_and_alignment {
    ($dtype:expr, $aligned:expr, $before:literal, $after:literal) => {
        match $aligned {
            true => $crate::device::by_dtype!($dtype, $before, concat!(", true", $after)),
            false => $crate::device::by_dtype!($dtype, $before, concat!(", false", $after)),
        }
    };
}
pub(crate) use by_dtype_and_alignment;

/// Embeds headers of the prelude under the names that `.cu` files include them by.
macro_rules! headers {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../prelude/", $name)))),*]
    };
}

/// The prelude's headers by name.
pub const HEADERS: &[(&str, &str)] = headers![
    "atomics.cuh",
    "barrier.cuh",
    "boxes.cuh",
    "bulk.cuh",
    "cluster.cuh",
    "copy_async.cuh",
    "decoding.cuh",
    "gemm.cuh",
    "hopper_gemm.cuh",
    "math.cuh",
    "matrix.cuh",
    "philox.cuh",
    "pointers.cuh",
    "prelude.cuh",
    "rows.cuh",
    "sequences.cuh",
    "softmax.cuh",
    "threads.cuh",
    "tiles.cuh",
    "tma.cuh",
    "types.cuh",
    "wgmma.cuh",
    "wgmma_shapes.cuh",
];

/// Whether this program was built with the emulated device.
pub const fn emulated_available() -> bool {
    cfg!(feature = "emulated")
}

/// The device code of all rooms.
pub const CODE: &[&Code] = crate::CODE;

/// Every instance that the device code of all rooms lists for a chip, to be made ready by [`cuda::warm`].
pub fn instances(chip: Chip) -> Vec<(Program, &'static str)> {
    let of = |source: &'static Source| {
        let lines = source.text.lines();
        let texts =
            lines.filter_map(|line| line.strip_prefix("INSTANCE(")?.trim_end().strip_suffix(')'));
        texts.map(|text| (source.program(), text))
    };
    let sources = CODE.iter().flat_map(|code| code.sources);
    sources.filter(|source| source.runs_on(chip)).flat_map(of).collect()
}

/// Makes ready, on all cores, the kernels that `work` starts on this thread; nothing is started. Elsewhere than on a GPU there is nothing to make
/// ready, and `work` is not called. Without this the first step compiles what no cache holds one kernel after another.
///
/// # Errors
/// When `work` fails, or a kernel cannot be compiled.
pub fn prepare<E: From<prime_runtime::Error>>(
    device: Device,
    work: impl FnOnce() -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let Device::Cuda(number) = device else { return Ok(()) };
    let wanted = launch::list(work)?;
    let kernels: Vec<(Program, &str)> =
        wanted.iter().map(|(source, text)| (source.program(), text.as_str())).collect();
    Ok(cuda::warm(number, &kernels)?)
}

/// The chip for which a device's kernels are chosen.
///
/// # Errors
/// When the device cannot be used.
pub fn chip(device: Device) -> Result<Chip> {
    Ok(tier(device)?.chip)
}

/// Checks that kernels can be started on a device in this build.
///
/// # Errors
/// A sentence that says what is missing.
pub fn check(device: Device) -> Result<()> {
    match device {
        Device::Emulated if !emulated_available() => Err(prime_runtime::Error::Device(
            "this program was built without the emulated device; build it with `--features emulated`, which needs a C++ compiler"
                .to_owned(),
        )),
        Device::Cuda(number) => cuda::ready(number),
        _ => Ok(()),
    }
}
