//! Quick measurements of this machine: products of matrices, and memory.

use std::time::{Duration, Instant};

use anyhow::Result;
use prime_kernels::matmul::{self, Epilogue, Layout};
use prime_kernels::{cast, fill};
use prime_runtime::{DType, Device, Tensor};

/// Operations a second of a linear layer's product on the host: m rows through an n x k weight.
pub(super) fn matmul_rate(
    m: usize,
    n: usize,
    k: usize,
    dtype: DType,
    time: Duration,
) -> Result<f64> {
    matmul_rate_on(Device::Cpu, [m, n, k], dtype, time)
}

/// [`matmul_rate`] on a device, each product waited for.
pub(super) fn matmul_rate_on(
    device: Device,
    [m, n, k]: [usize; 3],
    dtype: DType,
    time: Duration,
) -> Result<f64> {
    let (a, b) = (filled(device, &[m, k], dtype)?, filled(device, &[n, k], dtype)?);
    let mut out = Tensor::zeros(device, dtype, &[m, n])?;
    let seconds = best(time, || {
        let epilogue = Epilogue::default();
        matmul::forward(out.view_mut(), a.view(), b.view(), Layout::NT, epilogue)?;
        // A copy to the host waits for the device.
        if device != Device::Cpu {
            let element = out.view().rows(0..1).columns(0..1);
            std::hint::black_box(element.to_f32_vec());
        }
        Ok(())
    })?;
    Ok(2.0 * (m * n * k) as f64 / seconds)
}

/// Bytes a second of copying `bytes` bytes, read and written.
pub(super) fn copy_rate(bytes: usize, time: Duration) -> Result<f64> {
    let count = bytes / 4;
    let from = filled(Device::Cpu, &[count], DType::F32)?;
    let mut to = filled(Device::Cpu, &[count], DType::F32)?;
    let seconds = best(time, || Ok(cast::forward(to.view_mut(), from.view())?))?;
    Ok(2.0 * (4 * count) as f64 / seconds)
}

fn filled(device: Device, dims: &[usize], dtype: DType) -> Result<Tensor> {
    let mut tensor = Tensor::zeros(device, dtype, dims)?;
    fill::forward(tensor.view_mut(), 0.5)?;
    Ok(tensor)
}

/// Seconds of the fastest repetition within a time, after one that warms up.
fn best(time: Duration, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    work()?;
    let mut best = f64::INFINITY;
    while best.is_infinite() || started.elapsed() < time {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    // A clock too coarse for the work must not give an infinite rate.
    Ok(best.max(1e-9))
}
