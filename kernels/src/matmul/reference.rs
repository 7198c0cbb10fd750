//! The oracle: plain loops in float64.

use super::{Activation, Layout};

/// A product's sizes and layout.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Rows of C.
    pub m: usize,
    /// Columns of C.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
    /// Which operands are transposed.
    pub layout: Layout,
}

impl Shape {
    /// Where A\[i, p\] lies.
    pub(super) fn a(&self, i: usize, p: usize) -> usize {
        if self.layout == Layout::TN { p * self.m + i } else { i * self.k + p }
    }

    /// Where B\[p, j\] lies.
    pub(super) fn b(&self, p: usize, j: usize) -> usize {
        if self.layout == Layout::NT { j * self.k + p } else { p * self.n + j }
    }
}

/// The sums, and beside each the sum of its terms' magnitudes, to which its roundoff is proportional.
pub fn product(shape: Shape, a: &[f64], b: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut sums, mut magnitudes) = (vec![0.0; shape.m * shape.n], vec![0.0; shape.m * shape.n]);
    for i in 0..shape.m {
        for j in 0..shape.n {
            for p in 0..shape.k {
                let term = a[shape.a(i, p)] * b[shape.b(p, j)];
                sums[i * shape.n + j] += term;
                magnitudes[i * shape.n + j] += term.abs();
            }
        }
    }
    (sums, magnitudes)
}

/// The activation of one element.
pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Identity => x,
        Activation::Silu => x / (1.0 + (-x).exp()),
    }
}

/// C of [`super::forward`].
pub fn forward(
    shape: Shape,
    a: &[f64],
    b: &[f64],
    bias: Option<&[f64]>,
    activation: Activation,
    residual: Option<&[f64]>,
) -> Vec<f64> {
    let (mut out, _) = product(shape, a, b);
    for (index, x) in out.iter_mut().enumerate() {
        *x += bias.map_or(0.0, |bias| bias[index % shape.n]);
        *x = activate(activation, *x);
        *x += residual.map_or(0.0, |residual| residual[index]);
    }
    out
}

/// d_a, d_b and d_bias of [`super::backward`].
pub fn backward(
    shape: Shape,
    d_out: &[f64],
    a: &[f64],
    b: &[f64],
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut d_a, mut d_b) = (vec![0.0; a.len()], vec![0.0; b.len()]);
    let mut d_bias = vec![0.0; shape.n];
    for i in 0..shape.m {
        for j in 0..shape.n {
            let d = d_out[i * shape.n + j];
            d_bias[j] += d;
            for p in 0..shape.k {
                d_a[shape.a(i, p)] += d * b[shape.b(p, j)];
                d_b[shape.b(p, j)] += d * a[shape.a(i, p)];
            }
        }
    }
    (d_a, d_b, d_bias)
}
