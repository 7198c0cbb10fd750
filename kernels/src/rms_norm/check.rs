//! One random case against the oracle.

use prime_runtime::{DType, Device, View, ViewMut};

use super::reference;
use crate::testing::{Rows, any_dtype, case, compare, roundoff, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let dtype = any_dtype(&mut random);
    // Now and then a row is longer than a device's block keeps in registers, or there are more rows than one block takes.
    let [long, many] = [(); 2].map(|()| random.below(16) == 0);
    let tokens = match (long, many) {
        (true, _) => random.below(3) as usize,
        (_, true) => 100 + random.below(300) as usize,
        _ => random.below(9) as usize,
    };
    // Half of the others are a norm of heads.
    let heads = if long { 0 } else { random.below(2) as usize * (1 + random.below(4) as usize) };
    let width = match (long, heads) {
        // Of the longest a device gives the gradients in several launches.
        (true, _) => {
            let most = [17_000, 60_000][random.below(2) as usize];
            500 + random.columns(most)
        }
        (false, 0) if !many => random.columns(300),
        _ if many => random.columns(40),
        _ => random.columns(130),
    };
    let sizes = Sizes { tokens, heads, width };
    let columns = heads.max(1) * width;
    let epsilon = 1e-6f32;
    let f32_roundoff = roundoff(DType::F32);
    let rounding = roundoff(dtype);

    let mut rows = |scale| random.rows(dtype, tokens, columns, scale);
    let (x, delta, d_out, d_residual) = (rows(1.5), rows(0.5), rows(1.0), rows(1.0));
    let mut blank = || random.blank_rows(dtype, tokens, columns);
    let (mut out, mut sum, mut d_x) = (blank(), blank(), blank());
    let weight = random.tensor(dtype, &[width], 1.0);
    let mut d_weight = random.tensor(DType::F32, &[width], 1.0);
    let mut rstd = random.blank(DType::F32, &sizes.rstd_dims());
    let weights = to_f64(&weight);

    // The terms of a row's sum are added in lanes (width / 32 additions) and those as a tree (5). On a device a lane may have up to 7
    // terms more than others, and the lanes of up to 16 warps are added in turn.
    let additions = match device {
        Device::Cpu => width as f64 / 32.0 + 5.0,
        _ => width as f64 / 32.0 + 7.0 + 5.0 + 15.0,
    };
    // Then a product, a division, a sum, a root, and a reciprocal. The root halves what went before it.
    let rstd_error = (additions + 4.0) / 2.0 * f32_roundoff + 3.0 * f32_roundoff;
    let compare_norm = |out: &Rows, rstd: &[f64], x: &[f64]| {
        let (expected, expected_rstd) = reference::forward(x, &weights, f64::from(epsilon));
        compare("rstd", rstd, &expected_rstd, |i| 1.01 * rstd_error * expected_rstd[i])?;
        let relative = rstd_error + 2.0 * f32_roundoff + 2.0 * rounding;
        compare("out", &out.to_f64(), &expected, |i| 1.01 * relative * expected[i].abs())?;
        out.untouched_beside("out")
    };

    super::forward(
        sizes.shape_mut(&mut out),
        rstd.view_mut(),
        sizes.shape(&x),
        weight.view(),
        epsilon,
    )
    .map_err(|error| error.to_string())?;
    compare_norm(&out, &to_f64(&rstd), &x.to_f64())?;

    super::forward_residual(
        sizes.shape_mut(&mut out),
        sizes.shape_mut(&mut sum),
        rstd.view_mut(),
        sizes.shape(&x),
        sizes.shape(&delta),
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
    let rstd = random.of(&exact, DType::F32, &sizes.rstd_dims());
    let before = to_f64(&d_weight);
    let with_residual = random.below(2) == 1;
    super::backward(
        sizes.shape_mut(&mut d_x),
        d_weight.view_mut(),
        sizes.shape(&d_out),
        sizes.shape(&x),
        weight.view(),
        rstd.view(),
        with_residual.then(|| sizes.shape(&d_residual)),
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
    // The mean of g * n over each row, and of its magnitudes, from which follows what the mean may be off by: the roundings of its
    // terms and of its additions.
    let of_rows = |term: &dyn Fn(usize) -> f64| -> Vec<f64> {
        let mean = |row| (row * width..(row + 1) * width).map(term).sum::<f64>() / width as f64;
        (0..rstd.len()).map(mean).collect()
    };
    let means = of_rows(&|i| g(i) * n(i));
    let sizes = of_rows(&|i| (g(i) * n(i)).abs());
    compare("d_x", &d_x.to_f64(), &expected, |i| {
        let of_mean = (additions + 4.0) * sizes[i / width];
        let inner = 3.0 * g(i).abs() + n(i).abs() * (4.0 * means[i / width].abs() + of_mean);
        1.01 * (rstd[i / width] * f32_roundoff * inner
            + (rounding + 2.0 * f32_roundoff) * expected[i].abs())
    })?;
    d_x.untouched_beside("d_x")?;

    // In any order.
    let additions = rstd.len() as f64 * f32_roundoff;
    let mut size: Vec<f64> = before.iter().map(|start| start.abs() * additions).collect();
    for i in 0..d_out.len() {
        size[i % width] += (d_out[i] * n(i)).abs() * (rounding + f32_roundoff + additions);
    }
    expected_weight.iter_mut().zip(&before).for_each(|(sum, start)| *sum += start);
    compare("d_weight", &to_f64(&d_weight), &expected_weight, |i| 1.01 * size[i])
}

struct Sizes {
    tokens: usize,
    /// 0 for a norm of whole rows.
    heads: usize,
    width: usize,
}

impl Sizes {
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
