//! Finding Python, and what it needs to see.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use prime_runtime::sandbox::{Ending, Limits, Mode, Sandbox};

use crate::graders::settings::{CodeSettings, Protection};

/// All that a program finds in its environment. A fixed seed of hashes makes the order of sets the same in every run.
pub(super) const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/bin:/bin"),
    ("HOME", "/tmp"),
    ("TMPDIR", "/tmp"),
    ("LANG", "C.UTF-8"),
    ("PYTHONHASHSEED", "0"),
    ("PYTHONUTF8", "1"),
    ("PYTHONDONTWRITEBYTECODE", "1"),
    ("OPENBLAS_NUM_THREADS", "1"),
    ("OMP_NUM_THREADS", "1"),
];

/// Prints the interpreter, and the folders that it and its libraries lie in, a line each.
const ASK: &str = "\
import os, sys
print(sys.executable)
paths = {sys.prefix, sys.base_prefix, sys.exec_prefix}
try:
    for line in open('/proc/self/maps'):
        path = line.split(maxsplit=5)[5:]
        if path and path[0].startswith('/'):
            paths.add(os.path.dirname(path[0].strip()))
except OSError:
    pass
paths.update(path for path in sys.path if path and os.path.isdir(path))
for path in sorted(paths):
    print(path)
";

/// Where the loader and shared libraries lie.
const LIBRARIES: [&str; 5] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache"];

/// The sandbox of these settings with its interpreter, tried out.
///
/// # Errors
/// A sentence: Python is missing, or the kernel lacks what protects.
pub fn sandbox(settings: &CodeSettings) -> std::result::Result<Sandbox, String> {
    let name = &settings.python;
    let missing = |reason: String| {
        format!(
            "the code grader needs Python, and {name:?} {reason}; name an interpreter in grader.code.python"
        )
    };
    let asked = Command::new(name)
        .args(["-I", "-c", ASK])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let asked = asked.map_err(|error| missing(format!("cannot be started ({error})")))?;
    let text = String::from_utf8_lossy(&asked.stdout);
    let mut lines = text.lines().filter(|line| line.starts_with('/')).map(PathBuf::from);
    let program = lines.next().filter(|_| asked.status.success());
    let Some(program) = program else { return Err(missing("does not say where it is".to_owned())) };
    // Never the whole machine, nor a whole home.
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let mut readable: Vec<PathBuf> =
        lines.filter(|path| path.parent().is_some() && Some(path) != home.as_ref()).collect();
    readable.extend(LIBRARIES.map(PathBuf::from));
    readable.extend(program.canonicalize().ok().and_then(|real| real.parent().map(PathBuf::from)));
    // A folder stands for what is below it.
    readable.sort();
    if settings.sandbox == Protection::Off {
        let sandbox = Sandbox::new(&program, &readable, Mode::Limits);
        return works(&sandbox).map(|()| sandbox);
    }
    Sandbox::strongest(&program, &readable, works).map_err(|reasons| {
        format!(
            "programs are not run, because this machine cannot protect itself from them: {reasons}; grader.code.sandbox = \"off\" runs them \
             with limits alone"
        )
    })
}

/// Whether Python computes in a sandbox.
fn works(sandbox: &Sandbox) -> std::result::Result<(), String> {
    let finished = sandbox.run(
        &["-s", "-B", "-c", "print(6 * 7)"],
        ENVIRONMENT,
        b"",
        b"",
        &Limits::default(),
    )?;
    if finished.ending == Ending::Exited(0) && finished.stdout == b"42\n" {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&finished.stderr);
    let last = errors.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
    Err(format!("Python does not run ({:?}: {last})", finished.ending))
}
