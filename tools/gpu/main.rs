//! The check list for a machine with a GPU: one program, built elsewhere and carried there, that needs no Rust toolchain.
//!
//! ```text
//! tools/gpu/pack.sh check-list          # where Rust is: builds and puts all that is needed into a folder
//! check-list/run.sh results             # where the GPU is: runs everything, leaves JSON in a folder
//! ```
//!
//! Parts: `instructions` (the emulated device's table of instructions, on hardware: what is misread there is wrong everywhere), `parity` (random cases
//! of every operation against its float64 oracle), `steps` (forward and backward of layers of real models beside the host's), `sanitizers` (this program again under
//! compute-sanitizer), `training` (a short run of `prime train`). How fast kernels are, and whether they are right at the sizes of real models, is
//! what the benchmarks ask (`bench/`), which `tools/gpu/bench.sh` runs.

mod machine;
mod programs;
mod steps;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use prime_kernels::OPERATIONS;
use prime_runtime::{Device, checkpoint};
use serde_json::{Value, json};

/// Checks a GPU and everything that runs on it.
#[derive(Parser)]
#[command(
    name = "gpu-check",
    after_help = "Example: gpu-check --output results/2026-11-23-h200-check.json --prime ./prime"
)]
struct Arguments {
    /// cuda, cuda:N, or emulated in a build that has it
    #[arg(long, default_value = "cuda")]
    device: String,
    /// Parts to run, by name; all where none is named
    #[arg(long, value_delimiter = ',', value_parser = PARTS)]
    parts: Vec<String>,
    /// Random cases of each operation
    #[arg(long, default_value_t = 200)]
    cases: u64,
    /// Seconds after which an instruction or a case of an operation is given up, and the program ends
    #[arg(long, default_value_t = 120)]
    patience: u64,
    /// The `prime` program, for the part `training`
    #[arg(long, default_value = "prime")]
    prime: PathBuf,
    /// Where the result goes, as JSON
    #[arg(long, default_value = "gpu-check.json")]
    output: PathBuf,
}

const PARTS: [&str; 5] = ["instructions", "parity", "steps", "sanitizers", "training"];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match check(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Runs the parts, writes their results, and says whether all is well.
fn check(arguments: &Arguments) -> Result<bool> {
    let device = Device::parse(&arguments.device)?;
    ensure!(
        device != Device::Cpu,
        "the device is cpu, with which the others are compared; give cuda, cuda:N or emulated"
    );
    prime_kernels::device::check(device)?;
    let wanted =
        |part: &str| arguments.parts.is_empty() || arguments.parts.iter().any(|p| p == part);
    let mut result = json!({
        "command": std::env::args().collect::<Vec<_>>().join(" "),
        "commit": option_env!("PRIME_COMMIT").unwrap_or("unknown"),
        "machine": machine::describe(device)?,
        "parts": {},
    });
    let started = Instant::now();
    machine::make_ready(device)?;
    result["seconds_to_make_kernels_ready"] = json!(started.elapsed().as_secs_f64());
    let mut well = true;
    watch::start(arguments.output.clone(), Duration::from_secs(arguments.patience));
    for part in PARTS.into_iter().filter(|part| wanted(part)) {
        let started = Instant::now();
        let found = match part {
            "parity" => parity(device, arguments.cases),
            "instructions" => instructions(device),
            "steps" => steps::check(device),
            "sanitizers" => programs::sanitizers(device),
            _ => programs::training(device, &arguments.prime),
        };
        // A part that cannot be run is a finding, and the others are run nevertheless.
        let mut found =
            found.unwrap_or_else(|error| json!({ "passed": false, "error": format!("{error:#}") }));
        let passed = found["passed"] == json!(true);
        well &= passed || found["skipped"].is_string();
        found["seconds"] = json!(started.elapsed().as_secs_f64());
        let word = if passed {
            "passed"
        } else if found["skipped"].is_string() {
            "SKIPPED"
        } else {
            "FAILED"
        };
        println!("{part}: {word} in {:.1} s", started.elapsed().as_secs_f64());
        if !passed {
            println!("{found:#}");
        }
        result["parts"][part] = found;
        // What is done is kept, whatever a later part does to the process.
        result["finished"] = json!(machine::now());
        let text = serde_json::to_string_pretty(&result)?;
        checkpoint::atomic_write(&arguments.output, text.as_bytes()).with_context(|| {
            format!("the result cannot be written to {}", arguments.output.display())
        })?;
    }
    Ok(well)
}

/// Random cases of every operation against its oracle.
fn parity(device: Device, cases: u64) -> Result<Value> {
    let mut operations = serde_json::Map::new();
    let mut passed = true;
    for (name, check) in OPERATIONS {
        let started = Instant::now();
        let failures: Vec<String> = (0..cases)
            .filter_map(|seed| {
                let outcome =
                    watch::watched(|| format!("{name}, seed {seed},"), || check(device, seed));
                outcome.err().map(|message| format!("seed {seed}: {message}"))
            })
            .collect();
        passed &= failures.is_empty();
        operations.insert(
            (*name).to_owned(),
            json!({
                "cases": cases,
                "failed": failures.len(),
                "first_failures": &failures[..failures.len().min(5)],
                "seconds": started.elapsed().as_secs_f64(),
            }),
        );
    }
    Ok(json!({ "passed": passed, "operations": operations }))
}

/// The instructions that kernels are made of, against what the ISA says: what the emulated device is held to, asked of hardware.
fn instructions(device: Device) -> Result<Value> {
    let hopper = match device {
        Device::Cuda(number) => prime_runtime::cuda::properties(number)?.chip.major == 9,
        _ => true,
    };
    let mut passed = true;
    let mut found = serde_json::Map::new();
    let outcomes = watch::watched(
        || "the part `instructions`".to_owned(),
        || prime_kernels::device::instructions::check(device, hopper),
    );
    for (name, outcome) in outcomes {
        passed &= outcome.is_ok();
        found.insert(
            name.to_owned(),
            json!(outcome.err().unwrap_or_else(|| "as the ISA says".to_owned())),
        );
    }
    Ok(json!({ "passed": passed, "hopper": hopper, "instructions": found }))
}
