//! Starting a program in the sandbox, waiting for it, and reading what it left.

use std::ffi::{CString, c_void};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use libc::{c_char, c_int};

use super::child::{Bind, Prepared, Report, User, become_program};
use super::landlock::{self, Access};
use super::{Ending, Finished, Limits, Mode, Sandbox, seccomp};

/// Numbers that belong to no account: the range from which systemd takes users for a service's lifetime.
const FIRST_USER: u32 = 61_184;
const USERS: u32 = 4096;
/// The process that the filter is built for: the first of its namespace.
const FIRST_PROCESS: u32 = 1;
/// Bytes of the stack on which a process prepares itself.
const STACK: usize = 128 << 10;
/// The version of Landlock from which on it covers truncation: before, it cannot stand alone.
const LANDLOCK_ALONE: u32 = 3;
/// What every program may open besides its folders.
const DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/urandom"];

type Outcome<T> = std::result::Result<T, String>;

pub(super) fn run(
    sandbox: &Sandbox,
    arguments: &[&str],
    environment: &[(&str, &str)],
    stdin: &[u8],
    file: &[u8],
    limits: &Limits,
) -> Outcome<Finished> {
    let inputs = [sealed(stdin)?, sealed(file)?];
    let outputs = [memory_file()?, memory_file()?];
    let program = c_string(sandbox.program.as_os_str().as_bytes())?;
    let mut arguments =
        arguments.iter().map(|text| c_string(text.as_bytes())).collect::<Outcome<Vec<_>>>()?;
    arguments.insert(0, program.clone());
    let environment = environment
        .iter()
        .map(|(name, value)| c_string(format!("{name}={value}").as_bytes()))
        .collect::<Outcome<Vec<_>>>()?;
    let pointers = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let filter = (sandbox.mode != Mode::Limits).then(|| seccomp::filter(FIRST_PROCESS));
    // Where the filter compares with the process's own number.
    let other = seccomp::filter(u32::MAX);
    let own_pid_at = filter
        .iter()
        .flatten()
        .zip(&other)
        .enumerate()
        .filter(|(_, (a, b))| a.k != b.k)
        .map(|(place, _)| place)
        .collect();
    let (user, flags) = user_and_flags(sandbox.mode)?;
    let mut prepared = Prepared {
        program,
        arguments: pointers(&arguments),
        environment: pointers(&environment),
        files: [&inputs[0], &outputs[0], &outputs[1], &inputs[1]].map(|file| file.as_raw_fd()),
        limits: limits.clone(),
        root: (sandbox.mode == Mode::Namespaces).then(|| root(sandbox)).transpose()?,
        folder_options: c_string(
            format!("size={},nr_inodes=512,mode=1777", limits.folder).as_bytes(),
        )?,
        user,
        landlock: rules(sandbox)?,
        filter,
        own_pid_at,
    };
    let (process, pid) = start(&mut prepared, flags)?;
    let reason = wait(&process, pid, limits);
    let mut finished = collect(pid, reason, limits)?;
    [finished.stdout, finished.stderr] = [read(&outputs[0])?, read(&outputs[1])?];
    // The byte beyond the limit shows that more was written than allowed (see `child::limit`). What ended the program afterwards says less: the
    // first process of a namespace outlives the signal of a full file, as every signal whose default it keeps, and gets an error for each further
    // write, with which it may end by itself, go on until a limit of time, or do anything else.
    if finished.stdout.len() as u64 > limits.output {
        finished.ending = Ending::Output;
    }
    for output in [&mut finished.stdout, &mut finished.stderr] {
        output.truncate(limits.output as usize);
    }
    Ok(finished)
}

fn c_string(bytes: &[u8]) -> Outcome<CString> {
    CString::new(bytes).map_err(|_| "a program's arguments hold a zero byte".to_owned())
}

fn failed(what: &str) -> String {
    format!("{what} failed: {}", std::io::Error::last_os_error())
}

/// A file in memory, above the numbers that the standard streams take.
fn memory_file() -> Outcome<File> {
    // SAFETY: the name ends with a zero byte; the descriptor is new, and owned from here on.
    unsafe {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        let low = libc::memfd_create(c"sandbox".as_ptr(), flags);
        if low < 0 {
            return Err(failed("reserving a file in memory"));
        }
        let low = OwnedFd::from_raw_fd(low);
        let high = libc::fcntl(low.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 10);
        if high < 0 {
            return Err(failed("reserving a file in memory"));
        }
        Ok(File::from_raw_fd(high))
    }
}

/// A file in memory with a content that nobody can change.
fn sealed(content: &[u8]) -> Outcome<File> {
    let mut file = memory_file()?;
    let written = file.write_all(content).and_then(|()| file.seek(SeekFrom::Start(0)));
    written.map_err(|error| format!("the program's input cannot be kept: {error}"))?;
    let seals = libc::F_SEAL_WRITE | libc::F_SEAL_GROW | libc::F_SEAL_SHRINK | libc::F_SEAL_SEAL;
    // SAFETY: takes a number.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(failed("sealing the program's input"));
    }
    Ok(file)
}

/// What a program left in a file. Its process has ended, so nobody writes any more.
fn read(mut file: &File) -> Outcome<Vec<u8>> {
    let mut content = Vec::new();
    let done = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut content));
    done.map_err(|error| format!("the program's output cannot be read: {error}"))?;
    Ok(content)
}

/// As whom a program runs, and with which namespaces.
fn user_and_flags(mode: Mode) -> Outcome<(User, c_int)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // SAFETY: these calls take nothing and cannot fail.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let flags = if mode == Mode::Namespaces { namespaces } else { 0 };
    if mode == Mode::Limits {
        return Ok((User::Same, flags));
    }
    if user == 0 && may_become_others() {
        // Two programs at a time are two users: neither can reach the other, and each has its own count of threads.
        let next = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_add(std::process::id());
        return Ok((User::Become(FIRST_USER + next % USERS), flags));
    }
    if mode == Mode::Landlock {
        return Ok((User::Same, flags));
    }
    let map = |id: u32| c_string(format!("{id} {id} 1\n").as_bytes());
    Ok((User::Mapped { users: map(user)?, groups: map(group)? }, flags | libc::CLONE_NEWUSER))
}

/// Whether root here is one that may become any user of the range: in a container root may lack the privileges, and in a namespace of users
/// there may be no other.
fn may_become_others() -> bool {
    const NEEDED: u64 = 1 << 6 | 1 << 7 | 1 << 21; // CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN
    let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}"));
    let Ok(status) = read("status") else { return false };
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if effective.unwrap_or(0) & NEEDED != NEEDED {
        return false;
    }
    let maps_all = |text: String| {
        text.lines().any(|line| {
            let numbers: Vec<u64> =
                line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
            let [first, _, count] = numbers[..] else { return false };
            first <= u64::from(FIRST_USER) && u64::from(FIRST_USER + USERS) <= first + count
        })
    };
    let maps = ["uid_map", "gid_map"].iter().all(|name| read(name).is_ok_and(maps_all));
    maps && read("setgroups").is_ok_and(|answer| answer.trim() == "allow")
}

/// The folders that a program sees, as they are: links followed, and each once.
fn views(sandbox: &Sandbox) -> Vec<(&Path, std::path::PathBuf)> {
    let mut views: Vec<(&Path, std::path::PathBuf)> = Vec::new();
    for path in &sandbox.readable {
        let Ok(real) = path.canonicalize() else { continue };
        let inside = views.iter().any(|(other, _)| path.starts_with(other));
        if path.is_absolute() && real.parent().is_some() && !inside {
            views.push((path, real));
        }
    }
    views
}

/// The new root: folders to make, and views to put into it.
fn root(sandbox: &Sandbox) -> Outcome<(Vec<CString>, Vec<Bind>)> {
    let (mut folders, mut binds) = (vec![c_string(b"/new/tmp")?], Vec::new());
    let devices = DEVICES.map(|device| (Path::new(device), Path::new(device).to_path_buf()));
    for (path, real) in views(sandbox).into_iter().chain(devices) {
        let is_folder = real.is_dir();
        if !real.exists() {
            continue;
        }
        let below = path.strip_prefix("/").unwrap_or(path);
        let mut made = Path::new("/new").to_path_buf();
        let mut parents = below.components().collect::<Vec<_>>();
        let last = parents.pop();
        for part in parents {
            made.push(part);
            folders.push(c_string(made.as_os_str().as_bytes())?);
        }
        made.extend(last);
        let target = c_string(made.as_os_str().as_bytes())?;
        if is_folder {
            folders.push(target.clone());
        }
        let source = c_string(&[b"/old", real.as_os_str().as_bytes()].concat())?;
        binds.push(Bind { source, target, is_folder });
    }
    Ok((folders, binds))
}

/// What landlock is told: the version of its interface, and the paths that may be opened and how.
type Rules = (u32, Vec<(CString, Access)>);

/// What Landlock is to allow.
fn rules(sandbox: &Sandbox) -> Outcome<Option<Rules>> {
    let version = landlock::version();
    match (sandbox.mode, version) {
        (Mode::Limits, _) | (Mode::Namespaces, None) => return Ok(None),
        (Mode::Landlock, version) if version.is_none_or(|version| version < LANDLOCK_ALONE) => {
            let found = version.map_or("the kernel has none".to_owned(), |version| {
                format!("the kernel has version {version}")
            });
            return Err(format!(
                "Landlock of version {LANDLOCK_ALONE} (Linux 6.2) is needed, and {found}"
            ));
        }
        _ => {}
    }
    let mut paths = Vec::new();
    for (path, _) in views(sandbox) {
        paths.push((c_string(path.as_os_str().as_bytes())?, Access::Read));
    }
    for device in DEVICES {
        paths.push((c_string(device.as_bytes())?, Access::Device));
    }
    if sandbox.mode == Mode::Namespaces {
        paths.push((c_string(b"/tmp")?, Access::Write));
    }
    Ok(version.map(|version| (version, paths)))
}

struct Start {
    prepared: *mut Prepared,
    report: Report,
}

extern "C" fn enter(start: *mut c_void) -> c_int {
    // SAFETY: `start` is the struct of the thread that waits until this process has become the program or ended.
    unsafe {
        let start = &mut *start.cast::<Start>();
        start.report = become_program(&mut *start.prepared);
        libc::_exit(127)
    }
}

/// Starts the process. The thread goes on when it has become the program, or failed to.
fn start(prepared: &mut Prepared, flags: c_int) -> Outcome<(OwnedFd, libc::pid_t)> {
    let mut stack = vec![0u128; STACK / 16];
    let mut start = Start { prepared, report: Report::default() };
    let mut handle: c_int = -1;
    // SAFETY: the stack is this call's own and its end is aligned to 16 bytes; with CLONE_VFORK this thread waits until the process has
    // left this memory, so that everything it uses lives. It only makes system calls (see `child`). All signals are held back
    // meanwhile, because a handler would run in memory that is shared. `handle` receives the descriptor of CLONE_PIDFD.
    let pid = unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) =
            (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, &mut before);
        let dumpable = libc::prctl(libc::PR_GET_DUMPABLE);
        let top = stack.as_mut_ptr().add(stack.len()).cast::<c_void>();
        let how = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD | flags;
        let pid = libc::clone(enter, top, how, (&raw mut start).cast(), &raw mut handle);
        // A change of user clears this mark of the memory, which was shared.
        if dumpable == 1 && libc::prctl(libc::PR_GET_DUMPABLE) != 1 {
            libc::prctl(libc::PR_SET_DUMPABLE, 1);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        pid
    };
    if pid < 0 {
        return Err(failed("starting a process of its own"));
    }
    // SAFETY: the descriptor is new, and owned from here on.
    let process = unsafe { OwnedFd::from_raw_fd(handle) };
    if let Some(stage) = start.report.stage {
        let error = std::io::Error::from_raw_os_error(start.report.error);
        // SAFETY: waits for the process that was started above, which has ended.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        return Err(format!("{stage} failed: {error}"));
    }
    Ok((process, pid))
}

/// Waits until the process has ended; kills it, and all that it may have started, when its time is over.
fn wait(process: &OwnedFd, pid: libc::pid_t, limits: &Limits) -> Option<Ending> {
    let end = Instant::now() + limits.wall;
    let mut reason = None;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let milliseconds =
            if reason.is_some() { -1 } else { left.as_millis().min(1 << 30) as c_int + 1 };
        let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor that is open.
        let ready = unsafe { libc::poll(&mut poll, 1, milliseconds) };
        if ready == 1 {
            break;
        }
        if ready == 0 && left.is_zero() {
            reason = Some(Ending::WallTime);
            // SAFETY: the descriptor names this process and no other, even when its number were used again.
            unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    process.as_raw_fd(),
                    libc::SIGKILL,
                    std::ptr::null::<c_void>(),
                    0u32,
                );
            }
        }
    }
    // In a sandbox nothing else can have been started. With limits alone the session's group ends with its leader.
    // SAFETY: the process has not been waited for, so its number, which is its group's, is still its own.
    unsafe { libc::kill(-pid, libc::SIGKILL) };
    reason
}

/// The least processor time that the kernel reports of a program that it killed at a limit. Against the limit it holds ticks, each of which goes to
/// whoever runs at it; what it reports is measured. On a busy machine the two are apart as any sample is from what it samples: for n ticks
/// by some sqrt(n) of them. There are at least 100 a second; four deviations. (Of twelve programs with a second each on two cores with eight others
/// it reported 0.90 to 0.96.)
fn least_reported(limit: Duration) -> Duration {
    let ticks = 100.0 * limit.as_secs_f64();
    limit.mul_f64((1.0 - 4.0 / ticks.max(1.0).sqrt()).max(0.0))
}

fn collect(pid: libc::pid_t, reason: Option<Ending>, limits: &Limits) -> Outcome<Finished> {
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::zeroed());
    // SAFETY: waits for a process that this thread started; both places are this call's own.
    let (waited, usage) = unsafe {
        let waited = libc::wait4(pid, &mut status, 0, usage.as_mut_ptr());
        (waited, usage.assume_init())
    };
    if waited != pid {
        return Err(failed("waiting for the program"));
    }
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    let processor = time(usage.ru_utime) + time(usage.ru_stime);
    let ending = match reason {
        Some(reason) => reason,
        // Nothing but the kernel's limit of processor time can kill a sandbox from within: its SIGKILL is the one signal that the first process of a
        // namespace does not outlive.
        None if libc::WIFSIGNALED(status)
            && libc::WTERMSIG(status) == libc::SIGKILL
            && processor >= least_reported(limits.processor) =>
        {
            Ending::ProcessorTime
        }
        None if processor >= limits.processor => Ending::ProcessorTime,
        None if libc::WIFSIGNALED(status) => Ending::Signalled(libc::WTERMSIG(status)),
        None => Ending::Exited(libc::WEXITSTATUS(status)),
    };
    Ok(Finished { ending, stdout: Vec::new(), stderr: Vec::new(), processor })
}
