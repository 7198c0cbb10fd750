//! What a result must say of where it was measured.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use prime_runtime::{Device, cuda};
use serde_json::{Value, json};

/// The device, its driver and compiler, and its clocks as they are now.
pub fn describe(device: Device) -> Result<Value> {
    let Device::Cuda(number) = device else {
        return Ok(json!({ "device": device.to_string() }));
    };
    let properties = cuda::properties(number)?;
    let library = |library: prime_runtime::Result<cuda::Library>| match library {
        Ok(library) => json!({
            "path": library.path.display().to_string(),
            "version": format!("{}.{}", library.version.0, library.version.1),
        }),
        Err(error) => json!(error.to_string()),
    };
    Ok(json!({
        "device": device.to_string(),
        "name": properties.name,
        "compute_capability": properties.chip.to_string(),
        "multiprocessors": properties.multiprocessors,
        "memory_bytes": properties.memory,
        "driver": library(cuda::driver_library()),
        "compiler": library(cuda::compiler_library()),
        "clocks": clocks(number),
        "started": now(),
    }))
}

/// What nvidia-smi says of the device, by its names; a sentence where there is no such program.
fn clocks(number: u32) -> Value {
    const FIELDS: [&str; 9] = [
        "driver_version",
        "clocks.sm",
        "clocks.mem",
        "clocks.max.sm",
        "power.draw",
        "power.limit",
        "temperature.gpu",
        "clocks_event_reasons.active",
        "memory.used",
    ];
    let output = Command::new("nvidia-smi")
        .arg(format!("--id={number}"))
        .arg(format!("--query-gpu={}", FIELDS.join(",")))
        .arg("--format=csv,noheader")
        .output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let values = text.trim().split(',').map(|value| json!(value.trim()));
            Value::Object(FIELDS.iter().map(|field| (*field).to_owned()).zip(values).collect())
        }
        Ok(output) => {
            json!(format!("nvidia-smi: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
        Err(error) => json!(format!("nvidia-smi cannot be run: {error}")),
    }
}

/// Now, in UTC, as ISO 8601 writes it.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, seconds) = (seconds / 86_400, seconds % 86_400);
    // Years are counted from March, so that the day that some have comes last (Hinnant, chrono-compatible low-level date algorithms).
    let days = days + 719_468;
    let era = days / 146_097;
    let day = days % 146_097;
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + 400 * era + u64::from(month <= 2);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{:02}Z", seconds % 60)
}
