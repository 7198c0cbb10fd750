//! Products put together from the pieces of `hopper_gemm.cuh`, on the emulated device: right whatever the seed, and each mistake in putting them together
//! seen.

use std::ptr::from_ref;

use half::bf16;
use prime_runtime::cuda::Geometry;
use prime_runtime::{DType, Device, Tensor};

use super::emulator::{self, Options};
use super::instructions::whole;
use super::launch::Extent;
use super::tensor_map::{Swizzle, TensorMap, Tiling};
use super::{Pointer, device_struct};

device_struct! {
    struct HopperPieces {
        a: TensorMap,
        b: TensorMap,
        c: TensorMap,
        m: u32,
        n: u32,
        k: u32,
        mistakes: u32,
    }
}

/// Three tiles for each of two clusters, so that consumers go on and stages come round; no size is a multiple of a tile's.
const SIZES: [usize; 3] = [300, 240, 264];

fn operand(rows: usize, columns: usize, salt: usize) -> (Tensor, Vec<f32>) {
    let values: Vec<f32> = (0..rows * columns).map(|i| whole(i, salt)).collect();
    let low: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
    (Tensor::from_slice(&low, &[rows, columns]).unwrap().to(Device::Emulated).unwrap(), values)
}

fn multiply(mistakes: u32, seed: u64) -> Result<(), String> {
    let [m, n, k] = SIZES;
    let ((a, a_values), (b, b_values)) = (operand(m, k, 1), operand(n, k, 2));
    let mut c = Tensor::zeros(Device::Emulated, DType::F32, &[m, n]).unwrap();
    prime_runtime::emulated::forget(c.view_mut());
    let tensors = [(&c, true), (&a, false), (&b, false)];
    let extents = tensors.map(|(tensor, writable)| {
        let view = tensor.view();
        let row_bytes = (view.dim(1) * view.dtype().size()) as u64;
        let rows = view.dim(0) as u64;
        Extent { start: view.address(), rows, row_bytes, row_stride: row_bytes, writable }
    });
    let map = |index: usize, dims: &[u64], tile: &[u32]| {
        let (tensor, _) = tensors[index];
        let row = extents[index].row_bytes;
        let tiling = Tiling {
            dtype: tensor.dtype(),
            start: Pointer::tagged(extents[index].start, index),
            dims,
            strides: &[row, row * m as u64][..dims.len() - 1],
            tile,
            swizzle: Swizzle::Bytes128,
        };
        TensorMap::new(Device::Emulated, &tiling).unwrap()
    };
    let arguments = HopperPieces {
        a: map(1, &[k as u64, m as u64], &[64, 64]),
        b: map(2, &[k as u64, n as u64], &[64, 64]),
        c: map(0, &[n as u64, m as u64, 1], &[32, 64, 1]),
        m: m as u32,
        n: n as u32,
        k: k as u32,
        mistakes,
    };
    // Two stages of three pieces, four slots, four barriers.
    let shared_bytes = 2 * 3 * 8192 + 4 * 8192 + 4 * 8;
    let geometry = Geometry { grid: [4, 1, 1], block: 384, cluster: 2, shared_bytes, early: false };
    let options = Options { seed, workers: 1 + (seed % 2) as u32, ..Options::DEFAULT };
    // SAFETY: plain data of `repr(C)`, alive for the call; padding is copied, not looked at.
    let bytes = unsafe {
        std::slice::from_raw_parts(from_ref(&arguments).cast::<u8>(), size_of::<HopperPieces>())
    };
    emulator::launch_with(options, "test_hopper_gemm", 384, bytes, geometry, &extents)
        .map_err(|error| error.to_string())?;
    let found = c.view().to_vec::<f32>().map_err(|error| error.to_string())?;
    for (i, &found) in found.iter().enumerate() {
        let (row, column) = (i / n, i % n);
        let pairs = a_values[row * k..][..k].iter().zip(&b_values[column * k..][..k]);
        // Whole numbers whose sums are exact.
        let expected: f32 = pairs.map(|(a, b)| a * b).sum();
        if found != expected {
            return Err(format!("element {row}, {column}: {found} instead of {expected}"));
        }
    }
    Ok(())
}

#[test]
fn a_product_of_the_pieces_is_right_whatever_the_seed() {
    for seed in 0..4 {
        let outcome = multiply(0, seed);
        assert!(outcome.is_ok(), "seed {seed}: {outcome:?}");
    }
}

#[test]
fn each_mistake_in_putting_the_pieces_together_is_seen() {
    let mistakes: [(u32, &[&str]); 5] = [
        (1, &["may still read", "races with"]),
        (
            2,
            &[
                "stuck",
                "races with",
                "before the asynchronous copy",
                "instead of",
                "may still read",
            ],
        ),
        (4, &["may still read", "ended", "not waited for", "leaves", "ends"]),
        (
            8,
            &[
                "stuck",
                "instead of",
                "before the asynchronous copy",
                "never written",
                "races with",
                "may still read",
            ],
        ),
        (16, &["fence_proxy_async must come between"]),
    ];
    for (mistake, expected) in mistakes {
        for seed in 0..2 {
            let message = multiply(mistake, seed).expect_err(&format!("mistake {mistake}"));
            let known = expected.iter().any(|part| message.contains(part));
            assert!(known, "mistake {mistake}, seed {seed}: {message}");
        }
    }
}
