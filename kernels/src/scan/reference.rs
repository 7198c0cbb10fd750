//! The oracle, in float64.

/// Discounted sums from each token to the end of its sequence, term by term.
pub fn forward(x: &[f64], cu_seqlens: &[u32], discount: f64) -> Vec<f64> {
    let mut out = Vec::new();
    for ends in cu_seqlens.windows(2) {
        let sequence = &x[ends[0] as usize..ends[1] as usize];
        out.extend((0..sequence.len()).map(|t| -> f64 {
            sequence[t..].iter().enumerate().map(|(k, x)| discount.powi(k as i32) * x).sum()
        }));
    }
    out
}

/// Discounted sums from the start of each token's sequence to it.
pub fn backward(d_out: &[f64], cu_seqlens: &[u32], discount: f64) -> Vec<f64> {
    let mut d_x = Vec::new();
    for ends in cu_seqlens.windows(2) {
        let sequence = &d_out[ends[0] as usize..ends[1] as usize];
        d_x.extend((0..sequence.len()).map(|t| -> f64 {
            (0..=t).map(|s| discount.powi((t - s) as i32) * sequence[s]).sum()
        }));
    }
    d_x
}

#[cfg(test)]
mod tests {
    use prime_runtime::DType;

    use crate::testing::{check_gradient, generator, normal, to_f64};

    #[test]
    fn the_gradient_is_the_slope_of_the_returns() {
        let mut random = generator(5);
        let x = to_f64(&normal(&mut random, DType::F32, &[11], 1.0));
        let d_out = to_f64(&normal(&mut random, DType::F32, &[11], 1.0));
        let offsets = [0, 4, 4, 11];
        let d_x = super::backward(&d_out, &offsets, 0.8);
        check_gradient("d_x", &x, &d_x, |x| {
            super::forward(x, &offsets, 0.8).iter().zip(&d_out).map(|(a, b)| a * b).sum()
        })
        .unwrap();
    }
}
