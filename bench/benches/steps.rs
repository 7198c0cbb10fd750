//! Speed of whole steps, in tokens a second: training steps, prefill, and decoding at batch 1 and 32.
//!
//! `cargo bench -p prime-bench --bench steps -- train/small` runs one group. `tools/peers/compare.py` measures the same work beside PyTorch.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use prime_bench::{Generation, Shape, TrainStep};
use prime_runtime::DType;

const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

/// Measures one call that handles so many tokens.
fn measure(criterion: &mut Criterion, name: &str, tokens: usize, mut call: impl FnMut() + Send) {
    let mut group = criterion.benchmark_group("steps");
    group.sample_size(10).warm_up_time(Duration::from_secs(1));
    group.throughput(Throughput::Elements(tokens as u64));
    group.bench_function(name, |bencher| {
        // Inside the pool, as the program runs.
        bencher.iter(|| rayon::scope(|_| call()));
    });
    group.finish();
}

fn train(criterion: &mut Criterion) {
    for shape in [Shape::small(), Shape::medium()] {
        for dtype in DTYPES {
            let mut step = TrainStep::new(&shape, dtype).expect("memory for a step");
            let name = format!("train/{}/{dtype}", shape.name);
            measure(criterion, &name, step.tokens(), || {
                step.run().expect("a finite loss");
            });
        }
    }
}

fn prefill(criterion: &mut Criterion) {
    for shape in [Shape::small(), Shape::medium()] {
        for dtype in DTYPES {
            let (batch, prompt) = (shape.sequences, shape.length);
            let mut work = Generation::new(&shape, dtype, batch, prompt, 1).expect("memory");
            let name = format!("prefill/{}/{dtype}/{batch}x{prompt}", shape.name);
            measure(criterion, &name, work.prompt_tokens(), || work.run().expect("drawn tokens"));
        }
    }
}

fn decode(criterion: &mut Criterion) {
    for shape in [Shape::small(), Shape::medium()] {
        for dtype in DTYPES {
            for batch in [1, 32] {
                let mut work = Generation::new(&shape, dtype, batch, 16, 128).expect("memory");
                let name = format!("decode/{}/{dtype}/batch-{batch}", shape.name);
                measure(criterion, &name, work.tokens(), || work.run().expect("drawn tokens"));
            }
        }
    }
}

criterion_group!(benches, train, prefill, decode);
criterion_main!(benches);
