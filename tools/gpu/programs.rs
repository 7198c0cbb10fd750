//! The parts that start other programs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use prime_runtime::Device;
use serde_json::{Value, json};

/// Seconds that a case may take there.
const SANITIZED_PATIENCE: u64 = 1800;

/// Cases of each operation under a sanitizer, which slows a kernel down a hundredfold.
const SANITIZED_CASES: u64 = 6;

/// This program's parity part again under compute-sanitizer's tools.
pub fn sanitizers(device: Device) -> Result<Value> {
    if !matches!(device, Device::Cuda(_)) {
        return Ok(json!({ "skipped": "compute-sanitizer watches CUDA devices" }));
    }
    if Command::new("compute-sanitizer").arg("--version").output().is_err() {
        return Ok(
            json!({ "skipped": "there is no compute-sanitizer in PATH; it comes with the CUDA toolkit" }),
        );
    }
    let this = std::env::current_exe().context("this program's own path")?;
    let folder = std::env::temp_dir().join(format!("gpu-check-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut tools = serde_json::Map::new();
    let mut passed = true;
    for tool in ["memcheck", "racecheck", "initcheck", "synccheck"] {
        let mut command = Command::new("compute-sanitizer");
        command.args(["--tool", tool, "--error-exitcode", "86", "--print-limit", "20"]);
        if tool == "memcheck" {
            // A launcher asks for a kernel's parameters until there is none: that call fails on purpose, and those that must not are checked by us.
            command.args(["--report-api-errors", "no"]);
        }
        let output = command
            .arg(&this)
            .args(["--device", &device.to_string(), "--parts", "parity"])
            .args(["--cases", &SANITIZED_CASES.to_string()])
            .args(["--patience", &SANITIZED_PATIENCE.to_string()])
            .arg("--output")
            .arg(folder.join(format!("{tool}.json")))
            .output()
            .with_context(|| format!("compute-sanitizer --tool {tool}"))?;
        let clean = output.status.success();
        passed &= clean;
        let text = String::from_utf8_lossy(&output.stdout);
        let lines: Vec<&str> =
            text.lines().filter(|line| line.starts_with("=====")).take(60).collect();
        let report = if clean { json!("no errors") } else { json!(lines) };
        tools.insert(tool.to_owned(), json!({ "clean": clean, "report": report }));
    }
    // Leftovers in a temporary folder are no finding.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(json!({ "passed": passed, "cases_of_an_operation": SANITIZED_CASES, "tools": tools }))
}

/// A short run of the whole program, and its last table.
pub fn training(device: Device, prime: &Path) -> Result<Value> {
    let folder = std::env::temp_dir().join(format!("gpu-check-run-{}", std::process::id()));
    let output = Command::new(prime)
        .args(["train", "--device", &device.to_string(), "--seed", "1", "--out"])
        .arg(&folder)
        .args(["--set", "sft.steps=300", "--set", "train.steps=10", "--set", "train.compare=false"])
        .output()
        .with_context(|| {
            format!("{} cannot be started; --prime says where it is", prime.display())
        })?;
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    let last = metrics.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    let passed = output.status.success();
    let _ = std::fs::remove_dir_all(&folder);
    let text = String::from_utf8_lossy(if passed { &output.stdout } else { &output.stderr });
    let lines: Vec<&str> = text.lines().rev().take(30).collect();
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    Ok(json!({ "passed": passed, "output": lines, "last_metrics": last }))
}
