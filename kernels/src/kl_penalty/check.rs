//! One random case against the oracle.

use prime_runtime::{DType, Device};

use super::{Kind, reference};
use crate::testing::{case, compare, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let kind = [Kind::Kl, Kind::Abs, Kind::Mse, Kind::LowVarKl][random.below(4) as usize];
    let tokens = match random.below(6) {
        0 => random.below(2),
        _ => random.below(700),
    } as usize;
    let spread = [0.01, 0.5, 2.0, 12.0][random.below(4) as usize];
    let [mut new, mut old, mut weights, mut before] = [const { Vec::new() }; 4];
    while new.len() < tokens {
        let from = -random.uniform() * 8.0;
        let to = if random.below(5) == 0 { from } else { from + random.normal() * spread };
        let d = f64::from(to) - f64::from(from);
        // Where the penalty is about to be held, float32 may see it on the other side, and there the gradient jumps.
        if kind == Kind::LowVarKl && ((-d).exp() + d - 11.0).abs() < 1e-3 {
            continue;
        }
        new.push(to);
        old.push(from);
        weights.push(random.normal());
        before.push(random.normal());
    }
    let column = |values: &[f32]| random.of(values, DType::F32, &[tokens]);
    let [new, old, weights] = [&new, &old, &weights].map(|values| column(values));
    let mut d_log_probs = column(&before);
    let [new64, old64, weights64] = [&new, &old, &weights].map(to_f64);

    let mut penalties = random.blank(DType::F32, &[tokens]);
    let statistics =
        super::forward(penalties.view_mut(), new.view(), old.view(), weights.view(), kind)
            .map_err(|error| error.to_string())?;
    let value = |t: usize| reference::penalty(new64[t], old64[t], kind);
    let expected: Vec<f64> = (0..tokens).map(value).collect();
    // In roundoffs: the difference is rounded once, the exponential passes that on times its own value and errs by 4, each further sum and product
    // is rounded once.
    let unit = 1.01 * f64::from(f32::EPSILON) / 2.0;
    let d = |t: usize| (new64[t] - old64[t]).abs();
    let ratio = |t: usize| (old64[t] - new64[t]).clamp(-20.0, 20.0).exp();
    let tiny = f64::from(f32::MIN_POSITIVE);
    let error = |t: usize| {
        tiny + unit
            * match kind {
                Kind::Kl | Kind::Abs => d(t),
                Kind::Mse => 2.0 * d(t) * d(t),
                // Held above 10, where no error shows.
                Kind::LowVarKl if value(t) >= 10.0 => 0.0,
                Kind::LowVarKl => ratio(t) * (d(t) + 6.0) + 3.0 * d(t) + 1.0,
            }
    };
    compare("penalties", &to_f64(&penalties), &expected, error)?;
    let sums = reference::forward(&new64, &old64, &weights64, kind);
    let of = |weight: &dyn Fn(usize) -> f64| -> f64 {
        (0..tokens).map(|t| weight(t).abs() * (error(t) + f64::EPSILON * value(t).abs())).sum()
    };
    let (loss_error, penalty_error) = (of(&|t| weights64[t]), of(&|_| 1.0));
    let tokens64 = tokens as f64;
    compare("loss", &[statistics.loss], &[sums.loss], |_| loss_error * (1.0 + tokens64 * 1e-9))?;
    compare("penalty", &[statistics.penalty], &[sums.penalty], |_| {
        penalty_error * (1.0 + tokens64 * 1e-9)
    })?;

    super::backward(d_log_probs.view_mut(), new.view(), old.view(), weights.view(), kind)
        .map_err(|error| error.to_string())?;
    let slopes = reference::backward(&new64, &old64, &weights64, kind);
    let expected: Vec<f64> =
        slopes.iter().zip(&before).map(|(slope, &before)| slope + f64::from(before)).collect();
    // The slope's own error, the product with the weight, and the sum.
    let error = |t: usize| {
        let slope = match kind {
            Kind::Kl | Kind::Abs => 0.0,
            Kind::Mse => d(t),
            Kind::LowVarKl if value(t) >= 10.0 => 0.0,
            Kind::LowVarKl => ratio(t) * (d(t) + 4.0) + ratio(t) + 1.0,
        };
        tiny + unit
            * (weights64[t].abs() * slope
                + slopes[t].abs()
                + expected[t].abs().max(slopes[t].abs()))
    };
    compare("d_log_probs", &to_f64(&d_log_probs), &expected, error)
}
