//! The parts that start other programs.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use prime_runtime::Device;
use serde_json::{Value, json};

use super::supervise::{Ended, tail};

/// Cases of each operation under a sanitizer, which slows a kernel down a hundredfold.
pub const SANITIZED_CASES: u64 = 6;

/// The tools of compute-sanitizer.
pub const TOOLS: [&str; 4] = ["memcheck", "racecheck", "initcheck", "synccheck"];

/// Why there is nothing that sanitizers could watch, or no sanitizer.
pub fn without_sanitizers(device: Device) -> Option<&'static str> {
    if !matches!(device, Device::Cuda(_)) {
        Some("compute-sanitizer watches CUDA devices")
    } else if Command::new("compute-sanitizer").arg("--version").output().is_err() {
        Some("there is no compute-sanitizer in PATH; it comes with the CUDA toolkit")
    } else {
        None
    }
}

/// An item under one of compute-sanitizer's tools.
pub fn sanitized(tool: &str, item: &Command, limit: Duration) -> Value {
    let mut command = Command::new("compute-sanitizer");
    command.args(["--tool", tool, "--error-exitcode", "86", "--print-limit", "20"]);
    if tool == "memcheck" {
        // A launcher asks for a kernel's parameters until there is none: that call fails on purpose, and those that must not are checked by us.
        command.args(["--report-api-errors", "no"]);
    }
    command.arg(item.get_program()).args(item.get_args());
    let ended = Ended::of(command, limit);
    let report: Vec<&str> =
        ended.output.lines().filter(|line| line.starts_with("=====")).take(60).collect();
    let mut found = ended.found();
    if found["passed"] != json!(true) {
        found["report"] = json!(report);
    }
    found
}

/// A short run of the whole program, and its last table.
pub fn training(device: Device, prime: &Path, limit: Duration) -> Value {
    let folder = std::env::temp_dir().join(format!("gpu-check-run-{}", std::process::id()));
    let mut command = Command::new(prime);
    command
        .args(["train", "--device", &device.to_string(), "--seed", "1", "--out"])
        .arg(&folder)
        .args(["--set", "sft.steps=300", "--set", "train.steps=10"])
        .args(["--set", "train.compare=false"]);
    let ended = Ended::of(command, limit);
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap_or_default();
    let last = metrics.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    // Leftovers in a temporary folder are no finding.
    let _ = std::fs::remove_dir_all(&folder);
    let mut found = match ended.failure() {
        None => json!({ "passed": true, "last_words": tail(&ended.output) }),
        Some(why) => ended.failed(&why),
    };
    found["last_metrics"] = json!(last);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_train_is_a_failure_in_a_sentence() {
        let found = training(Device::Emulated, Path::new("false"), Duration::from_secs(60));
        assert_eq!(found["passed"], json!(false));
        assert_eq!(found["error"], json!("its process ended with exit status: 1"));
        let absent = training(Device::Emulated, Path::new("/no/prime"), Duration::from_secs(60));
        assert!(absent["error"].as_str().unwrap().starts_with("/no/prime cannot be started: "));
    }
}
