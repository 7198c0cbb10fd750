//! A model of the tile registers, after the pseudocode of Intel's manual (volume 2, and volume 1, chapter "Programming with Intel AMX"), for tests on machines
//! that have none; and the registers themselves where there are some.

use std::cell::RefCell;

use super::{Configuration, Machine, SIDE, Tiles};
use crate::simd;

/// A tile register: sixteen rows of sixteen words.
type Words = [[u32; SIDE]; SIDE];

#[derive(Clone, Copy)]
struct Register {
    /// Rows and words of a row that are configured; none where the register may not be used.
    rows: usize,
    columns: usize,
    words: Words,
}

const EMPTY: Register = Register { rows: 0, columns: 0, words: [[0; SIDE]; SIDE] };

thread_local! {
    static REGISTERS: RefCell<[Register; 8]> = const { RefCell::new([EMPTY; 8]) };
}

/// The model.
pub(super) struct Model;

impl Model {
    fn with<R>(work: impl FnOnce(&mut [Register; 8]) -> R) -> R {
        REGISTERS.with_borrow_mut(work)
    }

    fn configured(registers: &[Register; 8], tile: usize) -> Register {
        let register = registers[tile];
        assert!(register.rows > 0, "tile {tile} is used, but was not configured");
        register
    }
}

impl Tiles for Model {
    unsafe fn configure(configuration: &Configuration) {
        assert_eq!((configuration.palette, configuration.start_row), (1, 0));
        assert_eq!(configuration.reserved, [0; 14]);
        let shapes = configuration.rows.iter().zip(&configuration.row_bytes);
        for (index, (&rows, &bytes)) in shapes.clone().enumerate() {
            assert!(index < 8 || (rows, bytes) == (0, 0), "palette 1 has eight tiles");
            assert!(rows <= 16 && bytes <= 64 && (rows == 0) == (bytes == 0), "tile {index}");
        }
        Model::with(|registers| {
            for (register, (&rows, &bytes)) in registers.iter_mut().zip(shapes) {
                let (rows, columns) = (usize::from(rows), usize::from(bytes) / 4);
                *register = Register { rows, columns, ..EMPTY };
            }
        });
    }

    unsafe fn release() {
        Model::with(|registers| *registers = [EMPTY; 8]);
    }

    unsafe fn zero<const T: usize>() {
        Model::with(|registers| {
            Model::configured(registers, T);
            registers[T].words = EMPTY.words;
        });
    }

    unsafe fn load<const T: usize>(from: *const u8, stride: usize) {
        Model::with(|registers| {
            let Register { rows, columns, .. } = Model::configured(registers, T);
            registers[T].words = EMPTY.words;
            for (row, words) in registers[T].words.iter_mut().enumerate().take(rows) {
                for (column, word) in words.iter_mut().enumerate().take(columns) {
                    // SAFETY: the caller's promise.
                    *word = unsafe {
                        from.add(row * stride + 4 * column).cast::<u32>().read_unaligned()
                    };
                }
            }
        });
    }

    unsafe fn store<const T: usize>(to: *mut u8, stride: usize) {
        Model::with(|registers| {
            let Register { rows, columns, words } = Model::configured(registers, T);
            for (row, words) in words.iter().enumerate().take(rows) {
                for (column, word) in words.iter().enumerate().take(columns) {
                    let to = to.wrapping_add(row * stride + 4 * column);
                    // SAFETY: the caller's promise.
                    unsafe { to.cast::<u32>().write_unaligned(*word) };
                }
            }
        });
    }

    unsafe fn dot<const C: usize, const A: usize, const B: usize>() {
        assert!(C != A && A != B && C != B, "tiles {C}, {A} and {B} must be three");
        Model::with(|registers| {
            let [c, a, b] = [C, A, B].map(|tile| Model::configured(registers, tile));
            assert!(c.rows == a.rows && c.columns == b.columns && a.columns == b.rows);
            // SAFETY: the tests have bfloat16 pairs only where there is AVX-512, and then FMA.
            unsafe { dot(&mut registers[C], &a, &b) };
        });
    }
}

/// A number as the instruction reads and writes it: zero where it is subnormal.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0f32.copysign(x) } else { x }
}

/// Both elements of a pair.
#[inline(always)]
fn pair(word: u32) -> [f32; 2] {
    [word << 16, word & 0xffff_0000].map(|bits| flushed(f32::from_bits(bits)))
}

#[target_feature(enable = "fma")]
fn dot(c: &mut Register, a: &Register, b: &Register) {
    for row in 0..c.rows {
        let mut sums = [[0f32; 2]; SIDE];
        for k in 0..b.rows {
            let left = pair(a.words[row][k]);
            for (column, sums) in sums.iter_mut().enumerate().take(c.columns) {
                let right = pair(b.words[k][column]);
                for i in 0..2 {
                    sums[i] = flushed(left[i].mul_add(right[i], sums[i]));
                }
            }
        }
        for (word, [even, odd]) in c.words[row].iter_mut().zip(sums).take(c.columns) {
            let sum = flushed(flushed(f32::from_bits(*word)) + flushed(even + odd));
            *word = sum.to_bits();
        }
    }
}

/// The machine where it has tile registers, else the model.
pub(super) struct MachineOrModel;

macro_rules! either {
    ($call:ident$(::<$($tile:ident),*>)?($($argument:expr),*)) => {
        // SAFETY: the caller's promise.
        unsafe {
            if simd::has_amx() {
                Machine::$call$(::<$($tile),*>)?($($argument),*)
            } else {
                Model::$call$(::<$($tile),*>)?($($argument),*)
            }
        }
    };
}

impl Tiles for MachineOrModel {
    unsafe fn configure(configuration: &Configuration) {
        either!(configure(configuration));
    }

    unsafe fn release() {
        either!(release());
    }

    unsafe fn zero<const T: usize>() {
        either!(zero::<T>());
    }

    unsafe fn load<const T: usize>(from: *const u8, stride: usize) {
        either!(load::<T>(from, stride));
    }

    unsafe fn store<const T: usize>(to: *mut u8, stride: usize) {
        either!(store::<T>(to, stride));
    }

    unsafe fn dot<const C: usize, const A: usize, const B: usize>() {
        either!(dot::<C, A, B>());
    }
}

/// The shapes that strips of so many rows have, and random words in all tiles, multiplied by one implementation; the sums.
fn products<T: Tiles>(rows: usize, words: &[Words; 8]) -> [Words; 4] {
    let mut sums = [EMPTY.words; 4];
    // SAFETY: the shapes agree as they do in the kernels, and every array is a tile.
    unsafe {
        T::configure(&Configuration::new(rows));
        macro_rules! load {
            ($($tile:literal)*) => { $(T::load::<$tile>(words[$tile].as_ptr().cast(), 64);)* };
        }
        load!(0 1 2 3 4 5 6 7);
        T::dot::<0, 4, 6>();
        T::dot::<1, 4, 7>();
        if rows > SIDE {
            T::dot::<2, 5, 6>();
            T::dot::<3, 5, 7>();
        } else {
            T::dot::<2, 4, 5>();
            T::zero::<3>();
        }
        T::store::<0>(sums[0].as_mut_ptr().cast(), 64);
        T::store::<1>(sums[1].as_mut_ptr().cast(), 64);
        T::store::<2>(sums[2].as_mut_ptr().cast(), 64);
        T::store::<3>(sums[3].as_mut_ptr().cast(), 64);
        T::release();
    }
    sums
}

#[test]
fn tiles_of_this_machine_are_the_bits_of_the_model() {
    if !simd::has_amx() {
        eprintln!("not tested: this machine has no AMX (tools/amx/check.sh emulates one)");
        return;
    }
    let mut random = crate::testing::case(prime_runtime::Device::Cpu, 7);
    for round in 0..200 {
        // Bits of any kind: subnormal numbers, infinities and NaNs among them; in every other round, numbers whose sums stay finite.
        let mut words = [EMPTY.words; 8];
        for word in words.iter_mut().flatten().flatten() {
            let bits = random.below(1 << 16) << 16 | random.below(1 << 16);
            *word = if round % 2 == 0 { bits & 0xbfff_bfff } else { bits };
        }
        let rows = 1 + round % 32;
        let (machine, model) = (products::<Machine>(rows, &words), products::<Model>(rows, &words));
        for (machine, model) in machine.iter().zip(&model) {
            for (a, b) in machine.iter().flatten().zip(model.iter().flatten()) {
                let [x, y] = [a, b].map(|bits| f32::from_bits(*bits));
                assert!(a == b || x.is_nan() && y.is_nan(), "{rows} rows: {x:e} and {y:e}");
            }
        }
    }
}

#[test]
fn the_model_adds_even_and_odd_places_apart_and_takes_subnormal_numbers_for_zero() {
    let mut words = [EMPTY.words; 8];
    let pair = |low: f32, high: f32| low.to_bits() >> 16 | high.to_bits() & 0xffff_0000;
    // Added one after the other, 2^24 would swallow both ones; added apart, their sum is 2, which it does not.
    words[4][0][..3].copy_from_slice(&[pair(1.0, 16_777_216.0), pair(1.0, 0.0), pair(1e-39, 1.0)]);
    words[6][0][0] = pair(1.0, 1.0);
    words[6][1][0] = pair(1.0, 1.0);
    words[6][2][0] = pair(f32::MAX, 0.0);
    words[0][0][0] = 1e-39f32.to_bits();
    let [sums, ..] = products::<Model>(1, &words);
    assert_eq!(f32::from_bits(sums[0][0]), 16_777_218.0);
    assert_eq!(sums[0][1], 0);
}
