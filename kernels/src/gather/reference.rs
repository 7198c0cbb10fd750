//! The oracle, in float64.

/// The picked rows of `x`.
pub fn forward(x: &[f64], picked: &[u32], columns: usize) -> Vec<f64> {
    picked.iter().flat_map(|&row| &x[row as usize * columns..][..columns]).copied().collect()
}

/// The gradient of all `rows` rows.
pub fn backward(d_out: &[f64], picked: &[u32], rows: usize, columns: usize) -> Vec<f64> {
    let mut d_x = vec![0.0; rows * columns];
    for (d_out, &row) in d_out.chunks_exact(columns).zip(picked) {
        d_x[row as usize * columns..][..columns].copy_from_slice(d_out);
    }
    d_x
}

#[cfg(test)]
mod tests {
    use prime_runtime::DType;

    use crate::testing::{check_gradient, generator, normal, to_f64};

    #[test]
    fn the_gradient_is_the_slope_of_the_picked_rows() {
        let mut random = generator(5);
        let x = to_f64(&normal(&mut random, DType::F32, &[12], 1.0));
        let d_out = to_f64(&normal(&mut random, DType::F32, &[6], 1.0));
        let d_x = super::backward(&d_out, &[1, 3], 4, 3);
        check_gradient("d_x", &x, &d_x, |x| {
            super::forward(x, &[1, 3], 3).iter().zip(&d_out).map(|(a, b)| a * b).sum()
        })
        .unwrap();
    }
}
