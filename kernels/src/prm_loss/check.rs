//! One random case against the oracle.

use prime_runtime::{DType, Device};

use super::reference::Batch;
use super::{Cost, Inputs, Over, Settings, Targets};
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
    let settings = Settings {
        // Some betas give logits of 100 and more, where a sigmoid is 0 or 1 in float32.
        beta: [0.05, 0.001, 1.0, 30.0][random.below(4) as usize],
        cost: [Cost::CrossEntropy, Cost::Error][random.below(2) as usize],
        over: [Over::Responses, Over::Prefixes][random.below(2) as usize],
        divisor: f64::from(1 + random.below(90)),
    };
    let mut log_probs = || {
        let values: Vec<f32> = (0..tokens).map(|_| -4.0 * random.uniform()).collect();
        random.of(&values, DType::F32, &[tokens])
    };
    let (prm, frozen) = (log_probs(), log_probs());
    let mut cu_targets = vec![0];
    for _ in 0..sequences {
        cu_targets
            .push(cu_targets[cu_targets.len() - 1] + [0, 1, 1, 1, 4][random.below(5) as usize]);
    }
    let targets = cu_targets[sequences] as usize;
    let mut column = |of: &mut dyn FnMut(u32, f32) -> f32| {
        let values: Vec<f32> =
            (0..targets).map(|_| of(random.below(3), random.uniform())).collect();
        random.of(&values, DType::F32, &[targets])
    };
    let labels = column(&mut |kind, uniform| match kind {
        0 => uniform,
        label => (label - 1) as f32,
    });
    let shifts = column(&mut |kind, uniform| if kind == 0 { 0.0 } else { 4.0 * uniform - 2.0 });
    let weights = column(&mut |kind, uniform| if kind == 0 { 1.0 } else { 3.0 * uniform });
    let (cu, cu_of_targets) = (random.indices(&offsets), random.indices(&cu_targets));
    let prm64 = to_f64(&prm);
    let [labels64, shifts64, weights64] = [&labels, &shifts, &weights].map(to_f64);
    let oracle = Batch {
        reference: to_f64(&frozen),
        cu_seqlens: offsets.clone(),
        targets: cu_targets
            .windows(2)
            .map(|span| {
                let span = span[0] as usize..span[1] as usize;
                span.map(|k| [labels64[k], shifts64[k], weights64[k]]).collect()
            })
            .collect(),
        beta: f64::from(settings.beta),
        cost: settings.cost,
        over: settings.over,
        divisor: settings.divisor,
    };
    let inputs = Inputs {
        prm_log_probs: prm.view(),
        ref_log_probs: frozen.view(),
        cu_seqlens: cu.view(),
        targets: Targets {
            labels: labels.view(),
            offsets: shifts.view(),
            weights: weights.view(),
            cu_targets: cu_of_targets.view(),
        },
    };

    let loss = super::forward(inputs, settings).map_err(|error| error.to_string())?;
    // Both sides are float64. A logit is a sum of at most `longest` terms below 4 beta, in any order, less an offset below 2: its error is at
    // most `longest` roundings of its greatest sum. A cost changes by no more than its logit does, is itself no greater than 1 + |x|, and
    // is made by fewer than 20 roundings. Then costs are added, those of a response first.
    let longest = f64::from(longest);
    let (span, additions) = match settings.over {
        Over::Responses => (longest, 25.0 + 4.0),
        Over::Prefixes => (1.0, 25.0 + 4.0 + longest),
    };
    let greatest = 3.0 + 4.0 * span * oracle.beta;
    let of_logit = |response: usize| -> f64 {
        let weights: f64 = oracle.targets[response].iter().map(|[_, _, weight]| weight).sum();
        (longest + 20.0 + additions) * f64::EPSILON * greatest * weights / settings.divisor
    };
    let allowed: f64 = (0..sequences)
        .map(|response| match settings.over {
            Over::Responses => of_logit(response),
            Over::Prefixes => {
                of_logit(response) * f64::from(offsets[response + 1] - offsets[response])
            }
        })
        .sum();
    compare("loss", &[loss], &[oracle.loss(&prm64)], |_| allowed)?;

    let mut gradient = random.blank(DType::F32, &[tokens.max(1)]);
    super::backward(gradient.head_mut(tokens), inputs, settings)
        .map_err(|error| error.to_string())?;
    let (expected, magnitude) = oracle.gradient(&prm64);
    let actual: Vec<f64> = gradient.head(tokens).to_f32_vec().into_iter().map(f64::from).collect();
    compare("d_prm_log_probs", &actual, &expected, |t| {
        let response = offsets.partition_point(|&start| start as usize <= t) - 1;
        // A response's gradient is rounded to float32 once; of prefixes, each term once and their sum once more. Both are of a slope that is as
        // far off as its logit; of the prefixes behind a token, the k-th term is divided by its number of tokens.
        let terms = match settings.over {
            Over::Responses => 1.0,
            Over::Prefixes => 1.0 + longest.ln(),
        };
        f64::from(f32::EPSILON) * magnitude[t]
            + longest * 1e-45
            + of_logit(response) * oracle.beta * terms
    })
}
