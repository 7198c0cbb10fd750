//! What a result must say of where it was measured, and kernels made ready before anything is.

use std::process::Command;

use anyhow::Result;
use prime_model::clock;
use prime_runtime::cuda::Chip;
use prime_runtime::{Device, cuda};
use serde_json::{Value, json};

use super::items::TOLD;

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
    clock::format("%FT%TZ", clock::now()).expect("the format is complete")
}

/// Compiles all kernels for a chip on all cores, so that no part waits for one after another. The chip need not be here.
pub fn compile(chip: Chip) -> Value {
    let results = cuda::compile_all(chip, &prime_kernels::device::instances(chip));
    let kernels = results.len();
    let mut failures: Vec<String> =
        results.into_iter().filter_map(|result| Some(result.err()?.to_string())).collect();
    let failed = failures.len();
    // What is wrong with the compiler is said by every kernel.
    failures.dedup();
    failures.truncate(TOLD);
    json!({ "passed": failed == 0, "cases": kernels, "failed": failed, "first_failures": failures })
}
