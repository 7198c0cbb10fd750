//! Attention: training shapes forward and backward, and decoding over a cache, beside plain loops on one core.
//!
//! The rate is floating-point operations a second: for each pair of a query and a key that it sees, and each element of a head, 4
//! forward and 10 backward (which computes the scores again).

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prime_kernels::attention::{Mask, backward, decode, forward};
use prime_kernels::testing::{generator, normal, zeros};
use prime_runtime::{DType, Tensor};

/// A batch of sequences of one length.
struct Shape {
    sequences: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

const TRAIN: [Shape; 3] = [
    Shape { sequences: 64, length: 64, heads: 6, kv_heads: 2, head_dim: 32 },
    Shape { sequences: 8, length: 256, heads: 8, kv_heads: 2, head_dim: 64 },
    Shape { sequences: 1, length: 2048, heads: 8, kv_heads: 2, head_dim: 64 },
];

/// One new token a sequence, with this many cached.
const DECODE: [Shape; 3] = [
    Shape { sequences: 1, length: 256, heads: 8, kv_heads: 2, head_dim: 64 },
    Shape { sequences: 32, length: 256, heads: 8, kv_heads: 2, head_dim: 64 },
    Shape { sequences: 64, length: 64, heads: 6, kv_heads: 2, head_dim: 32 },
];

impl Shape {
    fn name(&self) -> String {
        let Shape { sequences, length, heads, kv_heads, head_dim } = self;
        format!("{sequences}x{length}, {heads}/{kv_heads} heads of {head_dim}")
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

fn train(criterion: &mut Criterion) {
    for shape in &TRAIN {
        for dtype in [DType::F32, DType::BF16] {
            let Shape { sequences, length, heads, kv_heads, head_dim } = *shape;
            let tokens = sequences * length;
            let mut random = generator(1);
            let mut tensor = |heads| normal(&mut random, dtype, &[tokens, heads, head_dim], 1.0);
            let (q, k, v, d_out) =
                (tensor(heads), tensor(kv_heads), tensor(kv_heads), tensor(heads));
            let mut out = zeros(dtype, q.dims());
            let mut lse = zeros(DType::F32, &[tokens, heads]);
            let (mut d_q, mut d_k, mut d_v) =
                (zeros(dtype, q.dims()), zeros(dtype, k.dims()), zeros(dtype, v.dims()));
            let cu: Vec<u32> = (0..=sequences).map(|s| (s * length) as u32).collect();
            let cu = Tensor::from_slice(&cu, &[sequences + 1]).expect("a small tensor");
            let pairs = sequences * heads * length * (length + 1) / 2;
            let flops = (4 * pairs * head_dim) as u64;

            let mut group = criterion.benchmark_group("attention forward");
            group.throughput(Throughput::Elements(flops));
            group.bench_function(format!("{}, {dtype}", shape.name()), |bencher| {
                bencher.iter(|| {
                    forward(
                        out.view_mut(),
                        lse.view_mut(),
                        q.view(),
                        k.view(),
                        v.view(),
                        cu.view(),
                        shape.scale(),
                        Mask::Causal,
                    )
                })
            });
            if dtype == DType::F32 {
                let (q, k, v) = (q.as_slice(), k.as_slice(), v.as_slice());
                let out = out.as_mut_slice();
                group.bench_function(format!("{}, plain loops", shape.name()), |bencher| {
                    bencher.iter(|| plain(black_box(&mut *out), q, k, v, shape))
                });
            }
            group.finish();

            let mut group = criterion.benchmark_group("attention backward");
            group.throughput(Throughput::Elements(flops / 2 * 5));
            group.bench_function(format!("{}, {dtype}", shape.name()), |bencher| {
                bencher.iter(|| {
                    backward(
                        d_q.view_mut(),
                        d_k.view_mut(),
                        d_v.view_mut(),
                        d_out.view(),
                        q.view(),
                        k.view(),
                        v.view(),
                        out.view(),
                        lse.view(),
                        cu.view(),
                        shape.scale(),
                        Mask::Causal,
                    )
                })
            });
            group.finish();
        }
    }
}

fn decoding(criterion: &mut Criterion) {
    for shape in &DECODE {
        for dtype in [DType::F32, DType::BF16] {
            let Shape { sequences, length, heads, kv_heads, head_dim } = *shape;
            let mut random = generator(2);
            let mut tensor =
                |rows, heads| normal(&mut random, dtype, &[rows, heads, head_dim], 1.0);
            let q = tensor(sequences, heads);
            let (keys, values) =
                (tensor(sequences * length, kv_heads), tensor(sequences * length, kv_heads));
            let mut out = zeros(dtype, q.dims());
            let spans: Vec<u32> =
                (0..sequences).flat_map(|s| [s, 1, s * length, length].map(|x| x as u32)).collect();
            let spans = Tensor::from_slice(&spans, &[sequences, 4]).expect("a small tensor");
            let mut group = criterion.benchmark_group("attention decode");
            group.throughput(Throughput::Elements(
                (4 * sequences * length * heads * head_dim) as u64,
            ));
            group.bench_function(format!("{}, {dtype}", shape.name()), |bencher| {
                bencher.iter(|| {
                    decode(
                        out.view_mut(),
                        q.view(),
                        keys.view(),
                        values.view(),
                        spans.view(),
                        shape.scale(),
                    )
                })
            });
            group.finish();
        }
    }
}

/// Causal attention as its formula says, on one core, a row of scores at a time.
fn plain(out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], shape: &Shape) {
    let Shape { sequences, length, heads, kv_heads, head_dim } = *shape;
    let mut scores = vec![0f32; length];
    for (row, (out, q)) in out
        .chunks_exact_mut(head_dim)
        .zip(q.chunks_exact(head_dim))
        .enumerate()
        .take(sequences * length * heads)
    {
        let (token, kv_head) = (row / heads, row % heads * kv_heads / heads);
        let start = token / length * length;
        let at = |token: usize| (token * kv_heads + kv_head) * head_dim;
        let scores = &mut scores[..token - start + 1];
        for (key, score) in scores.iter_mut().enumerate() {
            let k = &k[at(start + key)..][..head_dim];
            *score = shape.scale() * q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>();
        }
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        scores.iter_mut().for_each(|score| *score = (*score - max).exp());
        let sum: f32 = scores.iter().sum();
        out.fill(0.0);
        for (key, score) in scores.iter().enumerate() {
            let v = &v[at(start + key)..][..head_dim];
            out.iter_mut().zip(v).for_each(|(out, v)| *out += score / sum * v);
        }
    }
}

criterion_group!(benches, train, decoding);
criterion_main!(benches);
