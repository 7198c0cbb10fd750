//! The value of an expression at a point: exactly, modulo a prime, and in float64 with a bound of its error.
//!
//! Two expressions are equal when they agree at several points. A rational function is decided modulo a prime, where
//! arithmetic is exact and two different ones agree at a random point with a probability below degree / 2^61
//! (Schwartz-Zippel). Where roots, logarithms and the like make that impossible, float64 decides, and only where the
//! bounds say that its digits can be relied on.

use crate::graders::number::Rational;

/// 29 * 2^57 + 1: a prime that leaves 1 on division by 4, so that -1 has a square root.
const PRIME: u64 = 4_179_340_454_199_820_289;
/// A generator of its multiplicative group.
const GENERATOR: u64 = 3;
/// The unit roundoff of float64.
const ROUNDOFF: f64 = f64::EPSILON / 2.0;
/// The most that factorials and binomials multiply up.
const LARGEST_FACTORIAL: i128 = 2000;

/// A float64 and a bound of its distance from the true value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Real {
    value: f64,
    error: f64,
}

/// What is known of a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Value {
    /// The value itself, where it is a fraction of 128 bits.
    pub(super) exact: Option<Rational>,
    residue: Option<u64>,
    real: Option<Real>,
}

impl Real {
    /// A result with its rounding added to what the operands' errors do to it.
    fn rounded(value: f64, inherited: f64, roundings: f64) -> Option<Real> {
        let error = inherited * (1.0 + 8.0 * ROUNDOFF) + roundings * ROUNDOFF * value.abs();
        (value.is_finite() && error.is_finite()).then_some(Real { value, error })
    }

    fn add(self, other: Real) -> Option<Real> {
        Real::rounded(self.value + other.value, self.error + other.error, 1.0)
    }

    fn mul(self, other: Real) -> Option<Real> {
        let inherited = self.value.abs() * other.error
            + other.value.abs() * self.error
            + self.error * other.error;
        Real::rounded(self.value * other.value, inherited, 1.0)
    }

    fn div(self, other: Real) -> Option<Real> {
        let least = other.value.abs() - other.error;
        if least <= 0.0 {
            return None;
        }
        let quotient = self.value / other.value;
        Real::rounded(quotient, (self.error + quotient.abs() * other.error) / least, 1.0)
    }

    /// A function of the platform's library, whose results are within a few units of the last place, with the greatest
    /// slope that it has within the error.
    fn apply(self, function: impl Fn(f64) -> f64, slope: f64) -> Option<Real> {
        Real::rounded(function(self.value), self.error * slope, 8.0)
    }

    fn sqrt(self) -> Option<Real> {
        let least = self.value - self.error;
        if self.value == 0.0 && self.error == 0.0 {
            return Some(self);
        }
        if least <= 0.0 {
            return None;
        }
        self.apply(f64::sqrt, 0.5 / least.sqrt())
    }

    fn ln(self) -> Option<Real> {
        let least = self.value - self.error;
        if least <= 0.0 {
            return None;
        }
        self.apply(f64::ln, 1.0 / least)
    }

    fn exp(self) -> Option<Real> {
        self.apply(f64::exp, (self.value + self.error).exp())
    }

    /// Whether two agree as far as they are known, and are known to nine digits.
    fn same(self, other: Real) -> bool {
        let error = self.error + other.error;
        let size = self.value.abs().max(other.value.abs());
        (self.value - other.value).abs() <= error && (error <= 1e-9 * size || error <= 1e-13)
    }
}

fn multiply(a: u64, b: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(PRIME)) as u64
}

fn power(mut base: u64, mut exponent: u64) -> u64 {
    let mut result = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = multiply(result, base);
        }
        base = multiply(base, base);
        exponent >>= 1;
    }
    result
}

fn inverse(a: u64) -> Option<u64> {
    (a != 0).then(|| power(a, PRIME - 2))
}

/// An integer modulo the prime.
fn residue_of(value: i128) -> u64 {
    value.rem_euclid(i128::from(PRIME)) as u64
}

/// A number between 0 and the prime, fixed by two numbers.
fn scramble(a: u64, b: u64) -> u64 {
    let mut state = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xd6e8_feb8_6659_fd93);
    for _ in 0..3 {
        state = (state ^ (state >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    }
    (state ^ (state >> 32)) % PRIME
}

impl Value {
    /// A fraction.
    pub(super) fn rational(exact: Rational) -> Value {
        let (above, below) = exact.parts();
        let real = Real::rounded(above as f64 / below as f64, 0.0, 3.0);
        let residue = inverse(residue_of(below)).map(|below| multiply(residue_of(above), below));
        Value { exact: Some(exact), residue, real }
    }

    /// A small integer.
    pub(super) fn integer(value: i64) -> Value {
        Value::rational(Rational::integer(value))
    }

    /// A number of more digits than 128 bits hold: those before the point and those after it.
    pub(super) fn digits(integer: &str, fraction: &str) -> Value {
        let mut residue = 0;
        for digit in integer.bytes().chain(fraction.bytes()) {
            residue = (multiply(residue, 10) + u64::from(digit - b'0')) % PRIME;
        }
        let scale = inverse(power(10, fraction.len() as u64));
        let real = format!("{integer}.{fraction}0").parse().ok();
        Value {
            exact: None,
            residue: scale.map(|scale| multiply(residue, scale)),
            real: real.and_then(|value: f64| Real::rounded(value, 0.0, 1.0)),
        }
    }

    /// Pi, or the base of logarithms: no polynomial equation with rational coefficients holds for it.
    pub(super) fn transcendental(value: f64) -> Value {
        let residue = scramble(value.to_bits(), 0);
        Value { exact: None, residue: Some(residue), real: Real::rounded(value, 0.0, 1.0) }
    }

    /// The imaginary unit. In float64 it is one more unknown, of which the square is not known.
    pub(super) fn imaginary(point: u64) -> Value {
        let residue = power(GENERATOR, (PRIME - 1) / 4);
        Value { residue: Some(residue), ..Value::unknown("i", point) }
    }

    /// An unknown by its name, at one of the points. Signs differ between points, so that what holds for positive
    /// numbers alone is not taken to hold.
    pub(super) fn unknown(name: &str, point: u64) -> Value {
        let hash = name.bytes().fold(0x811c_9dc5, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let residue = scramble(hash, point + 1);
        let size = 0.3 + 1.9 * (residue % (1 << 20)) as f64 / f64::from(1 << 20);
        let negative = point % 3 == 1 || (point % 3 == 2 && hash & 1 == 1);
        let value = if negative { -size } else { size };
        Value { exact: None, residue: Some(residue), real: Some(Real { value, error: 0.0 }) }
    }

    /// Whether nothing is known.
    pub(super) fn is_void(&self) -> bool {
        self.residue.is_none() && self.real.is_none()
    }

    fn each(
        self,
        other: Value,
        exact: impl Fn(Rational, Rational) -> Option<Rational>,
        residue: impl Fn(u64, u64) -> Option<u64>,
        real: impl Fn(Real, Real) -> Option<Real>,
    ) -> Value {
        if let (Some(a), Some(b)) = (self.exact, other.exact)
            && let Some(value) = exact(a, b)
        {
            return Value::rational(value);
        }
        Value {
            exact: None,
            residue: self.residue.zip(other.residue).and_then(|(a, b)| residue(a, b)),
            real: self.real.zip(other.real).and_then(|(a, b)| real(a, b)),
        }
    }

    /// The sum.
    pub(super) fn add(self, other: Value) -> Value {
        self.each(other, Rational::checked_add, |a, b| Some((a + b) % PRIME), Real::add)
    }

    /// The difference.
    pub(super) fn sub(self, other: Value) -> Value {
        self.add(other.neg())
    }

    /// The number with the other sign.
    pub(super) fn neg(self) -> Value {
        Value::integer(-1).mul(self)
    }

    /// The product.
    pub(super) fn mul(self, other: Value) -> Value {
        self.each(other, Rational::checked_mul, |a, b| Some(multiply(a, b)), Real::mul)
    }

    /// The quotient.
    pub(super) fn div(self, other: Value) -> Value {
        let exactly_zero = other.exact.is_some_and(|value| value == Rational::integer(0));
        if exactly_zero {
            return Value::void();
        }
        self.each(
            other,
            Rational::checked_div,
            |a, b| inverse(b).map(|b| multiply(a, b)),
            Real::div,
        )
    }

    fn void() -> Value {
        Value { exact: None, residue: None, real: None }
    }

    fn from_real(real: Option<Real>) -> Value {
        Value { exact: None, residue: None, real }
    }

    /// This number to the power of another.
    pub(super) fn pow(self, exponent: Value) -> Value {
        let Some(exact) = exponent.exact else {
            // e to the power of anything and positive numbers to any power.
            let real = (self.real.and_then(Real::ln))
                .zip(exponent.real)
                .and_then(|(ln, exponent)| ln.mul(exponent))
                .and_then(Real::exp);
            return Value::from_real(real);
        };
        let (above, below) = exact.parts();
        if below == 1 {
            return self.integer_power(above);
        }
        if below > 1000 {
            return Value::void();
        }
        self.root(below).integer_power(above)
    }

    fn integer_power(self, exponent: i128) -> Value {
        let Ok(size) = u64::try_from(exponent.unsigned_abs()) else { return Value::void() };
        if size == 0 && self.exact == Some(Rational::integer(0)) {
            return Value::void();
        }
        let mut exact = self.exact.and(Some(Rational::integer(1)));
        let mut left = size;
        // A fraction other than 0, 1 and -1 leaves 128 bits after 127 doublings at the latest.
        let plain = self
            .exact
            .is_some_and(|value| [-1, 0, 1].iter().any(|&small| value == Rational::integer(small)));
        if plain && left > 2 {
            left = 2 - left % 2;
        }
        while left > 0 && exact.is_some() {
            exact = exact.zip(self.exact).and_then(|(a, b)| a.checked_mul(b));
            left -= 1;
        }
        let positive = match exact {
            Some(value) => Value::rational(value),
            None => {
                let real = self.real.and_then(|real| {
                    let exponent = size as f64;
                    let value = real.value.powf(exponent);
                    let relative = real.error / real.value.abs().max(f64::MIN_POSITIVE);
                    // (1 + r)^n - 1 <= 2 n r while n r is small.
                    let growth = exponent * relative;
                    (growth < 0.1 && (real.value != 0.0 || real.error == 0.0))
                        .then(|| Real::rounded(value, 2.0 * growth * value.abs(), 8.0))
                        .flatten()
                });
                Value { exact: None, residue: self.residue.map(|base| power(base, size)), real }
            }
        };
        if exponent < 0 { Value::integer(1).div(positive) } else { positive }
    }

    /// A root. An odd root of a negative number is the negative one.
    pub(super) fn root(self, degree: i128) -> Value {
        if !(1..=1000).contains(&degree) {
            return Value::void();
        }
        if let Some(exact) = self.exact
            && let Some(root) = rational_root(exact, degree)
        {
            return Value::rational(root);
        }
        let real = self.real.and_then(|real| {
            if degree == 2 {
                return real.sqrt();
            }
            let negative = real.value < 0.0;
            if negative && degree % 2 == 0 {
                return None;
            }
            let size = Real { value: real.value.abs(), error: real.error };
            let degree = Real { value: degree as f64, error: 0.0 };
            let root = size.ln()?.div(degree)?.exp()?;
            Some(if negative { Real { value: -root.value, ..root } } else { root })
        });
        Value::from_real(real)
    }

    /// The absolute value.
    pub(super) fn abs(self) -> Value {
        match (self.exact, self.real) {
            (Some(exact), _) if exact.parts().0 < 0 => self.neg(),
            (Some(_), _) => self,
            (None, Some(real)) if real.value.abs() > real.error => {
                Value::from_real(Some(Real { value: real.value.abs(), ..real }))
            }
            _ => Value::void(),
        }
    }

    /// The greatest integer below (`up = false`), or the least above.
    pub(super) fn rounded(self, up: bool) -> Value {
        let whole = |below: i128| Rational::new(below + i128::from(up), 1);
        let rounded = match (self.exact, self.real) {
            (Some(exact), _) => {
                let (above, below) = exact.parts();
                if below == 1 { Some(exact) } else { whole(above.div_euclid(below)) }
            }
            (None, Some(real)) => {
                let (low, high) =
                    ((real.value - real.error).floor(), (real.value + real.error).floor());
                (low == high && low.abs() < 1e15).then(|| whole(low as i128)).flatten()
            }
            _ => None,
        };
        rounded.map_or_else(Value::void, Value::rational)
    }

    /// The factorial of a whole number; how many it multiplies is `steps`.
    pub(super) fn factorial(self) -> Value {
        self.falling(|n| (n, n))
    }

    /// The number of ways to choose `k` of this many.
    pub(super) fn binomial(self, k: Value) -> Value {
        let whole = |value: Value| value.exact.map(Rational::parts).filter(|parts| parts.1 == 1);
        match whole(self).zip(whole(k)) {
            Some(((n, _), (k, _))) if 0 <= k && k <= n => {
                let k = k.min(n - k);
                self.falling(|n| (n, k)).div(Value::integer(k as i64).factorial())
            }
            Some(((n, _), _)) if n >= 0 => Value::integer(0),
            _ => Value::void(),
        }
    }

    /// n (n - 1) ... of `count` factors, with n and the count made from this number.
    fn falling(self, choose: impl Fn(i128) -> (i128, i128)) -> Value {
        match self.exact.map(Rational::parts) {
            Some((n, 1)) if n >= 0 => {
                let (n, count) = choose(n);
                if count > LARGEST_FACTORIAL || n > i128::from(i64::MAX) {
                    return Value::void();
                }
                (n - count + 1..=n).fold(Value::integer(1), |product, factor| {
                    product.mul(Value::integer(factor as i64))
                })
            }
            _ => Value::void(),
        }
    }

    /// How many multiplications a factorial of this number takes.
    pub(super) fn factors(self) -> usize {
        match self.exact.map(Rational::parts) {
            Some((n, 1)) => n.clamp(1, LARGEST_FACTORIAL) as usize,
            _ => 1,
        }
    }

    /// The natural logarithm.
    pub(super) fn ln(self) -> Value {
        if self.exact == Some(Rational::integer(1)) {
            return Value::integer(0);
        }
        Value::from_real(self.real.and_then(Real::ln))
    }

    /// The logarithm to a base; exact where it is a small whole number.
    pub(super) fn log(self, base: Value) -> Value {
        if let (Some(value), Some(base)) = (self.exact, base.exact) {
            let mut reached = Rational::integer(1);
            for exponent in 0..128 {
                if reached == value {
                    return Value::integer(exponent);
                }
                let Some(next) = reached.checked_mul(base) else { break };
                reached = next;
            }
        }
        self.ln().div(base.ln())
    }

    /// A trigonometric function by its name.
    pub(super) fn trigonometric(self, name: &str) -> Value {
        let Some(x) = self.real else { return Value::void() };
        let (sin, cos) = (|| x.apply(f64::sin, 1.0), || x.apply(f64::cos, 1.0));
        let over = |above: Option<Real>, below: Option<Real>| above?.div(below?);
        let one = Some(Real { value: 1.0, error: 0.0 });
        let inside = x.value.abs() + x.error < 1.0;
        let steep = 1.0 / (1.0 - (x.value.abs() + x.error).powi(2)).max(1e-300).sqrt();
        Value::from_real(match name {
            "sin" => sin(),
            "cos" => cos(),
            "tan" => over(sin(), cos()),
            "cot" => over(cos(), sin()),
            "sec" => over(one, cos()),
            "csc" => over(one, sin()),
            "arcsin" if inside => x.apply(f64::asin, steep),
            "arccos" if inside => x.apply(f64::acos, steep),
            "arcsin" | "arccos" if x.error == 0.0 && x.value.abs() == 1.0 => {
                x.apply(if name == "arcsin" { f64::asin } else { f64::acos }, 0.0)
            }
            "arctan" => x.apply(f64::atan, 1.0),
            "sinh" => x.apply(f64::sinh, (x.value.abs() + x.error).cosh()),
            "cosh" => x.apply(f64::cosh, (x.value.abs() + x.error).cosh()),
            "tanh" => x.apply(f64::tanh, 1.0),
            _ => None,
        })
    }

    /// Whether two are the same number, as far as can be said: `None` where it cannot.
    pub(super) fn same(&self, other: &Value) -> Option<bool> {
        if let (Some(a), Some(b)) = (self.exact, other.exact) {
            return Some(a == b);
        }
        if let (Some(a), Some(b)) = (self.residue, other.residue) {
            return Some(a == b);
        }
        if let (Some(a), Some(b)) = (self.real, other.real) {
            return Some(a.same(b));
        }
        (self.is_void() != other.is_void()).then_some(false)
    }

    /// The sign, where it is known.
    pub(super) fn sign(&self) -> Option<i32> {
        if let Some(exact) = self.exact {
            return Some(exact.parts().0.signum() as i32);
        }
        let real = self.real?;
        (real.value.abs() > real.error).then_some(if real.value > 0.0 { 1 } else { -1 })
    }
}

/// The root of a fraction, where it is a fraction.
fn rational_root(value: Rational, degree: i128) -> Option<Rational> {
    let (above, below) = value.parts();
    let root = |value: i128| -> Option<i128> {
        let negative = value < 0;
        if negative && degree % 2 == 0 {
            return None;
        }
        let degree = u32::try_from(degree).ok()?;
        let size = i128::try_from(value.unsigned_abs()).ok()?;
        let guess = (size as f64).powf(1.0 / f64::from(degree)).round() as i128;
        let root = (guess.saturating_sub(2).max(0)..=guess.saturating_add(2))
            .find(|root| root.checked_pow(degree) == Some(size))?;
        Some(if negative { -root } else { root })
    };
    Rational::new(root(above)?, root(below)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: Value, b: Value) -> Option<bool> {
        a.same(&b)
    }

    #[test]
    fn the_prime_has_the_square_root_that_the_imaginary_unit_needs() {
        let i = power(GENERATOR, (PRIME - 1) / 4);
        assert_eq!(multiply(i, i), PRIME - 1);
        assert_eq!(inverse(7).map(|x| multiply(x, 7)), Some(1));
    }

    #[test]
    fn large_integers_are_told_apart_and_roots_agree() {
        let big = Value::integer(2).pow(Value::integer(500));
        assert_eq!(same(big, big.add(Value::integer(1))), Some(false));
        assert_eq!(
            same(big.mul(Value::integer(2)), Value::integer(2).pow(Value::integer(501))),
            Some(true)
        );
        let (two, eight) = (Value::integer(2).root(2), Value::integer(8).root(2));
        assert_eq!(same(two.mul(Value::integer(2)), eight), Some(true));
        assert_eq!(same(two, Value::digits("1", "41421356")), Some(false));
        assert_eq!(Value::integer(-27).root(3).exact, Some(Rational::integer(-3)));
        assert!(Value::integer(-4).root(2).is_void());
    }

    #[test]
    fn what_has_no_value_is_void() {
        assert!(Value::integer(1).div(Value::integer(0)).is_void());
        assert!(Value::integer(0).pow(Value::integer(0)).is_void());
        assert!(Value::integer(-1).ln().is_void());
        assert!(Value::integer(-1).factorial().is_void());
    }

    #[test]
    fn functions_hold_their_identities() {
        let pi = Value::transcendental(std::f64::consts::PI);
        let third = pi.div(Value::integer(3));
        assert_eq!(
            same(third.trigonometric("cos"), Value::rational(Rational::new(1, 2).unwrap())),
            Some(true)
        );
        assert_eq!(same(Value::integer(8).log(Value::integer(2)), Value::integer(3)), Some(true));
        assert_eq!(
            Value::integer(5).binomial(Value::integer(2)).exact,
            Some(Rational::integer(10))
        );
        assert_eq!(
            Value::integer(7).div(Value::integer(2)).rounded(true).exact,
            Some(Rational::integer(4))
        );
    }
}
