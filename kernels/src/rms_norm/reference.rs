//! The oracle, in float64, over rows of `weight.len()` elements.

/// Returns the normalised rows and one reciprocal standard deviation a row.
pub fn forward(x: &[f64], weight: &[f64], epsilon: f64) -> (Vec<f64>, Vec<f64>) {
    let (mut out, mut rstd) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(weight.len()) {
        let mean_square = row.iter().map(|x| x * x).sum::<f64>() / row.len() as f64;
        let r = 1.0 / (mean_square + epsilon).sqrt();
        out.extend(row.iter().zip(weight).map(|(x, w)| w * x * r));
        rstd.push(r);
    }
    (out, rstd)
}

/// Returns the gradients of `x` and of the weight.
pub fn backward(d_out: &[f64], x: &[f64], weight: &[f64], rstd: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let width = weight.len();
    let (mut d_x, mut d_weight) = (Vec::new(), vec![0.0; width]);
    for (row, r) in rstd.iter().enumerate() {
        let x = &x[row * width..][..width];
        let d_out = &d_out[row * width..][..width];
        let dot: f64 = (0..width).map(|i| d_out[i] * weight[i] * x[i] * r).sum();
        for i in 0..width {
            d_x.push(r * (d_out[i] * weight[i] - x[i] * r * dot / width as f64));
            d_weight[i] += d_out[i] * x[i] * r;
        }
    }
    (d_x, d_weight)
}

#[cfg(test)]
mod tests {
    use prime_runtime::DType;

    use crate::testing::{check_gradient, generator, normal, to_f64};

    #[test]
    fn gradients_are_the_slopes_of_the_forward_pass() {
        let mut random = generator(5);
        let mut draw = |count| to_f64(&normal(&mut random, DType::F32, &[count], 1.0));
        let (x, weight, d_out) = (draw(21), draw(7), draw(21));
        let loss = |x: &[f64], weight: &[f64]| -> f64 {
            let (out, _) = super::forward(x, weight, 1e-2);
            out.iter().zip(&d_out).map(|(a, b)| a * b).sum()
        };
        let (_, rstd) = super::forward(&x, &weight, 1e-2);
        let (d_x, d_weight) = super::backward(&d_out, &x, &weight, &rstd);
        check_gradient("d_x", &x, &d_x, |x| loss(x, &weight)).unwrap();
        check_gradient("d_weight", &weight, &d_weight, |weight| loss(&x, weight)).unwrap();
    }
}
