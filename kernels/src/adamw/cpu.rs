//! One pass over memory: the state of a block is read, updated and written while it is in cache. What is stored in fewer bits is widened into
//! a buffer of the block first, and rounded from it.

use prime_runtime::random::{self, Stream};
use prime_runtime::{DType, SharedMut, View, ViewMut, bf16};

use super::code::{self, BLOCK, LARGEST};
use super::{Factors, Moments, Parameters, Settings};
use crate::simd::multiversion;
use crate::{cast, parallel, reduce};

/// Blocks a task takes at least.
const GRAIN: usize = 64;

/// The arrays of a range, as tasks share them.
enum SharedParameters<'a> {
    Masters(SharedMut<'a>, Option<(SharedMut<'a>, DType)>),
    Rounded(SharedMut<'a>),
}

enum SharedMoments<'a> {
    Float32(SharedMut<'a>, SharedMut<'a>),
    Int8 { m: SharedMut<'a>, m_scales: SharedMut<'a>, v: SharedMut<'a>, v_scales: SharedMut<'a> },
}

pub(super) fn update(
    parameters: Parameters<'_>,
    moments: Moments<'_>,
    gradient: &[f32],
    settings: Settings,
) {
    let count = gradient.len();
    let factors = Factors::new(settings);
    let parameters = match parameters {
        Parameters::Masters(master, compute) => SharedParameters::Masters(
            shared(master),
            compute.map(|compute| {
                let dtype = compute.dtype();
                (shared(compute), dtype)
            }),
        ),
        Parameters::Rounded(weights) => SharedParameters::Rounded(shared(weights)),
    };
    let moments = match moments {
        Moments::Float32 { m, v } => SharedMoments::Float32(shared(m), shared(v)),
        Moments::Int8 { m, m_scales, v, v_scales } => SharedMoments::Int8 {
            m: shared(m),
            m_scales: shared(m_scales),
            v: shared(v),
            v_scales: shared(v_scales),
        },
    };
    parallel::ranges(count.div_ceil(BLOCK), GRAIN, |blocks| {
        for block in blocks {
            let range = block * BLOCK..((block + 1) * BLOCK).min(count);
            // SAFETY: a block belongs to one task.
            unsafe {
                update_part(
                    &parameters,
                    &moments,
                    block,
                    range.clone(),
                    &gradient[range],
                    settings,
                    factors,
                );
            }
        }
    });
}

/// An array as one row.
fn shared(view: ViewMut<'_>) -> SharedMut<'_> {
    let elements = view.as_view().elements();
    view.into_shape(&[1, elements]).shared()
}

/// # Safety
/// Nobody else works on the block.
unsafe fn update_part(
    parameters: &SharedParameters<'_>,
    moments: &SharedMoments<'_>,
    block: usize,
    range: std::ops::Range<usize>,
    gradient: &[f32],
    settings: Settings,
    factors: Factors,
) {
    let count = range.len();
    let position = ((settings.first as usize + range.start) / 4) as u32;
    let mut wide_m = [0f32; BLOCK];
    let mut wide_v = [0f32; BLOCK];
    let mut wide_w = [0f32; BLOCK];
    let mut random = [0u32; BLOCK];
    let (wide_m, wide_v, wide_w) =
        (&mut wide_m[..count], &mut wide_v[..count], &mut wide_w[..count]);
    let words = range.start / 4..range.end.div_ceil(4);
    // SAFETY: the block's parts of all arrays are this call's alone.
    let (m, v): (&mut [f32], &mut [f32]) = unsafe {
        match moments {
            SharedMoments::Float32(m, v) => {
                (m.part_mut(0, range.clone()), v.part_mut(0, range.clone()))
            }
            SharedMoments::Int8 { m, m_scales, v, v_scales } => {
                let of_block = block..block + 1;
                let scales = [m_scales, v_scales]
                    .map(|scales| scales.part_mut::<f32>(0, of_block.clone())[0]);
                let codes = [m, v].map(|codes| &*codes.part_mut::<u32>(0, words.clone()));
                widen(wide_m, wide_v, codes[0], codes[1], scales[0], scales[1]);
                (&mut *wide_m, &mut *wide_v)
            }
        }
    };
    // SAFETY: as above.
    unsafe {
        match parameters {
            SharedParameters::Masters(master, compute) => {
                let w = master.part_mut::<f32>(0, range.clone());
                update_block(w, m, v, gradient, factors);
                match compute {
                    None => {}
                    Some((compute, DType::BF16)) => {
                        cast::cpu::convert(compute.part_mut::<bf16>(0, range), w);
                    }
                    Some((compute, _)) => compute.part_mut::<f32>(0, range).copy_from_slice(w),
                }
            }
            SharedParameters::Rounded(weights) => {
                let weights = weights.part_mut::<bf16>(0, range);
                cast::cpu::convert(wide_w, weights);
                update_block(wide_w, m, v, gradient, factors);
                fill_random(&mut random, settings.seed, 2 * settings.step + 1, position);
                round(weights, wide_w, &random);
            }
        }
        if let SharedMoments::Int8 { m: m_codes, m_scales, v: v_codes, v_scales } = moments {
            let scales = [&*m, &*v].map(|values| largest(values) / LARGEST);
            for (scale, all) in scales.into_iter().zip([m_scales, v_scales]) {
                all.part_mut::<f32>(0, block..block + 1)[0] = scale;
            }
            fill_random(&mut random, settings.seed, 2 * settings.step, position);
            let codes = [m_codes, v_codes].map(|codes| codes.part_mut::<u32>(0, words.clone()));
            let [m_codes, v_codes] = codes;
            narrow(m_codes, v_codes, m, v, scales[0], scales[1], &random);
        }
    }
}

multiversion! {
    fn update_block(w: &mut [f32], m: &mut [f32], v: &mut [f32], gradient: &[f32], factors: Factors) {
        let count = gradient.len();
        let (w, m, v) = (&mut w[..count], &mut m[..count], &mut v[..count]);
        let Factors { scale, new_m, b2, new_v, keep, rate, root, epsilon } = factors;
        for i in 0..count {
            let g = gradient[i] * scale;
            m[i] = new_m.mul_add(g - m[i], m[i]);
            v[i] = b2.mul_add(v[i], new_v * g * g);
            let denominator = v[i].sqrt() / root + epsilon;
            w[i] = w[i] * keep - rate * m[i] / denominator;
        }
    }
}

multiversion! {
    /// A word for each of a block's parameters; of a block that ends early, more than it needs.
    fn fill_random(words: &mut [u32; BLOCK], seed: u64, sequence: u64, position: u32) {
        for (index, words) in words.chunks_exact_mut(4).enumerate() {
            let place = position.wrapping_add(index as u32);
            words.copy_from_slice(&random::block(seed, Stream::Rounding, sequence, place));
        }
    }
}

multiversion! {
    fn widen(m: &mut [f32], v: &mut [f32], m_codes: &[u32], v_codes: &[u32], m_scale: f32, v_scale: f32) {
        for (i, (m, v)) in m.iter_mut().zip(v).enumerate() {
            let shift = 8 * (i % 4);
            *m = code::decode_first(m_codes[i / 4] >> shift & 255, m_scale);
            *v = code::decode_second(v_codes[i / 4] >> shift & 255, v_scale);
        }
    }
}

multiversion! {
    fn narrow(
        m_codes: &mut [u32],
        v_codes: &mut [u32],
        m: &[f32],
        v: &[f32],
        m_scale: f32,
        v_scale: f32,
        random: &[u32; BLOCK],
    ) {
        for (word, (m_codes, v_codes)) in m_codes.iter_mut().zip(v_codes).enumerate() {
            (*m_codes, *v_codes) = (0, 0);
            for i in word * 4..(word * 4 + 4).min(m.len()) {
                let shift = 8 * (i % 4);
                *m_codes |= code::encode_first(m[i], m_scale, random[i] & 0xffff) << shift;
                *v_codes |= code::encode_second(v[i], v_scale, random[i] >> 16) << shift;
            }
        }
    }
}

multiversion! {
    fn largest(values: &[f32]) -> f32 {
        values.iter().fold(0f32, |most, x| most.max(x.abs()))
    }
}

multiversion! {
    fn round(weights: &mut [bf16], w: &[f32], random: &[u32; BLOCK]) {
        for (weight, (&w, &random)) in weights.iter_mut().zip(w.iter().zip(random)) {
            *weight = bf16::from_bits(code::round(w, random >> 16));
        }
    }
}

pub(crate) fn norm(gradient: View<'_>) -> f64 {
    reduce::cpu::chunks(gradient, add_squares).sqrt()
}

multiversion! {
    fn add_squares(x: &[f32]) -> f64 {
        reduce::cpu::lanes(x, |sum, value| value.mul_add(value, sum))
    }
}
