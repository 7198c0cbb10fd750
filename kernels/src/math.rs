//! Elementary functions as straight-line float32 code: they vectorise, and give the same bits on every level.

/// e to the power of `x`, within 2 units in the last place; 0 below -87.3, infinity above 88.7.
///
/// Splits `x` into `n ln 2 + r` with `|r| <= ln 2 / 2` and evaluates a polynomial in `r` (coefficients of the
/// Taylor series; its seventh term is below half a unit at the ends).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let (p, n) = split_exponential(x.clamp(-87.3, 88.7));
    // 2^n in two factors, since n = 128 has no float of its own.
    let half = (n * 0.5 + ROUND) - ROUND;
    let result = p * power_of_two(half) * power_of_two(n - half);
    if x < -87.3 {
        0.0
    } else if x > 88.7 {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        result
    }
}

/// 1.5 * 2^23: adding it rounds to an integer.
const ROUND: f32 = 12_582_912.0;

/// e^r and n, where e^x = e^r 2^n.
#[inline(always)]
fn split_exponential(x: f32) -> (f32, f32) {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let n = x.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, coefficient);
    }
    (p, n)
}

/// 2^n of an integer n from -126 to 127.
#[inline(always)]
fn power_of_two(n: f32) -> f32 {
    // The low bits of ROUND + 127 + n are the exponent's; the shift drops all others. (A cast to an integer would
    // saturate, which takes several instructions and keeps sums of these from being vectorised.)
    f32::from_bits((n + (ROUND + 127.0)).to_bits() << 23)
}

/// [`exp`] where `x` is known not to exceed 88, as the exponents of a softmax are: the same bits in half as many steps.
#[inline(always)]
pub(crate) fn exp_bounded(x: f32) -> f32 {
    // Written so that NaN passes.
    let clamped = if x < -87.3 { -87.3 } else { x };
    let (p, n) = split_exponential(clamped);
    // Above -87.3 the power of two is normal.
    let result = p * power_of_two(n);
    if x < -87.3 { 0.0 } else { result }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in -873_000..887_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * exact;
            worst = worst.max((f64::from(super::exp(x)) - exact).abs() / unit);
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!(super::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(super::exp(0.0), 1.0);
        assert_eq!(super::exp(f32::INFINITY), f32::INFINITY);
        assert!(super::exp(f32::NAN).is_nan());
    }

    #[test]
    fn bounded_exp_gives_the_bits_of_exp() {
        for i in -900_000..880_000 {
            let x = i as f32 * 1e-4;
            assert_eq!(super::exp_bounded(x).to_bits(), super::exp(x).to_bits(), "{x}");
        }
        assert_eq!(super::exp_bounded(f32::NEG_INFINITY), 0.0);
        assert!(super::exp_bounded(f32::NAN).is_nan());
    }
}
