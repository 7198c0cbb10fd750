//! Reads a model folder and saves it again: `cargo run -p prime-model --example resave -- FROM TO [float32|bfloat16]`.
//! `tools/peers/check_transformers.py FROM TO` then compares what transformers computes from the two.

use std::path::Path;
use std::process::ExitCode;

use prime_model::folder::{self, Companions};
use prime_model::{Config, Error, Result, Weights};
use prime_runtime::{DType, Device};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.as_slice() {
        [from, to] => resave(Path::new(from), Path::new(to), None),
        [from, to, dtype] => resave(Path::new(from), Path::new(to), Some(dtype)),
        _ => Err(Error::Value("expected two folders and, if need be, a dtype".into())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn resave(from: &Path, to: &Path, dtype: Option<&str>) -> Result<()> {
    let config = Config::load(from)?;
    let dtype = match dtype {
        Some(name) => DType::parse(name)
            .ok_or_else(|| Error::Value(format!("`{name}` is neither float32 nor bfloat16")))?,
        None => config.dtype,
    };
    let weights = Weights::load(from, &config, Device::Cpu, dtype)?;
    folder::save(to, &config, &weights, Companions::Of(from))
}
