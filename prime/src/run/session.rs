//! `run.json` of a run folder: when, where and with which program the run was worked on, and how that ended. A run that is resumed has a
//! session more.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use prime_kernels::simd;
use prime_runtime::{Device, checkpoint, cuda, process};
use serde::Serialize;
use serde_json::{Value, json};

/// The name of the file.
pub const FILE: &str = "run.json";

/// One stretch of work on a run.
#[derive(Serialize)]
struct Session {
    /// Seconds since 1970.
    started: u64,
    version: &'static str,
    /// The commit that the program was built from, where that was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    commit: Option<&'static str>,
    /// With `process`, how others see whether the run goes on.
    host: Option<String>,
    process: u32,
    system: String,
    processor: Option<String>,
    cores: usize,
    threads: usize,
    instructions: String,
    memory_bytes: Option<u64>,
    device: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_name: Option<String>,
}

/// The session that this process has begun.
pub struct Begun {
    path: PathBuf,
}

/// Records that this process works on a run now.
///
/// # Errors
/// When the file is there and not readable, or the disk refuses.
pub fn begin(folder: &Path, device: Device) -> Result<Begun> {
    let path = folder.join(FILE);
    let device_name = match device {
        Device::Cuda(number) => cuda::properties(number).ok().map(|properties| properties.name),
        _ => None,
    };
    let session = Session {
        started: now(),
        version: env!("CARGO_PKG_VERSION"),
        commit: option_env!("PRIME_COMMIT"),
        host: host(),
        process: std::process::id(),
        system: format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH),
        processor: process::processor_name(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads: rayon::current_num_threads(),
        instructions: simd::level().to_string(),
        memory_bytes: process::memory().map(|memory| memory.total),
        device: device.to_string(),
        device_name,
    };
    let mut file = read(&path)?.unwrap_or_else(|| json!({"sessions": []}));
    if let Some(sessions) = file["sessions"].as_array_mut() {
        sessions.push(serde_json::to_value(session)?);
    }
    write(&path, &file)?;
    Ok(Begun { path })
}

impl Begun {
    /// Records how the session ended: `complete`, `stopped`, or why it failed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn end(self, how: &str) -> Result<()> {
        let Some(mut file) = read(&self.path)? else { return Ok(()) };
        if let Some(session) =
            file["sessions"].as_array_mut().and_then(|sessions| sessions.last_mut())
        {
            session["ended"] = now().into();
            session["end"] = how.into();
        }
        write(&self.path, &file)
    }
}

/// How the run in a folder stands, as far as its last session tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A process works on it, or did when last heard of.
    UnderWay,
    /// It ended, and says how.
    Ended(String),
    /// Its process is gone and left no word.
    Gone,
}

/// Whether a run goes on. A process on another machine cannot be asked; it is taken at its word.
///
/// # Errors
/// When the file is there and not readable.
pub fn standing(folder: &Path) -> Result<Standing> {
    let file = read(&folder.join(FILE))?.unwrap_or_default();
    let Some(session) = file["sessions"].as_array().and_then(|sessions| sessions.last()) else {
        // Of a version that wrote no sessions.
        let complete = folder.join("result.json").exists();
        return Ok(if complete {
            Standing::Ended("complete".to_owned())
        } else {
            Standing::UnderWay
        });
    };
    if let Some(end) = session["end"].as_str() {
        return Ok(Standing::Ended(end.to_owned()));
    }
    let here = host().is_some() && session["host"].as_str() == host().as_deref();
    let gone = match session["process"].as_u64() {
        Some(process) => {
            here && Path::new("/proc/self").exists()
                && !Path::new("/proc").join(process.to_string()).exists()
        }
        None => false,
    };
    Ok(if gone { Standing::Gone } else { Standing::UnderWay })
}

fn read(path: &Path) -> Result<Option<Value>> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => {
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            Ok(Some(serde_json::from_str(&text).with_context(|| path.display().to_string())?))
        }
    }
}

fn write(path: &Path, file: &Value) -> Result<()> {
    Ok(checkpoint::atomic_write(path, (serde_json::to_string_pretty(file)? + "\n").as_bytes())?)
}

/// What tells machines, and containers on them, apart.
fn host() -> Option<String> {
    let text = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    let name = text("/proc/sys/kernel/hostname")?;
    let space = std::fs::read_link("/proc/self/ns/pid")
        .ok()
        .map(|link| link.to_string_lossy().into_owned());
    Some(format!("{name} {}", space.unwrap_or_default()))
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// A time of seconds since 1970 as year, month, day, hour, minute, second, UTC.
fn calendar(seconds: u64) -> [u64; 6] {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    [year, month, day + 1, second / 3600, second / 60 % 60, second % 60]
}

/// A time of seconds since 1970 as `YYYYMMDD-HHMMSS`, UTC, for names.
pub fn stamp(seconds: u64) -> String {
    let [year, month, day, hour, minute, second] = calendar(seconds);
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// The same for people.
pub fn date(seconds: u64) -> String {
    let [year, month, day, hour, minute, _] = calendar(seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_in_the_calendar() {
        for (seconds, written) in [
            (0, "19700101-000000"),
            (951_782_399, "20000228-235959"),
            (951_782_400, "20000229-000000"),
            (1_709_251_199, "20240229-235959"),
            (4_107_542_400, "21000301-000000"),
        ] {
            assert_eq!(stamp(seconds), written);
        }
        assert_eq!(date(951_782_399), "2000-02-28 23:59 UTC");
    }

    #[test]
    fn a_run_knows_its_sessions_and_how_the_last_one_stands() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        assert_eq!(standing(path).unwrap(), Standing::UnderWay);
        let first = begin(path, Device::Cpu).unwrap();
        assert_eq!(standing(path).unwrap(), Standing::UnderWay);
        first.end("stopped").unwrap();
        assert_eq!(standing(path).unwrap(), Standing::Ended("stopped".into()));
        begin(path, Device::Cpu).unwrap();
        let mut file = read(&path.join(FILE)).unwrap().unwrap();
        assert_eq!(file["sessions"].as_array().unwrap().len(), 2);
        assert_eq!(
            (&file["sessions"][1]["device"], &file["sessions"][1]["end"]),
            (&json!("cpu"), &Value::Null)
        );
        // No process has this number.
        file["sessions"][1]["process"] = json!(u64::from(u32::MAX));
        write(&path.join(FILE), &file).unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(standing(path).unwrap(), Standing::Gone);
        }
    }
}
