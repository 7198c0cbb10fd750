//! Finds the shared libraries of CUDA, and says where it looked when one is missing.
//!
//! Where cudarc loads a library it tries a fixed list of names on the loader's path, panics when none opens, and panics
//! again at the first missing symbol. Here a library is opened by the path at which it was found, all of its functions
//! are resolved before the first is called, and what is missing is said.

use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::{Error, Result};

/// Folders to search before all others, separated as in `PATH`: each itself, and as an installation of CUDA or a
/// folder of Python packages (`site-packages`).
pub const LIBRARIES_VARIABLE: &str = "PRIME_CUDA_LIBRARIES";

/// An open library and the path or name under which it opened.
pub(super) struct Opened {
    pub(super) library: Library,
    pub(super) path: PathBuf,
}

/// What was tried in vain, in order.
#[derive(Default)]
pub(super) struct Search {
    refused: String,
    folders: Vec<PathBuf>,
}

impl Search {
    /// Opens the first of `names` in the first of `folders` that has one, and calls `before` for each that is tried.
    pub(super) fn in_folders(
        &mut self,
        folders: Vec<PathBuf>,
        names: &[&str],
        mut before: impl FnMut(&Path),
    ) -> Option<Opened> {
        for folder in folders {
            for name in names {
                let path = folder.join(name);
                if !path.is_file() {
                    continue;
                }
                before(&path);
                if let Some(opened) = self.open(&path) {
                    return Some(opened);
                }
            }
            if !self.folders.contains(&folder) {
                self.folders.push(folder);
            }
        }
        None
    }

    /// Opens the first of `names` that the system's loader knows.
    pub(super) fn by_name(&mut self, names: &[&str]) -> Option<Opened> {
        names.iter().find_map(|name| {
            // SAFETY: as in `open`.
            let library = unsafe { Library::new(*name) }.ok()?;
            Some(Opened { library, path: PathBuf::from(name) })
        })
    }

    fn open(&mut self, path: &Path) -> Option<Opened> {
        // SAFETY: the libraries of CUDA run no initialisers that a program could break by loading them.
        match unsafe { Library::new(path) } {
            Ok(library) => Some(Opened { library, path: path.to_path_buf() }),
            Err(error) => {
                let _ =
                    write!(self.refused, "; {} does not load: {}", path.display(), cause(&error));
                None
            }
        }
    }

    /// What was looked for and where, as the rest of a sentence.
    pub(super) fn report(&self, names: &[&str]) -> String {
        let folders: Vec<String> =
            self.folders.iter().map(|folder| folder.display().to_string()).collect();
        format!(
            "{} was looked for by the system's loader and in {}{}",
            names.join(" or "),
            folders.join(", "),
            self.refused
        )
    }
}

// The loader's own words: libloading prints the kind of call that failed, and keeps the words as the cause.
fn cause(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| cause.to_string())
}

/// The folders that `PRIME_CUDA_LIBRARIES` names, each with the places below it where CUDA keeps libraries.
pub(super) fn asked_for() -> Vec<PathBuf> {
    let Some(variable) = env::var_os(LIBRARIES_VARIABLE) else { return Vec::new() };
    env::split_paths(&variable)
        .filter(|folder| !folder.as_os_str().is_empty())
        .flat_map(below)
        .collect()
}

fn below(folder: PathBuf) -> Vec<PathBuf> {
    let inner = ["lib64", "lib"].iter().chain(PACKAGES).map(|inner| folder.join(inner));
    let inner: Vec<PathBuf> = inner.filter(|place| place.is_dir()).collect();
    std::iter::once(folder).chain(inner).collect()
}

/// Where Python's packages of CUDA 13 and 12 have their libraries, below `site-packages`.
const PACKAGES: &[&str] = &["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "nvidia/cublas/lib"];

/// A library of NVIDIA's by one of its names, the first of them preferred: in the folders of `PRIME_CUDA_LIBRARIES`, where the system's loader looks,
/// and where driver, toolkit and packages of Python are.
///
/// # Errors
/// A sentence that says where it was looked for.
pub fn find_library(names: &[&str]) -> Result<(Library, PathBuf)> {
    let mut search = Search::default();
    let opened = search
        .in_folders(asked_for(), names, |_| {})
        .or_else(|| search.by_name(names))
        .or_else(|| search.in_folders(driver_folders(), names, |_| {}))
        .or_else(|| search.in_folders(toolkit_folders(), names, |_| {}));
    match opened {
        Some(Opened { library, path }) => Ok((library, path)),
        None => Err(Error::Device(format!(
            "{}; {LIBRARIES_VARIABLE} names folders to search first",
            search.report(names)
        ))),
    }
}

/// Where systems keep the driver's library when their loader does not know it.
pub(super) fn driver_folders() -> Vec<PathBuf> {
    [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib/wsl/lib",
        "/run/opengl-driver/lib",
        "/usr/local/nvidia/lib64",
    ]
    .map(PathBuf::from)
    .to_vec()
}

/// Where the toolkit of CUDA or a package of Python may have put NVRTC.
pub(super) fn toolkit_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for variable in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"] {
        if let Some(root) = env::var_os(variable).filter(|root| !root.is_empty()) {
            folders.push(Path::new(&root).join("lib64"));
        }
    }
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(root) = env::var_os(variable).filter(|root| !root.is_empty()) {
            folders.push(Path::new(&root).join("lib"));
            folders.extend(libraries_of_pythons(&Path::new(&root).join("lib")));
        }
    }
    // The Python that would be started here, whose environment need not be activated.
    let path = env::var_os("PATH").unwrap_or_default();
    for bin in env::split_paths(&path).filter(|bin| bin.join("python3").exists()) {
        if let Some(root) = bin.parent() {
            folders.extend(libraries_of_pythons(&root.join("lib")));
        }
    }
    folders.push(PathBuf::from("/usr/local/cuda/lib64"));
    folders
        .extend(numbered(Path::new("/usr/local"), "cuda-").iter().map(|root| root.join("lib64")));
    folders.push(PathBuf::from("/opt/cuda/lib64"));
    if let Some(home) = env::var_os("HOME").filter(|home| !home.is_empty()) {
        folders.extend(libraries_of_pythons(&Path::new(&home).join(".local/lib")));
    }
    for root in ["/usr/local/lib", "/usr/lib"] {
        folders.extend(libraries_of_pythons(Path::new(root)));
    }
    // Where the repository's own script puts compilers.
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/cuda/toolkit/nvidia/cu13/lib");
    if own.is_dir() {
        folders.push(own);
    }
    folders
}

// Only folders that exist: nobody wants to read of a dozen Pythons that are not there.
fn libraries_of_pythons(lib: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for python in numbered(lib, "python3") {
        for packages in ["site-packages", "dist-packages"] {
            for package in PACKAGES {
                let folder = python.join(packages).join(package);
                if folder.is_dir() {
                    folders.push(folder);
                }
            }
        }
    }
    folders
}

/// The entries of a folder whose names begin so, the last first: the newest version of several.
fn numbered(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.reverse();
    found
}

/// Declares a table of a library's functions. Signatures are compared with cudarc's bindings when this is compiled; each
/// function checks its result and names itself when it is not success.
///
/// A function that an older library has under another name, with the same signature, is written `new or old`.
///
/// Results are read as numbers, not as the bindings' enumerations: a newer library may return one that they do not know.
macro_rules! functions {
    (
        $(#[$meta:meta])* $table:ident from $bindings:ident returning $code:ty, failing with $failure:ident:
        $($name:ident $(or $older:ident)? ($($argument:ident: $type:ty),* $(,)?);)*
    ) => {
        $(#[$meta])*
        #[allow(non_snake_case)]
        pub(super) struct $table {
            $($name: unsafe extern "C" fn($($type),*) -> u32,)*
            // Keeps the functions mapped.
            _library: libloading::Library,
        }

        #[allow(non_snake_case)]
        impl $table {
            /// Resolves all functions; the error is the name of the first that the library has not.
            fn resolve(library: libloading::Library) -> std::result::Result<Self, &'static str> {
                $(
                    // SAFETY: the function of this name has this signature, as compared below.
                    let $name = *unsafe {
                        let found = library.get::<unsafe extern "C" fn($($type),*) -> u32>(stringify!($name));
                        $(let found = found.or_else(|_| library.get(stringify!($older)));)?
                        found
                    }.map_err(|_| stringify!($name))?;
                )*
                Ok($table { $($name,)* _library: library })
            }

            $(
                pub(super) unsafe fn $name(&self, $($argument: $type),*) -> std::result::Result<(), $failure> {
                    // SAFETY: the caller keeps the function's contract.
                    match unsafe { (self.$name)($($argument),*) } {
                        0 => Ok(()),
                        code => Err($failure { call: stringify!($name), code }),
                    }
                }
            )*
        }

        $(const _: unsafe fn($($type),*) -> $code = $bindings::$name;)*
    };
}
pub(super) use functions;
