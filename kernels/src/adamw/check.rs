//! One random case against the oracle.

use prime_runtime::{DType, Device, Tensor};

use super::{Settings, reference};
use crate::testing::{any_dtype, case, compare, roundoff};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let dtype = any_dtype(&mut random);
    let most = if random.below(20) == 0 { 20_000 } else { 3000 };
    let count = random.below(most) as usize;
    // A range of parameters may begin anywhere: half of the ranges are not aligned.
    let first = random.below(2) as usize * random.below(8) as usize;
    let whole = first + count;
    let settings = Settings {
        learning_rate: f64::from(random.uniform()) * 0.1,
        beta1: 0.9,
        beta2: if random.below(2) == 0 { 0.999 } else { 0.95 },
        epsilon: 1e-8,
        weight_decay: f64::from(random.below(2)) * 0.1,
        step: 1 + u64::from(random.below(2000)),
        gradient_scale: f64::from(random.uniform()),
    };
    let mut draw = |scale| random.tensor(DType::F32, &[whole], scale);
    let (mut master, mut m, gradient) = (draw(1.0), draw(0.1), draw(1.0));
    let squares: Vec<f32> = draw(0.1).view().to_f32_vec().into_iter().map(|x| x * x).collect();
    let mut v = random.of(&squares, DType::F32, &[whole]);
    let mut compute = random.blank(dtype, &[whole]);
    let with_compute = random.below(3) > 0;
    let range = |tensor: &Tensor| -> Vec<f64> {
        tensor.view().rows(first..whole).to_f32_vec().into_iter().map(f64::from).collect()
    };

    let [mut w_exact, mut m_exact, mut v_exact] = [&master, &m, &v].map(range);
    let gradients = range(&gradient);
    let u = roundoff(DType::F32);
    let mut bounds = [(); 3].map(|()| Vec::with_capacity(count));
    for i in 0..count {
        let (w_before, m_before) = (w_exact[i], m_exact[i]);
        reference::update(
            &mut w_exact[i],
            &mut m_exact[i],
            &mut v_exact[i],
            gradients[i],
            settings,
        );
        // g is off by 2 roundoffs (its factor and the product), g - m by those and 1, its product with a rounded factor by
        // 1 more, and the fused sum rounds its result.
        let g = (gradients[i] * settings.gradient_scale).abs();
        let part = 1.0 - settings.beta1;
        let m_bound = u * (part * (2.0 * g + 2.0 * (g + m_before.abs())) + m_exact[i].abs());
        // All terms are positive: g^2 is off by 4 roundoffs, its two products and factor by 3, the sum by 1.
        let v_bound = 8.0 * u * v_exact[i];
        // The root halves 8 roundoffs and adds 1, then a factor and a division: 7; epsilon's rounding is no more, the sum
        // adds 1. The rate, its product and the division add 3.
        let root = (1.0 - settings.beta2.powf(settings.step as f64)).sqrt();
        let denominator = v_exact[i].sqrt() / root + settings.epsilon;
        let rate = settings.learning_rate / (1.0 - settings.beta1.powf(settings.step as f64));
        let change = (rate * m_exact[i] / denominator).abs();
        let w_bound = rate / denominator * m_bound
            + 11.0 * u * change
            + 2.0 * u * w_before.abs()
            + u * w_exact[i].abs();
        bounds[0].push(1.01 * w_bound);
        bounds[1].push(1.01 * m_bound);
        bounds[2].push(1.01 * v_bound);
    }

    super::update(
        master.view_mut().into_rows(first..whole),
        with_compute.then(|| compute.view_mut().into_rows(first..whole)),
        m.view_mut().into_rows(first..whole),
        v.view_mut().into_rows(first..whole),
        gradient.view().rows(first..whole),
        settings,
    )
    .map_err(|error| error.to_string())?;
    compare("m", &range(&m), &m_exact, |i| bounds[1][i])?;
    compare("v", &range(&v), &v_exact, |i| bounds[2][i])?;
    compare("master", &range(&master), &w_exact, |i| bounds[0][i])?;
    if with_compute {
        let rounded: Vec<f64> =
            range(&master).iter().map(|&w| crate::cast::reference::forward(w, dtype)).collect();
        compare("compute", &range(&compute), &rounded, |_| 0.0)?;
    }

    let norm =
        super::norm(gradient.view().rows(first..whole)).map_err(|error| error.to_string())?;
    let exact = reference::norm(&gradients);
    // Squares are exact or rounded once, and positive: a relative roundoff for each addition, on either side.
    compare("norm", &[norm], &[exact], |_| (count as f64 + 4.0) * f64::EPSILON * exact)
}
