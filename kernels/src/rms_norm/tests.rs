#[cfg(feature = "emulated")]
use prime_runtime::Device;
use prime_runtime::{DType, Tensor};

use crate::testing::{assert_independent_of_threads, generator, normal, zeros};

/// Forward and backward of `x`: out, rstd, d_x, d_weight.
fn run(
    x: &Tensor,
    d_out: &Tensor,
    weight: &Tensor,
    tokens: std::ops::Range<usize>,
) -> [Vec<f32>; 4] {
    let (rows, width) = (tokens.len(), x.dims()[1]);
    let (mut out, mut d_x) = (zeros(x.dtype(), &[rows, width]), zeros(x.dtype(), &[rows, width]));
    let (mut rstd, mut d_weight) = (zeros(DType::F32, &[rows]), zeros(DType::F32, &[width]));
    let (x, d_out) = (x.view().rows(tokens.clone()), d_out.view().rows(tokens));
    super::forward(out.view_mut(), rstd.view_mut(), x, weight.view(), 1e-6).unwrap();
    super::backward(
        d_x.view_mut(),
        d_weight.view_mut(),
        d_out,
        x,
        weight.view(),
        rstd.view(),
        Some(d_out),
    )
    .unwrap();
    [out, rstd, d_x, d_weight].map(|tensor| tensor.view().to_f32_vec())
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for dtype in [DType::F32, DType::BF16] {
        let mut random = generator(1);
        let [x, d_out] = [(); 2].map(|()| normal(&mut random, dtype, &[400, 200], 1.0));
        let weight = normal(&mut random, dtype, &[200], 1.0);
        assert_independent_of_threads(|| run(&x, &d_out, &weight, 0..400));
    }
}

#[test]
fn a_token_s_result_does_not_depend_on_the_others() {
    let mut random = generator(2);
    let [x, d_out] = [(); 2].map(|()| normal(&mut random, DType::F32, &[150, 130], 1.0));
    let weight = normal(&mut random, DType::F32, &[130], 1.0);
    let [out, rstd, d_x, _] = run(&x, &d_out, &weight, 0..150);
    let [alone, alone_rstd, alone_d_x, _] = run(&x, &d_out, &weight, 77..78);
    assert_eq!(alone, out[77 * 130..78 * 130]);
    assert_eq!(alone_rstd, rstd[77..78]);
    assert_eq!(alone_d_x, d_x[77 * 130..78 * 130]);
}

#[test]
fn a_weight_s_gradient_over_micro_batches_has_the_bits_of_one_batch() {
    let mut random = generator(3);
    let [x, d_out] = [(); 2].map(|()| normal(&mut random, DType::BF16, &[40, 3 * 48], 1.0));
    let weight = normal(&mut random, DType::BF16, &[48], 1.0);
    let heads = |tokens| [tokens, 3, 48];
    let mut out = zeros(DType::BF16, &heads(40));
    let mut rstd = zeros(DType::F32, &[40, 3]);
    let x = x.view().reshape(&heads(40));
    let d_out = d_out.view().reshape(&heads(40));
    super::forward(out.view_mut(), rstd.view_mut(), x, weight.view(), 1e-6).unwrap();
    let gradient = |cuts: &[usize]| {
        let mut d_weight = zeros(DType::F32, &[48]);
        for cut in cuts.windows(2).map(|ends| ends[0]..ends[1]) {
            let mut d_x = zeros(DType::BF16, &heads(cut.len()));
            super::backward(
                d_x.view_mut(),
                d_weight.view_mut(),
                d_out.rows(cut.clone()),
                x.rows(cut.clone()),
                weight.view(),
                rstd.view().rows(cut.clone()),
                None,
            )
            .unwrap();
        }
        d_weight.view().to_f32_vec()
    };
    assert_eq!(gradient(&[0, 40]), gradient(&[0, 1, 1, 30, 40]));
}

#[test]
fn the_fused_residual_gives_the_bits_of_an_addition_and_a_norm() {
    let mut random = generator(4);
    let [x, delta] = [(); 2].map(|()| normal(&mut random, DType::BF16, &[6, 70], 1.0));
    let weight = normal(&mut random, DType::BF16, &[70], 1.0);
    let [mut out, mut sum, mut again] = [(); 3].map(|()| zeros(DType::BF16, &[6, 70]));
    let mut rstd = zeros(DType::F32, &[6]);
    super::forward_residual(
        out.view_mut(),
        sum.view_mut(),
        rstd.view_mut(),
        x.view(),
        delta.view(),
        weight.view(),
        1e-6,
    )
    .unwrap();
    super::forward(again.view_mut(), rstd.view_mut(), sum.view(), weight.view(), 1e-6).unwrap();
    assert_eq!(out.view().to_f32_vec(), again.view().to_f32_vec());
}

#[test]
fn arguments_that_disagree_are_refused_by_name() {
    let forward = |out: &[usize], rstd: &[usize], x: &[usize], weight_dtype| {
        let (mut out, mut rstd) = (zeros(DType::F32, out), zeros(DType::F32, rstd));
        let (x, weight) = (zeros(DType::F32, x), zeros(weight_dtype, &[8]));
        super::forward(out.view_mut(), rstd.view_mut(), x.view(), weight.view(), 1e-6)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        forward(&[2, 8], &[2], &[2, 6], DType::F32),
        "rms_norm.forward: `weight` is [8], but its dimension `width` is 6 in `x`"
    );
    assert_eq!(
        forward(&[3, 8], &[2], &[2, 8], DType::F32),
        "rms_norm.forward: `out` is [3, 8], but its dimension `tokens` is 2 in `x`"
    );
    assert_eq!(
        forward(&[2, 4, 8], &[2], &[2, 4, 8], DType::F32),
        "rms_norm.forward: `rstd` is [2], expected [tokens, heads]"
    );
    assert_eq!(
        forward(&[2, 8], &[2], &[2, 8], DType::BF16),
        "rms_norm.forward: `weight` is bfloat16, expected float32"
    );
    assert_eq!(
        forward(&[8], &[2], &[8], DType::F32),
        "rms_norm.forward: `x` is [8], expected [tokens, heads, width]"
    );
}

#[cfg(feature = "emulated")]
#[test]
fn on_a_device_alignment_changes_no_bit() {
    use crate::testing::Rows;

    // Rows of a warp, of a block, and rows longer than a block keeps in registers.
    for (dtype, width) in
        [(DType::F32, 64), (DType::BF16, 200), (DType::BF16, 1544), (DType::F32, 8200)]
    {
        let mut random = generator(6);
        let [x, d_out] = [(); 2].map(|()| normal(&mut random, dtype, &[20, width], 1.0));
        let weight = normal(&mut random, dtype, &[width], 1.0).to(Device::Emulated).unwrap();
        let run = |before: usize| {
            let rows = |host: &Tensor| Rows::behind(before, host, Device::Emulated);
            let (x, d_out) = (rows(&x), rows(&d_out));
            let [mut out, mut d_x] = [(); 2].map(|()| rows(&zeros(dtype, &[20, width])));
            let [mut rstd, mut d_weight] = [20, width]
                .map(|count| Tensor::zeros(Device::Emulated, DType::F32, &[count]).unwrap());
            let weight = weight.view();
            super::forward(out.view_mut(), rstd.view_mut(), x.view(), weight, 1e-6).unwrap();
            super::backward(
                d_x.view_mut(),
                d_weight.view_mut(),
                d_out.view(),
                x.view(),
                weight,
                rstd.view(),
                Some(d_out.view()),
            )
            .unwrap();
            [out.view(), d_x.view(), rstd.view(), d_weight.view()].map(|view| view.to_f32_vec())
        };
        assert!(run(0) == run(1), "{dtype} {width}");
    }
}
