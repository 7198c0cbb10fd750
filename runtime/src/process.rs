//! What this process uses and what this machine offers.

/// The most resident memory this process has held so far, in bytes; 0 where the system does not say.
pub fn peak_memory_bytes() -> u64 {
    #[cfg(unix)]
    {
        // SAFETY: `getrusage` fills the zeroed struct it is given.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            if libc::getrusage(libc::RUSAGE_SELF, &mut usage) != 0 {
                return 0;
            }
            usage
        };
        let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
        usage.ru_maxrss as u64 * unit
    }
    #[cfg(not(unix))]
    0
}
