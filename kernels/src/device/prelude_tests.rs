//! What the prelude computes itself, for the device and the host alike, against Rust's numbers.

use half::{bf16, f16};
use prime_runtime::random::{self, Generator, Stream};
use prime_runtime::{Device, Tensor};

use super::{Launch, Pointer, Source, device_struct};

static SOURCE: Source = Source {
    name: "emulator/tests/prelude.cu",
    text: include_str!("../../emulator/tests/prelude.cu"),
};

device_struct! {
    struct PreludeNumbers { out: Pointer, from: Pointer, count: u32 }
    struct PreludeRandom { out: Pointer, seed: u64, sequence: u64, stream: u32, count: u32 }
    struct PreludeSums { out: Pointer, from: Pointer }
}

fn on_device(host: &Tensor) -> Tensor {
    host.to(Device::Emulated).unwrap()
}

fn words(tensor: &Tensor) -> Vec<u32> {
    tensor.view().to_vec().unwrap()
}

/// Floats at which roundings turn: ties and their neighbours, the ends of normal and subnormal ranges, infinities, NaN; and any others.
fn floats() -> Vec<u32> {
    let mut bits: Vec<u32> = Vec::new();
    for exponent in 0..256u32 {
        for fraction in [
            0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fff, 0x8000, 0x8001, 0x17fff, 0x18000,
            0x7fefff, 0x7fffff,
        ] {
            bits.extend([exponent << 23 | fraction, 1 << 31 | exponent << 23 | fraction]);
        }
    }
    let mut random = Generator::new(1, Stream::Test, 0);
    bits.extend((0..4000).map(|_| random.next_u32()));
    bits
}

/// A rounding of `half`, with the one NaN that the hardware makes.
fn rounded(bits: u16, x: f32) -> u32 {
    if x.is_nan() { 0x7fff } else { bits.into() }
}

fn tf32(bits: u32) -> u32 {
    let x = f32::from_bits(bits);
    if x.is_nan() {
        return 0x7fff_ffff;
    }
    if x.is_infinite() {
        return bits;
    }
    // To nearest, ties away from zero, in exact arithmetic on the fraction's 23 bits.
    bits.wrapping_add(0x1000) & !0x1fff
}

#[test]
fn conversions_round_as_rust_does() {
    let bits = floats();
    let input = on_device(&Tensor::from_slice(&bits, &[bits.len()]).unwrap());
    let mut out =
        on_device(&Tensor::from_slice(&vec![0u32; bits.len() * 9], &[bits.len() * 9]).unwrap());
    let mut out_view = out.view_mut();
    let mut launch = Launch::new(&SOURCE, "prelude_numbers", Device::Emulated);
    let arguments = PreludeNumbers {
        out: launch.write(&mut out_view),
        from: launch.read(input.view()),
        count: bits.len() as u32,
    };
    launch.grid([bits.len().div_ceil(128), 1, 1]).block(128).run(&arguments).unwrap();
    for (&bits, found) in bits.iter().zip(words(&out).chunks_exact(9)) {
        let x = f32::from_bits(bits);
        let to_bf16 = rounded(bf16::from_f32(x).to_bits(), x);
        let to_f16 = rounded(f16::from_f32(x).to_bits(), x);
        let half_of = |bits: u32| f16::from_bits(bits as u16).to_f32();
        let again = |bits: u32| rounded(f16::from_f32(half_of(bits)).to_bits(), half_of(bits));
        let expected = [
            to_bf16,
            to_f16,
            to_bf16 | 0x3fc0 << 16,
            0xc000 | to_f16 << 16,
            tf32(bits),
            half_of(bits).to_bits(),
            bits << 16,
            bits & 0xffff_0000,
            again(bits) | again(bits >> 16) << 16,
        ];
        for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
            // The float of a binary16 NaN is any NaN.
            let both_nan = i == 5 && f32::from_bits(found).is_nan() && half_of(bits).is_nan();
            assert!(
                found == expected || both_nan,
                "number {i} of {bits:#010x} ({x:e}): {found:#010x}, not {expected:#010x}"
            );
        }
    }
}

#[test]
fn random_words_are_those_of_the_host() {
    let (seed, sequence, count) = (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 100u32);
    let mut out = on_device(&Tensor::from_slice(&[0u32; 800], &[800]).unwrap());
    let mut out_view = out.view_mut();
    let mut launch = Launch::new(&SOURCE, "prelude_random", Device::Emulated);
    let arguments = PreludeRandom {
        out: launch.write(&mut out_view),
        seed,
        sequence,
        stream: Stream::Sampling as u32,
        count,
    };
    launch.grid([1, 1, 1]).block(128).run(&arguments).unwrap();
    for (position, found) in words(&out).chunks_exact(8).enumerate() {
        let expected = random::block(seed, Stream::Sampling, sequence, position as u32);
        assert_eq!(found[..4], expected, "position {position}");
        let uniforms = expected.map(|word| random::uniform(word).to_bits());
        assert_eq!(found[4..], uniforms, "position {position}");
    }
}

#[test]
fn sums_of_warps_and_blocks_have_the_order_that_the_prelude_states() {
    const THREADS: usize = 224;
    let mut random = Generator::new(2, Stream::Test, 0);
    let values: Vec<f32> = (0..THREADS).map(|_| random.normal()).collect();
    let input = on_device(&Tensor::from_slice(&values, &[THREADS]).unwrap());
    let mut out = on_device(&Tensor::from_slice(&[0f32; 4 * THREADS], &[4 * THREADS]).unwrap());
    let mut out_view = out.view_mut();
    let mut launch = Launch::new(&SOURCE, "prelude_sums", Device::Emulated);
    let arguments =
        PreludeSums { out: launch.write(&mut out_view), from: launch.read(input.view()) };
    launch.grid([1, 1, 1]).block(THREADS as u32).shared(128).run(&arguments).unwrap();
    let found: Vec<f32> = out.view().to_vec().unwrap();

    let tree = |lanes: &[f32]| {
        let mut lanes = lanes.to_vec();
        for distance in [16, 8, 4, 2, 1] {
            lanes = (0..32).map(|lane| lanes[lane] + lanes[lane ^ distance]).collect();
        }
        lanes[0]
    };
    let of_warps: Vec<f32> = values.chunks_exact(32).map(tree).collect();
    let of_block = of_warps[1..].iter().fold(of_warps[0], |sum, of_warp| sum + of_warp);
    let greatest = |values: &[f32]| values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (thread, found) in found.chunks_exact(4).enumerate() {
        let warp = thread / 32;
        let of_warp = &values[32 * warp..][..32];
        assert_eq!(
            found,
            [of_warps[warp], greatest(of_warp), of_block, greatest(&values)],
            "thread {thread}"
        );
    }
}
