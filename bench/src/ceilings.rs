//! What a device can do at most: the roof that every figure is held against.

use std::time::{Duration, Instant};

use anyhow::Result;
use prime::bench::Ceiling;
use prime_kernels::{cast, ceiling, reduce, scale};
use prime_runtime::cuda::{self, Chip, Event};
use prime_runtime::{DType, Device, Tensor};

/// Bytes of what is read and copied: far beyond any cache.
const HOST_BYTES: usize = 256 << 20;
const DEVICE_BYTES: usize = 1 << 30;

/// The ceilings of a device; none of one that simulates.
///
/// # Errors
/// When memory is not to be had, or the device fails.
pub fn of(device: Device) -> Result<Vec<Ceiling>> {
    match device {
        Device::Cpu => host(),
        Device::Cuda(number) => cuda_device(number),
        _ => Ok(Vec::new()),
    }
}

fn host() -> Result<Vec<Ceiling>> {
    let mut ceilings = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let rate = (0..3).map(|_| ceiling::multiply_adds(dtype, Duration::from_millis(60)));
        ceilings.push(Ceiling {
            what: dtype.to_string(),
            rate: rate.fold(0.0, f64::max),
            how: "multiply-adds on registers of all threads, the best of three".to_owned(),
        });
    }
    let count = HOST_BYTES / 4;
    let from = Tensor::from_slice(&vec![0.5f32; count], &[count])?;
    let mut to = Tensor::from_slice(&vec![0.25f32; count], &[count])?;
    let bytes = HOST_BYTES as f64;
    let read = bytes / best(|| reduce::sum(from.view()).map(|_| ()))?;
    let copied = 2.0 * bytes / best(|| cast::forward(to.view_mut(), from.view()))?;
    // What is written back was read before, while a copy reads what it overwrites too, which nobody counts.
    let changed = 2.0 * bytes / best(|| scale::forward(to.view_mut(), -1.0))?;
    let ways = [("reading", read), ("copying", copied), ("changing", changed)];
    let most = ways.into_iter().fold(ways[0], |most, way| if way.1 > most.1 { way } else { most });
    let all = ways.map(|(what, rate)| format!("{what} {:.1} GB/s", rate / 1e9)).join(", ");
    ceilings.push(Ceiling {
        what: "bytes".to_owned(),
        rate: most.1,
        how: format!("{} 256 MiB, the best of several ({all})", most.0),
    });
    Ok(ceilings)
}

/// Puts in place of each ceiling a higher one of the same.
pub fn raise(ceilings: &mut [Ceiling], again: Vec<Ceiling>) {
    for higher in again {
        let of_same = ceilings.iter_mut().filter(|known| known.what == higher.what);
        for known in of_same.filter(|known| known.rate < higher.rate) {
            *known = higher.clone();
        }
    }
}

/// Seconds of the fastest of several repetitions.
fn best(mut work: impl FnMut() -> prime_runtime::Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    work()?;
    for _ in 0..5 {
        let start = Instant::now();
        work()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Dense multiply-adds of bfloat16 with float32 sums, in operations a clock of a multiprocessor: published peaks over published clocks.
fn operations_a_clock(chip: Chip) -> Option<f64> {
    match (chip.major, chip.minor) {
        (8, 0) => Some(2048.0),
        // Chips for graphics add up in float32 at half of their tensor cores' rate.
        (8, _) | (12, _) => Some(512.0),
        (9, _) => Some(4096.0),
        (10, _) => Some(8192.0),
        _ => None,
    }
}

fn cuda_device(number: u32) -> Result<Vec<Ceiling>> {
    let properties = cuda::properties(number)?;
    let hertz = f64::from(properties.clock) * 1e3;
    let mut ceilings = Vec::new();
    let clocked = |a_clock: f64| f64::from(properties.multiprocessors) * a_clock * hertz;
    if let (Some(a_clock), true) = (operations_a_clock(properties.chip), hertz > 0.0) {
        ceilings.push(Ceiling {
            what: DType::BF16.to_string(),
            rate: clocked(a_clock),
            how: format!(
                "{} multiprocessors, {a_clock} operations a clock, at their highest clock of {:.0} MHz; the clock under load is lower",
                properties.multiprocessors,
                hertz / 1e6
            ),
        });
    }
    if hertz > 0.0 {
        // 64 cores a multiprocessor on the first chips for servers, 128 on all others.
        let cores =
            if (properties.chip.major, properties.chip.minor) == (8, 0) { 64.0 } else { 128.0 };
        ceilings.push(Ceiling {
            what: DType::F32.to_string(),
            rate: clocked(2.0 * cores),
            how: format!("{cores} multiply-adds a clock of a multiprocessor, without tensor cores"),
        });
    }
    let count = DEVICE_BYTES / 4;
    let device = Device::Cuda(number);
    let from = Tensor::zeros(device, DType::F32, &[count])?;
    let mut to = Tensor::zeros(device, DType::F32, &[count])?;
    let (mut start, mut end) = (Event::new(number)?, Event::new(number)?);
    let mut least = f64::INFINITY;
    for _ in 0..6 {
        start.record()?;
        to.view_mut().copy_from(from.view())?;
        end.record()?;
        least = least.min(f64::from(end.milliseconds_since(&start)?) / 1e3);
    }
    let bits = f64::from(properties.memory_bits);
    // Two transfers a clock.
    let published = 2.0 * f64::from(properties.memory_clock) * 1e3 * bits / 8.0;
    ceilings.push(Ceiling {
        what: "bytes".to_owned(),
        rate: 2.0 * DEVICE_BYTES as f64 / least,
        how: format!(
            "the driver's copy of 1 GiB, read and written, the best of six; by its clock and width the memory moves {:.0} GB/s",
            published / 1e9
        ),
    });
    Ok(ceilings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_is_the_higher_of_two_that_were_measured() {
        let ceiling = |what: &str, rate| Ceiling { what: what.into(), rate, how: String::new() };
        let mut known = vec![ceiling("bytes", 40.0), ceiling("float32", 9.0)];
        raise(&mut known, vec![ceiling("bytes", 70.0), ceiling("float32", 8.0)]);
        assert_eq!(known, [ceiling("bytes", 70.0), ceiling("float32", 9.0)]);
    }

    #[test]
    fn published_peaks_follow_from_clocks() {
        let peak = |major, minor, multiprocessors: f64, hertz: f64| {
            operations_a_clock(Chip { major, minor }).unwrap() * multiprocessors * hertz
        };
        // A100, H100 and H200, RTX 4090.
        assert!((peak(8, 0, 108.0, 1.41e9) / 312e12 - 1.0).abs() < 0.01);
        assert!((peak(9, 0, 132.0, 1.83e9) / 989.5e12 - 1.0).abs() < 0.01);
        assert!((peak(8, 9, 128.0, 2.52e9) / 165.2e12 - 1.0).abs() < 0.01);
    }
}
