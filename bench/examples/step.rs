//! One contestant of `tools/peers/compare.py`: runs a piece of work whenever it is told to, and says how long it took.
//!
//! ```text
//! step train SHAPE DTYPE
//! step decode SHAPE DTYPE BATCH PROMPT NEW_TOKENS
//! step matmul M K N DTYPE [packed]
//! ```
//!
//! Prepares the work, runs it twice, and prints a line of JSON that describes it. Then, for each line of standard input, which holds a
//! number of seconds, runs it at least once and until that time has passed, and prints `{"calls", "seconds", "work"}`: work is tokens for steps and
//! decoding, floating point operations for products.

use std::io::BufRead;
use std::time::Instant;

use prime_bench::steps::{Generation, Linear, Shape, TrainStep};
use prime_kernels::simd;
use prime_runtime::{DType, Device};
use serde_json::json;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Something to run, and how much of it one run does.
struct Work {
    amount: usize,
    run: Box<dyn FnMut() -> prime_model::Result<()>>,
}

fn main() {
    // Inside the pool, as the program runs: no operation has to wake a worker and wait for it.
    if let Err(error) = rayon::scope(|_| serve()) {
        eprintln!("step: {error}");
        std::process::exit(1);
    }
}

fn serve() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Work { amount, mut run } = prepare(&arguments)?;
    run()?;
    run()?;
    let threads = rayon::current_num_threads();
    println!("{}", json!({ "threads": threads, "instructions": simd::level().to_string() }));
    for line in std::io::stdin().lock().lines() {
        let least: f64 = line?.trim().parse()?;
        let (start, mut calls) = (Instant::now(), 0);
        while calls == 0 || start.elapsed().as_secs_f64() < least {
            run()?;
            calls += 1;
        }
        let seconds = start.elapsed().as_secs_f64();
        println!("{}", json!({ "calls": calls, "seconds": seconds, "work": calls * amount }));
    }
    Ok(())
}

fn prepare(arguments: &[&str]) -> Outcome<Work> {
    match arguments {
        ["train", shape, dtype] => {
            let mut step = TrainStep::new(&named(shape)?, float(dtype)?, Device::Cpu)?;
            let amount = step.tokens();
            Ok(Work { amount, run: Box::new(move || step.run().map(drop)) })
        }
        ["decode", shape, dtype, batch, prompt, new] => {
            let sizes = [batch.parse()?, prompt.parse()?, new.parse()?];
            let mut work = Generation::new(&named(shape)?, float(dtype)?, Device::Cpu, sizes)?;
            Ok(Work { amount: work.tokens(), run: Box::new(move || work.run()) })
        }
        ["matmul", m, k, n, dtype, rest @ ..] if matches!(rest, [] | ["packed"]) => {
            let mut linear = Linear::new(m.parse()?, k.parse()?, n.parse()?, float(dtype)?)?;
            let (amount, packed) = (linear.flops(), !rest.is_empty());
            let run = move || if packed { linear.run_packed() } else { linear.run() };
            Ok(Work { amount, run: Box::new(run) })
        }
        _ => Err("expected `train`, `decode` or `matmul` with its sizes".into()),
    }
}

fn named(shape: &str) -> Outcome<Shape> {
    Shape::named(shape).ok_or_else(|| format!("there is no shape `{shape}`").into())
}

fn float(name: &str) -> Outcome<DType> {
    match name {
        "f32" => Ok(DType::F32),
        "bf16" => Ok(DType::BF16),
        _ => Err(format!("the dtype is f32 or bf16, not `{name}`").into()),
    }
}
