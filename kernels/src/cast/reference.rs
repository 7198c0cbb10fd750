//! The oracle: the nearest value of the storage type, found by arithmetic on float64 rather than on bits.

use prime_runtime::DType;

/// `x` rounded to the nearest float32 or bfloat16, ties to even. For finite values in range.
pub fn forward(x: f64, dtype: DType) -> f64 {
    let significant = match dtype {
        DType::BF16 => 8,
        _ => 24,
    };
    if x == 0.0 {
        return x;
    }
    // The distance between neighbours at x; below 2^-126 it stays what it is there.
    let exponent = (x.abs().log2().floor() as i32).max(-126);
    let step = 2f64.powi(exponent + 1 - significant);
    (x / step).round_ties_even() * step
}

#[cfg(test)]
mod tests {
    use prime_runtime::DType;

    #[test]
    fn ties_go_to_the_even_neighbour() {
        // bfloat16 has 128 steps between 1 and 2.
        let step = 1.0 / 128.0;
        assert_eq!(super::forward(1.0 + 0.5 * step, DType::BF16), 1.0);
        assert_eq!(super::forward(1.0 + 1.5 * step, DType::BF16), 1.0 + 2.0 * step);
        assert_eq!(super::forward(-1.0 - 0.51 * step, DType::BF16), -1.0 - step);
        assert_eq!(super::forward(0.1, DType::F32), f64::from(0.1f32));
    }
}
