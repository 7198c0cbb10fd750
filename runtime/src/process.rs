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

/// Seconds that processors have worked for this process so far, all its threads together; none where the system does not say.
pub fn processor_seconds() -> Option<f64> {
    #[cfg(unix)]
    {
        // SAFETY: `getrusage` fills the zeroed struct it is given.
        let usage = unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            if libc::getrusage(libc::RUSAGE_SELF, &mut usage) != 0 {
                return None;
            }
            usage
        };
        let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
        Some(seconds(usage.ru_utime) + seconds(usage.ru_stime))
    }
    #[cfg(not(unix))]
    None
}

/// Kills a process group, that of a child which was started as the leader of its own.
pub fn kill_group(leader: u32) {
    #[cfg(unix)]
    if let Ok(leader) = libc::pid_t::try_from(leader)
        && leader > 1
    {
        // SAFETY: takes numbers. A group is named by its leader, which the caller has not waited for yet.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
    #[cfg(not(unix))]
    let _ = leader;
}

/// Memory of this machine, or of the container that holds this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize {
    /// All of it, in bytes.
    pub total: u64,
    /// What a program could still take.
    pub available: u64,
}

/// How much memory there is; none where the system does not say.
pub fn memory() -> Option<MemorySize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let machine = MemorySize {
        total: meminfo(&text, "MemTotal")?,
        available: meminfo(&text, "MemAvailable")?,
    };
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // A container without a limit says "max", which is no number.
    let (limit, used) =
        (number("/sys/fs/cgroup/memory.max"), number("/sys/fs/cgroup/memory.current"));
    Some(match (limit, used) {
        (Some(limit), Some(used)) if limit < machine.total => MemorySize {
            total: limit,
            available: limit.saturating_sub(used).min(machine.available),
        },
        _ => machine,
    })
}

/// A line of `/proc/meminfo`, in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes that this process may still write to the disk that holds `path`; none where the system does not say.
pub fn free_disk(path: &std::path::Path) -> Option<u64> {
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
        // SAFETY: `statvfs` reads a string that ends with a zero byte and fills the zeroed struct it is given.
        let disk = unsafe {
            let mut disk: libc::statvfs = std::mem::zeroed();
            if libc::statvfs(path.as_ptr(), &mut disk) != 0 {
                return None;
            }
            disk
        };
        // The fields' types differ between systems.
        #[allow(clippy::unnecessary_cast)]
        Some(disk.f_bavail as u64 * disk.f_frsize as u64)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// What the processor calls itself; none where the system does not say.
pub fn processor_name() -> Option<String> {
    cpuinfo(&std::fs::read_to_string("/proc/cpuinfo").ok()?, "model name")
}

/// The processor's family and model, which differ between processors of one name: `26, 2`. None where the system does not say.
pub fn processor_model() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    Some(format!("{}, {}", cpuinfo(&text, "cpu family")?, cpuinfo(&text, "model")?))
}

/// What /proc/cpuinfo says of the first core.
fn cpuinfo(text: &str, name: &str) -> Option<String> {
    let mut facts = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = facts.find(|(found, _)| found.trim() == name)?;
    Some(value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_meminfo_is_read_by_its_whole_name() {
        let text = "MemTotalX:  1 kB\nMemTotal:       2048 kB\nMemFree: 7\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(2048 << 10));
        assert_eq!(meminfo(text, "MemFree"), None);
        assert_eq!(meminfo(text, "MemAvailable"), None);
    }

    #[test]
    fn a_core_is_described_by_whole_names() {
        let text = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC: 9\nmodel\t: 7\n";
        assert_eq!(cpuinfo(text, "model").as_deref(), Some("2"));
        assert_eq!(cpuinfo(text, "model name").as_deref(), Some("AMD EPYC: 9"));
        assert_eq!(cpuinfo(text, "cpu"), None);
    }

    #[test]
    fn the_disk_of_a_folder_that_is_not_there_is_unknown() {
        assert_eq!(free_disk(std::path::Path::new("/no/such/folder")), None);
        if cfg!(unix) {
            assert!(free_disk(std::path::Path::new(".")).is_some());
        }
    }

    #[test]
    fn processors_work_for_a_process_that_counts() {
        if let Some(before) = processor_seconds() {
            let start = std::time::Instant::now();
            let mut sum = 0u64;
            while start.elapsed().as_millis() < 100 {
                sum = std::hint::black_box(sum + 1);
            }
            // A busy machine gives a tenth of a second of its clock to others, but not all of it.
            assert!(processor_seconds().is_some_and(|after| after > before));
        }
    }

    #[test]
    fn no_more_memory_is_available_than_there_is() {
        if let Some(memory) = memory() {
            assert!(memory.available <= memory.total && memory.total > 0);
        }
    }
}
