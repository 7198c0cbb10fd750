//! The oracle, in float64.

/// Rows of a table with rows of `hidden` elements.
pub fn forward(tokens: &[u32], table: &[f64], hidden: usize) -> Vec<f64> {
    tokens.iter().flat_map(|&token| &table[token as usize * hidden..][..hidden]).copied().collect()
}

/// Adds each token's gradient to its row of the table's.
pub fn backward(d_table: &mut [f64], d_out: &[f64], tokens: &[u32], hidden: usize) {
    for (position, &token) in tokens.iter().enumerate() {
        for i in 0..hidden {
            d_table[token as usize * hidden + i] += d_out[position * hidden + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use prime_runtime::DType;

    use crate::testing::{check_gradient, generator, normal, to_f64};

    #[test]
    fn the_table_s_gradient_is_the_slope_of_the_lookup() {
        let mut random = generator(5);
        let tokens = [2, 0, 2, 3];
        let table = to_f64(&normal(&mut random, DType::F32, &[4 * 3], 1.0));
        let d_out = to_f64(&normal(&mut random, DType::F32, &[4 * 3], 1.0));
        let mut d_table = vec![0.0; 12];
        super::backward(&mut d_table, &d_out, &tokens, 3);
        check_gradient("d_table", &table, &d_table, |table| {
            super::forward(&tokens, table, 3).iter().zip(&d_out).map(|(a, b)| a * b).sum()
        })
        .unwrap();
    }
}
