//! The compiler: from the text of a program and the name of an instance to code for a chip.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::ptr::null;
use std::sync::OnceLock;

use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};

use super::context::Chip;
use super::diagnostics;
use super::driver::driver;
use super::library::{self, LIBRARIES_VARIABLE, Opened, Search, functions};
use super::program::Text;
use crate::{Error, Result};

functions! {
    /// The compiler's functions.
    Functions from sys returning nvrtcResult, failing with Refusal:
    nvrtcVersion(major: *mut c_int, minor: *mut c_int);
    nvrtcGetNumSupportedArchs(count: *mut c_int);
    nvrtcGetSupportedArchs(architectures: *mut c_int);
    nvrtcCreateProgram(program: *mut nvrtcProgram, source: *const c_char, name: *const c_char, headers: c_int, texts: *const *const c_char, names: *const *const c_char);
    nvrtcDestroyProgram(program: *mut nvrtcProgram);
    nvrtcAddNameExpression(program: nvrtcProgram, expression: *const c_char);
    nvrtcCompileProgram(program: nvrtcProgram, count: c_int, options: *const *const c_char);
    nvrtcGetProgramLogSize(program: nvrtcProgram, bytes: *mut usize);
    nvrtcGetProgramLog(program: nvrtcProgram, log: *mut c_char);
    nvrtcGetLoweredName(program: nvrtcProgram, expression: *const c_char, name: *mut *const c_char);
    nvrtcGetCUBINSize(program: nvrtcProgram, bytes: *mut usize);
    nvrtcGetCUBIN(program: nvrtcProgram, cubin: *mut c_char);
}

/// Names of the library by major version of CUDA, the newest first, and the name that says none.
const VERSIONS: &[(u32, &str)] = &[(13, "libnvrtc.so.13"), (12, "libnvrtc.so.12")];
const UNNUMBERED: &str = "libnvrtc.so";

/// How every program is compiled, beside the chip. Lines are kept for profilers and `compute-sanitizer`; they cost no speed.
pub const OPTIONS: &[&str] = &["--std=c++17", "--generate-line-info"];

/// A call of the compiler that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    call: &'static str,
    code: u32,
}

const COMPILATION: u32 = nvrtcResult::NVRTC_ERROR_COMPILATION as u32;
const NAME_EXPRESSION: u32 = nvrtcResult::NVRTC_ERROR_NAME_EXPRESSION_NOT_VALID as u32;

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let words = match NVRTC.get() {
            Some(Ok(nvrtc)) => nvrtc.describe(refusal.code),
            _ => "error".to_owned(),
        };
        Error::Device(format!("{} failed: {words} ({})", refusal.call, refusal.code))
    }
}

/// Code of one instance for one chip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// The name under which the instance is found in the code.
    pub symbol: String,
    /// The code.
    pub cubin: Vec<u8>,
}

/// The loaded compiler.
pub(super) struct Nvrtc {
    functions: Functions,
    words: unsafe extern "C" fn(u32) -> *const c_char,
    path: PathBuf,
    version: (u32, u32),
    chips: Vec<u32>,
    // NVRTC looks for it by its bare name and finds it because it is mapped already.
    _builtins: Vec<libloading::Library>,
}

static NVRTC: OnceLock<std::result::Result<Nvrtc, String>> = OnceLock::new();

/// The compiler, loaded by the first call.
///
/// # Errors
/// A sentence that says what is missing, where it was looked for, and what would help; the same at each call.
pub(super) fn nvrtc() -> Result<&'static Nvrtc> {
    NVRTC.get_or_init(load).as_ref().map_err(|message| Error::Device(message.clone()))
}

/// The names in the order in which they are looked for everywhere: first those whose code a driver of this major version loads, which is that of its own
/// and of older ones, then the rest.
fn names(driver: Option<u32>) -> [Vec<&'static str>; 2] {
    let mut groups = [Vec::new(), vec![UNNUMBERED]];
    for &(version, name) in VERSIONS {
        groups[usize::from(driver.is_some_and(|driver| version > driver))].push(name);
    }
    groups
}

fn load() -> std::result::Result<Nvrtc, String> {
    let mut search = Search::default();
    let mut builtins = Vec::new();
    let mut in_folders = |search: &mut Search, folders: Vec<PathBuf>, names: &[&str]| {
        search.in_folders(folders, names, |path| builtins = open_builtins(path))
    };
    let groups = names(driver().ok().map(|driver| driver.version().0));
    let opened = groups.iter().find_map(|names| {
        in_folders(&mut search, library::asked_for(), names)
            .or_else(|| search.by_name(names))
            .or_else(|| in_folders(&mut search, library::toolkit_folders(), names))
    });
    let Some(Opened { library, path }) = opened else {
        return Err(format!(
            "the compiler NVRTC is not here: {}; install it with `pip install nvidia-cuda-nvrtc==13.0.88`, or nvidia-cuda-nvrtc-cu12 for a driver of CUDA 12, and name the folder `site-packages` in {LIBRARIES_VARIABLE} if that is a place of its own",
            search.report(&VERSIONS.iter().map(|(_, name)| *name).collect::<Vec<_>>())
        ));
    };
    let missing = |name: &str| {
        format!(
            "NVRTC at {} has no function {name}; 12.0 or newer is needed, and 12.9 for Hopper",
            path.display()
        )
    };
    // SAFETY: the function takes a result and gives text that lives as long as the library.
    let words = *unsafe {
        library.get::<unsafe extern "C" fn(u32) -> *const c_char>("nvrtcGetErrorString")
    }
    .map_err(|_| missing("nvrtcGetErrorString"))?;
    let functions = Functions::resolve(library).map_err(missing)?;
    let (version, chips) = identify(&functions).map_err(|refusal| {
        format!(
            "NVRTC at {} does not answer: {} failed ({})",
            path.display(),
            refusal.call,
            refusal.code
        )
    })?;
    Ok(Nvrtc { functions, words, path, version, chips, _builtins: builtins })
}

/// Opens the libraries of built-in functions that lie beside a compiler; a folder may hold those of several versions.
fn open_builtins(nvrtc: &Path) -> Vec<libloading::Library> {
    let entries = nvrtc.parent().and_then(|folder| std::fs::read_dir(folder).ok());
    let paths = entries.into_iter().flatten().flatten().map(|entry| entry.path());
    let name = |path: &PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    paths
        .filter(|path| name(path).is_some_and(|name| name.starts_with("libnvrtc-builtins.so")))
        // SAFETY: a library of functions for compiled code, without initialisers.
        .filter_map(|path| unsafe { libloading::Library::new(path) }.ok())
        .collect()
}

type Identity = ((u32, u32), Vec<u32>);

fn identify(functions: &Functions) -> std::result::Result<Identity, Refusal> {
    let (mut major, mut minor, mut count) = (0, 0, 0);
    // SAFETY: the places for both numbers live for the call.
    unsafe { functions.nvrtcVersion(&mut major, &mut minor) }?;
    // SAFETY: the place for the count lives for the call.
    unsafe { functions.nvrtcGetNumSupportedArchs(&mut count) }?;
    let mut chips = vec![0; count.max(0) as usize];
    // SAFETY: there is room for as many numbers as the compiler said it has.
    unsafe { functions.nvrtcGetSupportedArchs(chips.as_mut_ptr()) }?;
    Ok(((major as u32, minor as u32), chips.into_iter().map(|chip| chip as u32).collect()))
}

impl Nvrtc {
    /// Where it was found.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its version.
    pub(super) fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Its version, and its size where its file is known: builds of one version differ.
    pub(super) fn identity(&self) -> String {
        let size = std::fs::metadata(&self.path).map_or(0, |file| file.len());
        format!("NVRTC {}.{} of {size} bytes", self.version.0, self.version.1)
    }

    fn describe(&self, code: u32) -> String {
        // SAFETY: the text is the library's, ends with a zero and stays.
        unsafe {
            let text = (self.words)(code);
            if text.is_null() {
                return "error".to_owned();
            }
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }

    /// Compiles one instance of a program for a chip.
    ///
    /// # Errors
    /// When the chip is unknown to this version, or the text does not compile: with the compiler's messages and the lines
    /// that they are about.
    pub(super) fn compile(&self, text: &Text, expression: &str, chip: Chip) -> Result<Compiled> {
        self.knows(chip)?;
        let program = Program::new(self, text)?;
        let name = terminated(expression)?;
        // SAFETY: the program lives; the name ends with a zero.
        unsafe { self.functions.nvrtcAddNameExpression(program.handle, name.as_ptr()) }?;
        let chip_option = format!("--gpu-architecture={}", chip.architecture());
        let options: Vec<CString> = std::iter::once(chip_option.as_str())
            .chain(OPTIONS.iter().copied())
            .map(terminated)
            .collect::<Result<_>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: the program lives, and so do the options, each of which ends with a zero.
        let compiled = unsafe {
            self.functions.nvrtcCompileProgram(
                program.handle,
                pointers.len() as c_int,
                pointers.as_ptr(),
            )
        };
        match compiled {
            Ok(()) => {}
            Err(Refusal { code: COMPILATION | NAME_EXPRESSION, .. }) => {
                return Err(Error::Device(format!(
                    "`{expression}` of {} does not compile for {}:\n{}",
                    text.name,
                    chip.architecture(),
                    diagnostics::with_source(&program.log()?, text)
                )));
            }
            Err(refusal) => {
                let log = program.log().unwrap_or_default();
                return Err(Error::Device(format!(
                    "`{expression}` of {} cannot be compiled with NVRTC {}.{} at {}: {}{}{}",
                    text.name,
                    self.version.0,
                    self.version.1,
                    self.path.display(),
                    Error::from(refusal),
                    if log.is_empty() { "" } else { "\n" },
                    log
                )));
            }
        }
        Ok(Compiled { symbol: program.lowered(&name)?, cubin: program.cubin()? })
    }

    /// Checks that this version compiles for a chip.
    pub(super) fn knows(&self, chip: Chip) -> Result<()> {
        let number = chip.major * 10 + chip.minor;
        if self.chips.contains(&number) {
            return Ok(());
        }
        let known: Vec<String> = self.chips.iter().map(|chip| format!("sm_{chip}")).collect();
        Err(Error::Device(format!(
            "NVRTC {}.{} at {} does not compile for sm_{number}; it knows {}",
            self.version.0,
            self.version.1,
            self.path.display(),
            known.join(", ")
        )))
    }
}

fn terminated(text: &str) -> Result<CString> {
    CString::new(text).map_err(|error| {
        Error::Device(format!(
            "device code has a zero byte at position {}, where the compiler would end it",
            error.nul_position()
        ))
    })
}

/// A program in the compiler's hands.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    handle: nvrtcProgram,
}

impl<'a> Program<'a> {
    fn new(nvrtc: &'a Nvrtc, text: &Text) -> Result<Self> {
        let source = terminated(&text.source)?;
        let name = terminated(&text.name)?;
        let names: Vec<CString> =
            text.headers.iter().map(|(name, _)| terminated(name)).collect::<Result<_>>()?;
        let texts: Vec<CString> =
            text.headers.iter().map(|(_, text)| terminated(text)).collect::<Result<_>>()?;
        let name_pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let text_pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        let mut handle = null::<std::ffi::c_void>().cast_mut().cast();
        // SAFETY: all texts end with a zero and live for the call, which copies them.
        unsafe {
            nvrtc.functions.nvrtcCreateProgram(
                &mut handle,
                source.as_ptr(),
                name.as_ptr(),
                text.headers.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        }?;
        Ok(Program { nvrtc, handle })
    }

    fn log(&self) -> Result<String> {
        let mut bytes = 0;
        // SAFETY: the program lives, and the place for the size for the call.
        unsafe { self.nvrtc.functions.nvrtcGetProgramLogSize(self.handle, &mut bytes) }?;
        let mut log = vec![0u8; bytes];
        if bytes > 0 {
            // SAFETY: there is room for as many bytes as the compiler asked for.
            unsafe {
                self.nvrtc.functions.nvrtcGetProgramLog(self.handle, log.as_mut_ptr().cast())
            }?;
        }
        let log = String::from_utf8_lossy(&log);
        Ok(log.trim_end_matches('\0').trim_end().to_owned())
    }

    fn lowered(&self, expression: &CStr) -> Result<String> {
        let mut name = null();
        // SAFETY: the expression was given before the program was compiled; the name lives as long as the program.
        let name = unsafe {
            self.nvrtc.functions.nvrtcGetLoweredName(
                self.handle,
                expression.as_ptr(),
                &mut name,
            )?;
            CStr::from_ptr(name)
        };
        Ok(name.to_string_lossy().into_owned())
    }

    fn cubin(&self) -> Result<Vec<u8>> {
        let mut bytes = 0;
        // SAFETY: the program lives, and the place for the size for the call.
        unsafe { self.nvrtc.functions.nvrtcGetCUBINSize(self.handle, &mut bytes) }?;
        let mut cubin = vec![0u8; bytes];
        // SAFETY: there is room for as many bytes as the compiler asked for.
        unsafe { self.nvrtc.functions.nvrtcGetCUBIN(self.handle, cubin.as_mut_ptr().cast()) }?;
        Ok(cubin)
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `new` and used by nobody after this.
        let _ = unsafe { self.nvrtc.functions.nvrtcDestroyProgram(&mut self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_whose_code_the_driver_loads_comes_before_a_newer_one() {
        let [first, rest] = names(Some(12));
        assert_eq!(first, ["libnvrtc.so.12"]);
        assert_eq!(rest, ["libnvrtc.so", "libnvrtc.so.13"]);
        for newer in [names(Some(13)), names(Some(14)), names(None)] {
            assert_eq!(newer[0], ["libnvrtc.so.13", "libnvrtc.so.12"]);
            assert_eq!(newer[1], ["libnvrtc.so"]);
        }
    }
}
