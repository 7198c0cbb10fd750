//! Products through pipelines of copies, portable and Hopper's, on the emulated device: right results whatever the seed, and the mistakes that only show in
//! pipelines seen.

use std::ptr::from_ref;
use std::time::Instant;

use half::bf16;
use prime_runtime::cuda::Geometry;
use prime_runtime::{DType, Device, Tensor};

use super::emulator::{self, Options};
use super::instructions::whole;
use super::launch::Extent;
use super::tensor_map::{Swizzle, TensorMap, Tiling};
use super::{DeviceStruct, Pointer, device_struct};

device_struct! {
    struct TestGemm {
        c: Pointer,
        a: Pointer,
        b: Pointer,
        m: u32,
        n: u32,
        k: u32,
        mistakes: u32,
    }

    struct Pipeline {
        a: TensorMap,
        b: TensorMap,
        c: TensorMap,
        steps: u32,
        mistakes: u32,
    }
}

const SEEDS: u64 = 4;

fn a_at(m: usize, k: usize) -> f32 {
    whole(m * 1024 + k, 1)
}

fn b_at(n: usize, k: usize) -> f32 {
    whole(n * 1024 + k, 2)
}

fn operand(rows: usize, k: usize, value: fn(usize, usize) -> f32) -> Tensor {
    let values: Vec<bf16> = (0..rows * k).map(|i| bf16::from_f32(value(i / k, i % k))).collect();
    Tensor::from_slice(&values, &[rows, k]).unwrap().to(Device::Emulated).unwrap()
}

fn extent(tensor: &Tensor, writable: bool) -> Extent {
    let view = tensor.view();
    let row_bytes = (view.dim(1) * view.dtype().size()) as u64;
    Extent {
        start: view.address(),
        rows: view.dim(0) as u64,
        row_bytes,
        row_stride: row_bytes,
        writable,
    }
}

/// Multiplies with one of the kernels; checks the product, whose sums of whole numbers are exact, and returns the seconds that the launch took.
fn multiply(
    hopper: bool,
    (m, n, k): (usize, usize, usize),
    mistakes: u32,
    seed: u64,
) -> Result<f64, String> {
    let (a, b) = (operand(m, k, a_at), operand(n, k, b_at));
    let mut c = Tensor::zeros(Device::Emulated, DType::F32, &[m, n]).unwrap();
    prime_runtime::emulated::forget(c.view_mut());
    let extents = [extent(&c, true), extent(&a, false), extent(&b, false)];
    let pointer = |index: usize| Pointer::tagged(extents[index].start, index);
    let options = Options { seed, workers: 1 + (seed % 2) as u32, ..Options::DEFAULT };
    let tile = if hopper { 64 } else { 128 };
    let grid = [(n / tile) as u32, (m / tile) as u32, 1];
    let run = |kernel: &str, bytes: &[u8], block: u32, shared_bytes: u32| {
        let geometry = Geometry { grid, block, cluster: 1, shared_bytes, early: false };
        emulator::launch_with(options, kernel, block, bytes, geometry, &extents)
            .map_err(|error| error.to_string())
    };
    let started = Instant::now();
    if hopper {
        let map = |index: usize, dtype, rows: usize, columns: usize, tile, swizzle| {
            let element = if dtype == DType::F32 { 4 } else { 2 };
            let tiling = Tiling {
                dtype,
                start: pointer(index),
                dims: &[columns as u64, rows as u64],
                strides: &[(columns * element) as u64],
                tile,
                swizzle,
            };
            TensorMap::new(Device::Emulated, &tiling).unwrap()
        };
        let arguments = Pipeline {
            a: map(1, DType::BF16, m, k, &[64, 64], Swizzle::Bytes128),
            b: map(2, DType::BF16, n, k, &[64, 64], Swizzle::Bytes128),
            c: map(0, DType::F32, m, n, &[32, 64], Swizzle::None),
            steps: (k / 64) as u32,
            mistakes,
        };
        run("test_pipeline", bytes_of(&arguments), 160, 65536 + 64)?;
    } else {
        let arguments = TestGemm {
            c: pointer(0),
            a: pointer(1),
            b: pointer(2),
            m: m as u32,
            n: n as u32,
            k: k as u32,
            mistakes,
        };
        run("test_gemm", bytes_of(&arguments), 256, 6 * 128 * 32 * 2)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let got = c.view().to_vec::<f32>().map_err(|error| error.to_string())?;
    for (i, &got) in got.iter().enumerate() {
        let expected: f32 = (0..k).map(|k| a_at(i / n, k) * b_at(i % n, k)).sum();
        if got != expected {
            return Err(format!("element {}, {}: {got} instead of {expected}", i / n, i % n));
        }
    }
    Ok(seconds)
}

fn bytes_of<S: DeviceStruct>(arguments: &S) -> &[u8] {
    // SAFETY: plain data of `repr(C)`, alive as long as the slice; padding is copied, not looked at.
    unsafe { std::slice::from_raw_parts(from_ref(arguments).cast(), size_of::<S>()) }
}

#[test]
fn a_product_through_copies_of_threads_is_right_whatever_the_seed() {
    for seed in 0..SEEDS {
        let outcome = multiply(false, (128, 256, 160), 0, seed);
        assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
    }
}

#[test]
fn a_product_through_the_tensor_memory_accelerator_is_right_whatever_the_seed() {
    for seed in 0..SEEDS {
        let outcome = multiply(true, (128, 128, 512), 0, seed);
        assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
    }
}

/// `cargo test -p prime-kernels --lib rate_of_products -- --ignored --nocapture`; the device's own code is optimised in any build.
#[test]
#[ignore = "a measurement, for a machine that does nothing else"]
fn rate_of_products_on_one_core_with_all_checks() {
    let (m, n, k) = (512, 512, 512);
    for (name, hopper) in [("copies of threads and mma", false), ("tensor copies and wgmma", true)]
    {
        // An even seed runs on one core.
        let seconds = (0..5).map(|i| multiply(hopper, (m, n, k), 0, 2 * i).unwrap());
        let rate = (2 * m * n * k) as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e9;
        println!("{name}: {rate:.2} GFLOP/s, {m} x {n} x {k}, best of 5");
    }
}

#[test]
fn mistakes_of_pipelines_are_seen_whatever_the_seed() {
    let portable: [(u32, &[&str]); 3] = [
        (1, &["before the asynchronous copy into byte"]),
        (2, &["never written", "races with", "before the asynchronous copy"]),
        (4, &["races with", "before the asynchronous copy", "never written"]),
    ];
    let hopper: [(u32, &[&str]); 5] = [
        (
            1,
            &[
                "which wgmma or a bulk store may still read",
                "before the asynchronous copy",
                "races with",
            ],
        ),
        (2, &["fence_proxy_async must come between"]),
        (4, &["the launch is stuck"]),
        (8, &["never written", "before the asynchronous copy", "races with"]),
        (16, &["the launch is stuck"]),
    ];
    for (is_hopper, mistakes) in [(false, &portable[..]), (true, &hopper[..])] {
        for &(mistake, expected) in mistakes {
            for seed in 0..SEEDS {
                let message = multiply(is_hopper, (128, 128, 512), mistake, seed)
                    .expect_err("a mistake was not seen");
                let known = expected.iter().any(|part| message.contains(part));
                assert!(known, "mistake {mistake}, seed {seed}: {message}");
            }
        }
    }
}
