//! One random case against the oracle.

use prime_runtime::random::Generator;
use prime_runtime::{DType, Device, Tensor};

use super::{Clip, reference};
use crate::testing::{case, compare, from_f32, to_f64, zeros};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let clip = any_clip(&mut random);
    let [new, old, advantages, weights] =
        any_inputs(&mut random, clip).map(|input| random.place(input));
    let tokens = new.dims()[0];
    let [new64, old64, advantages64, weights64] = [&new, &old, &advantages, &weights].map(to_f64);

    let statistics =
        super::forward(new.view(), old.view(), advantages.view(), weights.view(), clip)
            .map_err(|error| error.to_string())?;
    let expected = reference::forward(&new64, &old64, &advantages64, &weights64, clip);

    // new - old is rounded once, which the exponential passes on as a relative error of |new - old| roundoffs; the
    // exponential errs by 2 units (4 roundoffs), and two products by one roundoff each. Float64 sums add nothing to speak of.
    let unit = f64::from(f32::EPSILON) / 2.0;
    let relative = |t: usize| 1.01 * unit * ((new64[t] - old64[t]).abs().min(20.0) + 7.0);
    let ratio = |t: usize| (new64[t] - old64[t]).clamp(-20.0, 20.0).exp();
    let magnitude =
        |t: usize| (weights64[t] * advantages64[t]).abs() * ratio(t).max(f64::from(1.0 - clip.low));
    let loss_error: f64 = (0..tokens).map(|t| relative(t) * magnitude(t)).sum();
    compare("loss", &[statistics.loss], &[expected.loss], |_| loss_error + 1e-300)?;
    let kl_error: f64 = (0..tokens).map(|t| f64::EPSILON * (new64[t] - old64[t]).abs()).sum();
    let kl_error = kl_error * tokens as f64 + 1e-300;
    compare("kl", &[statistics.kl], &[expected.kl], |_| kl_error)?;
    let counts = |s: super::Statistics| [s.clipped, s.clipped_dual, s.tokens];
    compare("counts", &counts(statistics), &counts(expected), |_| 0.0)?;

    let mut d_log_probs = random.blank(DType::F32, &[tokens]);
    super::backward(
        d_log_probs.view_mut(),
        new.view(),
        old.view(),
        advantages.view(),
        weights.view(),
        clip,
    )
    .map_err(|error| error.to_string())?;
    let expected = reference::backward(&new64, &old64, &advantages64, &weights64, clip);
    // Products of the smallest numbers may fall below the normal range, where the error is absolute.
    let tiny = f64::from(f32::MIN_POSITIVE);
    compare("d_log_probs", &to_f64(&d_log_probs), &expected, |t| relative(t) * magnitude(t) + tiny)
}

/// Random bounds; every third case has equal ones, every second a dual clip.
fn any_clip(random: &mut Generator) -> Clip {
    let low = random.uniform() * 0.5;
    let high = if random.below(3) == 0 { low } else { random.uniform() };
    let dual = (random.below(2) == 0).then(|| 2.0 + 3.0 * random.uniform());
    Clip { low, high, dual }
}

/// New and old log-probs, advantages and weights. A ratio so near to a bound that float32 may see it on the other side is
/// drawn again: there the gradient jumps.
fn any_inputs(random: &mut Generator, clip: Clip) -> [Tensor; 4] {
    let tokens = match random.below(6) {
        0 => random.below(2) as usize,
        _ => random.below(700) as usize,
    };
    let mut values = [const { Vec::new() }; 4];
    let edges = [1.0 - clip.low, 1.0 + clip.high, clip.dual.unwrap_or(1e9)].map(f64::from);
    let near = |log_ratio: f64| {
        edges.iter().any(|edge| (log_ratio.exp() / edge - 1.0).abs() < 1e-4)
            || (log_ratio.abs() - 20.0).abs() < 1e-4
    };
    let spread = [0.05, 0.5, 2.0, 12.0][random.below(4) as usize];
    while values[0].len() < tokens {
        let old = -random.uniform() * 8.0;
        let new = if random.below(5) == 0 { old } else { old + random.normal() * spread };
        if new != old && near(f64::from(new) - f64::from(old)) {
            continue;
        }
        let advantage = if random.below(9) == 0 { 0.0 } else { random.normal() * 2.0 };
        for (values, value) in values.iter_mut().zip([new, old, advantage, random.uniform()]) {
            values.push(value);
        }
    }
    if tokens == 0 {
        return [(); 4].map(|()| zeros(DType::F32, &[0]));
    }
    values.map(|values| from_f32(&values, DType::F32, &[tokens]))
}
