//! Log-probabilities of targets, forward and backward, and draws of tokens, at the shapes of a small trainer, of a
//! medium model, and of a 0.5B model with the vocabulary of Qwen2.5. Rates are tokens a second.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prime_kernels::matmul::{Layout, Packed};
use prime_kernels::sample::{Row, Weight};
use prime_kernels::testing::{from_f32, generator, normal, zeros};
use prime_kernels::{log_prob, sample};
use prime_runtime::{DType, Tensor};

const SHAPES: &[(DType, usize, usize, usize)] = &[
    // dtype, tokens, hidden, vocabulary
    (DType::F32, 4096, 192, 64),
    (DType::BF16, 4096, 192, 64),
    (DType::F32, 2048, 512, 6400),
    (DType::BF16, 2048, 512, 6400),
    (DType::BF16, 512, 896, 151_936),
];

fn training(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("log_prob");
    group.sample_size(10);
    for &(dtype, tokens, width, vocabulary) in SHAPES {
        let mut random = generator(1);
        let hidden = normal(&mut random, dtype, &[tokens, width], 1.0);
        let weight = normal(&mut random, dtype, &[vocabulary, width], 1.0 / (width as f32).sqrt());
        let targets: Vec<u32> = (0..tokens).map(|_| random.below(vocabulary as u32)).collect();
        let targets = Tensor::from_slice(&targets, &[tokens]).unwrap();
        let vector = || zeros(DType::F32, &[tokens]);
        let (mut log_probs, mut entropy, mut lse) = (vector(), vector(), vector());
        let weights = from_f32(&vec![1.0 / tokens as f32; tokens], DType::F32, &[tokens]);
        let mut d_hidden = zeros(dtype, &[tokens, width]);
        let mut d_weight = zeros(DType::F32, &[vocabulary, width]);
        let shape = format!("{dtype} {tokens}x{width}x{vocabulary}");
        group.throughput(Throughput::Elements(tokens as u64));
        group.bench_function(BenchmarkId::new("forward", &shape), |bencher| {
            bencher.iter(|| {
                log_prob::forward(
                    log_probs.view_mut(),
                    entropy.view_mut(),
                    lse.view_mut(),
                    black_box(hidden.view()),
                    weight.view(),
                    targets.view(),
                    1.0,
                )
                .unwrap();
            });
        });
        group.bench_function(BenchmarkId::new("backward", &shape), |bencher| {
            bencher.iter(|| {
                log_prob::backward(
                    d_hidden.view_mut(),
                    Some(d_weight.view_mut()),
                    weights.view(),
                    Some(weights.view()),
                    black_box(hidden.view()),
                    weight.view(),
                    targets.view(),
                    lse.view(),
                    entropy.view(),
                    1.0,
                )
                .unwrap();
            });
        });
    }
    group.finish();
}

/// Truncations: none, and what a user of a chat model sets.
const SETTINGS: &[(&str, u32, f32)] = &[("whole", 0, 1.0), ("top-k 50, top-p 0.95", 50, 0.95)];

fn sampling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sample");
    group.sample_size(10);
    for (dtype, width, vocabulary) in
        [(DType::F32, 192, 64), (DType::BF16, 512, 6400), (DType::BF16, 896, 151_936)]
    {
        let mut random = generator(1);
        let weight = normal(&mut random, dtype, &[vocabulary, width], 2.0 / (width as f32).sqrt());
        let packed = Packed::new(weight.view(), Layout::NT).unwrap();
        for batch in [1, 32] {
            let hidden = normal(&mut random, dtype, &[batch, width], 1.0);
            let mut tokens = zeros(DType::U32, &[batch]);
            let mut log_probs = zeros(DType::F32, &[batch]);
            let mut entropy = zeros(DType::F32, &[batch]);
            group.throughput(Throughput::Elements(batch as u64));
            for &(settings, top_k, top_p) in SETTINGS {
                let row = |i| Row {
                    temperature: 0.8,
                    top_k,
                    top_p,
                    min_p: 0.0,
                    seed: 1,
                    sequence: i as u64,
                    position: 0,
                };
                let rows: Vec<Row> = (0..batch).map(row).collect();
                let shape = format!("{dtype} {batch}x{width}x{vocabulary}");
                group.bench_function(BenchmarkId::new(settings, shape), |bencher| {
                    bencher.iter(|| {
                        sample::forward(
                            tokens.view_mut(),
                            log_probs.view_mut(),
                            entropy.view_mut(),
                            black_box(hidden.view()),
                            Weight::Packed(&packed),
                            &rows,
                        )
                        .unwrap();
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, training, sampling);
criterion_main!(benches);
