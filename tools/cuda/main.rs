//! The CUDA compilers without a GPU and without an installed toolkit.
//!
//! `cargo run -p prime-tools --bin cuda -- install` fetches NVRTC, nvcc, ptxas and the disassemblers of CUDA 13.0 from PyPI wheels into
//! `tools/cuda/toolkit`. `... -- compile` compiles every instance of every kernel for every chip and prints what it costs; it
//! fails on errors, on local memory that `spills.txt` does not explain, and on wgmma that ptxas serialised.

mod allowed;
mod builder;
mod chip;
mod compile;
mod figures;
mod install;
mod nvrtc;
mod report;
mod source;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The CUDA compilers without a GPU.
#[derive(Parser)]
#[command(name = "cuda", arg_required_else_help = true)]
struct Arguments {
    /// Folder of the compilers; several working copies may share one.
    #[arg(long, global = true, env = "PRIME_CUDA_TOOLKIT", value_name = "FOLDER")]
    toolkit: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetch the compilers of CUDA 13.0 from PyPI (about 190 MB; needs python3 with pip).
    Install,
    /// Compile every instance of every kernel and print registers, shared memory, local memory and occupancy.
    Compile(compile::Options),
}

/// The repository's root: this program serves its own working copy.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map_or_else(|| ".".into(), Path::to_path_buf)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let toolkit = arguments.toolkit.unwrap_or_else(|| root().join("tools/cuda/toolkit"));
    let result = match arguments.command {
        Command::Install => install::install(&toolkit).map(|()| true),
        Command::Compile(options) => compile::compile(&root(), &toolkit, &options),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
