//! The oracle, in float64.

/// `out` with the rows of `x` in their places.
pub fn forward(out: &[f64], x: &[f64], places: &[u32], columns: usize) -> Vec<f64> {
    let mut out = out.to_vec();
    for (row, &place) in x.chunks_exact(columns).zip(places) {
        out[place as usize * columns..][..columns].copy_from_slice(row);
    }
    out
}
