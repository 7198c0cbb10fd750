//! Conversion loops that the compiler vectorises, over flat ranges where the rows are contiguous.

use prime_runtime::{DType, Element, View, ViewMut, bf16, f16};

use crate::parallel;
use crate::simd::multiversion;

/// Elements a task converts at least.
const GRAIN: usize = 16384;

pub(crate) fn forward(out: ViewMut<'_>, x: View<'_>) {
    match (out.dtype(), x.dtype()) {
        (DType::BF16, DType::F32) => over::<bf16, f32>(out, x, convert),
        (DType::BF16, DType::F16) => over::<bf16, f16>(out, x, convert_half),
        (DType::BF16, _) => over::<bf16, bf16>(out, x, |out, x| out.copy_from_slice(x)),
        (_, DType::BF16) => over::<f32, bf16>(out, x, convert),
        (_, DType::F16) => over::<f32, f16>(out, x, convert_half),
        _ => over::<f32, f32>(out, x, |out, x| out.copy_from_slice(x)),
    }
}

fn over<O: Element, I: Element>(out: ViewMut<'_>, x: View<'_>, copy: fn(&mut [O], &[I])) {
    let elements = x.elements();
    if elements == 0 {
        return;
    }
    if out.is_contiguous() && x.is_contiguous() {
        let (out, x) = (out.into_shape(&[1, elements]).shared(), x.as_slice::<I>());
        parallel::ranges(elements, GRAIN, |range| {
            // SAFETY: the ranges of tasks do not overlap.
            copy(unsafe { out.part_mut(0, range.clone()) }, &x[range]);
        });
    } else {
        let rows = x.dim(0);
        let out = out.shared();
        parallel::ranges(rows, (GRAIN * rows / elements).max(1), |range| {
            for row in range {
                // SAFETY: a row belongs to one task.
                copy(unsafe { out.row_mut(row) }, x.row(row));
            }
        });
    }
}

multiversion! {
    /// Converts between float32 and bfloat16.
    pub(crate) fn convert<O: Element, I: Element>(out: &mut [O], x: &[I]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = O::from_f32(x.to_f32());
        }
    }
}

multiversion! {
    fn convert_half<O: Element>(out: &mut [O], x: &[f16]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = O::from_f32(half_to_f32(x.to_bits()));
        }
    }
}

/// A float16's value. Its exponent and significand, moved into a float32's places, are the value over 2^112: the product with it
/// is exact, for numbers below the normal range too.
#[inline(always)]
fn half_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let magnitude = bits & 0x7fff;
    let finite = f32::from_bits(magnitude << 13) * f32::from_bits((127 + 112) << 23);
    let value = if magnitude >= 0x7c00 { 0x7f80_0000 | magnitude << 13 } else { finite.to_bits() };
    f32::from_bits((bits & 0x8000) << 16 | value)
}
