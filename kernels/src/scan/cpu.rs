//! Sequences over cores; within one, a chain of fused multiply-adds.

use prime_runtime::ViewMut;

use crate::parallel;
use crate::simd::multiversion;

/// Tokens a task takes at least.
const GRAIN: usize = 8192;

pub(crate) fn forward(out: &mut [f32], x: &[f32], cu_seqlens: &[u32], discount: f32) {
    over_sequences(out, cu_seqlens, |out, start| {
        reverse(out, &x[start..start + out.len()], discount);
    });
}

pub(crate) fn backward(d_x: &mut [f32], d_out: &[f32], cu_seqlens: &[u32], discount: f32) {
    over_sequences(d_x, cu_seqlens, |d_x, start| {
        advance(d_x, &d_out[start..start + d_x.len()], discount);
    });
}

fn over_sequences(out: &mut [f32], cu_seqlens: &[u32], scan: impl Fn(&mut [f32], usize) + Sync) {
    let (tokens, sequences) = (out.len(), cu_seqlens.len() - 1);
    let out = ViewMut::from_slice(out, &[1, tokens]).shared();
    parallel::ranges(sequences, GRAIN * sequences / tokens.max(1), |range| {
        for sequence in range {
            let (start, end) = (cu_seqlens[sequence] as usize, cu_seqlens[sequence + 1] as usize);
            // SAFETY: sequences do not overlap, and each belongs to one task.
            scan(unsafe { out.part_mut::<f32>(0, start..end) }, start);
        }
    });
}

multiversion! {
    fn reverse(out: &mut [f32], x: &[f32], discount: f32) {
        let mut sum = 0f32;
        for (out, &x) in out.iter_mut().zip(x).rev() {
            sum = discount.mul_add(sum, x);
            *out = sum;
        }
    }
}

multiversion! {
    fn advance(d_x: &mut [f32], d_out: &[f32], discount: f32) {
        let mut sum = 0f32;
        for (d_x, &d_out) in d_x.iter_mut().zip(d_out) {
            sum = discount.mul_add(sum, d_out);
            *d_x = sum;
        }
    }
}
