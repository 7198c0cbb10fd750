//! What a process does to itself between clone and exec.
//!
//! It shares its memory with the program that started it, whose thread waits meanwhile and whose other threads run on: so it only makes
//! system calls, on memory that was prepared for it. It reserves nothing, takes no lock, and calls nothing of the C library that does
//! (`setuid` there would reach into the other threads).

use std::ffi::{CStr, CString};

use libc::{c_char, c_int, c_ulong, sock_filter};

use super::Limits;
use super::landlock::{self, Access};

/// A folder or device of the machine that the program sees.
pub(super) struct Bind {
    /// Its path once the machine's root is at `/old`.
    pub(super) source: CString,
    /// Its path in the root that is being built.
    pub(super) target: CString,
    pub(super) is_folder: bool,
}

/// Everything that the process needs, prepared.
pub(super) struct Prepared {
    pub(super) program: CString,
    pub(super) arguments: Vec<*const c_char>,
    pub(super) environment: Vec<*const c_char>,
    /// Standard input, output, error, and file 3; all above 9.
    pub(super) files: [c_int; 4],
    pub(super) limits: Limits,
    /// A new root, of these views; folders to make in it, parents first.
    pub(super) root: Option<(Vec<CString>, Vec<Bind>)>,
    pub(super) folder_options: CString,
    /// The user to become (root), or the lines that map the present one (others).
    pub(super) user: User,
    pub(super) landlock: Option<(u32, Vec<(CString, Access)>)>,
    pub(super) filter: Option<Vec<sock_filter>>,
    /// The filter is built for process 1; elsewhere these places take the process's own number.
    pub(super) own_pid_at: Vec<usize>,
}

/// As whom the program runs.
pub(super) enum User {
    /// As whoever runs this.
    Same,
    /// As an unprivileged user that nobody else is.
    Become(u32),
    /// As the same user in a namespace where that user has no privileges outside.
    Mapped { users: CString, groups: CString },
}

/// What failed, and why: read by the thread that waits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Report {
    pub(super) stage: Option<&'static str>,
    pub(super) error: i32,
}

type Step = std::result::Result<(), (&'static str, i32)>;

fn errno() -> i32 {
    // SAFETY: the location is the thread's own; the thread that shares it waits.
    unsafe { *libc::__errno_location() }
}

fn done(stage: &'static str, result: libc::c_long) -> Step {
    if result < 0 { Err((stage, errno())) } else { Ok(()) }
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    namespace: u64,
}

const READ_ONLY: u64 = 1;
const NO_SUID: u64 = 2;
const NO_DEVICES: u64 = 4;
const MOUNT_SETATTR: libc::c_long = 442;
const RECURSIVE: u32 = 0x8000;

/// Prepares the process and becomes the program. Returns only when that fails.
pub(super) fn become_program(prepared: &mut Prepared) -> Report {
    match attempt(prepared) {
        Ok(()) => Report { stage: Some("starting the program"), error: errno() },
        Err((stage, error)) => Report { stage: Some(stage), error },
    }
}

fn attempt(prepared: &mut Prepared) -> Step {
    // SAFETY: plain system calls without pointers.
    done("a new session", unsafe { libc::syscall(libc::SYS_setsid) })?;
    if let User::Mapped { users, groups } = &prepared.user {
        write(c"/proc/self/setgroups", c"deny")?;
        write(c"/proc/self/uid_map", users)?;
        write(c"/proc/self/gid_map", groups)?;
    }
    if let Some((folders, binds)) = &prepared.root {
        new_root(folders, binds, &prepared.folder_options)?;
    }
    for (number, &file) in prepared.files.iter().enumerate() {
        // SAFETY: plain system calls; the descriptors are open, and above all targets.
        done("the standard streams", unsafe {
            libc::syscall(libc::SYS_dup3, file, number as c_int, 0)
        })?;
    }
    // SAFETY: closes descriptors of this process only; the table is a copy.
    done("closing files", unsafe { libc::syscall(libc::SYS_close_range, 4u32, u32::MAX, 0u32) })?;
    limit(&prepared.limits, !matches!(prepared.user, User::Same))?;
    if let User::Become(user) = prepared.user {
        // SAFETY: plain system calls; those of the C library would reach into threads that share this memory.
        unsafe {
            done(
                "leaving groups",
                libc::syscall(libc::SYS_setgroups, 0usize, std::ptr::null::<u32>()),
            )?;
            done("leaving the group", libc::syscall(libc::SYS_setresgid, user, user, user))?;
            done("leaving the user", libc::syscall(libc::SYS_setresuid, user, user, user))?;
        }
    }
    // Of another user nothing is left to give up.
    if prepared.filter.is_some() && !matches!(prepared.user, User::Become(_)) {
        drop_capabilities()?;
    }
    // SAFETY: plain system calls without pointers.
    unsafe {
        done("ending with its parent", prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong))?;
        done("giving up privileges", prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
    }
    if let Some((version, paths)) = &prepared.landlock {
        let mut listed: [(&CStr, Access); 64] = [(c"", Access::Read); 64];
        let count = paths.len().min(listed.len());
        for (entry, (path, access)) in listed.iter_mut().zip(paths) {
            *entry = (path.as_c_str(), *access);
        }
        landlock::restrict(*version, &listed[..count]).map_err(|error| ("Landlock", error))?;
    }
    if let Some(filter) = &mut prepared.filter {
        if prepared.root.is_none() {
            // SAFETY: takes no pointer.
            let own = unsafe { libc::syscall(libc::SYS_getpid) } as u32;
            for &place in &prepared.own_pid_at {
                filter[place].k = own;
            }
        }
        super::seccomp::install(filter).map_err(|error| ("the filter of system calls", error))?;
    }
    // SAFETY: a path and two lists of strings, each ended by a null pointer, that outlive the call. It returns only on failure.
    unsafe {
        libc::execve(
            prepared.program.as_ptr(),
            prepared.arguments.as_ptr(),
            prepared.environment.as_ptr(),
        );
    }
    Ok(())
}

/// # Safety
/// The option takes a number.
unsafe fn prctl(option: c_int, value: c_ulong) -> libc::c_long {
    // SAFETY: the caller says that the option takes no pointer.
    unsafe {
        libc::syscall(libc::SYS_prctl, option, value, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong)
    }
}

fn write(path: &CStr, text: &CStr) -> Step {
    // SAFETY: the strings end with zero bytes; the descriptor is closed again.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        done("mapping the user", file.into())?;
        let written = libc::write(file, text.as_ptr().cast(), text.count_bytes());
        let result = done("mapping the user", written as libc::c_long);
        libc::close(file);
        result
    }
}

fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: c_ulong,
    options: Option<&CStr>,
) -> libc::c_long {
    let options = options.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: all strings end with zero bytes and outlive the call.
    unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, options.cast()).into()
    }
}

fn set_mount(path: &CStr, attributes: u64, recursive: bool) -> libc::c_long {
    let attributes = MountAttributes { set: attributes, clear: 0, propagation: 0, namespace: 0 };
    let flags = if recursive { RECURSIVE } else { 0 };
    // SAFETY: the struct outlives the call and its size is given.
    unsafe {
        libc::syscall(
            MOUNT_SETATTR,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    }
}

/// Builds a root in memory that holds the views, read-only, and an empty `/tmp`, and leaves the machine's root for it.
fn new_root(folders: &[CString], binds: &[Bind], folder_options: &CStr) -> Step {
    let quiet = libc::MS_NOSUID | libc::MS_NODEV;
    let small = Some(c"size=1m,mode=755");
    done(
        "a mount namespace of its own",
        mount(c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE, None),
    )?;
    done("a file system in memory", mount(c"tmpfs", c"/tmp", c"tmpfs", quiet, small))?;
    // SAFETY: all strings end with zero bytes and outlive the calls.
    unsafe {
        done("the new root", libc::mkdir(c"/tmp/old".as_ptr(), 0o755).into())?;
        done("the new root", libc::mkdir(c"/tmp/new".as_ptr(), 0o755).into())?;
        done(
            "the new root",
            libc::syscall(libc::SYS_pivot_root, c"/tmp".as_ptr(), c"/tmp/old".as_ptr()),
        )?;
        done("the new root", libc::chdir(c"/".as_ptr()).into())?;
        done("the new root", mount(c"tmpfs", c"/new", c"tmpfs", quiet, small))?;
        for folder in folders {
            if libc::mkdir(folder.as_ptr(), 0o755) < 0 && errno() != libc::EEXIST {
                return Err(("the folders of the new root", errno()));
            }
        }
        for bind in binds {
            if !bind.is_folder {
                let file = libc::open(
                    bind.target.as_ptr(),
                    libc::O_CREAT | libc::O_WRONLY | libc::O_CLOEXEC,
                    0o644,
                );
                done("the files of the new root", file.into())?;
                libc::close(file);
            }
            let bound =
                mount(&bind.source, &bind.target, c"none", libc::MS_BIND | libc::MS_REC, None);
            done("a view of a folder", bound)?;
            let devices = if bind.is_folder { NO_DEVICES } else { 0 };
            done(
                "a view that is read-only",
                set_mount(&bind.target, READ_ONLY | NO_SUID | devices, bind.is_folder),
            )?;
        }
        done(
            "a folder of its own",
            mount(c"tmpfs", c"/new/tmp", c"tmpfs", quiet, Some(folder_options)),
        )?;
        done("leaving the old root", libc::umount2(c"/old".as_ptr(), libc::MNT_DETACH).into())?;
        done("leaving the old root", libc::chdir(c"/new".as_ptr()).into())?;
        done(
            "leaving the old root",
            libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()),
        )?;
        done("leaving the old root", libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
        done("leaving the old root", libc::chdir(c"/".as_ptr()).into())?;
        done("a root that is read-only", set_mount(c"/", READ_ONLY | NO_SUID | NO_DEVICES, false))?;
        done("a folder of its own", libc::chdir(c"/tmp".as_ptr()).into())
    }
}

/// `own_user`: whether threads can be counted, because no other process is this user.
fn limit(limits: &Limits, own_user: bool) -> Step {
    let seconds = limits.processor.as_secs() + u64::from(limits.processor.subsec_nanos() > 0);
    let set = [
        (libc::RLIMIT_CPU, seconds.max(1)),
        (libc::RLIMIT_AS, limits.memory),
        (libc::RLIMIT_STACK, (64 << 20).min(limits.memory)),
        // A byte more than may be written: one that is there tells too much from just enough.
        (libc::RLIMIT_FSIZE, limits.output.saturating_add(1)),
        (libc::RLIMIT_NOFILE, limits.files),
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_NPROC, limits.threads),
    ];
    for (resource, value) in
        set.into_iter().filter(|&(resource, _)| own_user || resource != libc::RLIMIT_NPROC)
    {
        let both =
            libc::rlimit { rlim_cur: value as libc::rlim_t, rlim_max: value as libc::rlim_t };
        // SAFETY: the struct outlives the call; limits belong to this process, not to the memory that it shares.
        done("its limits", unsafe { libc::setrlimit(resource, &raw const both) }.into())?;
    }
    Ok(())
}

/// Leaves every privilege, be it of a namespace of users alone, so that nothing can be changed any more; what is executed gains none again.
fn drop_capabilities() -> Step {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    for capability in 0..64 {
        // SAFETY: takes a number; fails for those that the kernel does not have.
        unsafe { prctl(libc::PR_CAPBSET_DROP, capability) };
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let none = [0u32; 6];
    // SAFETY: both outlive the call and have the sizes of this version.
    done("giving up capabilities", unsafe {
        libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr())
    })
}
