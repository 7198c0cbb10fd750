//! One random case against the oracle.

use prime_runtime::random::Generator;
use prime_runtime::{DType, Device, Tensor, View};

use super::{Clip, Objective, reference};
use crate::testing::{case, compare, from_f32, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let clip = any_clip(&mut random);
    let cu_seqlens = match random.below(6) {
        0 => vec![0, random.below(2)],
        _ => crate::testing::cu_seqlens(&mut random, 9, 300),
    };
    let kind = random.below(3);
    // The oracle reads the offsets on the host.
    let objective = |offsets| match kind {
        0 => Objective::Clip(clip),
        1 => Objective::SequenceClip { low: clip.low, high: clip.high, cu_seqlens: offsets },
        _ => Objective::ClippedWeight { low: clip.low, high: clip.high },
    };
    let on_host = View::from_slice(&cu_seqlens, &[cu_seqlens.len()]);
    let offsets = random.indices(&cu_seqlens);
    let [new, old, advantages, weights] =
        any_inputs(&mut random, &cu_seqlens, objective(on_host)).map(|input| random.place(input));
    let tokens = new.dims()[0];
    let [new64, old64, advantages64, weights64] = [&new, &old, &advantages, &weights].map(to_f64);
    let columns = reference::Columns {
        new: &new64,
        constant: &new64,
        old: &old64,
        advantages: &advantages64,
        weights: &weights64,
    };

    let statistics = super::forward(
        new.view(),
        old.view(),
        advantages.view(),
        weights.view(),
        objective(offsets.view()),
    )
    .map_err(|error| error.to_string())?;
    let expected = reference::forward(columns, objective(on_host));

    // new - old, or a sequence's mean of it, is rounded once, which the exponential passes on as a relative error of its magnitude in roundoffs;
    // the exponential errs by 2 units (4 roundoffs), and two products by one roundoff each. Float64 sums add nothing to speak of.
    let unit = f64::from(f32::EPSILON) / 2.0;
    let log_ratio = |t: usize| reference::log_ratio(columns, objective(on_host), t);
    let relative = |t: usize| 1.01 * unit * (log_ratio(t).abs() + 7.0);
    // The clipped branch, and the clipped weight, are at most the greater of the ratio and the lower bound.
    let slope = |t: usize| {
        (weights64[t] * advantages64[t]).abs() * log_ratio(t).exp().max(f64::from(1.0 - clip.low))
    };
    let magnitude = |t: usize| match kind {
        2 => slope(t) * new64[t].abs(),
        _ => slope(t),
    };
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
        objective(offsets.view()),
    )
    .map_err(|error| error.to_string())?;
    let expected = reference::backward(columns, objective(on_host));
    // Products of the smallest numbers may fall below the normal range, where the error is absolute.
    let tiny = f64::from(f32::MIN_POSITIVE);
    compare("d_log_probs", &to_f64(&d_log_probs), &expected, |t| relative(t) * slope(t) + tiny)
}

/// Random bounds; every third case has equal ones, every second a dual clip.
fn any_clip(random: &mut Generator) -> Clip {
    let low = random.uniform() * 0.5;
    let high = if random.below(3) == 0 { low } else { random.uniform() };
    let dual = (random.below(2) == 0).then(|| 2.0 + 3.0 * random.uniform());
    Clip { low, high, dual }
}

/// New and old log-probs, advantages and weights. A sequence with a ratio so near to a bound that float32 may see it on the other side is
/// drawn again: there the gradient jumps.
fn any_inputs(random: &mut Generator, cu_seqlens: &[u32], objective: Objective<'_>) -> [Tensor; 4] {
    let clip = objective.clip();
    let of_sequences = matches!(objective, Objective::SequenceClip { .. });
    let edges = [1.0 - clip.low, 1.0 + clip.high, clip.dual.unwrap_or(1e9)].map(f64::from);
    let near = |log_ratio: f64| {
        log_ratio != 0.0
            && (edges.iter().any(|edge| (log_ratio.exp() / edge - 1.0).abs() < 1e-4)
                || (log_ratio.abs() - 20.0).abs() < 1e-4
                || (log_ratio - 10.0).abs() < 1e-4)
    };
    let spread = [0.05, 0.5, 2.0, 12.0][random.below(4) as usize];
    let mut values = [const { Vec::new() }; 4];
    for bounds in cu_seqlens.windows(2) {
        let length = (bounds[1] - bounds[0]) as usize;
        let mut drawn = vec![];
        let mut sum = 0.0;
        while drawn.len() < length {
            let old = -random.uniform() * 8.0;
            let new = if random.below(5) == 0 { old } else { old + random.normal() * spread };
            let log_ratio = f64::from(new) - f64::from(old);
            if !of_sequences && near(log_ratio) {
                continue;
            }
            let advantage = if random.below(9) == 0 { 0.0 } else { random.normal() * 2.0 };
            drawn.push([new, old, advantage, random.uniform()]);
            sum += log_ratio;
            if of_sequences && drawn.len() == length && near(sum / length as f64) {
                drawn.clear();
                sum = 0.0;
            }
        }
        for token in drawn {
            for (values, value) in values.iter_mut().zip(token) {
                values.push(value);
            }
        }
    }
    let tokens = values[0].len();
    values.map(|values| from_f32(&values, DType::F32, &[tokens]))
}
