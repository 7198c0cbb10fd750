//! NVIDIA's libraries, opened by the path at which they are found. Nothing else of this project uses them.

use std::ffi::{CStr, c_int};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;
use prime_runtime::cuda;

/// What functions return; 0 is success.
pub(crate) type Status = c_int;

/// Opens the first of `names` in the folders of `PRIME_CUDA_LIBRARIES`, and then where the system's loader looks.
pub(crate) fn open(names: &[&str]) -> Result<(Library, String)> {
    let folders = std::env::var_os(cuda::LIBRARIES_VARIABLE).unwrap_or_default();
    let below = ["", "lib64", "lib", "nvidia/cu13/lib", "nvidia/cublas/lib"];
    let mut paths: Vec<PathBuf> = Vec::new();
    for name in names {
        let places = std::env::split_paths(&folders);
        let places = places.flat_map(|folder| below.map(|part| folder.join(part).join(name)));
        paths.extend(places.filter(|path| path.is_file()));
    }
    paths.extend(names.iter().map(PathBuf::from));
    for path in &paths {
        // SAFETY: NVIDIA's libraries run no initialisers that a program could break by loading them.
        if let Ok(library) = unsafe { Library::new(path) } {
            return Ok((library, path.display().to_string()));
        }
    }
    bail!(
        "{} was found neither in the folders of {} nor by the system's loader; it comes with the CUDA toolkit and with PyTorch",
        names[0],
        cuda::LIBRARIES_VARIABLE
    )
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
