//! NVIDIA's libraries, opened by the path at which they are found. Nothing else of this project uses them.

use std::ffi::{CStr, c_int};

use anyhow::{Context, Result, ensure};
use libloading::Library;
use prime_runtime::cuda;

/// What functions return; 0 is success.
pub(crate) type Status = c_int;

/// Opens a library by one of its names, the first of them preferred. It stays open: NVIDIA's libraries are not made to be unmapped from a process
/// that still talks to the device.
pub(crate) fn open(names: &[&str]) -> Result<(&'static Library, String)> {
    let (library, path) = cuda::find_library(names)?;
    Ok((Box::leak(Box::new(library)), path.display().to_string()))
}

/// Opens a library of the toolkit, the newest version that works with this machine's driver.
pub(crate) fn open_versioned(stem: &str) -> Result<(&'static Library, String)> {
    let newest = cuda::driver_library().map_or(13, |driver| driver.version.0);
    let mut names = vec![format!("{stem}.so")];
    names.splice(0..0, [13, 12].iter().filter(|&&v| v <= newest).map(|v| format!("{stem}.so.{v}")));
    open(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A function of a library, as the type that its header gives it.
pub(crate) fn function<T: Copy>(library: &Library, name: &CStr) -> Result<T> {
    // SAFETY: the callers' types are those of the headers that they name.
    let symbol = unsafe { library.get::<T>(name.to_bytes_with_nul()) };
    Ok(*symbol.with_context(|| format!("the library has no {}", name.to_string_lossy()))?)
}

/// An error of what failed.
pub(crate) fn done(status: Status, what: &str) -> Result<()> {
    ensure!(status == 0, "{what} failed with status {status}");
    Ok(())
}
