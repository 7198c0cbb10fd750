//! The check list for a machine with a GPU: one program, built elsewhere and carried there, that needs no Rust toolchain.
//!
//! ```text
//! tools/gpu/pack.sh check-list          # where Rust is: builds and puts all that is needed into a folder
//! check-list/run.sh results             # where the GPU is: runs everything, leaves JSON in a folder
//! ```
//!
//! Parts: `kernels` (all are compiled, and loaded onto the device), `instructions` (the emulated device's table of instructions, on hardware: what is
//! misread there is wrong everywhere), `parity` (random cases of every operation against its float64 oracle), `steps` (forward and backward of layers of
//! real models beside the host's), `training` (a short run of `prime train`), `sanitizers` (`parity` under compute-sanitizer). How fast kernels are, and
//! whether they are right at the sizes of real models, is what the benchmarks ask (`bench/`), which `tools/gpu/bench.sh` runs.
//!
//! An item of a part (an operation, an instruction, a shape) is checked in a process of its own, with a limit: a kernel that fails or hangs costs its item
//! and nothing else. What is found is in the file when its item is done.

mod items;
mod machine;
mod programs;
mod steps;
mod supervise;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use prime_runtime::cuda::{Chip, kernel_cache};
use prime_runtime::{Device, checkpoint};
use serde_json::{Value, json};

use supervise::Ended;

/// Checks a GPU and everything that runs on it.
#[derive(Parser)]
#[command(
    name = "gpu-check",
    after_help = "Example: gpu-check --output results/2026-11-23-h200-check.json --prime ./prime"
)]
struct Arguments {
    /// cuda, cuda:N, or emulated in a build that has it
    #[arg(long, default_value = "cuda", value_parser = device)]
    device: Device,
    /// Parts to run, by name, behind `kernels`; all where none is named
    #[arg(long, value_delimiter = ',', value_parser = PARTS)]
    parts: Vec<String>,
    /// Random cases of each operation
    #[arg(long, default_value_t = 200)]
    cases: u64,
    /// Seconds after which an item is ended; kernels have five times as many to be compiled in
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Seconds for all items together; what is not begun by then is not checked
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// The `prime` program, for the part `training`
    #[arg(long, default_value = "prime")]
    prime: PathBuf,
    /// Where the result goes, as JSON
    #[arg(long, default_value = "gpu-check.json")]
    output: PathBuf,
    /// Compile all kernels for a chip, such as sm_90a, into the folder of compiled kernels, and do nothing else; needs no GPU
    #[arg(long, value_name = "CHIP", value_parser = chip)]
    prepare: Option<Chip>,
    /// Check an item of a part in this process
    #[arg(long, hide = true, num_args = 2, value_names = ["PART", "ITEM"])]
    item: Option<Vec<String>>,
}

/// What takes long stands last.
const PARTS: [&str; 6] = ["kernels", "instructions", "parity", "steps", "training", "sanitizers"];

fn device(name: &str) -> Result<Device, String> {
    match Device::parse(name) {
        Ok(Device::Cpu) => {
            Err("the others are compared with cpu; give cuda, cuda:N or emulated".to_owned())
        }
        Ok(device) => Ok(device),
        Err(error) => Err(error.to_string()),
    }
}

fn chip(name: &str) -> Result<Chip, String> {
    Chip::parse(name)
        .ok_or_else(|| "there is no such chip; expected one such as sm_80 or sm_90a".to_owned())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match (&arguments.item, arguments.prepare) {
        (Some(item), _) => one(&arguments, &item[0], &item[1]),
        (None, Some(chip)) => prepare(chip),
        (None, None) => check(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
    }
}

/// Checks an item here, and says what it found to the process that started this one.
fn one(arguments: &Arguments, part: &str, name: &str) -> Result<bool> {
    supervise::end_after(Duration::from_secs(arguments.limit));
    println!("{}", items::check(part, name, arguments.device, arguments.cases)?);
    Ok(true)
}

/// Compiles all kernels for a chip.
fn prepare(chip: Chip) -> Result<bool> {
    let folder = kernel_cache()?;
    let found = machine::compile(chip);
    for error in found["first_failures"].as_array().into_iter().flatten() {
        eprintln!("error: {}", error.as_str().unwrap_or_default());
    }
    println!(
        "{} kernels for {} are in {}, {} failed",
        found["cases"].as_u64().unwrap_or(0) - found["failed"].as_u64().unwrap_or(0),
        chip.architecture(),
        folder.display(),
        found["failed"]
    );
    Ok(found["passed"] == json!(true))
}

/// What is checked in a process of its own.
struct Item {
    name: String,
    process: Process,
}

/// Which process that is.
enum Process {
    /// This program again.
    Own(&'static str),
    /// The same with an item of `parity`, under a tool of compute-sanitizer.
    Sanitized(&'static str, &'static str),
    /// The program `prime`.
    Prime,
}

impl Item {
    /// The items of a part, in order.
    fn all(part: &str, device: Device) -> Result<Vec<Item>> {
        let own = |name: &'static str| Item { name: name.to_owned(), process: Process::Own(name) };
        let under = |tool: &'static str| {
            move |name: &'static str| Item {
                name: format!("{tool}, {name}"),
                process: Process::Sanitized(tool, name),
            }
        };
        Ok(match part {
            "training" => {
                vec![Item { name: "prime train".to_owned(), process: Process::Prime }]
            }
            "sanitizers" => {
                let names = items::names("parity", device)?;
                programs::TOOLS
                    .into_iter()
                    .flat_map(|tool| names.iter().copied().map(under(tool)))
                    .collect()
            }
            _ => items::names(part, device)?.into_iter().map(own).collect(),
        })
    }

    /// The longest that it may take.
    fn limit(&self, arguments: &Arguments) -> Duration {
        let times = if matches!(self.process, Process::Own(items::COMPILE)) { 5 } else { 1 };
        Duration::from_secs(arguments.limit.saturating_mul(times))
    }

    /// Has it checked within a time.
    fn check(&self, part: &str, arguments: &Arguments, limit: Duration) -> Result<Value> {
        let this = std::env::current_exe().context("this program's own path")?;
        let item = |part: &str, name: &str, cases: u64| {
            let mut command = Command::new(&this);
            command.args(["--item", part, name, "--device", &arguments.device.to_string()]);
            command.args(["--cases", &cases.to_string()]);
            command.args(["--limit", &limit.as_secs().max(1).to_string()]);
            command
        };
        Ok(match self.process {
            Process::Own(name) => Ended::of(item(part, name, arguments.cases), limit).found(),
            Process::Sanitized(tool, name) => {
                let item = item("parity", name, programs::SANITIZED_CASES);
                programs::sanitized(tool, &item, limit)
            }
            Process::Prime => programs::training(arguments.device, &arguments.prime, limit),
        })
    }
}

/// Why nothing of a part can be checked here; none where it can.
fn skipped(part: &str, device: Device) -> Option<&'static str> {
    match part {
        "kernels" if !matches!(device, Device::Cuda(_)) => {
            Some("only CUDA devices load kernels that NVRTC compiled")
        }
        "sanitizers" => programs::without_sanitizers(device),
        _ => None,
    }
}

/// Has the parts checked, writes what is found, and says whether all is well.
fn check(arguments: &Arguments) -> Result<bool> {
    let device = arguments.device;
    prime_kernels::device::check(device)?;
    let until = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut result = json!({
        "command": std::env::args().collect::<Vec<_>>().join(" "),
        "commit": option_env!("PRIME_COMMIT").unwrap_or("unknown"),
        "machine": machine::describe(device)?,
        "parts": {},
    });
    let mut count = 0;
    let mut wrong = 0;
    // Without compiled kernels the first process that needs them would spend its time on them.
    let wanted = |part: &&str| {
        *part == "kernels"
            || arguments.parts.is_empty()
            || arguments.parts.iter().any(|p| p == part)
    };
    for part in PARTS.into_iter().filter(wanted) {
        if let Some(why) = skipped(part, device) {
            println!("{part}: SKIPPED, {why}");
            result["parts"][part] = json!({ "skipped": why });
            continue;
        }
        result["parts"][part] = json!({ "passed": true, "items": {} });
        for item in Item::all(part, device)? {
            let started = Instant::now();
            let left = until.saturating_duration_since(started);
            let limit = item.limit(arguments).min(left);
            let mut found = if limit.is_zero() {
                json!({ "passed": false, "error": "not checked: the time was used up" })
            } else {
                item.check(part, arguments, limit)?
            };
            let seconds = started.elapsed().as_secs_f64();
            let passed = found["passed"] == json!(true);
            found["seconds"] = json!(seconds);
            if !passed && limit == left && !left.is_zero() {
                found["limit"] = json!("what was left of the time for all items");
            }
            println!(
                "{part}, {}: {} in {seconds:.1} s",
                item.name,
                if passed { "passed" } else { "FAILED" }
            );
            if !passed {
                println!("{found:#}");
                result["parts"][part]["passed"] = json!(false);
            }
            result["parts"][part]["items"][&item.name] = found;
            (count, wrong) = (count + 1, wrong + u32::from(!passed));
            save(&arguments.output, &mut result)?;
        }
    }
    save(&arguments.output, &mut result)?;
    println!("{wrong} of {count} items failed; {} has all of them", arguments.output.display());
    Ok(wrong == 0)
}

/// Writes what is known by now, so that whatever ends this process leaves it behind.
fn save(path: &Path, result: &mut Value) -> Result<()> {
    result["finished"] = json!(machine::now());
    checkpoint::atomic_write(path, format!("{result:#}\n").as_bytes())
        .with_context(|| format!("the result cannot be written to {}", path.display()))
}
