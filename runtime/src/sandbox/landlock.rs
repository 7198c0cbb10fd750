//! Landlock: which paths a process may still reach.

use std::ffi::CStr;

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const CREATE_RULESET: libc::c_long = 444;
const ADD_RULE: libc::c_long = 445;
const RESTRICT_SELF: libc::c_long = 446;
const VERSION: u32 = 1;
const PATH_BENEATH: u32 = 1;

/// What a ruleset handles: everything not allowed by a rule is then refused.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// What may be done below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Read and run a folder's files.
    Read,
    /// Anything in a folder.
    Write,
    /// Read and write a device.
    Device,
}

/// The kernel's version; `None` without Landlock.
pub(super) fn version() -> Option<u32> {
    // SAFETY: with this flag the call takes no pointer and changes nothing.
    let version =
        unsafe { libc::syscall(CREATE_RULESET, std::ptr::null::<Ruleset>(), 0usize, VERSION) };
    u32::try_from(version).ok().filter(|&version| version > 0)
}

/// Restricts the calling thread, for good, to these paths; those that do not exist are passed over. No network over TCP either, and no
/// signals and abstract sockets beyond this process, in versions that know them.
///
/// Called between clone and exec: it reserves no memory and takes no locks.
pub(super) fn restrict(version: u32, paths: &[(&CStr, Access)]) -> std::result::Result<(), i32> {
    let files = match version {
        1 => (1 << 13) - 1,
        2 => (1 << 14) - 1,
        3 | 4 => (1 << 15) - 1,
        _ => (1u64 << 16) - 1,
    };
    let ruleset = Ruleset { files, network: 3, scoped: 3 };
    let size: usize = match version {
        1..=3 => 8,
        4 | 5 => 16,
        _ => 24,
    };
    let error = || std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    // SAFETY: the struct outlives the call, and `size` is the part of it that this version knows.
    let set = unsafe { libc::syscall(CREATE_RULESET, &raw const ruleset, size, 0u32) };
    if set < 0 {
        return Err(error());
    }
    for (path, access) in paths {
        let allowed = match access {
            Access::Read => EXECUTE | READ_FILE | READ_DIR,
            Access::Write => files & !EXECUTE,
            Access::Device => (READ_FILE | WRITE_FILE | TRUNCATE) & files,
        };
        // SAFETY: the path ends with a zero byte.
        let parent = unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) };
        if parent < 0 {
            continue;
        }
        // SAFETY: the struct is zeroed memory that `fstat` fills.
        let is_folder = unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            libc::fstat(parent, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFDIR
        };
        let allowed = if is_folder {
            allowed
        } else {
            allowed & (EXECUTE | READ_FILE | WRITE_FILE | TRUNCATE)
        };
        let rule = PathBeneath { allowed, parent };
        // SAFETY: the struct outlives the call; the two descriptors are open.
        let added =
            unsafe { libc::syscall(ADD_RULE, set as i32, PATH_BENEATH, &raw const rule, 0u32) };
        let failed = (added < 0).then(error);
        // SAFETY: closes what was opened above.
        unsafe { libc::close(parent) };
        if let Some(error) = failed {
            return Err(error);
        }
    }
    // SAFETY: the descriptor is the ruleset's.
    let restricted = unsafe { libc::syscall(RESTRICT_SELF, set as i32, 0u32) };
    if restricted < 0 { Err(error()) } else { Ok(()) }
}
