//! Single kernels at the sizes of real models: right at sampled places, and how fast, beside cuBLASLt and beside a plain copy.
//!
//! Inputs are uniform between -1 and 1, rounded to bfloat16. What is compared is computed in float64 for a few rows or elements of each result; the
//! bounds say how they follow from the arithmetic. Times are the device's own, from events, the median of rounds. A launch finds in the cache what
//! the launch before it left there; what streams is larger than any cache.

mod attention;
mod cublas;
mod matmul;
mod rest;

use anyhow::{Context, Result};
use prime_runtime::cuda::{self, Event};
use prime_runtime::{DType, Device, Tensor, bf16};
use serde_json::{Value, json};

/// What kernels see of a model.
struct Model {
    name: &'static str,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
}

const MODELS: [Model; 4] = [
    Model {
        name: "Qwen2.5 0.5B",
        hidden: 896,
        intermediate: 4864,
        heads: 14,
        kv_heads: 2,
        head_dim: 64,
        vocabulary: 151_936,
    },
    Model {
        name: "Qwen2.5 1.5B",
        hidden: 1536,
        intermediate: 8960,
        heads: 12,
        kv_heads: 2,
        head_dim: 128,
        vocabulary: 151_936,
    },
    Model {
        name: "Qwen2.5 7B",
        hidden: 3584,
        intermediate: 18_944,
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        vocabulary: 152_064,
    },
    Model {
        name: "Llama 3 8B",
        hidden: 4096,
        intermediate: 14_336,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        vocabulary: 128_256,
    },
];

/// How much of everything there is.
struct Sizes {
    models: &'static [Model],
    /// Tokens of a training batch, and the length of its sequences.
    tokens: usize,
    length: usize,
    /// Sequences that decode, and the keys of each.
    sequences: usize,
    context: usize,
    /// Sides of square products.
    squares: &'static [usize],
    /// Rows that stream, and parameters of an update.
    rows: usize,
    parameters: usize,
    /// Bytes of the copy that others are compared with.
    copied: usize,
}

const REAL: Sizes = Sizes {
    models: &MODELS,
    tokens: 4096,
    length: 4096,
    sequences: 64,
    context: 4096,
    squares: &[4096, 8192],
    rows: 32_768,
    parameters: 1 << 27,
    copied: 1 << 30,
};

/// The same paths, for the emulated device.
const SMALL: Sizes = Sizes {
    models: &[Model {
        name: "small, for the emulated device",
        hidden: 64,
        intermediate: 96,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocabulary: 200,
    }],
    tokens: 40,
    length: 20,
    sequences: 3,
    context: 64,
    squares: &[64],
    rows: 24,
    parameters: 1000,
    copied: 1 << 12,
};

/// The unit roundoffs of the storage and of sums.
const STORED: f64 = 1.0 / 256.0;
const UNIT: f64 = 1.0 / 16_777_216.0;

/// The error of a sum of so many products on tensor cores, in parts of the sum of their magnitudes: they take 16 products and the sum so far at once,
/// align them to the largest, and round what they have added, 18 errors of at most two roundoffs each.
fn sum_error(terms: usize) -> f64 {
    36.0 * terms.div_ceil(16) as f64 * UNIT
}

/// What roundings of factors to bfloat16 leave, with a quarter more for those of float32 sums, which are below 2^-12 of their terms at these sizes.
const FACTOR: f64 = 1.25 * STORED;

/// The worst of the compared elements.
#[derive(Default)]
struct Comparison {
    compared: usize,
    /// Greatest error in parts of what is allowed.
    worst: f64,
}

impl Comparison {
    fn add(&mut self, actual: f32, exact: f64, allowed: f64) {
        self.compared += 1;
        let error = (f64::from(actual) - exact).abs() / allowed;
        // A NaN is worse than anything.
        if error > self.worst || error.is_nan() {
            self.worst = if error.is_nan() { f64::INFINITY } else { error };
        }
    }
}

/// One kernel at one size.
struct Case {
    operation: String,
    model: &'static str,
    shape: String,
    comparison: Comparison,
    /// Of one launch, where the device tells.
    seconds: Option<f64>,
    /// Floating-point operations, or bytes read and written.
    work: Work,
    /// A library's time for the same, or why there is none.
    library: Option<Result<f64, String>>,
}

enum Work {
    Operations(f64),
    Bytes(f64),
}

/// What all cases share.
struct Bench {
    device: Device,
    /// Of a plain copy, bytes read and written together a second.
    copy_rate: Option<f64>,
    cublas: Result<cublas::CublasLt, String>,
}

/// Runs all cases.
pub fn check(device: Device) -> Result<Value> {
    let sizes = if device == Device::Emulated { &SMALL } else { &REAL };
    let mut bench = Bench {
        device,
        copy_rate: None,
        cublas: match device {
            Device::Cuda(number) => {
                cublas::CublasLt::open(number).map_err(|error| format!("{error:#}"))
            }
            _ => Err("it runs on GPUs only".to_owned()),
        },
    };
    bench.copy_rate = bench.measure_copy(sizes.copied)?;
    let mut cases = Vec::new();
    matmul::run(&bench, sizes, &mut cases).context("matmul")?;
    attention::run(&bench, sizes, &mut cases).context("attention")?;
    rest::run(&bench, sizes, &mut cases)?;
    let passed = cases.iter().all(|case| case.comparison.worst <= 1.0);
    let library = bench.cublas.as_ref().map_or_else(Clone::clone, |found| found.path.clone());
    Ok(json!({
        "passed": passed,
        "copy_gb_per_second": bench.copy_rate.map(|rate| rate / 1e9),
        "cublaslt": library,
        "targets": targets(&bench, &cases),
        "cases": cases.iter().map(|case| case.json(&bench)).collect::<Vec<_>>(),
    }))
}

impl Case {
    fn json(&self, bench: &Bench) -> Value {
        let mut value = json!({
            "operation": self.operation,
            "model": self.model,
            "shape": self.shape,
            "passed": self.comparison.worst <= 1.0,
            "compared": self.comparison.compared,
            "worst_error_of_allowed": self.comparison.worst,
        });
        if let Some(seconds) = self.seconds {
            value["microseconds"] = json!(seconds * 1e6);
            match self.work {
                Work::Operations(count) => {
                    value["tflop_per_second"] = json!(count / seconds / 1e12);
                }
                Work::Bytes(count) => {
                    value["gb_per_second"] = json!(count / seconds / 1e9);
                    value["of_copy_rate"] =
                        json!(bench.copy_rate.map(|rate| count / seconds / rate));
                }
            }
            match &self.library {
                Some(Ok(library)) => {
                    value["cublaslt_microseconds"] = json!(library * 1e6);
                    value["of_cublaslt"] = json!(library / seconds);
                }
                Some(Err(reason)) => value["cublaslt"] = json!(reason),
                None => (),
            }
        }
        value
    }
}

/// What the kernels are asked to reach, and what they did. A target without figures is not met.
fn targets(bench: &Bench, cases: &[Case]) -> Value {
    let of = |wanted: &dyn Fn(&Case) -> bool, figure: &dyn Fn(&Case) -> Option<f64>| {
        let figures: Vec<Option<f64>> =
            cases.iter().filter(|case| wanted(case)).map(figure).collect();
        let all: Option<Vec<f64>> = figures.into_iter().collect();
        all.filter(|all| !all.is_empty()).map(|all| all.into_iter().fold(f64::INFINITY, f64::min))
    };
    let target = |what: &str, least: f64, worst: Option<f64>| json!({ "what": what, "at_least": least, "worst": worst, "met": worst.is_some_and(|worst| worst >= least) });
    let rate = |case: &Case| match case.work {
        Work::Operations(count) => case.seconds.map(|seconds| count / seconds / 1e12),
        Work::Bytes(_) => None,
    };
    let of_copy = |case: &Case| match (&case.work, case.seconds, bench.copy_rate) {
        (Work::Bytes(count), Some(seconds), Some(rate)) => Some(count / seconds / rate),
        _ => None,
    };
    let of_library = |case: &Case| match (&case.library, case.seconds) {
        (Some(Ok(library)), Some(seconds)) => Some(library / seconds),
        _ => None,
    };
    json!([
        target(
            "square products, in parts of cuBLASLt's rate",
            0.55,
            of(&|case| case.model == matmul::SQUARE, &of_library),
        ),
        target(
            "attention forward at head dimension 128, TFLOP/s",
            300.0,
            of(&|case| case.operation == attention::FULL_FORWARD, &rate),
        ),
        target(
            "kernels that stream, in parts of the rate of a copy",
            0.8,
            of(
                &|case| matches!(case.work, Work::Bytes(_)) && !case.operation.contains("decode"),
                &of_copy
            ),
        ),
    ])
}

/// Rounds of a measurement, and how long one lasts.
const ROUNDS: usize = 5;
const ROUND_SECONDS: f64 = 0.02;

impl Bench {
    /// Seconds of one launch of `work` by the device's clock; where it has none, `work` runs once.
    fn time(&self, mut work: impl FnMut() -> Result<()>) -> Result<Option<f64>> {
        work()?;
        let Device::Cuda(number) = self.device else { return Ok(None) };
        let (mut start, mut end) = (Event::new(number)?, Event::new(number)?);
        let mut seconds_of = |count: usize| -> Result<f64> {
            start.record()?;
            for _ in 0..count {
                work()?;
            }
            end.record()?;
            Ok(f64::from(end.milliseconds_since(&start)?) / 1e3 / count as f64)
        };
        let first = seconds_of(2)?;
        let count = ((ROUND_SECONDS / first) as usize).clamp(1, 1000);
        let mut rounds = (0..ROUNDS).map(|_| seconds_of(count)).collect::<Result<Vec<f64>>>()?;
        rounds.sort_by(f64::total_cmp);
        Ok(Some(rounds[ROUNDS / 2]))
    }

    fn measure_copy(&self, bytes: usize) -> Result<Option<f64>> {
        let from = Tensor::zeros(self.device, DType::F32, &[bytes / 4])?;
        let mut to = Tensor::zeros(self.device, DType::F32, &[bytes / 4])?;
        let seconds = self.time(|| Ok(to.view_mut().copy_from(from.view())?))?;
        Ok(seconds.map(|seconds| 2.0 * bytes as f64 / seconds))
    }

    /// Uniform numbers, on the host and on the device.
    fn uniform(&self, dims: &[usize], seed: u64) -> Result<Data> {
        let values: Vec<bf16> =
            (0..dims.iter().product::<usize>()).map(|i| bf16::from_f32(value(seed, i))).collect();
        let host = Tensor::from_slice(&values, dims)?;
        let device = host.to(self.device)?;
        Ok(Data { host, device })
    }

    fn zeros(&self, dtype: DType, dims: &[usize]) -> Result<Tensor> {
        Ok(Tensor::zeros(self.device, dtype, dims)?)
    }

    fn indices(&self, values: &[u32], dims: &[usize]) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, dims)?.to(self.device)?)
    }
}

/// A tensor on the host, and the same on the device.
struct Data {
    host: Tensor,
    device: Tensor,
}

impl Data {
    /// A row as float64.
    fn row(&self, index: usize) -> Vec<f64> {
        self.host.view().row::<bf16>(index).iter().map(|x| f64::from(x.to_f32())).collect()
    }

    /// An element of a matrix.
    fn at(&self, row: usize, column: usize) -> f64 {
        f64::from(self.host.view().row::<bf16>(row)[column].to_f32())
    }
}

/// A row of what a device computed.
fn row_of(tensor: &Tensor, index: usize) -> Vec<f32> {
    tensor.view().rows(index..index + 1).to_f32_vec()
}

/// A number from -1 to 1 that looks drawn by chance.
fn value(seed: u64, index: usize) -> f32 {
    let mut bits = (index as u64 ^ seed << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (bits >> 40) as f32 / (1u64 << 23) as f32 - 1.0
}

/// Some indices below a bound, the first and the last among them.
fn samples(bound: usize, count: usize) -> impl Iterator<Item = usize> {
    let count = count.min(bound);
    (0..count).map(move |i| if count < 2 { 0 } else { i * (bound - 1) / (count - 1) })
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn magnitude(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

/// Compiles all kernels for a device on all cores, so that no part waits for one after another.
pub fn make_ready(device: Device) -> Result<()> {
    let Device::Cuda(number) = device else { return Ok(()) };
    let chip = cuda::properties(number)?.chip;
    Ok(cuda::warm(number, &prime_kernels::device::instances(chip))?)
}
