//! What single instructions of device code must give, on every device: fixed inputs, and results computed here from what the PTX ISA says of them.
//!
//! Operands are small whole numbers wherever sums are taken, so that every order of additions gives the same bits.

use prime_runtime::{DType, Device, Result, Tensor};

use super::tensor_map::{Swizzle, TensorMap, Tiling};
#[cfg(test)]
use super::{DeviceStruct, StructLayout};
use super::{Launch, Pointer, Source, device_struct};

mod copies;
mod matrices;

/// The check of one instruction, or of a few that belong together; the message says what was wrong.
pub type Check = fn(Device) -> std::result::Result<(), String>;

const PORTABLE: Source = Source {
    name: "../emulator/tests/instructions.cu",
    text: include_str!("../../emulator/tests/instructions.cu"),
};

const HOPPER: Source = Source {
    name: "../emulator/tests/instructions_sm90.cu",
    text: include_str!("../../emulator/tests/instructions_sm90.cu"),
};

device_struct! {
    struct Instruction {
        out: Pointer,
        a: Pointer,
        b: Pointer,
        c: Pointer,
    }

    struct HopperInstruction {
        out: Pointer,
        a: Pointer,
        b: Pointer,
        c: Pointer,
        words: u32,
        accumulate: u32,
        a_descriptor: u64,
        b_descriptor: u64,
    }

    struct TensorInstruction {
        map: TensorMap,
        out: Pointer,
        a: Pointer,
        words: u32,
        x: i32,
        y: i32,
        z: i32,
    }
}

/// The argument structs, which a test compares with the `.cu` texts.
#[cfg(test)]
pub(super) const STRUCTS: &[(&Source, StructLayout)] = &[
    (&PORTABLE, Instruction::LAYOUT),
    (&HOPPER, HopperInstruction::LAYOUT),
    (&HOPPER, TensorInstruction::LAYOUT),
];

/// The checks of instructions that every chip has from sm_80 on.
const PORTABLE_CHECKS: &[(&str, Check)] = &[
    ("mma", matrices::mma),
    ("load_matrix", matrices::load_matrix),
    ("shuffle", copies::shuffle),
    ("copy_async", copies::copy_async),
    ("atomics", copies::atomics),
];

/// The checks of Hopper's instructions.
const HOPPER_CHECKS: &[(&str, Check)] = &[
    ("store_matrix", matrices::store_matrix),
    ("wgmma", matrices::wgmma),
    ("bulk_copy", copies::bulk_copy),
    ("bulk_reduce", copies::bulk_reduce),
    ("tensor_load", copies::tensor_load),
    ("tensor_store", copies::tensor_store),
    ("multicast", copies::multicast),
];

/// The checks by name; those of Hopper's instructions where `hopper` says that the device has them.
pub fn checks(hopper: bool) -> impl Iterator<Item = (&'static str, Check)> {
    let hopper_checks = if hopper { HOPPER_CHECKS } else { &[] };
    PORTABLE_CHECKS.iter().chain(hopper_checks).copied()
}

/// What a kernel of one instruction is given.
#[derive(Clone, Default)]
struct Given {
    a: Vec<u32>,
    b: Vec<u32>,
    c: Vec<u32>,
    /// What `out` holds at first.
    out: Vec<u32>,
    words: u32,
    accumulate: bool,
    a_descriptor: u64,
    b_descriptor: u64,
    threads: u32,
    blocks: usize,
    cluster: u32,
    shared_bytes: usize,
}

fn words(device: Device, values: &[u32]) -> Result<Tensor> {
    // A view of nothing has no address to give.
    let values = if values.is_empty() { &[0] } else { values };
    Tensor::from_slice(values, &[values.len()])?.to(device)
}

/// Runs a kernel on words; returns `out`.
fn run(
    device: Device,
    hopper: bool,
    kernel: &str,
    given: &Given,
) -> std::result::Result<Vec<u32>, String> {
    let work = || -> Result<Vec<u32>> {
        let (a, b, c) =
            (words(device, &given.a)?, words(device, &given.b)?, words(device, &given.c)?);
        let mut out = words(device, &given.out)?;
        {
            let mut view = out.view_mut();
            let source = if hopper { &HOPPER } else { &PORTABLE };
            let mut launch = Launch::new(source, kernel.to_owned(), device);
            let (out, a, b, c) = (
                launch.write(&mut view),
                launch.read(a.view()),
                launch.read(b.view()),
                launch.read(c.view()),
            );
            let launch = launch
                .grid([given.blocks.max(1), 1, 1])
                .block(given.threads)
                .cluster(given.cluster.max(1))
                .shared(given.shared_bytes);
            if hopper {
                launch.run(&HopperInstruction {
                    out,
                    a,
                    b,
                    c,
                    words: given.words,
                    accumulate: given.accumulate.into(),
                    a_descriptor: given.a_descriptor,
                    b_descriptor: given.b_descriptor,
                })?;
            } else {
                launch.run(&Instruction { out, a, b, c })?;
            }
        }
        out.view().to_vec::<u32>()
    };
    work().map_err(|error| format!("{kernel}: {error}"))
}

/// Compares words bit for bit.
fn same(kernel: &str, got: &[u32], expected: &[u32]) -> std::result::Result<(), String> {
    if let Some(i) = (0..expected.len()).find(|&i| got[i] != expected[i]) {
        return Err(format!(
            "{kernel}: word {i} is {:#010x} ({}), and should be {:#010x} ({})",
            got[i],
            f32::from_bits(got[i]),
            expected[i],
            f32::from_bits(expected[i])
        ));
    }
    Ok(())
}

/// Whole numbers from -4 to 4 that repeat in no power of two.
pub(super) fn whole(index: usize, salt: usize) -> f32 {
    ((index * 7 + index / 13 * 5 + salt * 3) % 9) as f32 - 4.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "emulator-tests")]
    #[test]
    fn every_instruction_does_on_the_emulated_device_what_the_isa_says() {
        for (name, check) in checks(true) {
            let result = check(Device::Emulated);
            if let Err(message) = result {
                panic!("{name}: {message}");
            }
        }
    }

    #[test]
    fn the_argument_structs_are_those_of_the_texts() {
        for (source, layout) in STRUCTS {
            assert!(source.text.contains(&format!("struct {} {{", layout.name)), "{}", layout.name);
        }
    }
}
