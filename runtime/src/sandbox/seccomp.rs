//! The filter of system calls: a list of what is allowed, as a program for the kernel's packet filter machine.

use libc::sock_filter;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const ANY_BIT: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const REFUSE: u32 = 0x0005_0000;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Where `struct seccomp_data` holds the number of the call, the architecture, and the low halves of its arguments (both
/// architectures are little-endian).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

/// Calls that are allowed whatever their arguments: computing, memory, files that are open or may be opened, time, threads' locks.
/// Not among them: anything of sockets, other processes, modes, owners and times of files, and whatever is newer than this list.
#[rustfmt::skip]
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev, libc::SYS_pread64, libc::SYS_pwrite64,
    libc::SYS_close, libc::SYS_close_range, libc::SYS_fstat, libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_lseek,
    libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_munmap, libc::SYS_brk, libc::SYS_mremap, libc::SYS_madvise,
    libc::SYS_msync, libc::SYS_mincore, libc::SYS_membarrier,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait, libc::SYS_rt_sigsuspend, libc::SYS_sigaltstack, libc::SYS_restart_syscall,
    libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_dup, libc::SYS_dup3, libc::SYS_pipe2,
    libc::SYS_pselect6, libc::SYS_ppoll, libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait,
    libc::SYS_eventfd2, libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_clock_gettime,
    libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_times, libc::SYS_getitimer, libc::SYS_setitimer,
    libc::SYS_getpid, libc::SYS_gettid, libc::SYS_getppid, libc::SYS_getpgid, libc::SYS_getsid,
    libc::SYS_getuid, libc::SYS_geteuid, libc::SYS_getgid, libc::SYS_getegid, libc::SYS_getresuid,
    libc::SYS_getresgid, libc::SYS_getgroups, libc::SYS_uname, libc::SYS_getcwd, libc::SYS_chdir, libc::SYS_fchdir,
    libc::SYS_getdents64, libc::SYS_openat, libc::SYS_mkdirat, libc::SYS_unlinkat, libc::SYS_renameat,
    libc::SYS_renameat2, libc::SYS_symlinkat, libc::SYS_readlinkat, libc::SYS_ftruncate, libc::SYS_fsync,
    libc::SYS_fdatasync, libc::SYS_flock, libc::SYS_umask, libc::SYS_getrusage, libc::SYS_sysinfo,
    libc::SYS_futex, libc::SYS_set_robust_list, libc::SYS_get_robust_list, libc::SYS_set_tid_address,
    libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_sched_getscheduler, libc::SYS_sched_getparam,
    libc::SYS_getrandom, libc::SYS_rseq, libc::SYS_getcpu, libc::SYS_statfs, libc::SYS_fstatfs,
    libc::SYS_execve, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_wait4, libc::SYS_waitid,
];

/// The older forms of calls above, which only x86-64 still has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const OLDER: &[libc::c_long] = &[
    libc::SYS_open, libc::SYS_stat, libc::SYS_lstat, libc::SYS_access, libc::SYS_pipe, libc::SYS_select,
    libc::SYS_poll, libc::SYS_dup2, libc::SYS_alarm, libc::SYS_pause, libc::SYS_getpgrp, libc::SYS_mkdir,
    libc::SYS_rmdir, libc::SYS_unlink, libc::SYS_rename, libc::SYS_symlink, libc::SYS_readlink, libc::SYS_getrlimit,
    libc::SYS_time, libc::SYS_epoll_create, libc::SYS_epoll_wait, libc::SYS_arch_prctl, libc::SYS_creat,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// Commands of `fcntl`: duplicates, flags, locks. Not the owner of a file's signals, which may be another process.
const FCNTL: &[u32] = &[0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032, 1034];
/// Requests of `ioctl` that Python asks of its standard streams, and close-on-exec.
const IOCTL: &[u32] = &[0x5401, 0x5413, 0x541b, 0x5421, 0x5450, 0x5451];
/// Options of `prctl`: the names of threads and of memory.
const PRCTL: &[u32] = &[15, 16, 0x5356_4d41];

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Calls allowed only with one of some values in an argument.
fn only(
    program: &mut Vec<sock_filter>,
    call: libc::c_long,
    index: u32,
    values: &[u32],
    otherwise: u32,
) {
    // Past the block when it is another call: a load, two instructions a value, a return.
    let length = 2 + 2 * values.len();
    program.push(instruction(EQUAL, 0, length as u8, call as u32));
    program.push(instruction(LOAD, 0, 0, argument(index)));
    for &value in values {
        program.push(instruction(EQUAL, 0, 1, value));
        program.push(instruction(RETURN, 0, 0, ALLOW));
    }
    program.push(instruction(RETURN, 0, 0, otherwise));
}

/// The filter for a process that will know itself by `pid`.
pub(super) fn filter(pid: u32) -> Vec<sock_filter> {
    let refuse = |error: i32| REFUSE | error as u32;
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCH),
        instruction(EQUAL, 1, 0, ARCHITECTURE),
        instruction(RETURN, 0, 0, KILL),
        instruction(LOAD, 0, 0, NUMBER),
    ];
    if cfg!(target_arch = "x86_64") {
        // The numbers of the x32 calling convention, which would pass the list by.
        program.push(instruction(AT_LEAST, 0, 1, 0x4000_0000));
        program.push(instruction(RETURN, 0, 0, KILL));
    }
    for &call in ALLOWED.iter().chain(OLDER) {
        program.push(instruction(EQUAL, 0, 1, call as u32));
        program.push(instruction(RETURN, 0, 0, ALLOW));
    }
    // A thread of this process, but no other process. The newer call hides its flags in memory: its caller falls back.
    program.push(instruction(EQUAL, 0, 4, libc::SYS_clone as u32));
    program.push(instruction(LOAD, 0, 0, argument(0)));
    program.push(instruction(ANY_BIT, 0, 1, libc::CLONE_THREAD as u32));
    program.push(instruction(RETURN, 0, 0, ALLOW));
    program.push(instruction(RETURN, 0, 0, refuse(libc::EPERM)));
    program.push(instruction(EQUAL, 0, 1, libc::SYS_clone3 as u32));
    program.push(instruction(RETURN, 0, 0, refuse(libc::ENOSYS)));
    only(&mut program, libc::SYS_kill, 0, &[pid], refuse(libc::EPERM));
    only(&mut program, libc::SYS_tgkill, 0, &[pid], refuse(libc::EPERM));
    only(&mut program, libc::SYS_prlimit64, 0, &[0, pid], refuse(libc::EPERM));
    only(&mut program, libc::SYS_fcntl, 1, FCNTL, refuse(libc::EPERM));
    only(&mut program, libc::SYS_ioctl, 1, IOCTL, refuse(libc::ENOTTY));
    only(&mut program, libc::SYS_prctl, 0, PRCTL, refuse(libc::EPERM));
    program.push(instruction(RETURN, 0, 0, refuse(libc::EPERM)));
    program
}

/// Installs a filter for the calling thread, for good. Called between clone and exec.
pub(super) fn install(program: &[sock_filter]) -> std::result::Result<(), i32> {
    let listed =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the kernel copies the program, which outlives the call.
    let installed = unsafe { libc::syscall(libc::SYS_seccomp, 1u32, 0u32, &raw const listed) };
    match installed {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}
