//! What is checked in a process of its own, item by item.

use anyhow::{Context, Result, bail};
use prime_kernels::OPERATIONS;
use prime_kernels::device::{self, instructions};
use prime_runtime::{Device, cuda};
use serde_json::{Value, json};

use super::{machine, steps};

/// Failures of an item that are told.
pub const TOLD: usize = 5;

/// The item of `kernels` that compiles them, the only one that needs no GPU.
pub const COMPILE: &str = "compile";

/// The names of a part's items, in order.
///
/// # Errors
/// When the device cannot be asked what it is.
pub fn names(part: &str, device: Device) -> Result<Vec<&'static str>> {
    Ok(match part {
        "kernels" => vec![COMPILE, "load"],
        "instructions" => {
            let hopper = match device {
                Device::Cuda(number) => cuda::properties(number)?.chip.major == 9,
                _ => true,
            };
            instructions::checks(hopper).map(|(name, _)| name).collect()
        }
        "parity" => OPERATIONS.iter().map(|(name, _)| *name).collect(),
        _ => steps::shapes(device).iter().map(|shape| shape.name).collect(),
    })
}

/// Checks an item in this process, and says what it found; `cases` of an operation.
///
/// # Errors
/// When there is no such item, or the device cannot be used.
pub fn check(part: &str, name: &str, device: Device, cases: u64) -> Result<Value> {
    let unknown = || format!("the part `{part}` has no item `{name}`");
    match (part, device) {
        ("kernels", Device::Cuda(number)) if name == COMPILE => {
            Ok(machine::compile(cuda::properties(number)?.chip))
        }
        ("kernels", Device::Cuda(number)) if name == "load" => load(number),
        ("instructions", _) => {
            let mut checks = instructions::checks(true);
            let (_, check) = checks.find(|(of, _)| *of == name).with_context(unknown)?;
            Ok(match check(device) {
                Ok(()) => json!({ "passed": true }),
                Err(error) => json!({ "passed": false, "error": error }),
            })
        }
        ("parity", _) => {
            let (_, check) = OPERATIONS.iter().find(|(of, _)| *of == name).with_context(unknown)?;
            let check = |seed: u64| check(device, seed);
            Ok(several(device, (0..cases).map(|seed| (format!("seed {seed}"), seed)), check))
        }
        ("steps", _) => {
            let shapes = steps::shapes(device);
            let shape = shapes.iter().find(|shape| shape.name == name).with_context(unknown)?;
            steps::check(device, shape)
        }
        _ => bail!(unknown()),
    }
}

/// Loads every kernel onto a device.
fn load(number: u32) -> Result<Value> {
    let instances = device::instances(cuda::properties(number)?.chip);
    let instances =
        instances.iter().map(|kernel| (format!("{}, {}", kernel.0.name, kernel.1), kernel));
    Ok(several(Device::Cuda(number), instances, |(program, expression)| {
        cuda::function(number, program, expression).map(|_| ()).map_err(|error| error.to_string())
    }))
}

/// Checks cases one after another; the last name on standard error is the one at which a process ended or hung. Behind one that lost the device nothing
/// more is to be found out in this process.
fn several<T>(
    device: Device,
    cases: impl Iterator<Item = (String, T)>,
    check: impl Fn(T) -> Result<(), String>,
) -> Value {
    let mut failures = Vec::new();
    let mut done = 0;
    let mut lost = None;
    for (name, case) in cases {
        eprintln!("{name}");
        done += 1;
        if let Err(error) = check(case) {
            failures.push(format!("{name}: {error}"));
            if let Device::Cuda(number) = device
                && let Err(error) = cuda::synchronize(number)
            {
                lost =
                    Some(format!("{name} lost the device, and none behind it was tried: {error}"));
                break;
            }
        }
    }
    let mut found = json!({
        "passed": failures.is_empty(),
        "cases": done,
        "failed": failures.len(),
        "first_failures": &failures[..failures.len().min(TOLD)],
    });
    if let Some(error) = lost {
        found["error"] = json!(error);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_failures_are_counted_and_the_first_are_told() {
        let cases = (0..9).map(|seed| (format!("seed {seed}"), seed));
        let found = several(Device::Emulated, cases, |seed| {
            if seed % 2 == 0 { Ok(()) } else { Err("off".to_owned()) }
        });
        assert_eq!(found["cases"], json!(9));
        assert_eq!(found["failed"], json!(4));
        assert_eq!(found["first_failures"][1], json!("seed 3: off"));
        let well = several(Device::Emulated, (0..2).map(|at| (String::new(), at)), |_| Ok(()));
        assert_eq!(well["passed"], json!(true));
    }

    #[test]
    fn an_item_that_there_is_not_is_named() {
        let error = check("parity", "matmull", Device::Emulated, 1).unwrap_err().to_string();
        assert_eq!(error, "the part `parity` has no item `matmull`");
        assert!(check("kernels", "load", Device::Emulated, 1).is_err());
    }
}
