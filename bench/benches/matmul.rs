//! Matrix products at the shapes of training and decoding, beside the crate `gemm` in float32: operations a second, a
//! multiply-add counting as two. The peak in bfloat16 is about twice that in float32.
//!
//! Before anything is measured, sampled elements of every contestant's result are held against float64.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prime_kernels::matmul::{Epilogue, Layout, Packed, accumulate, forward, forward_packed};
use prime_kernels::testing::{from_f32, generator, normal, roundoff, to_f64, zeros};
use prime_runtime::{DType, Tensor};

use Layout::{NN, NT, TN};

const SHAPES: &[(Layout, usize, usize, usize)] = &[
    // layout, m, k, n
    (NT, 512, 512, 512),
    (NT, 2048, 2048, 2048),
    // The small model: forward, and the gradients of input and weight.
    (NT, 4096, 192, 512),
    (NN, 4096, 512, 192),
    (TN, 512, 4096, 192),
    // The medium model.
    (NT, 2048, 512, 2816),
    (NN, 2048, 2816, 512),
    (TN, 2816, 2048, 512),
    // Decoding.
    (NT, 1, 512, 6400),
    (NT, 8, 512, 2048),
    (NT, 32, 512, 2048),
    (NT, 64, 192, 512),
];

/// One product: the same operands in both dtypes.
struct Case {
    layout: Layout,
    m: usize,
    k: usize,
    n: usize,
    a: [Tensor; 2],
    b: [Tensor; 2],
}

impl Case {
    fn new(layout: Layout, m: usize, k: usize, n: usize) -> Self {
        let a_dims = if layout == TN { [k, m] } else { [m, k] };
        let b_dims = if layout == NT { [n, k] } else { [k, n] };
        let mut random = generator(1);
        // Values that bfloat16 holds, so that all contestants compute the same product.
        let mut operand = |dims: &[usize]| {
            let narrow = normal(&mut random, DType::BF16, dims, 1.0);
            let wide = from_f32(&narrow.view().to_f32_vec(), DType::F32, dims);
            [wide, narrow]
        };
        let (a, b) = (operand(&a_dims), operand(&b_dims));
        Case { layout, m, k, n, a, b }
    }

    fn name(&self) -> String {
        format!("{:?} {}x{}x{}", self.layout, self.m, self.k, self.n)
    }

    /// C in the dtype that training keeps it in: gradients of weights are float32.
    fn out(&self, dtype: DType) -> Tensor {
        zeros(if self.layout == TN { DType::F32 } else { dtype }, &[self.m, self.n])
    }

    fn ours(&self, out: &mut Tensor, dtype: usize) {
        let (a, b) = (self.a[dtype].view(), self.b[dtype].view());
        match self.layout {
            TN => accumulate(out.view_mut(), a, b, TN),
            layout => forward(out.view_mut(), a, b, layout, Epilogue::default()),
        }
        .unwrap();
    }

    fn packed(&self, out: &mut Tensor, b: &Packed, dtype: usize) {
        forward_packed(out.view_mut(), self.a[dtype].view(), b, Epilogue::default()).unwrap();
    }

    fn gemm(&self, out: &mut Tensor) {
        let (m, k, n) = (self.m, self.k, self.n);
        let strides = |transposed, rows: usize, columns: usize| {
            if transposed { (rows as isize, 1) } else { (1, columns as isize) }
        };
        let (a_column, a_row) = strides(self.layout == TN, m, k);
        let (b_column, b_row) = strides(self.layout == NT, k, n);
        let (a, b) = (self.a[0].as_slice::<f32>().as_ptr(), self.b[0].as_slice::<f32>().as_ptr());
        let c = out.as_mut_slice::<f32>().as_mut_ptr();
        let threads = gemm::Parallelism::Rayon(0);
        // SAFETY: the operands have the sizes and strides that they are said to have.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                c,
                1,
                n as isize,
                self.layout == TN,
                a,
                a_column,
                a_row,
                b,
                b_column,
                b_row,
                1.0f32,
                1.0f32,
                false,
                false,
                false,
                threads,
            );
        }
    }

    /// Holds sampled elements of a result against float64.
    fn check(&self, what: &str, out: &Tensor) {
        let (a, b, c) = (to_f64(&self.a[0]), to_f64(&self.b[0]), to_f64(out));
        let mut random = generator(2);
        for _ in 0..200 {
            let (i, j) =
                (random.below(self.m as u32) as usize, random.below(self.n as u32) as usize);
            let terms = (0..self.k).map(|p| {
                let a = if self.layout == TN { a[p * self.m + i] } else { a[i * self.k + p] };
                a * if self.layout == NT { b[j * self.k + p] } else { b[p * self.n + j] }
            });
            let (sum, magnitude) =
                terms.fold((0.0, 0.0), |(sum, magnitude), x: f64| (sum + x, magnitude + x.abs()));
            let chain = (self.k + 2) as f64 * roundoff(DType::F32) * magnitude;
            let bound = chain + roundoff(out.dtype()) * (sum.abs() + chain);
            let error = (c[i * self.n + j] - sum).abs();
            assert!(error <= bound, "{what} {}: [{i}, {j}] is off by {error:e}", self.name());
        }
    }
}

fn matmul(criterion: &mut Criterion) {
    for &(layout, m, k, n) in SHAPES {
        let case = Case::new(layout, m, k, n);
        let mut group = criterion.benchmark_group(format!("matmul {}", case.name()));
        group.sample_size(10).warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(2));
        group.throughput(Throughput::Elements(2 * (m * k * n) as u64));
        let mut out = case.out(DType::F32);
        case.gemm(&mut out);
        case.check("gemm", &out);
        group.bench_function(BenchmarkId::from_parameter("gemm float32"), |bencher| {
            bencher.iter(|| case.gemm(black_box(&mut out)));
        });
        for (index, dtype) in [DType::F32, DType::BF16].into_iter().enumerate() {
            let mut out = case.out(dtype);
            case.ours(&mut out, index);
            case.check("plain", &out);
            group.bench_function(BenchmarkId::from_parameter(dtype), |bencher| {
                bencher.iter(|| case.ours(black_box(&mut out), index));
            });
            if layout == TN {
                continue;
            }
            let packed = Packed::new(case.b[index].view(), layout).unwrap();
            case.packed(&mut out, &packed, index);
            case.check("packed", &out);
            group.bench_function(
                BenchmarkId::from_parameter(format!("{dtype} packed")),
                |bencher| {
                    bencher.iter(|| case.packed(black_box(&mut out), &packed, index));
                },
            );
        }
        group.finish();
    }
}

criterion_group!(benches, matmul);
criterion_main!(benches);
