//! Running programs that nobody trusts: a process that can compute and nothing else.
//!
//! A program in the sandbox reads its input, writes a bounded output, uses bounded time and memory, sees a read-only part of the
//! file system and a small folder of its own, and cannot start processes, reach a network, or signal anything but itself. Layers lie
//! over each other, so that a fault in one is held by the next:
//!
//! - **Limits** of the kernel: processor time, memory, size of files, open files, threads; and a limit of wall-clock time that
//!   whoever started the program keeps. They are always there.
//! - **A filter of system calls** (seccomp): those that computing needs are allowed, all others refused, by a list of what is allowed.
//!   No sockets, no fork, no ptrace, no signals to others, no mounts, no changes of modes or owners.
//! - **Namespaces**: users or, for a root that may become others, an unprivileged user of its own; processes, mounts, network, IPC. The root is a new one that
//!   holds read-only views of the folders that the program needs, and a `/tmp` in memory.
//! - **Landlock**: the same folders again, by another mechanism; alone, where namespaces are not to be had, and then nothing at all
//!   may be written.
//!
//! The filter, and namespaces or Landlock (Linux 6.2 or newer), are what [`Sandbox::strongest`] insists on. When the thread that runs a
//! program ends, the program is killed with it.

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod child;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod landlock;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod launch;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod seccomp;

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a program may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time on a processor; the kernel counts whole seconds, and fractions are rounded up.
    pub processor: Duration,
    /// Time by the clock.
    pub wall: Duration,
    /// Address space, in bytes.
    pub memory: u64,
    /// Bytes of its output, and of each file that it writes.
    pub output: u64,
    /// Bytes of its own folder, all files together.
    pub folder: u64,
    /// Open files.
    pub files: u64,
    /// Threads, where namespaces or root let them be counted; memory bounds them everywhere.
    pub threads: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            processor: Duration::from_secs(5),
            wall: Duration::from_secs(15),
            memory: 512 << 20,
            output: 1 << 20,
            folder: 16 << 20,
            files: 64,
            threads: 32,
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By itself, with this code.
    Exited(i32),
    /// Killed by this signal.
    Signalled(i32),
    /// It used up its processor time.
    ProcessorTime,
    /// It used up its time by the clock.
    WallTime,
    /// It wrote more than its limit of output, whatever ended it then.
    Output,
}

/// What a program left.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub ending: Ending,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
    /// Processor time.
    pub processor: Duration,
}

/// Which layers hold beside the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Filter, namespaces, and Landlock where the kernel has it.
    Namespaces,
    /// Filter and Landlock: the program can write no file at all.
    Landlock,
    /// Limits alone: no protection from a program that means harm.
    Limits,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Mode::Namespaces => "filter of system calls, namespaces, and Landlock where the kernel has it",
            Mode::Landlock => "filter of system calls and Landlock, without namespaces: programs can write no file",
            Mode::Limits => "limits alone",
        })
    }
}

/// A program that may be run, and what it may see.
#[derive(Debug)]
pub struct Sandbox {
    program: PathBuf,
    readable: Vec<PathBuf>,
    mode: Mode,
}

impl Sandbox {
    /// A sandbox of a given mode, untried.
    pub fn new(program: &Path, readable: &[PathBuf], mode: Mode) -> Sandbox {
        Sandbox { program: program.to_owned(), readable: readable.to_vec(), mode }
    }

    /// The strongest mode in which `works` says that the program runs.
    ///
    /// # Errors
    /// When there is none: a sentence about what each lacks.
    pub fn strongest(
        program: &Path,
        readable: &[PathBuf],
        works: impl Fn(&Sandbox) -> std::result::Result<(), String>,
    ) -> std::result::Result<Sandbox, String> {
        let mut reasons = Vec::new();
        for mode in [Mode::Namespaces, Mode::Landlock] {
            let sandbox = Sandbox::new(program, readable, mode);
            match works(&sandbox) {
                Ok(()) => return Ok(sandbox),
                Err(reason) => {
                    let name = if mode == Mode::Namespaces {
                        "with namespaces"
                    } else {
                        "with Landlock alone"
                    };
                    reasons.push(format!("{name}, {reason}"));
                }
            }
        }
        Err(reasons.join("; "))
    }

    /// Which layers hold.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Runs the program to its end, or to a limit, and returns what it left. Nothing of it runs any more afterwards.
    ///
    /// `stdin` is its standard input, `file` what it finds open as file 3; both are read-only.
    ///
    /// # Errors
    /// When it cannot be started: a sentence.
    pub fn run(
        &self,
        arguments: &[&str],
        environment: &[(&str, &str)],
        stdin: &[u8],
        file: &[u8],
        limits: &Limits,
    ) -> std::result::Result<Finished, String> {
        #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
        {
            launch::run(self, arguments, environment, stdin, file, limits)
        }
        #[cfg(not(all(
            target_os = "linux",
            any(target_arch = "x86_64", target_arch = "aarch64")
        )))]
        {
            let _ = (arguments, environment, stdin, file, limits);
            Err(format!(
                "the sandbox needs Linux on x86-64 or arm64, and this is {} on {}",
                std::env::consts::OS,
                std::env::consts::ARCH
            ))
        }
    }
}

/// The version of Landlock that the kernel has; `None` without it.
pub fn landlock_version() -> Option<u32> {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        landlock::version()
    }
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    {
        None
    }
}

#[cfg(all(test, target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod tests;
