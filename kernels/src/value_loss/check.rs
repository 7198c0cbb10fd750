//! One random case against the oracle.

use prime_runtime::random::Generator;
use prime_runtime::{DType, Device, Tensor};

use super::{Statistics, reference};
use crate::testing::{case, compare, from_f32, roundoff, to_f64, zeros};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let clip = (random.below(3) != 0).then(|| 0.01 + random.uniform());
    let [values, old, returns, weights] =
        any_inputs(&mut random, clip).map(|input| random.place(input));
    let tokens = values.dims()[0];
    let [values64, old64, returns64, weights64] = [&values, &old, &returns, &weights].map(to_f64);
    let wide = clip.map(f64::from);

    let statistics =
        super::forward(values.view(), old.view(), returns.view(), weights.view(), clip)
            .map_err(|error| error.to_string())?;
    let expected = reference::forward(&values64, &old64, &returns64, &weights64, wide);

    // The difference of each branch is rounded once, and its square once more (halving is exact): 3 roundoffs of the square, which is twice the loss.
    // The bound that a value is held to is rounded before, which the square passes on as that error times the difference.
    let unit = 1.01 * roundoff(DType::F32);
    let error = |t: usize| (values64[t] - returns64[t]).abs();
    let bound = |t: usize| old64[t].abs() + wide.unwrap_or(0.0);
    let held = |t: usize| error(t).max(bound(t) + returns64[t].abs());
    let of_token = |t: usize| unit * (1.5 * held(t).powi(2) + held(t) * bound(t)) * weights64[t];
    let loss_error: f64 = (0..tokens).map(of_token).sum();
    compare("loss", &[statistics.loss], &[expected.loss], |_| loss_error + 1e-300)?;
    let counts = |s: Statistics| [s.clipped, s.tokens];
    compare("counts", &counts(statistics), &counts(expected), |_| 0.0)?;

    let mut d_values = random.blank(DType::F32, &[tokens]);
    super::backward(
        d_values.view_mut(),
        values.view(),
        old.view(),
        returns.view(),
        weights.view(),
        clip,
    )
    .map_err(|error| error.to_string())?;
    let expected = reference::backward(&values64, &old64, &returns64, &weights64, wide);
    // The difference is rounded, and its product with the weight.
    let tiny = f64::from(f32::MIN_POSITIVE);
    let allowed = |t: usize| 2.0 * unit * error(t) * weights64[t] + tiny;
    compare("d_values", &to_f64(&d_values), &expected, allowed)
}

/// Values, old values, returns and weights. A value so near to a bound, or to where the branches are equal beyond it, that float32 may see it on the
/// other side is drawn again: there the gradient jumps.
fn any_inputs(random: &mut Generator, clip: Option<f32>) -> [Tensor; 4] {
    let tokens = match random.below(6) {
        0 => random.below(2) as usize,
        _ => random.below(700) as usize,
    };
    let mut columns = [const { Vec::new() }; 4];
    while columns[0].len() < tokens {
        let old = random.normal();
        let value = if random.below(5) == 0 { old } else { old + random.normal() };
        let target = random.normal() * 1.5;
        if let Some(clip) = clip {
            let [value, old, target, clip] = [value, old, target, clip].map(f64::from);
            let moved = (value - old).abs();
            let held = value.clamp(old - clip, old + clip);
            let even = ((value - target).abs() - (held - target).abs()).abs();
            if (moved - clip).abs() < 1e-5 || moved > clip && even < 1e-5 {
                continue;
            }
        }
        for (column, number) in columns.iter_mut().zip([value, old, target, random.uniform()]) {
            column.push(number);
        }
    }
    if tokens == 0 {
        return [(); 4].map(|()| zeros(DType::F32, &[0]));
    }
    columns.map(|column| from_f32(&column, DType::F32, &[tokens]))
}
