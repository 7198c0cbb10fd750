//! Exchanges between lanes, atomics, and copies by all units.

use half::{bf16, f16};
use prime_runtime::Device;

use super::*;

type Checked = std::result::Result<(), String>;

pub(super) fn shuffle(device: Device) -> Checked {
    let value = |lane: usize| (lane * lane % 11) as u32;
    let from = |lane: usize| (lane * 7 + 3) % 32;
    let given = Given {
        a: (0..32).map(value).collect(),
        b: (0..32).map(|lane| from(lane) as u32).collect(),
        out: vec![0; 32 * 8],
        threads: 32,
        ..Given::default()
    };
    let votes = (0..32).map(|lane| (value(lane) & 1) << lane).sum::<u32>();
    let sum = (0..32).map(value).sum::<u32>();
    let any_seven = (0..32).any(|lane| value(lane) == 7);
    let mut expected = Vec::new();
    for lane in 0..32 {
        expected.extend([
            value(from(lane)),
            value(lane ^ 13),
            value(if lane >= 3 { lane - 3 } else { lane }),
            value(if lane + 9 < 32 { lane + 9 } else { lane }),
            votes,
            any_seven.into(),
            (!any_seven).into(),
            sum,
        ]);
    }
    let kernel = "instruction_shuffle";
    same(kernel, &run(device, false, kernel, &given)?, &expected)
}

pub(super) fn copy_async(device: Device) -> Checked {
    let a: Vec<u32> = (1..=128).collect();
    let mut expected = Vec::new();
    for words in [4, 2, 1] {
        for lane in 0..32 {
            expected.extend((0..words).map(
                |i| {
                    if lane % 2 == 0 { a[lane * words + i] } else { 0 }
                },
            ));
        }
    }
    let given = Given { a, out: vec![0; 224], threads: 32, shared_bytes: 1024, ..Given::default() };
    let kernel = "instruction_copy_async";
    same(kernel, &run(device, false, kernel, &given)?, &expected)
}

pub(super) fn atomics(device: Device) -> Checked {
    let a: Vec<u32> =
        (0..32).map(|lane| if lane % 3 == 0 { 0u32.wrapping_sub(lane) } else { lane }).collect();
    let out = vec![u32::MAX - 5, 17, 40, 0, 9, 0];
    let expected = [
        a.iter().fold(out[0], |sum, &value| sum.wrapping_add(value)),
        a.iter().copied().max().unwrap_or(0).max(out[1]),
        a.iter().copied().min().unwrap_or(0).min(out[2]),
        a.iter().map(|&value| value as i32).max().unwrap_or(0).max(0) as u32,
        11,
        9,
    ];
    let given = Given { a, out, threads: 32, ..Given::default() };
    let kernel = "instruction_atomics";
    same(kernel, &run(device, false, kernel, &given)?, &expected)
}

pub(super) fn bulk_copy(device: Device) -> Checked {
    let a: Vec<u32> = (0..512).map(|i| i * 3 + 1).collect();
    let given = Given {
        a: a.clone(),
        out: vec![0; 512],
        words: 512,
        threads: 128,
        shared_bytes: 2048 + 64,
        ..Given::default()
    };
    let kernel = "instruction_bulk_copy";
    same(kernel, &run(device, true, kernel, &given)?, &a)
}

/// Two halves of a word added apart.
fn add_halves(a: u32, b: u32, add: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(add(a as u16, b as u16)) | u32::from(add((a >> 16) as u16, (b >> 16) as u16)) << 16
}

pub(super) fn bulk_reduce(device: Device) -> Checked {
    type Add = fn(&[u32], &[u32]) -> Vec<u32>;
    type Make = fn(usize, usize) -> u32;
    fn each(a: &[u32], b: &[u32], add: impl Fn(u32, u32) -> u32) -> Vec<u32> {
        a.iter().zip(b).map(|(&a, &b)| add(a, b)).collect()
    }
    let float: Make = |i, salt| whole(i, salt).to_bits();
    let cases: [(&str, Make, Add); 5] = [
        ("float", float, |a, b| {
            each(a, b, |a, b| (f32::from_bits(a) + f32::from_bits(b)).to_bits())
        }),
        (
            "bf16",
            |i, salt| bf16::from_f32(whole(i, salt)).to_bits() as u32 * 0x1_0001,
            |a, b| {
                each(a, b, |a, b| {
                    add_halves(a, b, |x, y| (bf16::from_bits(x) + bf16::from_bits(y)).to_bits())
                })
            },
        ),
        (
            "f16",
            |i, salt| f16::from_f32(whole(i, salt)).to_bits() as u32 * 0x1_0001,
            |a, b| {
                each(a, b, |a, b| {
                    add_halves(a, b, |x, y| (f16::from_bits(x) + f16::from_bits(y)).to_bits())
                })
            },
        ),
        (
            "u32",
            |i, salt| (i as u32).wrapping_mul(0x9E37_79B9) ^ salt as u32,
            |a, b| each(a, b, u32::wrapping_add),
        ),
        (
            "u64",
            |i, salt| (i as u32).wrapping_mul(0x9E37_79B9) ^ salt as u32,
            |a, b| {
                let long = |words: &[u32]| u64::from(words[0]) | u64::from(words[1]) << 32;
                let sums = a.chunks(2).zip(b.chunks(2)).map(|(a, b)| long(a).wrapping_add(long(b)));
                sums.flat_map(|sum| [sum as u32, (sum >> 32) as u32]).collect()
            },
        ),
    ];
    for (name, make, add) in cases {
        let a: Vec<u32> = (0..128).map(|i| make(i, 1)).collect();
        let out: Vec<u32> = (0..128).map(|i| make(i, 2)).collect();
        let expected = add(&out, &a);
        let given =
            Given { a, out, words: 128, threads: 128, shared_bytes: 512, ..Given::default() };
        let kernel = format!("instruction_bulk_reduce<{name}>");
        let got = run(device, true, &kernel, &given)?;
        if name == "bf16" || name == "f16" {
            // A sum of whole numbers is exact, but 0 has two signs.
            let plain = |words: &[u32]| -> Vec<u32> {
                words
                    .iter()
                    .map(|&word| add_halves(word, 0, |x, _| if x == 0x8000 { 0 } else { x }))
                    .collect()
            };
            same(&kernel, &plain(&got), &plain(&expected))?;
        } else {
            same(&kernel, &got, &expected)?;
        }
    }
    Ok(())
}

/// Where a byte of a tile that begins at a multiple of 1024 lies.
fn exchanged(byte: usize, swizzle: Swizzle) -> usize {
    let rows = byte >> 7;
    let pieces = match swizzle {
        Swizzle::None => 1,
        Swizzle::Bytes32 => 2,
        Swizzle::Bytes64 => 4,
        Swizzle::Bytes128 => 8,
    };
    byte ^ (rows % pieces) << 4
}

/// A tensor of words and a box of it.
struct Boxed {
    dims: Vec<u64>,
    tile: Vec<u32>,
    at: [i32; 3],
    swizzle: Swizzle,
}

impl Boxed {
    fn all() -> Vec<Boxed> {
        let boxed = |dims: &[u64], tile: &[u32], at, swizzle| Boxed {
            dims: dims.to_vec(),
            tile: tile.to_vec(),
            at,
            swizzle,
        };
        vec![
            boxed(&[64], &[32], [8, 0, 0], Swizzle::None),
            boxed(&[60], &[32], [-5, 0, 0], Swizzle::None),
            boxed(&[64, 40], &[32, 16], [16, 8, 0], Swizzle::Bytes128),
            boxed(&[64, 40], &[16, 16], [48, 30, 0], Swizzle::Bytes64),
            boxed(&[64, 40], &[8, 32], [-3, -2, 0], Swizzle::Bytes32),
            boxed(&[64, 40], &[32, 8], [50, 36, 0], Swizzle::None),
            boxed(&[16, 6, 5], &[8, 4, 3], [12, 4, 3], Swizzle::None),
            boxed(&[32, 6, 5], &[32, 4, 2], [0, -1, 4], Swizzle::Bytes128),
        ]
    }

    /// For each word of the box, in the order of shared memory: its word of the tensor, if it lies inside.
    fn places(&self) -> Vec<Option<usize>> {
        let words = self.tile.iter().product::<u32>() as usize;
        let mut places = vec![None; words];
        for word in 0..words {
            let (mut rest, mut index, mut scale, mut inside) = (word, 0, 1, true);
            for (axis, (&dim, &size)) in self.dims.iter().zip(&self.tile).enumerate() {
                let at = i64::from(self.at[axis]) + (rest % size as usize) as i64;
                rest /= size as usize;
                inside &= (0..dim as i64).contains(&at);
                index += at * scale;
                scale *= dim as i64;
            }
            places[exchanged(4 * word, self.swizzle) / 4] = inside.then_some(index as usize);
        }
        places
    }

    fn map(&self, device: Device, start: Pointer) -> Result<TensorMap> {
        let strides: Vec<u64> = (1..self.dims.len())
            .map(|axis| 4 * self.dims[..axis].iter().product::<u64>())
            .collect();
        TensorMap::new(
            device,
            &Tiling {
                dtype: DType::U32,
                start,
                dims: &self.dims,
                strides: &strides,
                tile: &self.tile,
                swizzle: self.swizzle,
            },
        )
    }

    fn elements(&self) -> usize {
        self.dims.iter().product::<u64>() as usize
    }
}

pub(super) fn tensor_load(device: Device) -> Checked {
    for case in Boxed::all() {
        let values: Vec<u32> = (1..=case.elements() as u32).collect();
        let places = case.places();
        let expected: Vec<u32> =
            places.iter().map(|place| place.map_or(0, |index| values[index])).collect();
        let kernel = format!("instruction_tensor_load<{}>", case.dims.len());
        let got = on_tensor(device, &kernel, &case, &values, &vec![0; places.len()], false);
        same(&kernel, &got.map_err(|error| format!("{kernel}: {error}"))?, &expected)?;
    }
    Ok(())
}

pub(super) fn tensor_store(device: Device) -> Checked {
    for case in Boxed::all().into_iter().filter(|case| case.dims.len() == 2) {
        for add in [false, true] {
            let before: Vec<u32> = (0..case.elements() as u32).map(|i| 1000 * i).collect();
            let places = case.places();
            let values: Vec<u32> = (1..=places.len() as u32).collect();
            let mut expected = before.clone();
            for (place, &value) in places.iter().zip(&values) {
                if let Some(index) = *place {
                    expected[index] = if add { before[index] + value } else { value };
                }
            }
            let kernel = format!("instruction_tensor_store<{add}>");
            let got = on_tensor(device, &kernel, &case, &before, &values, true);
            same(&kernel, &got.map_err(|error| format!("{kernel}: {error}"))?, &expected)?;
        }
    }
    Ok(())
}

/// Loads the box of a tensor to `tile`, or stores it from there; returns what was written.
fn on_tensor(
    device: Device,
    kernel: &str,
    case: &Boxed,
    tensor: &[u32],
    tile: &[u32],
    store: bool,
) -> Result<Vec<u32>> {
    let (mut tensor, mut tile) = (words(device, tensor)?, words(device, tile)?);
    let box_words = tile.view().elements();
    let mut launch = Launch::new(&HOPPER, kernel.to_owned(), device);
    let [x, y, z] = case.at;
    let launched = |launch: Launch<'_>, map, out, a| {
        let arguments = TensorInstruction { map, out, a, words: box_words as u32, x, y, z };
        launch.block(128).shared(4 * box_words + 64).run(&arguments)
    };
    if store {
        {
            let mut view = tensor.view_mut();
            let start = launch.write(&mut view);
            let a = launch.read(tile.view());
            launched(launch, case.map(device, start)?, Pointer::NULL, a)?;
        }
        tensor.view().to_vec::<u32>()
    } else {
        {
            let mut view = tile.view_mut();
            let out = launch.write(&mut view);
            let start = launch.read(tensor.view());
            launched(launch, case.map(device, start)?, out, Pointer::NULL)?;
        }
        tile.view().to_vec::<u32>()
    }
}

pub(super) fn multicast(device: Device) -> Checked {
    let a: Vec<u32> = (0..256).map(|i| i * 5 + 2).collect();
    let mut expected = Vec::new();
    for rank in 0..2 {
        expected.extend(&a);
        expected.push(100 + (rank ^ 1));
    }
    let given = Given {
        a,
        out: vec![0; 2 * 257],
        words: 256,
        threads: 128,
        blocks: 2,
        cluster: 2,
        shared_bytes: 1024 + 128,
        ..Given::default()
    };
    let kernel = "instruction_multicast";
    same(kernel, &run(device, true, kernel, &given)?, &expected)
}
