//! One random case against the oracle.

use prime_runtime::{DType, Device, View, ViewMut};

use super::reference;
use crate::testing::{
    Rows, any_dtype, compare, from_f32, generator, normal, roundoff, to_f64, zeros,
};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(_device: Device, seed: u64) -> Result<(), String> {
    let mut random = generator(seed);
    let dtype = any_dtype(&mut random);
    let tokens = random.below(9) as usize;
    // Half of the cases are a norm of heads.
    let heads = random.below(2) as usize * (1 + random.below(4) as usize);
    let width = 1 + random.below(if heads == 0 { 300 } else { 130 }) as usize;
    let case = Case { tokens, heads, width };
    let columns = heads.max(1) * width;
    let epsilon = 1e-6f32;
    let f32_roundoff = roundoff(DType::F32);
    let rounding = roundoff(dtype);

    let mut rows = |scale| Rows::normal(&mut random, dtype, tokens, columns, scale);
    let (x, delta, d_out, d_residual) = (rows(1.5), rows(0.5), rows(1.0), rows(1.0));
    let (mut out, mut sum, mut d_x) = (rows(1.0), rows(1.0), rows(1.0));
    let weight = normal(&mut random, dtype, &[width], 1.0);
    let mut d_weight = normal(&mut random, DType::F32, &[width], 1.0);
    let mut rstd = zeros(DType::F32, &case.rstd_dims());
    let weights = to_f64(&weight);

    // The squares are added in lanes (width / 32 additions) and those as a tree (5); then a product, a division, a sum,
    // a root, and a reciprocal. The root halves what went before it.
    let rstd_error = (width as f64 / 32.0 + 9.0) / 2.0 * f32_roundoff + 3.0 * f32_roundoff;
    let compare_norm = |out: &Rows, rstd: &[f64], x: &[f64]| {
        let (expected, expected_rstd) = reference::forward(x, &weights, f64::from(epsilon));
        compare("rstd", rstd, &expected_rstd, |i| 1.01 * rstd_error * expected_rstd[i])?;
        let relative = rstd_error + 2.0 * f32_roundoff + 2.0 * rounding;
        compare("out", &out.to_f64(), &expected, |i| 1.01 * relative * expected[i].abs())?;
        out.untouched_beside("out")
    };

    super::forward(
        case.shape_mut(&mut out),
        rstd.view_mut(),
        case.shape(&x),
        weight.view(),
        epsilon,
    )
    .map_err(|error| error.to_string())?;
    compare_norm(&out, &to_f64(&rstd), &x.to_f64())?;

    super::forward_residual(
        case.shape_mut(&mut out),
        case.shape_mut(&mut sum),
        rstd.view_mut(),
        case.shape(&x),
        case.shape(&delta),
        weight.view(),
        epsilon,
    )
    .map_err(|error| error.to_string())?;
    let expected: Vec<f64> = x.to_f64().iter().zip(delta.to_f64()).map(|(a, b)| a + b).collect();
    let relative = 1.01 * (f32_roundoff + rounding);
    compare("sum", &sum.to_f64(), &expected, |i| relative * expected[i].abs())?;
    sum.untouched_beside("sum")?;
    compare_norm(&out, &to_f64(&rstd), &sum.to_f64())?;

    let x_values = x.to_f64();
    let (_, exact) = reference::forward(&x_values, &weights, f64::from(epsilon));
    let exact: Vec<f32> = exact.into_iter().map(|r| r as f32).collect();
    let rstd = from_f32(&exact, DType::F32, &case.rstd_dims());
    let before = to_f64(&d_weight);
    let with_residual = random.below(2) == 1;
    super::backward(
        case.shape_mut(&mut d_x),
        d_weight.view_mut(),
        case.shape(&d_out),
        case.shape(&x),
        weight.view(),
        rstd.view(),
        with_residual.then(|| case.shape(&d_residual)),
    )
    .map_err(|error| error.to_string())?;

    let (d_out, rstd) = (d_out.to_f64(), to_f64(&rstd));
    let (mut expected, mut expected_weight) =
        reference::backward(&d_out, &x_values, &weights, &rstd);
    if with_residual {
        expected.iter_mut().zip(d_residual.to_f64()).for_each(|(d_x, residual)| *d_x += residual);
    }
    let g = |i: usize| d_out[i] * weights[i % width];
    let n = |i: usize| x_values[i] * rstd[i / width];
    // What a row's sum of g * n may be off by, from the roundings of its terms and of its additions.
    let of_row = |row: usize, term: &dyn Fn(usize) -> f64| -> f64 {
        (row * width..(row + 1) * width).map(term).sum::<f64>() / width as f64
    };
    compare("d_x", &d_x.to_f64(), &expected, |i| {
        let mean = of_row(i / width, &|i| g(i) * n(i)).abs();
        let size = of_row(i / width, &|i| (g(i) * n(i)).abs());
        let of_mean = (width as f64 / 32.0 + 9.0) * size;
        let inner = 3.0 * g(i).abs() + n(i).abs() * (4.0 * mean + of_mean);
        1.01 * (rstd[i / width] * f32_roundoff * inner
            + (rounding + 2.0 * f32_roundoff) * expected[i].abs())
    })?;
    d_x.untouched_beside("d_x")?;

    let additions = rstd.len() as f64 * f32_roundoff;
    let mut size: Vec<f64> = before.iter().map(|start| start.abs() * additions).collect();
    for i in 0..d_out.len() {
        size[i % width] += (d_out[i] * n(i)).abs() * (rounding + f32_roundoff + additions);
    }
    expected_weight.iter_mut().zip(&before).for_each(|(sum, start)| *sum += start);
    compare("d_weight", &to_f64(&d_weight), &expected_weight, |i| 1.01 * size[i])
}

struct Case {
    tokens: usize,
    /// 0 for a norm of whole rows.
    heads: usize,
    width: usize,
}

impl Case {
    fn rstd_dims(&self) -> Vec<usize> {
        match self.heads {
            0 => vec![self.tokens],
            heads => vec![self.tokens, heads],
        }
    }

    fn shape<'a>(&self, rows: &'a Rows) -> View<'a> {
        match self.heads {
            0 => rows.view(),
            heads => rows.view().reshape(&[self.tokens, heads, self.width]),
        }
    }

    fn shape_mut<'a>(&self, rows: &'a mut Rows) -> ViewMut<'a> {
        match self.heads {
            0 => rows.view_mut(),
            heads => rows.view_mut().into_shape(&[self.tokens, heads, self.width]),
        }
    }
}
