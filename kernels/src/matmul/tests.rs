//! What the contract promises beyond agreement with the oracle.

use prime_runtime::{DType, View};
use proptest::prelude::*;

use super::check::{Matrix, chain_bound, stored};
use super::cpu::{self, Product, Right};
use super::reference::{self, Shape};
use super::*;
use crate::simd::{Level, level};
use crate::testing::{check_gradient, compare, generator, normal, to_f64, zeros};

const LEVELS: [Level; 4] = [Level::Plain, Level::Avx2, Level::Avx512, Level::Avx512Bf16];

/// The product with the instructions of one level.
fn product_on(level: Level, shape: Shape, a: View<'_>, b: View<'_>, dtype: DType) -> Matrix {
    let mut out = Matrix::zeros(dtype, [shape.m, shape.n]);
    let product = Product {
        k: shape.k,
        a,
        transposed_a: shape.layout == Layout::TN,
        right: Right::Plain { b, transposed: shape.layout == Layout::NT },
        epilogue: Epilogue::default(),
        accumulate: false,
    };
    cpu::run(level, out.view_mut(), &product).unwrap();
    out
}

/// Shapes that meet every edge of strips, panels, blocks, tasks, and the ways of packing.
fn shapes(layout: Layout) -> impl Iterator<Item = Shape> {
    [
        (1, 1, 1),
        (1, 33, 2),
        (5, 31, 300),
        (12, 32, 257),
        (13, 97, 1023),
        (3, 200, 1500),
        (48, 130, 40),
        (49, 65, 1030),
        (50, 40, 2100),
        (121, 600, 17),
        (250, 40, 513),
    ]
    .into_iter()
    .map(move |(m, n, k)| Shape { m, n, k, layout })
}

const LAYOUTS: [Layout; 3] = [Layout::NN, Layout::NT, Layout::TN];

fn operands(shape: Shape, dtype: DType, seed: u64) -> (Matrix, Matrix) {
    let mut random = generator(seed);
    let (a_dims, b_dims) = stored(shape);
    (Matrix::normal(&mut random, dtype, a_dims), Matrix::normal(&mut random, dtype, b_dims))
}

#[test]
fn float32_products_are_one_fused_chain_in_order_on_every_level() {
    for shape in LAYOUTS.into_iter().flat_map(shapes) {
        let (a, b) = operands(shape, DType::F32, 1);
        let (a_values, b_values) = (a.view().to_f32_vec(), b.view().to_f32_vec());
        let mut expected = Vec::new();
        for i in 0..shape.m {
            for j in 0..shape.n {
                let chain = (0..shape.k).fold(0f32, |sum, p| {
                    a_values[shape.a(i, p)].mul_add(b_values[shape.b(p, j)], sum)
                });
                expected.push(chain.to_bits());
            }
        }
        for level in LEVELS.into_iter().filter(|&l| l <= level()) {
            let out = product_on(level, shape, a.view(), b.view(), DType::F32);
            assert_eq!(out.bits(), expected, "{level} {shape:?}");
        }
    }
}

#[test]
fn bfloat16_products_agree_with_the_oracle_on_every_level() {
    for shape in LAYOUTS.into_iter().flat_map(shapes) {
        let (a, b) = operands(shape, DType::BF16, 2);
        let (sums, magnitudes) = reference::product(shape, &a.values(), &b.values());
        for level in LEVELS.into_iter().filter(|&l| l <= level()) {
            let out = product_on(level, shape, a.view(), b.view(), DType::F32);
            compare("out", &out.values(), &sums, |i| chain_bound(shape.k, magnitudes[i]))
                .unwrap_or_else(|message| panic!("{level} {shape:?}: {message}"));
        }
    }
}

#[test]
fn a_row_of_a_large_product_has_the_bits_of_that_row_alone() {
    for dtype in [DType::F32, DType::BF16] {
        for shape in LAYOUTS.into_iter().flat_map(shapes) {
            let (a, b) = operands(shape, dtype, 3);
            for level in LEVELS.into_iter().filter(|&l| l <= level()) {
                let whole = product_on(level, shape, a.view(), b.view(), dtype);
                for (row, count) in [(0, 1), (shape.m / 2, 1), (shape.m / 3, 7), (0, 49)] {
                    let rows = row..(row + count).min(shape.m);
                    let part = match shape.layout {
                        Layout::TN => a.view().columns(rows.clone()),
                        _ => a.view().rows(rows.clone()),
                    };
                    let alone = Shape { m: rows.len(), ..shape };
                    let alone = product_on(level, alone, part, b.view(), dtype);
                    let expected = &whole.bits()[rows.start * shape.n..rows.end * shape.n];
                    assert_eq!(alone.bits(), expected, "{level} {dtype} {shape:?} rows {rows:?}");
                }
            }
        }
    }
}

#[test]
fn products_do_not_depend_on_the_number_of_threads() {
    let pools = [1, 2, 5]
        .map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap());
    for dtype in [DType::F32, DType::BF16] {
        for layout in LAYOUTS {
            for (m, n, k) in [(9, 700, 530), (200, 130, 1100), (330, 64, 530)] {
                let shape = Shape { m, n, k, layout };
                let (a, b) = operands(shape, dtype, 4);
                let [one, two, five] = pools.each_ref().map(|pool| {
                    pool.install(|| product_on(level(), shape, a.view(), b.view(), dtype)).bits()
                });
                assert!(one == two && two == five, "{dtype} {shape:?}");
            }
        }
    }
}

#[test]
fn adding_to_c_continues_its_chains() {
    // Two halves of k, one after the other, are one product over all of k.
    for dtype in [DType::F32, DType::BF16] {
        let shape = Shape { m: 70, n: 50, k: 600, layout: Layout::TN };
        let (a, b) = operands(shape, dtype, 5);
        let whole = product_on(level(), shape, a.view(), b.view(), DType::F32);
        let mut out = Matrix::zeros(DType::F32, [shape.m, shape.n]);
        for half in [0..222, 222..600] {
            let (a, b) = (a.view().rows(half.clone()), b.view().rows(half));
            accumulate(out.view_mut(), a, b, Layout::TN).unwrap();
        }
        assert_eq!(out.bits(), whole.bits(), "{dtype}");
    }
}

#[test]
fn the_gradients_of_the_oracle_agree_with_central_differences() {
    for layout in LAYOUTS {
        let shape = Shape { m: 3, n: 4, k: 5, layout };
        let mut random = generator(6);
        let (a, b) = operands(shape, DType::F32, 6);
        let d_out = to_f64(&normal(&mut random, DType::F32, &[12], 1.0));
        let bias = to_f64(&normal(&mut random, DType::F32, &[4], 1.0));
        let (a, b) = (a.values(), b.values());
        let loss = |a: &[f64], b: &[f64], bias: &[f64]| -> f64 {
            let out = reference::forward(shape, a, b, Some(bias), Activation::Identity, None);
            out.iter().zip(&d_out).map(|(out, d)| out * d).sum()
        };
        let (d_a, d_b, d_bias) = reference::backward(shape, &d_out, &a, &b);
        check_gradient("d_a", &a, &d_a, |a| loss(a, &b, &bias)).unwrap();
        check_gradient("d_b", &b, &d_b, |b| loss(&a, b, &bias)).unwrap();
        check_gradient("d_bias", &bias, &d_bias, |bias| loss(&a, &b, bias)).unwrap();
    }
}

#[test]
fn a_nan_or_an_infinity_stays_in_its_row_and_column() {
    let shape = Shape { m: 30, n: 50, k: 41, layout: Layout::NT };
    for dtype in [DType::F32, DType::BF16] {
        let (mut a, b) = operands(shape, dtype, 7);
        let clean = product_on(level(), shape, a.view(), b.view(), DType::F32).values();
        // In the last, unpaired place of a row.
        match dtype {
            DType::BF16 => {
                a.view_mut().row_mut::<prime_runtime::bf16>(17)[40] = prime_runtime::bf16::NAN
            }
            _ => a.view_mut().row_mut::<f32>(17)[40] = f32::NAN,
        }
        let out = product_on(level(), shape, a.view(), b.view(), DType::F32).values();
        for i in 0..shape.m * shape.n {
            assert!(
                if i / shape.n == 17 { out[i].is_nan() } else { out[i] == clean[i] },
                "{dtype} {i}"
            );
        }
    }
}

#[test]
fn disagreeing_operands_are_refused_with_a_sentence() {
    let matrix = |dtype, dims: [usize; 2]| zeros(dtype, &dims);
    let (a, b) = (matrix(DType::F32, [3, 4]), matrix(DType::F32, [5, 4]));
    let mut out = matrix(DType::F32, [3, 5]);
    let none = Epilogue::default();
    let refusal = |result: Result<()>| result.unwrap_err().to_string();
    assert_eq!(
        refusal(forward(out.view_mut(), a.view(), b.view(), Layout::NN, none)),
        "matmul.forward: `b` is [5, 4], but its dimension `k` is 4 in `a`"
    );
    assert_eq!(
        refusal(forward(
            matrix(DType::F32, [3, 6]).view_mut(),
            a.view(),
            b.view(),
            Layout::NT,
            none
        )),
        "matmul.forward: `out` is [3, 6], but its dimension `n` is 5 in `b`"
    );
    assert_eq!(
        refusal(forward(
            out.view_mut(),
            a.view(),
            matrix(DType::BF16, [5, 4]).view(),
            Layout::NT,
            none
        )),
        "matmul.forward: `b` is bfloat16, expected float32"
    );
    assert_eq!(
        refusal(forward(
            matrix(DType::BF16, [3, 5]).view_mut(),
            a.view(),
            b.view(),
            Layout::NT,
            none
        )),
        "matmul.forward: `out` is bfloat16, expected float32"
    );
    let short = zeros(DType::F32, &[4]);
    let bias = Epilogue { bias: Some(short.view()), ..none };
    assert_eq!(
        refusal(forward(out.view_mut(), a.view(), b.view(), Layout::NT, bias)),
        "matmul.forward: `bias` is [4], but its dimension `n` is 5 in `b`"
    );
    let low = matrix(DType::BF16, [5, 4]);
    assert_eq!(
        refusal(accumulate(
            matrix(DType::BF16, [5, 5]).view_mut(),
            low.view(),
            low.view(),
            Layout::NT
        )),
        "matmul.accumulate: `out` is bfloat16, expected float32"
    );
    let mut packed = Packed::new(b.view(), Layout::NT).unwrap();
    assert_eq!(
        refusal(packed.repack(a.view())),
        "matmul.repack: `b` is [3, 4] in layout NT, but was packed with n = 5 and k = 4"
    );
    assert!(Packed::new(b.view(), Layout::TN).is_err());
    assert!(backward(None, None, None, out.view(), a.view(), b.view(), Layout::TN).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_agrees_with_the_oracle(
        m in 0usize..60, n in 0usize..80, k in 0usize..300, layout in 0usize..3, wide in any::<bool>(), seed in any::<u64>(),
    ) {
        let shape = Shape { m, n, k, layout: LAYOUTS[layout] };
        let dtype = if wide { DType::F32 } else { DType::BF16 };
        let (a, b) = operands(shape, dtype, seed);
        let (sums, magnitudes) = reference::product(shape, &a.values(), &b.values());
        let out = product_on(level(), shape, a.view(), b.view(), DType::F32);
        let outcome = compare("out", &out.values(), &sums, |i| chain_bound(k, magnitudes[i]));
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}
