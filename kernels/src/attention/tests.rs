//! What attention promises beyond agreeing with its oracle: the same bits whatever surrounds a token.

use prime_runtime::random::Generator;
use prime_runtime::{DType, Device, Tensor, View};

use super::{Mask, Pages};
use crate::numerics::Numerics;
use crate::testing::{assert_independent_of_threads, generator, normal, zeros};

#[cfg(feature = "emulated")]
mod emulated;

const KV_HEADS: usize = 2;

/// A pack with its gradient of the output.
struct Pack {
    cu_seqlens: Vec<u32>,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    d_out: Tensor,
}

/// The bits of everything that forward and backward give.
#[derive(PartialEq)]
struct Bits {
    out: Vec<u32>,
    lse: Vec<u32>,
    gradients: [Vec<u32>; 3],
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.view().to_f32_vec().into_iter().map(f32::to_bits).collect()
}

impl Pack {
    fn random(
        random: &mut Generator,
        dtype: DType,
        lengths: &[usize],
        group: usize,
        head_dim: usize,
    ) -> Pack {
        let mut cu_seqlens = vec![0];
        for length in lengths {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + *length as u32);
        }
        let tokens = lengths.iter().sum();
        let (queries, keys) = ([tokens, KV_HEADS * group, head_dim], [tokens, KV_HEADS, head_dim]);
        let q = normal(random, dtype, &queries, 2.0);
        let k = normal(random, dtype, &keys, 2.0);
        let v = normal(random, dtype, &keys, 1.0);
        let d_out = normal(random, dtype, &queries, 1.0);
        Pack { cu_seqlens, q, k, v, d_out }
    }

    fn to(&self, device: Device) -> Pack {
        let [q, k, v, d_out] =
            [&self.q, &self.k, &self.v, &self.d_out].map(|tensor| tensor.to(device).unwrap());
        Pack { cu_seqlens: self.cu_seqlens.clone(), q, k, v, d_out }
    }

    fn run(&self, mask: Mask) -> Bits {
        let tokens = self.cu_seqlens[self.cu_seqlens.len() - 1] as usize;
        self.run_rows(0..tokens, &self.cu_seqlens, mask)
    }

    /// Some rows as a pack of their own.
    fn run_rows(&self, rows: std::ops::Range<usize>, cu_seqlens: &[u32], mask: Mask) -> Bits {
        let dtype = self.q.dtype();
        let device = self.q.device();
        let zeros = |dtype, dims: &[usize]| Tensor::zeros(device, dtype, dims).unwrap();
        let part =
            |tensor: &Tensor| zeros(dtype, &[rows.len(), tensor.dims()[1], tensor.dims()[2]]);
        let (mut out, mut d_q, mut d_k, mut d_v) =
            (part(&self.q), part(&self.q), part(&self.k), part(&self.v));
        let mut lse = zeros(DType::F32, &[rows.len(), self.q.dims()[1]]);
        let [q, k, v, d_out] =
            [&self.q, &self.k, &self.v, &self.d_out].map(|tensor| tensor.view().rows(rows.clone()));
        let cu = Tensor::from_slice(cu_seqlens, &[cu_seqlens.len()]).unwrap().to(device).unwrap();
        let cu = cu.view();
        super::forward(out.view_mut(), lse.view_mut(), q, k, v, cu, 0.3, mask).unwrap();
        super::backward(
            d_q.view_mut(),
            d_k.view_mut(),
            d_v.view_mut(),
            d_out,
            q,
            k,
            v,
            out.view(),
            lse.view(),
            cu,
            0.3,
            mask,
        )
        .unwrap();
        let gradients = [bits(&d_q), bits(&d_k), bits(&d_v)];
        Bits { out: bits(&out), lse: bits(&lse), gradients }
    }
}

#[test]
fn decoding_over_a_cache_gives_the_bits_of_the_training_forward() {
    let mut random = generator(11);
    for (dtype, group, head_dim) in
        [(DType::F32, 3, 32), (DType::BF16, 4, 24), (DType::F32, 1, 80), (DType::BF16, 7, 6)]
    {
        let lengths = [1, 65, 200, 0, 63, 130];
        let pack = Pack::random(&mut random, dtype, &lengths, group, head_dim);
        let expected = pack.run(Mask::Causal).out;
        // The cache holds the same rows elsewhere, and after them what was left by others: not numbers.
        let reserved = 256;
        let cache = |source: &Tensor| {
            let row = KV_HEADS * head_dim;
            let mut values = vec![f32::NAN; lengths.len() * reserved * row];
            let source = source.view().to_f32_vec();
            for (s, pair) in pack.cu_seqlens.windows(2).enumerate() {
                let (from, to) = (pair[0] as usize * row, pair[1] as usize * row);
                values[s * reserved * row..][..to - from].copy_from_slice(&source[from..to]);
            }
            crate::testing::from_f32(
                &values,
                dtype,
                &[lengths.len() * reserved, KV_HEADS, head_dim],
            )
        };
        let (keys, values) = (cache(&pack.k), cache(&pack.v));
        // Every split of the sequences into chunks of new tokens must give the same outputs.
        for chunk in [1, 2, 3, 17, 64, 200] {
            let mut out = zeros(dtype, pack.q.dims());
            for step in 0..200usize.div_ceil(chunk) {
                let spans: Vec<u32> = lengths
                    .iter()
                    .enumerate()
                    .flat_map(|(s, &length)| {
                        let (first, end) =
                            ((step * chunk).min(length), ((step + 1) * chunk).min(length));
                        let query = pack.cu_seqlens[s] as usize + first;
                        [query, end - first, s * reserved, end].map(|x| x as u32)
                    })
                    .collect();
                let spans = View::from_slice(&spans, &[lengths.len(), 4]);
                super::decode(
                    out.view_mut(),
                    pack.q.view(),
                    keys.view(),
                    values.view(),
                    spans,
                    0.3,
                )
                .unwrap();
            }
            assert!(bits(&out) == expected, "{dtype}, group {group}, {chunk} new tokens a call");
        }
    }
}

/// Runs a pack, and each of its sequences alone.
fn assert_same_bits_alone(pack: &Pack, mask: Mask) {
    let together = pack.run(mask);
    let (queries, keys) = (pack.q.dims(), pack.k.dims());
    for pair in pack.cu_seqlens.windows(2) {
        let rows = pair[0] as usize..pair[1] as usize;
        let alone = pack.run_rows(rows.clone(), &[0, pair[1] - pair[0]], mask);
        let part = |all: &[u32], dims: &[usize]| {
            let width: usize = dims[1..].iter().product();
            all[rows.start * width..rows.end * width].to_vec()
        };
        let [d_q, d_k, d_v] = &together.gradients;
        let expected = Bits {
            out: part(&together.out, queries),
            lse: part(&together.lse, &queries[..2]),
            gradients: [part(d_q, queries), part(d_k, keys), part(d_v, keys)],
        };
        assert!(alone == expected, "{}, rows {rows:?}", pack.q.dtype());
    }
}

#[test]
fn a_sequence_gives_the_same_bits_alone_and_in_any_pack() {
    let mut random = generator(12);
    for (dtype, mask) in [(DType::F32, Mask::Causal), (DType::BF16, Mask::Full)] {
        let pack = Pack::random(&mut random, dtype, &[70, 0, 1, 129, 33], 2, 20);
        assert_same_bits_alone(&pack, mask);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut random = generator(13);
    // Of a long sequence, all threads are in one gradient of the queries at a time.
    for (lengths, mask) in
        [(&[150, 3, 64, 210][..], Mask::Causal), (&[900], Mask::Causal), (&[0, 700, 1], Mask::Full)]
    {
        let pack = Pack::random(&mut random, DType::F32, lengths, 3, 16);
        assert_independent_of_threads(|| pack.run(mask));
    }
}

#[test]
fn what_a_causal_query_must_not_see_does_not_change_it() {
    for device in devices() {
        for (dtype, head_dim) in [(DType::F32, 16), (DType::BF16, 16), (DType::BF16, 80)] {
            let mut random = generator(14);
            let mut pack = Pack::random(&mut random, dtype, &[90], 2, head_dim);
            // The last five of 43 tokens over a cache of these.
            let decode = |pack: &Pack, numerics| {
                let spans = Tensor::from_slice(&[38u32, 5, 0, 43], &[1, 4]).unwrap();
                let mut out = Tensor::zeros(device, dtype, pack.q.dims()).unwrap();
                let (q, k, v) = (pack.q.view(), pack.k.view(), pack.v.view());
                let (what, spans) = ("attention.decode", spans.to(device).unwrap());
                let spans = spans.view();
                super::decode_any(what, out.view_mut(), q, k, v, spans, None, 0.3, numerics)
                    .unwrap();
                bits(&out)
            };
            let run = |pack: &Pack| {
                let pack = pack.to(device);
                let fast = decode(&pack, Numerics::Fast);
                [pack.run(Mask::Causal).out, fast, decode(&pack, Numerics::Invariant)]
            };
            let before = run(&pack);
            let spoil = |tensor: &mut Tensor, value: f32| {
                let mut values = tensor.view().to_f32_vec();
                values[41 * KV_HEADS * head_dim..].fill(value);
                *tensor = crate::testing::from_f32(&values, dtype, tensor.dims());
            };
            spoil(&mut pack.k, f32::NAN);
            if device == Device::Cpu {
                // Devices multiply values by weights of zero too: see the contract.
                spoil(&mut pack.v, f32::NAN);
            }
            let after = run(&pack);
            let end = 41 * pack.q.dims()[1] * head_dim;
            for (before, after) in before.iter().zip(&after) {
                assert!(after[..end] == before[..end], "{device}, {dtype}");
                assert!(after[end..] != before[end..], "{device}, {dtype}");
            }
        }
    }
}

#[test]
fn sequences_that_share_pages_give_the_bits_of_sequences_with_keys_of_their_own() {
    for device in devices() {
        let mut random = generator(16);
        for (dtype, size) in [(DType::F32, 16), (DType::BF16, 64)] {
            // Two sequences of one beginning of two pages, and then of their own; as many tokens in each.
            let (shared, own, head_dim) = (2 * size, 21, 24);
            let mut tensor = |rows: usize, heads: usize| {
                normal(&mut random, dtype, &[rows, heads, head_dim], 1.0)
            };
            let (q, k, v) =
                (tensor(6, 4), tensor(shared + 2 * own, 2), tensor(shared + 2 * own, 2));
            let row = 2 * head_dim;
            // Pages 0 to 1: the beginning. Then two pages each.
            let paged = |rows: &Tensor| {
                let from = rows.view().to_f32_vec();
                let mut to = vec![f32::NAN; 6 * size * row];
                to[..shared * row].copy_from_slice(&from[..shared * row]);
                for sequence in 0..2 {
                    let rest = &from[(shared + sequence * own) * row..][..own * row];
                    to[(2 + 2 * sequence) * size * row..][..own * row].copy_from_slice(rest);
                }
                crate::testing::from_f32(&to, dtype, &[6 * size, 2, head_dim])
            };
            let apart = |rows: &Tensor| {
                let from = rows.view().to_f32_vec();
                let own = |s: usize| &from[(shared + s * own) * row..][..own * row];
                let beginning = &from[..shared * row];
                let to = [beginning, own(0), beginning, own(1)].concat();
                crate::testing::from_f32(&to, dtype, &[to.len() / row, 2, head_dim])
            };
            let place = |tensor: Tensor| tensor.to(device).unwrap();
            let length = (shared + own) as u32;
            let spans = [0, 3, 0, length, 3, 3, 1, length];
            let spans = place(Tensor::from_slice(&spans, &[2, 4]).unwrap());
            let table = place(Tensor::from_slice(&[0u32, 1, 2, 3, 0, 1, 4, 5], &[2, 4]).unwrap());
            let mut out = place(zeros(dtype, q.dims()));
            let (q, keys, values) = (place(q), place(paged(&k)), place(paged(&v)));
            let pages = Pages { table: table.view(), size };
            super::decode_paged(
                out.view_mut(),
                q.view(),
                keys.view(),
                values.view(),
                spans.view(),
                pages,
                0.3,
            )
            .unwrap();
            let spans = [0, 3, 0, length, 3, 3, length, length];
            let spans = place(Tensor::from_slice(&spans, &[2, 4]).unwrap());
            let mut expected = place(zeros(dtype, q.dims()));
            let (keys, values) = (place(apart(&k)), place(apart(&v)));
            let (keys, values) = (keys.view(), values.view());
            super::decode(expected.view_mut(), q.view(), keys, values, spans.view(), 0.3).unwrap();
            assert!(bits(&out) == bits(&expected), "{device}, {dtype}");
        }
    }
}

/// The host and, where it is built in, the emulated device.
fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    if crate::device::emulated_available() {
        devices.push(Device::Emulated);
    }
    devices
}

#[test]
fn scores_far_apart_neither_overflow_nor_lose_the_largest() {
    // Scores rise by 200 a block and fall again, so that earlier sums are rescaled to nothing and later weights vanish.
    let mut keys = vec![0f32; 256];
    for (i, key) in keys.iter_mut().enumerate() {
        *key = [100.0, 300.0, 200.0, -500.0][i / 64];
    }
    let k = Tensor::from_slice(&keys, &[256, 1, 1]).unwrap();
    let v =
        Tensor::from_slice(&(0..256).map(|i| i as f32).collect::<Vec<_>>(), &[256, 1, 1]).unwrap();
    let q = Tensor::from_slice(&[1f32; 256], &[256, 1, 1]).unwrap();
    let (mut out, mut lse) = (zeros(DType::F32, &[256, 1, 1]), zeros(DType::F32, &[256, 1]));
    let cu = [0u32, 256];
    let cu = View::from_slice(&cu, &[2]);
    let views = (q.view(), k.view(), v.view());
    super::forward(out.view_mut(), lse.view_mut(), views.0, views.1, views.2, cu, 1.0, Mask::Full)
        .unwrap();
    // The mean of 64..128, all exact in float32, and 300 + ln 64.
    assert!(out.as_slice::<f32>().iter().all(|&x| x == 95.5));
    assert!(lse.as_slice::<f32>().iter().all(|&x| (x - (300.0 + 64f32.ln())).abs() < 1e-4));
}

#[test]
fn calls_that_disagree_with_the_contract_are_refused_with_a_sentence() {
    let forward = |q: [usize; 3], k: [usize; 3], cu: &[u32], dtype| {
        let (mut out, mut lse) = (zeros(DType::F32, &q), zeros(DType::F32, &q[..2]));
        let (q, k) = (zeros(DType::F32, &q), zeros(dtype, &k));
        let cu = View::from_slice(cu, &[cu.len()]);
        let (out, lse) = (out.view_mut(), lse.view_mut());
        super::forward(out, lse, q.view(), k.view(), k.view(), cu, 1.0, Mask::Causal)
            .unwrap_err()
            .to_string()
    };
    let f32 = DType::F32;
    assert_eq!(
        forward([4, 3, 8], [4, 2, 8], &[0, 4], f32),
        "attention.forward: 3 query heads cannot share 2 key/value heads: `heads` must be a multiple of `kv_heads`"
    );
    assert_eq!(
        forward([4, 2, 8], [4, 2, 6], &[0, 4], f32),
        "attention.forward: `k` is [4, 2, 6], but its dimension `head_dim` is 8 in `q`"
    );
    assert_eq!(
        forward([4, 2, 8], [4, 2, 8], &[0, 3, 2, 4], f32),
        "attention.forward: `cu_seqlens` falls from 3 to 2 at entry 2, but must never fall"
    );
    assert_eq!(
        forward([4, 2, 8], [4, 2, 8], &[0, 3], f32),
        "attention.forward: `cu_seqlens` ends at 3, but there are 4 tokens"
    );
    assert_eq!(
        forward([4, 2, 8], [4, 2, 8], &[0, 4], DType::BF16),
        "attention.forward: `k` is bfloat16, expected float32"
    );

    let decode = |spans: &[u32]| {
        let (q, cache) = (zeros(f32, &[4, 2, 8]), zeros(f32, &[10, 1, 8]));
        let mut out = zeros(f32, &[4, 2, 8]);
        let spans = View::from_slice(spans, &[spans.len() / 4, 4]);
        super::decode(out.view_mut(), q.view(), cache.view(), cache.view(), spans, 1.0)
            .unwrap_err()
            .to_string()
    };
    let q = zeros(f32, &[1, 1, 8]);
    let spans = View::from_slice(&[0, 1, 0, 1], &[1, 4]);
    let (mut out, view) = (zeros(f32, &[1, 1, 8]), q.view());
    let message = super::decode(out.view_mut(), view, view, view, spans, -1.0).unwrap_err();
    assert_eq!(message.to_string(), "attention.decode: `scale` is -1, expected a positive number");
    assert_eq!(decode(&[0, 5, 0, 5]), "attention.decode: span 0 ends at row 5 of `q`, which has 4");
    assert_eq!(
        decode(&[0, 1, 8, 3]),
        "attention.decode: span 0 ends at row 11 of the cache, which has 10"
    );
    assert_eq!(
        decode(&[0, 3, 0, 2]),
        "attention.decode: span 0 has 3 new tokens but only 2 cached, which must include the new ones"
    );
    assert_eq!(
        decode(&[0, 2, 0, 2, 1, 1, 4, 1]),
        "attention.decode: span 1 starts at row 1 of `q`, but the spans before it reach row 2"
    );

    let paged = |spans: &[u32], table: &[u32], size| {
        let (q, cache) = (zeros(f32, &[4, 2, 8]), zeros(f32, &[64, 1, 8]));
        let mut out = zeros(f32, &[4, 2, 8]);
        let spans = View::from_slice(spans, &[spans.len() / 4, 4]);
        let pages = Pages { table: View::from_slice(table, &[1, table.len()]), size };
        let (q, cache) = (q.view(), cache.view());
        super::decode_paged(out.view_mut(), q, cache, cache, spans, pages, 1.0)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        paged(&[0, 1, 0, 1], &[0], 24),
        "attention.decode_paged: a page has 24 rows, expected a power of two of at least 16"
    );
    assert_eq!(
        paged(&[0, 1, 1, 1], &[0], 16),
        "attention.decode_paged: span 0 names row 1 of `table`, which has 1"
    );
    assert_eq!(
        paged(&[0, 1, 0, 33], &[0, 1], 16),
        "attention.decode_paged: span 0 has 33 keys, but its 2 pages of 16 rows hold 32"
    );
    assert_eq!(
        paged(&[0, 1, 0, 17], &[0, 4], 16),
        "attention.decode_paged: span 0 has keys in page 4, but the cache's 64 rows are 4 pages of 16"
    );
}
