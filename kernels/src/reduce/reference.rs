//! The oracle, in float64.

/// Adds the sum of each column of `x` (`[rows, out.len()]`) to `out`.
pub fn columns(out: &mut [f64], x: &[f64]) {
    for row in x.chunks_exact(out.len().max(1)) {
        for (sum, value) in out.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

/// The sum of all elements.
pub fn sum(x: &[f64]) -> f64 {
    x.iter().sum()
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_summed_into_what_was_there() {
        let mut out = [10.0, 20.0];
        super::columns(&mut out, &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(out, [14.0, 26.0]);
    }
}
