//! One random case against the oracle.

use prime_runtime::{DType, Device};

use super::reference;
use crate::testing::{case, compare, cu_seqlens, to_f64};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let longest = if random.below(4) == 0 { 300 } else { 90 };
    let offsets = cu_seqlens(&mut random, 20, longest);
    let sequences = offsets.len() - 1;
    let tokens = offsets[sequences] as usize;
    // Some betas give logits of 100 and more, where a sigmoid is 0 or 1 in float32.
    let beta = [0.05, 0.001, 1.0, 30.0][random.below(4) as usize];
    let responses = sequences + random.below(9) as usize;
    let mut log_probs = || {
        let values: Vec<f32> = (0..tokens).map(|_| -4.0 * random.uniform()).collect();
        random.of(&values, DType::F32, &[tokens])
    };
    let (prm, frozen) = (log_probs(), log_probs());
    let outcomes: Vec<f32> = (0..sequences)
        .map(|_| match random.below(3) {
            0 => random.uniform(),
            outcome => (outcome - 1) as f32,
        })
        .collect();
    let outcomes = random.of(&outcomes, DType::F32, &[sequences]);
    let cu = random.indices(&offsets);
    let [prm64, frozen64, outcomes64] = [&prm, &frozen, &outcomes].map(to_f64);

    let mut probabilities = random.blank(DType::F32, &[sequences]);
    let loss = super::forward(
        probabilities.view_mut(),
        prm.view(),
        frozen.view(),
        outcomes.view(),
        cu.view(),
        beta,
        responses,
    )
    .map_err(|error| error.to_string())?;
    let beta = f64::from(beta);
    let expected = reference::loss(&prm64, &frozen64, &outcomes64, &offsets, beta, responses);
    // Both sides are float64: a response's logit is a sum of at most `longest` terms below 4 beta, in any order, and the loss a sum
    // of at most 21 of them; each addition errs by half a unit of the greatest sum.
    let longest = f64::from(longest);
    let allowed = (2.0 * longest + 20.0) * f64::EPSILON * (1.0 + 4.0 * longest * beta);
    compare("loss", &[loss], &[expected], |_| allowed)?;
    let expected = reference::probabilities(&prm64, &frozen64, &offsets, beta);
    // Rounded to float32 once; the smallest are below its normal range.
    let rounding = |s: f64| f64::from(f32::EPSILON) * s + 1e-45 + allowed * s;
    compare("probabilities", &to_f64(&probabilities), &expected, |i| rounding(expected[i]))?;

    let mut gradient = random.blank(DType::F32, &[tokens.max(1)]);
    super::backward(
        gradient.head_mut(tokens),
        probabilities.view(),
        outcomes.view(),
        cu.view(),
        beta as f32,
        responses,
    )
    .map_err(|error| error.to_string())?;
    let expected =
        reference::backward(&to_f64(&probabilities), &outcomes64, &offsets, beta, responses);
    let actual: Vec<f64> = gradient.head(tokens).to_f32_vec().into_iter().map(f64::from).collect();
    compare("d_prm_log_probs", &actual, &expected, |t| {
        f64::from(f32::EPSILON) * expected[t].abs() + 1e-45
    })
}
