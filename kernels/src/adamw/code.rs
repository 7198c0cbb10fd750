//! Eight-bit moments: small floats, relative to the largest of a block of 256, rounded at random.
//!
//! A first moment is a sign, 4 bits of exponent and 3 of fraction; a second moment, which has no sign, 5 bits of exponent and 3 of fraction. The
//! largest code is 1.875; a block's scale is its largest magnitude over that, so that this one is kept exactly but for a float's rounding.
//! What lies between two codes becomes either of them, with the probability that makes its mean right: the error is less than the distance of
//! the two, an eighth of the smaller where that is at least 2^-14 (2^-30) of 1.0 and an eighth of that bound below it. Rounded to the
//! nearest, a moment that changes by less than half a step an update would never change; with beta2 = 0.999 that is most of them.
//!
//! Source: block-wise quantisation of optimiser states is Dettmers, Lewis, Shleifer, Zettlemoyer, arXiv 2110.02861; the code and the
//! rounding here are others.

/// Parameters that share a scale.
pub const BLOCK: usize = 256;

/// The largest code's value.
pub(crate) const LARGEST: f32 = 1.875;

/// The smallest values with a full fraction.
pub(crate) const SMALLEST_FIRST: f32 = 1.0 / 16384.0; // 2^-14
pub(crate) const SMALLEST_SECOND: f32 = 1.0 / 1_073_741_824.0; // 2^-30

/// What is subtracted from the upper 12 bits of a positive float to get its code.
const fn base(smallest: f32) -> u32 {
    (smallest.to_bits() >> 20) - 8
}

/// The code of x >= 0, up to `most`. `random` has 20 bits.
#[inline(always)]
fn encode(x: f32, smallest: f32, most: u32, random: u32) -> u32 {
    // Below the smallest, the fraction of smallest + x steps by an eighth of the smallest.
    let below = x < smallest;
    let aligned = if below { x + smallest } else { x };
    let code = ((aligned.to_bits() + random) >> 20).wrapping_sub(base(smallest));
    (if below { code.wrapping_sub(8) } else { code }).min(most)
}

#[inline(always)]
fn decode(code: u32, smallest: f32) -> f32 {
    let float = f32::from_bits((code + base(smallest)) << 20);
    if code < 8 { code as f32 * (smallest / 8.0) } else { float }
}

/// The code of a first moment; `scale` is its block's, `random` has 16 bits.
#[inline(always)]
pub(crate) fn encode_first(m: f32, scale: f32, random: u32) -> u32 {
    let x = if scale > 0.0 { m.abs() / scale } else { 0.0 };
    encode(x, SMALLEST_FIRST, 127, random << 4) | (m.to_bits() >> 31) << 7
}

/// The code of a second moment.
#[inline(always)]
pub(crate) fn encode_second(v: f32, scale: f32, random: u32) -> u32 {
    let x = if scale > 0.0 { v / scale } else { 0.0 };
    encode(x, SMALLEST_SECOND, 255, random << 4)
}

/// A first moment.
#[inline(always)]
pub(crate) fn decode_first(code: u32, scale: f32) -> f32 {
    let magnitude = decode(code & 127, SMALLEST_FIRST) * scale;
    if code & 128 == 0 { magnitude } else { -magnitude }
}

/// A second moment.
#[inline(always)]
pub(crate) fn decode_second(code: u32, scale: f32) -> f32 {
    decode(code & 255, SMALLEST_SECOND) * scale
}

/// Rounds to the upper half of a float, up or down at random: the mean is right. `random` has 16 bits.
#[inline(always)]
pub(crate) fn round(w: f32, random: u32) -> u16 {
    ((w.to_bits().wrapping_add(random)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_its_own_value_again_whatever_the_random_bits() {
        for random in [0, 0x7fff, 0xffff] {
            for scale in [1.0f32, 2f32.powi(-40), 512.0] {
                for code in 0..256 {
                    let value = decode_first(code, scale);
                    assert_eq!(encode_first(value, scale, random), code, "{value}");
                    let value = decode_second(code, scale);
                    assert_eq!(encode_second(value, scale, random), code, "{value}");
                }
            }
        }
        assert_eq!((decode_first(127, 1.0), decode_second(255, 1.0)), (LARGEST, LARGEST));
        assert_eq!(
            (decode_first(8, 1.0), decode_second(8, 1.0)),
            (SMALLEST_FIRST, SMALLEST_SECOND)
        );
        assert_eq!(decode_first(129, 1.0), -SMALLEST_FIRST / 8.0);
        let rising = |values: Vec<f32>| values.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(rising((0..128).map(|code| decode_first(code, 1.0)).collect()));
        assert!(rising((0..256).map(|code| decode_second(code, 1.0)).collect()));
    }

    #[test]
    fn between_two_codes_the_mean_over_all_random_bits_is_the_value() {
        for x in [1.3f32, 0.7, 1e-3, 3.1e-5, 1e-5, 4e-6, 3e-10, 1e-11] {
            let mean = |decoded: &dyn Fn(u32) -> f32| {
                (0..1u32 << 16).map(|random| f64::from(decoded(random))).sum::<f64>() / 65536.0
            };
            let step = |smallest: f32| f64::from(x.max(smallest)) / 8.0;
            // 16 random bits decide to 2^-16 of a step; what is added to align a small number rounds it by 2^-24 of the smallest.
            let first = mean(&|random| decode_first(encode_first(-x, 1.0, random), 1.0));
            let within = |smallest: f32| {
                step(smallest) * 2f64.powi(-16) + f64::from(smallest) * 2f64.powi(-23)
            };
            assert!((first + f64::from(x)).abs() <= within(SMALLEST_FIRST), "{x}: {first}");
            let second = mean(&|random| decode_second(encode_second(x, 1.0, random), 1.0));
            assert!((second - f64::from(x)).abs() <= within(SMALLEST_SECOND), "{x}: {second}");
        }
    }

    #[test]
    fn what_does_not_fit_becomes_the_largest_and_an_empty_block_stays_empty() {
        assert_eq!(encode_first(f32::MAX, 1.0, 0xffff), 127);
        assert_eq!(encode_second(1.875001, 1.0, 0xffff), 255);
        assert_eq!((encode_first(0.0, 0.0, 0xffff), encode_second(0.0, 0.0, 0xffff)), (0, 0));
    }

    #[test]
    fn rounding_at_random_keeps_what_bfloat16_holds_and_the_mean_of_the_rest() {
        for w in [1.0f32, -3.5, 0.0, 1.0 / 256.0] {
            for random in [0, 0xffff] {
                assert_eq!(f32::from_bits(u32::from(round(w, random)) << 16), w);
            }
        }
        for w in [0.3f32, -1.2345, 7e-5] {
            let mean = (0..1u32 << 16)
                .map(|random| f64::from(f32::from_bits(u32::from(round(w, random)) << 16)))
                .sum::<f64>()
                / 65536.0;
            assert!(
                (mean - f64::from(w)).abs() < f64::from(w.abs()) * 2f64.powi(-23),
                "{w}: {mean}"
            );
        }
    }
}
