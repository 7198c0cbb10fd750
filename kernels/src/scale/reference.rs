//! The oracle, in float64.

/// One element.
pub fn forward(x: f64, factor: f64) -> f64 {
    x * factor
}
