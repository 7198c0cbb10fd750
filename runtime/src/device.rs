//! Where a buffer lives and where an operation runs.

use crate::{Error, Result};

/// A place that holds buffers and runs operations. Copying it copies a name, not a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The host processor.
    #[default]
    Cpu,
    /// The device kernels, run on the host one instruction after the other: memory of its own, every access checked.
    Emulated,
    /// The NVIDIA GPU of this number, counted as the driver counts.
    Cuda(u32),
}

impl Device {
    /// Reads a device as the command line writes it: `cpu`, `emulated`, `cuda` (the first GPU) or `cuda:N`.
    ///
    /// Whether the machine has that device shows when memory is first asked of it.
    ///
    /// # Errors
    /// A sentence that says what a device is called.
    pub fn parse(name: &str) -> Result<Device> {
        let device = match name {
            "cpu" => Some(Device::Cpu),
            "emulated" => Some(Device::Emulated),
            "cuda" => Some(Device::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(plain_number).map(Device::Cuda),
        };
        device.ok_or_else(|| {
            Error::Device(format!(
                "there is no device `{name}`; devices are `cpu`, `emulated`, `cuda` and `cuda:N` for the GPU with number N"
            ))
        })
    }
}

// `str::parse` also takes a sign.
fn plain_number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Emulated => f.write_str("emulated"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}
