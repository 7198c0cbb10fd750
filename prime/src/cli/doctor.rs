//! `prime doctor`: what this machine offers, how fast it is, and what is missing.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use prime_kernels::device::emulated_available;
use prime_kernels::simd;
use prime_runtime::{DType, Device, cuda, process};

use super::measure::{copy_rate, matmul_rate};
use super::{Failure, files};
use crate::graders::code;
use crate::graders::settings::CodeSettings;

/// Show what this machine offers, how fast it is, and what is missing
///
/// Cores, vector instructions, memory, disk, devices, what protects this machine from programs that the code grader runs, and in about two seconds the rates that bound training here: products of matrices in
/// both precisions, and copying memory. Of CUDA: driver, compiler, GPUs and the folder of compiled kernels, or what is missing, where it was
/// looked for, and what would help.
#[derive(Args)]
#[command(after_long_help = "\
Examples:
  prime doctor
  prime doctor --threads 1")]
pub(super) struct DoctorArgs {}

pub(super) fn run(_args: &DoctorArgs) -> Result<(), Failure> {
    files::print(report()?)?;
    Ok(())
}

fn report() -> Result<String> {
    let mut text = String::new();
    let mut row = |name: &str, value: String| writeln!(text, "{name:<17} {value}");
    row("version", format!("prime {}", env!("CARGO_PKG_VERSION")))?;
    row("system", format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH))?;
    if let Some(name) = process::processor_name() {
        row("processor", name)?;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    row("cores", format!("{cores}, {} in use", rayon::current_num_threads()))?;
    let level = simd::level();
    row("instructions", format!("{level}{}", advice(level)))?;
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    let or_unknown = |bytes: Option<u64>| bytes.map_or("unknown".to_string(), gib);
    let memory = process::memory();
    row(
        "memory",
        format!(
            "{}, {} free",
            or_unknown(memory.map(|memory| memory.total)),
            or_unknown(memory.map(|memory| memory.available))
        ),
    )?;
    row("disk", format!("{} free in this folder", or_unknown(process::free_disk(Path::new(".")))))?;
    let time = Duration::from_millis(400);
    for (name, dtype) in [("float32", DType::F32), ("bfloat16", DType::BF16)] {
        let rate = matmul_rate(1024, 1024, 1024, dtype, time)?;
        row(&format!("matmul {name}"), format!("{:.0} GFLOP/s, 1024 x 1024 x 1024", rate / 1e9))?;
    }
    let rate = copy_rate(128 << 20, time)?;
    row("memory copy", format!("{:.1} GB/s, read and written", rate / 1e9))?;
    let Gpus { usable, rows } = gpus(&gib);
    let emulated = emulated_available().then(|| Device::Emulated.to_string());
    let devices: Vec<String> =
        [Device::Cpu.to_string()].into_iter().chain(emulated).chain(usable).collect();
    row("devices", devices.join(", "))?;
    row("code grader", code::protection(&CodeSettings::default()))?;
    if !emulated_available() {
        let how = "not in this program; built with `--features emulated` it runs the GPU's kernels on the host, to test them";
        row("emulated", how.to_owned())?;
    }
    for (name, value) in rows {
        row(&name, value)?;
    }
    Ok(text)
}

/// What was found of CUDA.
struct Gpus {
    /// The devices that can compute.
    usable: Vec<String>,
    rows: Vec<(String, String)>,
}

fn gpus(gib: &dyn Fn(u64) -> String) -> Gpus {
    let version = |(major, minor): (u32, u32)| format!("{major}.{minor}");
    let found = |library: prime_runtime::Result<cuda::Library>| match library {
        Ok(library) => format!("CUDA {} from {}", version(library.version), library.path.display()),
        Err(error) => error.to_string(),
    };
    let mut rows = vec![
        ("CUDA driver".to_owned(), found(cuda::driver_library())),
        ("CUDA compiler".to_owned(), found(cuda::compiler_library())),
    ];
    let mut usable = Vec::new();
    let count = cuda::device_count();
    if matches!(count, Ok(0)) {
        rows.push(("GPUs".to_owned(), "none: the driver reports no device".to_owned()));
    }
    for number in 0..count.unwrap_or(0) {
        let device = Device::Cuda(number).to_string();
        let (properties, memory) = (cuda::properties(number), cuda::memory(number));
        if cuda::ready(number).is_ok() {
            usable.push(device.clone());
        }
        let row = match (properties, memory) {
            (Ok(properties), Ok((free, _))) => format!(
                "{}, compute capability {}, {} multiprocessors at up to {:.2} GHz, {}, {} free",
                properties.name,
                properties.chip,
                properties.multiprocessors,
                f64::from(properties.clock) / 1e6,
                gib(properties.memory as u64),
                gib(free as u64)
            ),
            // A chip that is too old, or a device that another process keeps to itself.
            (_, Err(error)) | (Err(error), _) => error.to_string(),
        };
        rows.push((device, row));
    }
    let cache = match cuda::kernel_cache() {
        Ok(folder) => folder.display().to_string(),
        Err(error) => format!("{error}; each process compiles its kernels anew"),
    };
    rows.push(("kernel cache".to_owned(), cache));
    if let Some(folder) = std::env::var_os(cuda::KERNELS_VARIABLE) {
        let folder = Path::new(&folder).display();
        rows.push((
            "edited kernels".to_owned(),
            format!("{folder}, by {}", cuda::KERNELS_VARIABLE),
        ));
    }
    Gpus { usable, rows }
}

fn advice(level: simd::Level) -> &'static str {
    match level {
        simd::Level::Plain => {
            ": no vector instructions that the kernels know, so everything is slower"
        }
        simd::Level::Avx2 => ": a processor with AVX-512 would be faster",
        simd::Level::Avx512 => ": bfloat16 is widened; it saves memory here, not time",
        simd::Level::Avx512Bf16 => ": a processor with AMX would be faster at bfloat16",
        simd::Level::Amx => ": all that the kernels can use",
    }
}
