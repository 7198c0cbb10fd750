//! Where a buffer lives and where an operation runs.

use crate::{Error, Result};

/// A place that holds buffers and runs operations. Copying it copies a name, not a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Device {
    /// The host processor.
    #[default]
    Cpu,
}

impl Device {
    /// Reads a device as the command line writes it: `cpu`.
    ///
    /// # Errors
    /// A sentence that names the devices of this build.
    pub fn parse(name: &str) -> Result<Device> {
        match name {
            "cpu" => Ok(Device::Cpu),
            other => Err(Error::Device(format!(
                "there is no device `{other}` in this build; it offers `cpu`"
            ))),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
        }
    }
}
