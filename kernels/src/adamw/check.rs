//! One random case against the oracle.

use prime_runtime::{DType, Device, Tensor};

use super::code::{self, SMALLEST_FIRST, SMALLEST_SECOND};
use super::{BLOCK, Moments, Parameters, Settings, reference};
use crate::testing::{Case, any_dtype, case, compare, roundoff};

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
        seed: u64::from(random.next_u32()),
        first: 4 * u64::from(random.below(1000)),
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
    let mut bounds = [(); 3].map(|()| Vec::with_capacity(count));
    for i in 0..count {
        let state = [&mut w_exact[i], &mut m_exact[i], &mut v_exact[i]];
        let found = exactly(state, gradients[i], settings);
        bounds.iter_mut().zip(found).for_each(|(bounds, bound)| bounds.push(bound));
    }

    super::update(
        Parameters::Masters(
            master.view_mut().into_rows(first..whole),
            with_compute.then(|| compute.view_mut().into_rows(first..whole)),
        ),
        Moments::Float32 {
            m: m.view_mut().into_rows(first..whole),
            v: v.view_mut().into_rows(first..whole),
        },
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
    compare("norm", &[norm], &[exact], |_| (count as f64 + 4.0) * f64::EPSILON * exact)?;
    check_small(&mut random, settings)
}

/// Updates one parameter exactly, and gives the bounds of the errors of float32 arithmetic in weight and moments.
fn exactly(state: [&mut f64; 3], gradient: f64, settings: Settings) -> [f64; 3] {
    let [w, m, v] = state;
    let u = roundoff(DType::F32);
    let (w_before, m_before) = (*w, *m);
    reference::update(w, m, v, gradient, settings);
    // g is off by 2 roundoffs (its factor and the product), g - m by those and 1, its product with a rounded factor by
    // 1 more, and the fused sum rounds its result.
    let g = (gradient * settings.gradient_scale).abs();
    let part = 1.0 - settings.beta1;
    let m_bound = u * (part * (2.0 * g + 2.0 * (g + m_before.abs())) + m.abs());
    // All terms are positive: g^2 is off by 4 roundoffs, its two products and factor by 3, the sum by 1.
    let v_bound = 8.0 * u * *v;
    // The root halves 8 roundoffs and adds 1, then a factor and a division: 7; epsilon's rounding is no more, the sum
    // adds 1. The rate, its product and the division add 3.
    let root = (1.0 - settings.beta2.powf(settings.step as f64)).sqrt();
    let denominator = v.sqrt() / root + settings.epsilon;
    let rate = settings.learning_rate / (1.0 - settings.beta1.powf(settings.step as f64));
    let change = (rate * *m / denominator).abs();
    let w_bound =
        rate / denominator * m_bound + 11.0 * u * change + 2.0 * u * w_before.abs() + u * w.abs();
    [w_bound, m_bound, v_bound].map(|bound| 1.01 * bound)
}

/// Moments of eight bits, weights without masters, or both.
fn check_small(random: &mut Case, settings: Settings) -> Result<(), String> {
    let count = random.below(2000) as usize;
    let dtype = any_dtype(random);
    let with_masters = random.below(2) == 0;
    let eight = with_masters || random.below(2) == 0;
    let host = |random: &mut Case, scale: f32| -> Vec<f32> {
        (0..count).map(|_| random.normal() * scale).collect()
    };
    let gradients = host(random, 1.0);
    let gradient = random.of(&gradients, DType::F32, &[count]);
    let weights = host(random, 1.0);
    let mut master = random.of(&weights, DType::F32, &[count]);
    let mut compute = if with_masters {
        random.blank(dtype, &[count])
    } else {
        random.of(&weights, DType::BF16, &[count])
    };
    let words = |random: &mut Case| -> Vec<u32> {
        (0..count.div_ceil(4)).map(|_| random.next_u32()).collect()
    };
    let scales = |random: &mut Case| -> Vec<f32> {
        (0..count.div_ceil(BLOCK)).map(|_| random.uniform() * 0.1).collect()
    };
    let (m_words, v_words, m_of, v_of) =
        (words(random), words(random), scales(random), scales(random));
    let decoded = |words: &[u32], scales: &[f32], decode: fn(u32, f32) -> f32| -> Vec<f64> {
        let code = |i: usize| words[i / 4] >> (8 * (i % 4)) & 255;
        (0..count).map(|i| f64::from(decode(code(i), scales[i / BLOCK]))).collect()
    };
    let (mut m_exact, mut v_exact) = if eight {
        let second = decoded(&v_words, &v_of, code::decode_second);
        (decoded(&m_words, &m_of, code::decode_first), second)
    } else {
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect::<Vec<_>>();
        (wide(host(random, 0.1)), wide(host(random, 0.1)).iter().map(|v| v * v).collect())
    };
    let narrow = |values: &[f64]| values.iter().map(|&x| x as f32).collect::<Vec<f32>>();
    let mut m = random.of(&narrow(&m_exact), DType::F32, &[count]);
    v_exact.iter_mut().for_each(|v| *v = f64::from(*v as f32));
    let mut v = random.of(&narrow(&v_exact), DType::F32, &[count]);
    let (mut m_codes, mut v_codes) = (random.indices(&m_words), random.indices(&v_words));
    let blocks = [count.div_ceil(BLOCK)];
    let mut m_scales = random.of(&m_of, DType::F32, &blocks);
    let mut v_scales = random.of(&v_of, DType::F32, &blocks);
    let f64s = |tensor: &Tensor| -> Result<Vec<f64>, String> {
        let values = tensor.view().to_f32_vec();
        Ok(values.into_iter().map(f64::from).collect())
    };
    let mut w_exact = f64s(if with_masters { &master } else { &compute })?;
    let mut bounds = [(); 3].map(|()| Vec::with_capacity(count));
    for i in 0..count {
        let state = [&mut w_exact[i], &mut m_exact[i], &mut v_exact[i]];
        let found = exactly(state, f64::from(gradients[i]), settings);
        bounds.iter_mut().zip(found).for_each(|(bounds, bound)| bounds.push(bound));
    }

    let parameters = if with_masters {
        Parameters::Masters(master.view_mut(), Some(compute.view_mut()))
    } else {
        Parameters::Rounded(compute.view_mut())
    };
    let moments = if eight {
        Moments::Int8 {
            m: m_codes.view_mut(),
            m_scales: m_scales.view_mut(),
            v: v_codes.view_mut(),
            v_scales: v_scales.view_mut(),
        }
    } else {
        Moments::Float32 { m: m.view_mut(), v: v.view_mut() }
    };
    super::update(parameters, moments, gradient.view(), settings).map_err(|e| e.to_string())?;
    if with_masters {
        compare("master beside codes", &f64s(&master)?, &w_exact, |i| bounds[0][i])?;
        let rounded = f64s(&master)?;
        let rounded: Vec<f64> =
            rounded.iter().map(|&w| crate::cast::reference::forward(w, dtype)).collect();
        compare("compute beside codes", &f64s(&compute)?, &rounded, |_| 0.0)?;
    } else {
        // Up or down: less than the distance of two neighbours, which is 2^-7 of the smaller at most.
        compare("rounded weights", &f64s(&compute)?, &w_exact, |i| {
            bounds[0][i] + 2f64.powi(-7) * (w_exact[i].abs() + bounds[0][i]) + 1e-38
        })?;
    }
    if !eight {
        compare("m beside rounded weights", &f64s(&m)?, &m_exact, |i| bounds[1][i])?;
        return compare("v beside rounded weights", &f64s(&v)?, &v_exact, |i| bounds[2][i]);
    }
    let words = |tensor: &Tensor| tensor.view().to_vec::<u32>().map_err(|e| e.to_string());
    let of = |exact, bounds| Exact { exact, bounds };
    let (m_codes, v_codes) = (words(&m_codes)?, words(&v_codes)?);
    let found = decoded(&m_codes, &m_scales.view().to_f32_vec(), code::decode_first);
    compare_codes("m", &found, &m_scales, SMALLEST_FIRST, of(&m_exact, &bounds[1]))?;
    let found = decoded(&v_codes, &v_scales.view().to_f32_vec(), code::decode_second);
    compare_codes("v", &found, &v_scales, SMALLEST_SECOND, of(&v_exact, &bounds[2]))
}

/// Moments, and the bounds of the errors of float32 arithmetic in them.
struct Exact<'a> {
    exact: &'a [f64],
    bounds: &'a [f64],
}

fn compare_codes(
    what: &str,
    found: &[f64],
    scales: &Tensor,
    smallest: f32,
    Exact { exact, bounds }: Exact<'_>,
) -> Result<(), String> {
    let u = roundoff(DType::F32);
    let scales = scales.view().to_f32_vec();
    for (block, &scale) in scales.iter().enumerate() {
        let of_block = block * BLOCK..((block + 1) * BLOCK).min(exact.len());
        let largest = exact[of_block.clone()].iter().fold(0f64, |most, x| most.max(x.abs()));
        let error = bounds[of_block].iter().fold(0f64, |most, x| most.max(*x));
        let wanted = largest / f64::from(code::LARGEST);
        compare("scale", &[f64::from(scale)], &[wanted], |_| error + 2.0 * u * wanted + 1e-38)?;
    }
    // Less than the distance of two codes; the division by the scale, the product with it, and what aligns a small number round.
    compare(what, found, exact, |i| {
        let smallest = f64::from(smallest) * f64::from(scales[i / BLOCK]);
        let magnitude = exact[i].abs() + bounds[i];
        bounds[i] + magnitude.max(smallest) * (1.0 / 8.0 + 8.0 * u) + 1e-38
    })
}
