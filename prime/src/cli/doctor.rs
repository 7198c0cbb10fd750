//! `prime doctor`: what this machine offers, how fast it is, and what is missing.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use prime_kernels::simd;
use prime_runtime::{DType, process};

use super::measure::{copy_rate, matmul_rate};
use super::{Failure, files};

/// Show what this machine offers, how fast it is, and what is missing
///
/// Cores, vector instructions, memory, disk, devices, and in about two seconds the rates that bound training here: products of matrices in
/// both precisions, and copying memory.
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
    row("devices", "cpu".to_string())?;
    row("CUDA", cuda(Path::new("/dev/nvidia0").exists()).to_string())?;
    Ok(text)
}

fn advice(level: simd::Level) -> &'static str {
    match level {
        simd::Level::Plain => {
            ": no vector instructions that the kernels know, so everything is slower"
        }
        simd::Level::Avx2 => ": a processor with AVX-512 would be faster",
        simd::Level::Avx512 => ": bfloat16 is widened; it saves memory here, not time",
        simd::Level::Avx512Bf16 => ": all that the kernels can use",
    }
}

fn cuda(has_gpu: bool) -> &'static str {
    if has_gpu {
        "there is an NVIDIA GPU, but this build computes on the CPU only"
    } else {
        "no NVIDIA GPU was found, and this build computes on the CPU only"
    }
}
