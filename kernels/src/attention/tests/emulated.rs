//! On the emulated device.

use super::*;
use crate::device::{HOPPER, on_chip};
use crate::testing::roundoff;

const DEVICE: Device = Device::Emulated;

#[test]
fn a_sequence_gives_the_same_bits_alone_and_in_any_pack_and_call() {
    let mut random = generator(15);
    for (dtype, mask) in [(DType::F32, Mask::Causal), (DType::BF16, Mask::Full)] {
        let pack = Pack::random(&mut random, dtype, &[70, 0, 1, 129, 33], 2, 20).to(DEVICE);
        assert_same_bits_alone(&pack, mask);
        assert!(pack.run(mask) == pack.run(mask), "{dtype}");
    }
}

#[test]
fn kernels_for_hopper_agree_with_the_oracle() {
    on_chip(HOPPER, || crate::testing::assert_cases(DEVICE, super::super::check::check_hopper));
}

#[test]
fn kernels_for_hopper_give_a_sequence_the_same_bits_alone_and_in_any_pack() {
    let mut random = generator(18);
    for (mask, head_dim) in [(Mask::Causal, 64), (Mask::Full, 128), (Mask::Causal, 256)] {
        let lengths = [70, 0, 1, 300, 129, 64, 33];
        let pack = Pack::random(&mut random, DType::BF16, &lengths, 2, head_dim).to(DEVICE);
        on_chip(HOPPER, || {
            assert_same_bits_alone(&pack, mask);
            assert!(pack.run(mask) == pack.run(mask), "{mask:?}, {head_dim}");
        });
    }
}

#[test]
fn every_variant_that_may_be_preferred_computes_the_same() {
    use super::super::tuning::{self, Problem};
    let mut random = generator(20);
    for (head_dim, count) in [(64, 3), (128, 3), (256, 2)] {
        // A length that no other test has: preferences are the process's.
        let pack = Pack::random(&mut random, DType::BF16, &[211, 33], 1, head_dim).to(DEVICE);
        let problem = Problem {
            tokens: 244,
            sequences: 2,
            heads: KV_HEADS,
            kv_heads: KV_HEADS,
            head_dim,
            mask: Mask::Causal,
            dtype: DType::BF16,
        };
        let values = pack.v.view().to_f32_vec();
        let largest = values.into_iter().map(f32::abs).fold(0.0, f32::max);
        on_chip(HOPPER, || {
            let variants = tuning::variants(DEVICE, problem).unwrap();
            assert_eq!(variants.len(), count, "{variants:?}");
            let unforced = pack.run(Mask::Causal).out;
            let of = |bits: &[u32]| -> Vec<f32> {
                bits.iter().map(|&bits| f32::from_bits(bits)).collect()
            };
            let mut different = 0;
            for variant in &variants {
                tuning::prefer(problem, Some(variant.clone()));
                let out = pack.run(Mask::Causal).out;
                different += usize::from(out != unforced);
                // Weights and the result are rounded in each of two.
                let (out, unforced) = (of(&out), of(&unforced));
                let far = out.iter().zip(&unforced).map(|(a, b)| (a - b).abs());
                let bound = 4.04 * largest * roundoff(DType::BF16) as f32;
                assert!(far.fold(0.0, f32::max) <= bound, "{variant}");
            }
            tuning::prefer(problem, None);
            assert!(pack.run(Mask::Causal).out == unforced);
            // Blocks of other sizes add in another order, so that it shows which was taken.
            assert!(different > 0, "{head_dim}");
        });
    }
}

#[test]
fn a_variant_that_is_preferred_for_a_class_is_taken_for_all_of_it() {
    use super::super::tuning::{self, Problem};
    let mut random = generator(21);
    // A number of heads that no other test has: preferences are the process's.
    let [two, one] = [[150, 81].as_slice(), &[130]]
        .map(|lengths| Pack::random(&mut random, DType::BF16, lengths, 5, 64).to(DEVICE));
    let run = |pack: &Pack| on_chip(HOPPER, || pack.run(Mask::Causal).out);
    let problem = Problem {
        tokens: 231,
        sequences: 2,
        heads: 5 * KV_HEADS,
        kv_heads: KV_HEADS,
        head_dim: 64,
        mask: Mask::Causal,
        dtype: DType::BF16,
    };
    let variants = on_chip(HOPPER, || tuning::variants(DEVICE, problem)).unwrap();
    let unforced = [run(&two), run(&one)];
    let portable = variants.last().unwrap();
    tuning::prefer(problem, Some(portable.clone()));
    let of_portable = run(&two);
    assert!(of_portable != unforced[0]);
    tuning::prefer(problem, None);
    tuning::prefer(problem.class(), Some(portable.clone()));
    assert!(run(&two) == of_portable);
    // One sequence of about as many tokens is of another class.
    assert!(run(&one) == unforced[1]);
    // The pass's own comes first.
    tuning::prefer(problem, Some(variants[0].clone()));
    assert!(run(&two) == unforced[0]);
    tuning::prefer(problem, None);
    tuning::prefer(problem.class(), None);
}

#[test]
fn what_a_query_must_not_see_stays_out_of_its_row_on_hopper() {
    // Keys and values from `first` on are no numbers: of the own sequence behind the query, and of the sequence behind it.
    let run = |pack: &Pack, mask| on_chip(HOPPER, || pack.to(DEVICE).run(mask));
    for (head_dim, value) in [(64, f32::NAN), (128, f32::INFINITY), (256, f32::NEG_INFINITY)] {
        for (mask, first) in [(Mask::Causal, 41), (Mask::Full, 150)] {
            let mut random = generator(19);
            let mut pack = Pack::random(&mut random, DType::BF16, &[150, 90], 2, head_dim);
            let before = run(&pack, mask);
            for tensor in [&mut pack.k, &mut pack.v] {
                let mut values = tensor.view().to_f32_vec();
                values[first * KV_HEADS * head_dim..].fill(value);
                *tensor = crate::testing::from_f32(&values, DType::BF16, tensor.dims());
            }
            let after = run(&pack, mask);
            let end = first * pack.q.dims()[1] * head_dim;
            assert!(after.out[..end] == before.out[..end], "{mask:?}, {head_dim}");
            let finite = |bits: &u32| f32::from_bits(*bits).is_finite();
            assert!(!after.out[end..].iter().any(finite), "{mask:?}, {head_dim}");
        }
    }
}

#[test]
fn invariant_decoding_gives_the_bits_of_the_training_forward() {
    let mut random = generator(17);
    for (dtype, group, head_dim) in
        [(DType::F32, 3, 32), (DType::BF16, 4, 24), (DType::BF16, 7, 128), (DType::F32, 1, 80)]
    {
        let lengths = [1, 65, 200, 0, 63, 130];
        let pack = Pack::random(&mut random, dtype, &lengths, group, head_dim).to(DEVICE);
        let expected = pack.run(Mask::Causal).out;
        for new in [1, 3, 40] {
            // The last tokens of each sequence over keys that are rows of the pack itself.
            let spans: Vec<u32> = pack
                .cu_seqlens
                .windows(2)
                .flat_map(|pair| {
                    let (length, new) = (pair[1] - pair[0], new.min(pair[1] - pair[0]));
                    [pair[1] - new, new, pair[0], length]
                })
                .collect();
            let view = Tensor::from_slice(&spans, &[lengths.len(), 4]).unwrap();
            let view = view.to(DEVICE).unwrap();
            let mut out = Tensor::zeros(DEVICE, dtype, pack.q.dims()).unwrap();
            super::super::decode_any(
                "attention.decode",
                out.view_mut(),
                pack.q.view(),
                pack.k.view(),
                pack.v.view(),
                view.view(),
                None,
                0.3,
                Numerics::Invariant,
            )
            .unwrap();
            let (out, width) = (bits(&out), pack.q.dims()[1] * head_dim);
            for span in spans.chunks(4) {
                let rows = span[0] as usize * width..(span[0] + span[1]) as usize * width;
                assert!(out[rows.clone()] == expected[rows], "{dtype}, {new} new tokens");
            }
        }
    }
}

#[test]
fn keys_split_over_blocks_and_warps_are_joined_as_one_softmax() {
    // A score a block that dwarfs the others: whichever block holds it decides alone, and the rest must vanish without a NaN.
    let (length, heads, head_dim) = (1100, 2, 8);
    let mut keys = vec![0f32; length * head_dim];
    let values: Vec<f32> = (0..length * head_dim).map(|i| (i / head_dim) as f32).collect();
    for largest in [0, 255, 256, 700, length - 1] {
        keys.fill(-1.0);
        keys[largest * head_dim..][..head_dim].fill(40.0);
        let place = |values: &[f32], dims: &[usize]| {
            Tensor::from_slice(values, dims).unwrap().to(DEVICE).unwrap()
        };
        let cache = [&keys, &values].map(|rows| place(rows, &[length, 1, head_dim]));
        let q = place(&vec![1.0; heads * head_dim], &[1, heads, head_dim]);
        let spans = Tensor::from_slice(&[0u32, 1, 0, length as u32], &[1, 4]).unwrap();
        let spans = spans.to(DEVICE).unwrap();
        let mut out = Tensor::zeros(DEVICE, DType::F32, q.dims()).unwrap();
        let [keys, values] = cache.each_ref().map(Tensor::view);
        super::super::decode(out.view_mut(), q.view(), keys, values, spans.view(), 1.0).unwrap();
        let found = out.view().to_f32_vec();
        // The weight of the largest score is 1 but for the rounding of its scaled value; what is rounded besides: the sum, the inverse and the
        // product of a warp, of a block and of the last kernel, where they differ from their neighbours' zeros.
        let (value, bound) = (largest as f32, 10.0 * f32::EPSILON / 2.0 * largest as f32);
        assert!(found.iter().all(|&x| (x - value).abs() <= bound), "{largest}: {found:?}");
    }
}

#[test]
fn heads_of_more_elements_than_any_kernel_takes_are_refused() {
    let zeros = |dims: &[usize]| Tensor::zeros(DEVICE, DType::BF16, dims).unwrap();
    let (q, mut out) = (zeros(&[2, 1, 258]), zeros(&[2, 1, 258]));
    let spans = Tensor::from_slice(&[0u32, 2, 0, 2], &[1, 4]).unwrap().to(DEVICE).unwrap();
    let message =
        super::super::decode(out.view_mut(), q.view(), q.view(), q.view(), spans.view(), 1.0);
    assert_eq!(
        message.unwrap_err().to_string(),
        "attention.decode: a head has 258 elements, but devices have kernels for at most 256"
    );
}
