//! What the contract promises beyond agreement with the oracle.

use prime_runtime::{DType, View};
use proptest::prelude::*;

use super::check::{Matrix, chain_bound, stored};
use super::cpu::{self, Product, Right};
use super::reference::{self, Shape};
use super::*;
use crate::simd::{Level, level};
use crate::testing::{case, check_gradient, compare, generator, normal, to_f64, zeros};

/// The levels that this machine has; and tile registers, by a model where it has none but its vectors suffice for all else.
fn levels() -> impl Iterator<Item = Level> {
    [Level::Plain, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx]
        .into_iter()
        .filter(|&l| l <= level() || l == Level::Amx && level() == Level::Avx512Bf16)
}

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
    let mut random = case(Device::Cpu, seed);
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
        for level in levels() {
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
        for level in levels() {
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
            for level in levels() {
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
fn strips_that_are_copied_before_the_work_is_cut_change_no_bit() {
    // Large enough for that, with an edge everywhere; and a transposed A whose rows collide in the cache.
    let large = LAYOUTS.map(|layout| Shape { m: 397, n: 1037, k: 2101, layout });
    let colliding = Shape { m: 1024, n: 600, k: 70, layout: Layout::TN };
    for dtype in [DType::F32, DType::BF16] {
        for shape in large.into_iter().chain([colliding]) {
            let (a, b) = operands(shape, dtype, 8);
            let whole = product_on(level(), shape, a.view(), b.view(), dtype).bits();
            // So few rows that each task copies its own.
            for start in (0..shape.m).step_by(45) {
                let rows = start..(start + 45).min(shape.m);
                let part = match shape.layout {
                    Layout::TN => a.view().columns(rows.clone()),
                    _ => a.view().rows(rows.clone()),
                };
                let alone = Shape { m: rows.len(), ..shape };
                let alone = product_on(level(), alone, part, b.view(), dtype).bits();
                let expected = &whole[rows.start * shape.n..rows.end * shape.n];
                assert!(alone == expected, "{dtype} {shape:?} rows {rows:?}");
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
    // Two parts of k, one after the other, are one product over all of k, where the first is whole steps: of bfloat16, as much as tile registers take.
    for (dtype, first) in [(DType::F32, 221), (DType::BF16, 224)] {
        let shape = Shape { m: 70, n: 50, k: 600, layout: Layout::TN };
        let (a, b) = operands(shape, dtype, 5);
        let whole = product_on(level(), shape, a.view(), b.view(), DType::F32);
        let mut out = Matrix::zeros(DType::F32, [shape.m, shape.n]);
        for half in [0..first, first..600] {
            let (a, b) = (a.view().rows(half.clone()), b.view().rows(half));
            accumulate(out.view_mut(), a, b, Layout::TN).unwrap();
        }
        assert!(out.bits() == whole.bits(), "{dtype}");
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
    let mut low = matrix(DType::BF16, [5, 5]);
    assert_eq!(
        refusal(accumulate(low.view_mut(), b.view(), b.view(), Layout::NT)),
        "matmul.accumulate: `out` is bfloat16, expected float32"
    );
    let mut gate_up = matrix(DType::F32, [3, 10]);
    assert_eq!(
        refusal(forward_swiglu(out.view_mut(), gate_up.view_mut(), true, a.view(), b.view())),
        "matmul.forward_swiglu: `b` is [5, 4], but with `out` [3, 5] it has 10 rows"
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

/// Products on the emulated device.
#[cfg(feature = "emulated")]
mod emulated {
    use super::super::cuda;
    use super::*;
    use crate::device::{HOPPER, on_chip};
    use crate::matmul::check::{HOPPER_PRODUCTS, check_tensor_cores, sum_bound};
    use crate::testing::assert_cases;

    const DEVICE: Device = Device::Emulated;

    /// A matrix without gaps, so that rows of whole vectors are aligned to them.
    fn dense(seed: u64, dtype: DType, dims: [usize; 2]) -> Tensor {
        case(DEVICE, seed).tensor(dtype, &dims, 1.0)
    }

    /// The product of the layout with a tile size and a number of parts, or with those of its shape.
    fn product(
        [a, b]: [View<'_>; 2],
        layout: Layout,
        dtype: DType,
        tile: Option<(usize, usize)>,
        settings: Settings,
    ) -> Tensor {
        let [m, k] = if layout == Layout::TN { [a.dim(1), a.dim(0)] } else { [a.dim(0), a.dim(1)] };
        let n = if layout == Layout::NT { b.dim(0) } else { b.dim(1) };
        let mut out = case(DEVICE, 0).blank(dtype, &[m, n]);
        let product = Product {
            k,
            a,
            transposed_a: layout == Layout::TN,
            right: Right::Plain { b, transposed: layout == Layout::NT },
            epilogue: Epilogue::default(),
            accumulate: false,
        };
        let plan = cuda::plan(out.view(), &product, b, layout, settings).unwrap();
        let plan = match tile {
            Some((index, parts)) => plan.in_tiles(index).in_parts(parts),
            None => plan,
        };
        cuda::run(out.view_mut(), &product, b, layout, plan).unwrap();
        out
    }

    const SETTINGS: [(DType, Settings); 3] = [
        (DType::BF16, Settings { tf32: false, invariant: true }),
        (DType::F32, Settings { tf32: false, invariant: true }),
        (DType::F32, Settings { tf32: true, invariant: true }),
    ];

    #[test]
    fn tiles_of_every_size_fill_their_slots_several_times_and_cross_every_edge() {
        for layout in LAYOUTS {
            let shape = Shape { m: 136, n: 200, k: 440, layout };
            for (dtype, settings) in SETTINGS {
                let (a_dims, b_dims) = stored(shape);
                let (a, b) = (dense(1, dtype, a_dims), dense(2, dtype, b_dims));
                let (sums, magnitudes) = reference::product(shape, &to_f64(&a), &to_f64(&b));
                for tile in 0..4 {
                    let views = [a.view(), b.view()];
                    let out = product(views, layout, DType::F32, Some((tile, 1)), settings);
                    compare("out", &to_f64(&out), &sums, |i| {
                        sum_bound(DEVICE, dtype, settings, shape.k, magnitudes[i])
                    })
                    .unwrap_or_else(|message| panic!("{dtype} {shape:?} tile {tile}: {message}"));
                }
            }
        }
    }

    #[test]
    fn invariant_products_are_the_same_bits_in_tiles_of_every_size_and_for_a_row_alone() {
        for layout in [Layout::NN, Layout::NT] {
            let shape = Shape { m: 40, n: 72, k: 600, layout };
            for (dtype, settings) in SETTINGS {
                let (a_dims, b_dims) = stored(shape);
                let (a, b) = (dense(3, dtype, a_dims), dense(4, dtype, b_dims));
                let bits = |rows: std::ops::Range<usize>, tile| {
                    let views = [a.view().rows(rows), b.view()];
                    product(views, layout, dtype, tile, settings).view().to_f32_vec()
                };
                let whole = bits(0..40, None);
                for tile in 0..4 {
                    assert!(bits(0..40, Some((tile, 1))) == whole, "{dtype} {layout:?} {tile}");
                }
                assert!(bits(17..18, None) == whole[17 * 72..18 * 72], "{dtype} {layout:?}");
                assert!(bits(3..33, None) == whole[3 * 72..33 * 72], "{dtype} {layout:?}");
            }
        }
    }

    #[test]
    fn exact_products_of_float32_are_the_bits_of_the_host() {
        let exact = Settings { tf32: false, invariant: true };
        for layout in LAYOUTS {
            for shape in [(33, 70, 130), (64, 64, 256), (1, 200, 77)] {
                let shape = Shape { m: shape.0, n: shape.1, k: shape.2, layout };
                let (a_dims, b_dims) = stored(shape);
                let (a, b) = (dense(5, DType::F32, a_dims), dense(6, DType::F32, b_dims));
                let out = product([a.view(), b.view()], layout, DType::F32, None, exact);
                let (a, b) = (a.to(Device::Cpu).unwrap(), b.to(Device::Cpu).unwrap());
                let mut host = zeros(DType::F32, &[shape.m, shape.n]);
                let none = Epilogue::default();
                forward(host.view_mut(), a.view(), b.view(), layout, none).unwrap();
                assert!(out.view().to_f32_vec() == host.view().to_f32_vec(), "{shape:?}");
            }
        }
    }

    #[test]
    fn a_product_of_few_tiles_is_cut_into_parts_that_are_added_in_order() {
        let (a, b) = (dense(7, DType::F32, [3, 1024]), dense(8, DType::F32, [16, 1024]));
        let exact = Settings::default();
        let operands =
            |k: std::ops::Range<usize>| [a.view().columns(k.clone()), b.view().columns(k)];
        let whole = product(operands(0..1024), Layout::NT, DType::F32, None, exact);
        let mut sums = vec![0f32; 3 * 16];
        for part in 0..4 {
            let k = 256 * part..256 * (part + 1);
            let part =
                product(operands(k), Layout::NT, DType::F32, None, exact).view().to_f32_vec();
            sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        assert_eq!(whole.view().to_f32_vec(), sums);
    }

    #[test]
    fn swiglu_behind_a_product_is_the_bits_of_swiglu_after_it() {
        for (dtype, settings) in SETTINGS {
            let (a, b) = (dense(10, dtype, [70, 96]), dense(11, dtype, [2 * 136, 96]));
            let views = [a.view(), b.view()];
            let gate_up = product(views, Layout::NT, dtype, None, settings);
            let mut after = case(DEVICE, 0).blank(dtype, &[70, 136]);
            crate::swiglu::forward(after.view_mut(), gate_up.view()).unwrap();
            for tile in 0..4 {
                let mut out = case(DEVICE, 0).blank(dtype, &[70, 136]);
                let results = [out.view(), gate_up.view()];
                let plan = cuda::plan_swiglu(results, false, views, settings).unwrap();
                let plan = plan.in_tiles(tile).in_parts(1);
                cuda::swiglu(out.view_mut(), None, a.view(), b.view(), plan).unwrap();
                let (out, after) = (out.view().to_f32_vec(), after.view().to_f32_vec());
                assert!(out == after, "{dtype} {settings:?} tile {tile}");
            }
        }
    }

    #[test]
    fn products_of_hopper_agree_with_the_oracle() {
        on_chip(HOPPER, || assert_cases(DEVICE, check_tensor_cores));
        let products = HOPPER_PRODUCTS.load(std::sync::atomic::Ordering::Relaxed);
        assert!(products >= 200, "only {products} of 400 products were Hopper's");
    }

    #[test]
    fn products_of_hopper_walk_over_more_tiles_than_there_are_blocks_in_every_variant() {
        let shape = Shape { m: 500, n: 700, k: 200, layout: Layout::NT };
        let (a, b) = (dense(12, DType::BF16, [500, 200]), dense(13, DType::BF16, [700, 200]));
        let (sums, magnitudes) = reference::product(shape, &to_f64(&a), &to_f64(&b));
        let settings = Settings::default();
        let product = Product {
            k: shape.k,
            a: a.view(),
            transposed_a: false,
            right: Right::Plain { b: b.view(), transposed: true },
            epilogue: Epilogue::default(),
            accumulate: false,
        };
        let mut bits: Option<Vec<f32>> = None;
        on_chip(HOPPER, || {
            let mut out = case(DEVICE, 0).blank(DType::F32, &[500, 700]);
            let plans = cuda::plans(out.view(), &product, b.view(), Layout::NT, settings).unwrap();
            let hopper: Vec<_> = plans.into_iter().filter(cuda::Plan::hopper).collect();
            assert_eq!(hopper.len(), 5);
            for plan in hopper {
                cuda::run(out.view_mut(), &product, b.view(), Layout::NT, plan).unwrap();
                compare("out", &to_f64(&out), &sums, |i| {
                    sum_bound(DEVICE, DType::BF16, settings, shape.k, magnitudes[i])
                })
                .unwrap_or_else(|message| panic!("{plan}: {message}"));
                let found = out.view().to_f32_vec();
                assert!(bits.get_or_insert_with(|| found.clone()) == &found, "{plan}");
            }
        });
    }

    #[test]
    fn a_preferred_variant_is_taken_and_forgotten() {
        let (a, b) = (dense(14, DType::BF16, [72, 512]), dense(15, DType::BF16, [136, 512]));
        // A problem that no other test has: preferences are of the process.
        let problem = tuning::Problem {
            m: 72,
            n: 136,
            k: 512,
            layout: Layout::NT,
            dtype: DType::BF16,
            out: DType::F32,
            swiglu: false,
        };
        on_chip(HOPPER, || {
            let product = Product {
                k: 512,
                a: a.view(),
                transposed_a: false,
                right: Right::Plain { b: b.view(), transposed: true },
                epilogue: Epilogue::default(),
                accumulate: false,
            };
            let out = case(DEVICE, 0).blank(DType::F32, &[72, 136]);
            let planned = |settings| {
                let plan = cuda::plan(out.view(), &product, b.view(), Layout::NT, settings);
                plan.unwrap().variant()
            };
            let (fast, invariant) = (Settings::default(), SETTINGS[0].1);
            let variants = tuning::variants(DEVICE, problem).unwrap();
            assert_eq!(variants[0], planned(fast));
            assert!(variants.len() > 10, "{variants:?}");
            let before = planned(invariant);
            for &variant in &variants {
                tuning::prefer(problem, Some(variant));
                assert_eq!(planned(fast), variant);
                assert!(planned(invariant) == before || variant.to_string().ends_with("in 1"));
                let text = variant.to_string();
                let same = variants.iter().filter(|other| other.to_string() == text).count();
                assert_eq!(same, 1, "{text}");
            }
            tuning::prefer(problem, None);
            assert_eq!(planned(fast), variants[0]);
        });
    }

    #[test]
    fn few_rows_are_the_same_bits_whatever_their_number() {
        let (a, b) = (dense(16, DType::BF16, [8, 2600]), dense(17, DType::BF16, [7, 2600]));
        let rows = |rows: std::ops::Range<usize>| {
            let views = [a.view().rows(rows), b.view()];
            product(views, Layout::NT, DType::F32, None, Settings::default()).view().to_f32_vec()
        };
        let whole = rows(0..8);
        for range in [0..1, 1..3, 3..6, 2..7] {
            assert!(rows(range.clone()) == whole[range.start * 7..range.end * 7], "{range:?}");
        }
    }

    #[test]
    fn swiglu_behind_few_rows_is_the_bits_of_swiglu_after_them() {
        for (m, half) in [(1, 9), (2, 64), (3, 30), (8, 41)] {
            let (a, b) =
                (dense(18, DType::BF16, [m, 264]), dense(19, DType::BF16, [2 * half, 264]));
            let views = [a.view(), b.view()];
            let gate_up = product(views, Layout::NT, DType::BF16, None, Settings::default());
            let mut after = case(DEVICE, 0).blank(DType::BF16, &[m, half]);
            crate::swiglu::forward(after.view_mut(), gate_up.view()).unwrap();
            let mut out = case(DEVICE, 0).blank(DType::BF16, &[m, half]);
            let mut kept = case(DEVICE, 0).blank(DType::BF16, &[m, 2 * half]);
            let results = [out.view(), kept.view()];
            let plan = cuda::plan_swiglu(results, true, views, Settings::default()).unwrap();
            assert!(plan.to_string().starts_with("vector"), "{plan}");
            cuda::swiglu(out.view_mut(), Some(kept.view_mut()), a.view(), b.view(), plan).unwrap();
            assert!(out.view().to_f32_vec() == after.view().to_f32_vec(), "{m} x {half}");
            assert!(kept.view().to_f32_vec() == gate_up.view().to_f32_vec(), "{m} x {half}");
        }
    }

    #[test]
    fn packing_for_a_device_is_refused_with_what_to_do_instead() {
        let b = dense(9, DType::F32, [8, 8]);
        assert_eq!(
            Packed::new(b.view(), Layout::NT).err().unwrap().to_string(),
            "matmul.pack: operands are packed for the host only; on emulated give `forward` the weight itself, which is as fast there"
        );
    }
}
