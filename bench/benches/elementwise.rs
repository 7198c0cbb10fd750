//! Speed of the operations that are bound by memory: every tensor is counted once, read or written, in GB/s.
//!
//! `cargo bench -p prime-bench --bench elementwise -- rms_norm` runs one operation. Shapes are those of a token batch of
//! the two models that the project measures itself by; AdamW runs over 25 million parameters, far beyond any cache.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prime_kernels::testing::{generator, normal};
use prime_kernels::{adamw, cast, embedding, fill, gather, reduce, rms_norm, scan, swiglu};
use prime_runtime::{DType, Device, Result, Tensor};

const SHAPES: [[usize; 2]; 2] = [[4096, 192], [2048, 512]];
const DTYPES: [DType; 2] = [DType::F32, DType::BF16];
const VOCABULARY: usize = 6400;
const PARAMETERS: usize = 25_000_000;

fn random(dtype: DType, dims: &[usize]) -> Tensor {
    normal(&mut generator(1), dtype, dims, 1.0)
}

fn zeros(dtype: DType, dims: &[usize]) -> Tensor {
    Tensor::zeros(Device::Cpu, dtype, dims).expect("the host has memory for a benchmark")
}

fn integers(values: impl Iterator<Item = u32>) -> Tensor {
    let values: Vec<u32> = values.collect();
    Tensor::from_slice(&values, &[values.len()]).expect("the host has memory for a benchmark")
}

/// Measures one call under `operation/dtype/shape`.
fn measure(
    criterion: &mut Criterion,
    operation: &str,
    dtype: DType,
    dims: &[usize],
    bytes: usize,
    mut call: impl FnMut() -> Result<()>,
) {
    let shape: Vec<String> = dims.iter().map(usize::to_string).collect();
    let mut group = criterion.benchmark_group(operation);
    group.throughput(Throughput::BytesDecimal(bytes as u64));
    group.bench_function(format!("{dtype}/{}", shape.join("x")), |bencher| {
        bencher.iter(|| call().expect("the shapes agree"));
    });
    group.finish();
}

fn norms(criterion: &mut Criterion) {
    for dims @ [tokens, width] in SHAPES {
        for dtype in DTYPES {
            let size = tokens * width * dtype.size();
            let [x, delta] = [(); 2].map(|()| random(dtype, &dims));
            let weight = random(dtype, &[width]);
            let [mut out, mut sum] = [(); 2].map(|()| zeros(dtype, &dims));
            let (mut rstd, mut d_weight) =
                (zeros(DType::F32, &[tokens]), zeros(DType::F32, &[width]));
            measure(criterion, "rms_norm.forward", dtype, &dims, 2 * size, || {
                let (out, rstd) = (out.view_mut(), rstd.view_mut());
                rms_norm::forward(out, rstd, x.view(), weight.view(), 1e-6)
            });
            measure(criterion, "rms_norm.forward_residual", dtype, &dims, 4 * size, || {
                let (out, sum, rstd) = (out.view_mut(), sum.view_mut(), rstd.view_mut());
                let weight = weight.view();
                rms_norm::forward_residual(out, sum, rstd, x.view(), delta.view(), weight, 1e-6)
            });
            measure(criterion, "rms_norm.backward", dtype, &dims, 4 * size, || {
                let (d_x, d_weight) = (out.view_mut(), d_weight.view_mut());
                let (d_out, residual, rstd) = (delta.view(), Some(sum.view()), rstd.view());
                rms_norm::backward(d_x, d_weight, d_out, x.view(), weight.view(), rstd, residual)
            });
        }
    }
}

fn activations(criterion: &mut Criterion) {
    for dims @ [tokens, width] in SHAPES {
        for dtype in DTYPES {
            let size = tokens * width * dtype.size();
            let gate_up = random(dtype, &[tokens, 2 * width]);
            let d_out = random(dtype, &dims);
            let mut out = zeros(dtype, &dims);
            let mut d_gate_up = zeros(dtype, &[tokens, 2 * width]);
            measure(criterion, "swiglu.forward", dtype, &dims, 3 * size, || {
                swiglu::forward(out.view_mut(), gate_up.view())
            });
            measure(criterion, "swiglu.backward", dtype, &dims, 5 * size, || {
                swiglu::backward(d_gate_up.view_mut(), d_out.view(), gate_up.view())
            });
        }
    }
}

fn lookups(criterion: &mut Criterion) {
    for dims @ [tokens, width] in SHAPES {
        for dtype in DTYPES {
            let size = tokens * width * dtype.size();
            let table = random(dtype, &[VOCABULARY, width]);
            let mut draws = generator(2);
            let ids = integers((0..tokens).map(|_| draws.below(VOCABULARY as u32)));
            let picked = integers((0..tokens as u32).step_by(2));
            let x = random(dtype, &dims);
            let mut out = zeros(dtype, &dims);
            let mut d_table = zeros(DType::F32, &[VOCABULARY, width]);
            measure(criterion, "embedding.forward", dtype, &dims, 2 * size, || {
                embedding::forward(out.view_mut(), ids.view(), table.view())
            });
            // A row of the table's gradient is read and written.
            let bytes = size + 2 * tokens * width * 4;
            measure(criterion, "embedding.backward", dtype, &dims, bytes, || {
                embedding::backward(d_table.view_mut(), x.view(), ids.view())
            });
            let half = picked.dims()[0];
            measure(criterion, "gather.forward", dtype, &dims, size, || {
                gather::forward(out.head_mut(half), x.view(), picked.view())
            });
            measure(criterion, "gather.backward", dtype, &dims, size + size / 2, || {
                gather::backward(out.view_mut(), x.head(half), picked.view())
            });
        }
    }
}

fn plain(criterion: &mut Criterion) {
    for dims @ [tokens, width] in SHAPES {
        for dtype in DTYPES {
            let size = tokens * width * dtype.size();
            let other = if dtype == DType::F32 { DType::BF16 } else { DType::F32 };
            let x = random(dtype, &dims);
            let (mut cast_to, mut out) = (zeros(other, &dims), zeros(dtype, &dims));
            let mut sums = zeros(DType::F32, &[width]);
            let bytes = tokens * width * (dtype.size() + other.size());
            measure(criterion, "cast.forward", dtype, &dims, bytes, || {
                cast::forward(cast_to.view_mut(), x.view())
            });
            measure(criterion, "fill.forward", dtype, &dims, size, || {
                fill::forward(out.view_mut(), 1.0)
            });
            measure(criterion, "reduce.columns", dtype, &dims, size, || {
                reduce::columns(sums.view_mut(), x.view())
            });
            measure(criterion, "reduce.sum", dtype, &dims, size, || {
                reduce::sum(x.view()).map(|sum| assert!(std::hint::black_box(sum).is_finite()))
            });
        }
        let count = tokens * width;
        let x = random(DType::F32, &[count]);
        let mut out = zeros(DType::F32, &[count]);
        let offsets = integers((0..=tokens as u32).map(|i| i * width as u32));
        measure(criterion, "scan.forward", DType::F32, &dims, 8 * count, || {
            scan::forward(out.view_mut(), x.view(), offsets.view(), 0.99)
        });
        measure(criterion, "scan.backward", DType::F32, &dims, 8 * count, || {
            scan::backward(out.view_mut(), x.view(), offsets.view(), 0.99)
        });
    }
}

fn optimiser(criterion: &mut Criterion) {
    let dims = [PARAMETERS];
    let gradient = random(DType::F32, &dims);
    let mut master = random(DType::F32, &dims);
    let [mut m, mut v] = [(); 2].map(|()| zeros(DType::F32, &dims));
    let mut compute = zeros(DType::BF16, &dims);
    let settings = adamw::Settings {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.1,
        step: 10,
        gradient_scale: 0.5,
        seed: 1,
        first: 0,
    };
    // Weights and both moments are read and written, the gradient is read.
    measure(criterion, "adamw.update", DType::F32, &dims, 28 * PARAMETERS, || {
        let (master, m, v) = (master.view_mut(), m.view_mut(), v.view_mut());
        let weights = adamw::Parameters::Masters(master, None);
        adamw::update(weights, adamw::Moments::Float32 { m, v }, gradient.view(), settings)
    });
    measure(criterion, "adamw.update", DType::BF16, &dims, 30 * PARAMETERS, || {
        let (master, m, v) = (master.view_mut(), m.view_mut(), v.view_mut());
        let weights = adamw::Parameters::Masters(master, Some(compute.view_mut()));
        adamw::update(weights, adamw::Moments::Float32 { m, v }, gradient.view(), settings)
    });
    measure(criterion, "adamw.norm", DType::F32, &dims, 4 * PARAMETERS, || {
        adamw::norm(gradient.view()).map(|norm| assert!(std::hint::black_box(norm).is_finite()))
    });
    // What the machine can do at this size: a copy in one pass over both cores.
    measure(criterion, "cast.forward", DType::F32, &dims, 8 * PARAMETERS, || {
        cast::forward(m.view_mut(), gradient.view())
    });
}

criterion_group!(elementwise, norms, activations, lookups, plain, optimiser);
criterion_main!(elementwise);
