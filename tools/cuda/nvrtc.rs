//! NVRTC, loaded from the folder of the compilers.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result, bail};
use libloading::Library;

type Program = *mut std::ffi::c_void;
type Strings = *const *const c_char;

/// The functions of NVRTC that are used here (NVRTC manual, chapter 3).
pub struct Nvrtc {
    version: String,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        Strings,
        Strings,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    add_name: unsafe extern "C" fn(Program, *const c_char) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, Strings) -> c_int,
    lowered: unsafe extern "C" fn(Program, *const c_char, *mut *const c_char) -> c_int,
    log: Output,
    ptx: Output,
    cubin: Output,
    /// The functions above are part of these.
    _libraries: [Library; 2],
}

/// A function that tells the size of an output of a program, and one that writes it.
#[derive(Clone, Copy)]
struct Output {
    size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    write: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

/// What a compilation left.
pub struct Compiled {
    /// Messages, and ptxas's figures.
    pub log: String,
    /// PTX text.
    pub ptx: String,
    /// Machine code.
    pub cubin: Vec<u8>,
    /// The symbol of each expression.
    pub symbols: Vec<String>,
}

fn function<T: Copy>(library: &Library, name: &CStr) -> Result<T> {
    // SAFETY: the callers' types are those of the NVRTC manual.
    let symbol = unsafe { library.get::<T>(name.to_bytes_with_nul()) };
    Ok(*symbol.with_context(|| format!("libnvrtc has no {}", name.to_string_lossy()))?)
}

fn open(path: &Path) -> Result<Library> {
    // SAFETY: NVRTC's libraries run no initialisers that loading them could upset.
    unsafe { Library::new(path) }.with_context(|| format!("{} does not load", path.display()))
}

impl Nvrtc {
    /// Loads the library of a folder.
    pub fn load(folder: &Path) -> Result<Nvrtc> {
        // NVRTC asks for its built-ins by bare name; a library of that name that is loaded already is taken.
        let builtins = open(&folder.join("libnvrtc-builtins.so.13.0"))?;
        let library = open(&folder.join("libnvrtc.so.13"))?;
        let output = |size, write| -> Result<Output> {
            Ok(Output { size: function(&library, size)?, write: function(&library, write)? })
        };
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
            function(&library, c"nvrtcVersion")?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to writable integers.
        if unsafe { version(&mut major, &mut minor) } != 0 {
            bail!("NVRTC does not tell its version");
        }
        Ok(Nvrtc {
            version: format!("{major}.{minor}"),
            error: function(&library, c"nvrtcGetErrorString")?,
            create: function(&library, c"nvrtcCreateProgram")?,
            destroy: function(&library, c"nvrtcDestroyProgram")?,
            add_name: function(&library, c"nvrtcAddNameExpression")?,
            compile: function(&library, c"nvrtcCompileProgram")?,
            lowered: function(&library, c"nvrtcGetLoweredName")?,
            log: output(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog")?,
            ptx: output(c"nvrtcGetPTXSize", c"nvrtcGetPTX")?,
            cubin: output(c"nvrtcGetCUBINSize", c"nvrtcGetCUBIN")?,
            _libraries: [library, builtins],
        })
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Compiles instances of a text; an error is the compiler's own messages.
    pub fn compile(
        &self,
        name: &str,
        text: &str,
        headers: &[(String, String)],
        options: &[String],
        expressions: &[String],
    ) -> Result<Result<Compiled, String>> {
        let strings = |values: Vec<&str>| -> Result<Vec<CString>> {
            values.into_iter().map(|value| Ok(CString::new(value)?)).collect()
        };
        let pointers =
            |values: &[CString]| values.iter().map(|value| value.as_ptr()).collect::<Vec<_>>();
        let names = strings(headers.iter().map(|(name, _)| name.as_str()).collect())?;
        let texts = strings(headers.iter().map(|(_, text)| text.as_str()).collect())?;
        let options = strings(options.iter().map(String::as_str).collect())?;
        let expressions = strings(expressions.iter().map(String::as_str).collect())?;
        let (name, text) = (CString::new(name)?, CString::new(text)?);
        let mut program = ptr::null_mut();
        let (text_pointers, name_pointers) = (pointers(&texts), pointers(&names));
        // SAFETY: all strings end with zero and live until the call returns; the counts are those of the arrays.
        let status = unsafe {
            (self.create)(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                text_pointers.as_ptr(),
                name_pointers.as_ptr(),
            )
        };
        self.check(status, "take the text")?;
        let program = Guard { nvrtc: self, program };
        for expression in &expressions {
            // SAFETY: the program lives, the string ends with zero.
            let status = unsafe { (self.add_name)(program.program, expression.as_ptr()) };
            self.check(status, "take an expression")?;
        }
        // SAFETY: as in `create`.
        let status = unsafe {
            (self.compile)(program.program, options.len() as c_int, pointers(&options).as_ptr())
        };
        let log = text_of(program.output(self.log)?);
        // NVRTC_ERROR_COMPILATION: the log says what is wrong. Other errors are not the text's.
        if status == 6 {
            return Ok(Err(log));
        }
        self.check(status, "compile").with_context(|| log.clone())?;
        let mut symbols = Vec::new();
        for expression in &expressions {
            let mut symbol = ptr::null();
            // SAFETY: the program lives and was compiled with this expression.
            let status =
                unsafe { (self.lowered)(program.program, expression.as_ptr(), &mut symbol) };
            self.check(status, "name an instance")?;
            // SAFETY: the string that was given ends with zero and lives as long as the program.
            let symbol = unsafe { CStr::from_ptr(symbol) };
            symbols.push(symbol.to_string_lossy().into_owned());
        }
        let (ptx, cubin) = (text_of(program.output(self.ptx)?), program.output(self.cubin)?);
        Ok(Ok(Compiled { log, ptx, cubin, symbols }))
    }

    fn check(&self, status: c_int, what: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function gives a string that lives for ever, whatever the number.
        let message = unsafe { CStr::from_ptr((self.error)(status)) };
        bail!("NVRTC did not {what}: {}", message.to_string_lossy())
    }
}

fn text_of(mut bytes: Vec<u8>) -> String {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Destroys a program when it goes.
struct Guard<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Guard<'_> {
    fn output(&self, output: Output) -> Result<Vec<u8>> {
        let mut size = 0;
        // SAFETY: the program lives, the size is writable.
        let status = unsafe { (output.size)(self.program, &mut size) };
        self.nvrtc.check(status, "tell a size")?;
        let mut bytes = vec![0u8; size];
        // SAFETY: the buffer has the size that was told.
        let status = unsafe { (output.write)(self.program, bytes.as_mut_ptr().cast()) };
        self.nvrtc.check(status, "give its result")?;
        Ok(bytes)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was made by `create` and is destroyed once.
        unsafe { (self.nvrtc.destroy)(&mut self.program) };
    }
}
