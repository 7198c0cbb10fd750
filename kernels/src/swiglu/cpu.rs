//! Rows over cores; the exponential is straight-line code, so that a row is one vector loop.

use prime_runtime::{Element, View, ViewMut};

use crate::math::sigmoid;
use crate::parallel;
use crate::simd::multiversion;

/// Elements of the output a task takes at least.
const GRAIN: usize = 4096;

pub(crate) fn forward<E: Element>(out: ViewMut<'_>, gate_up: View<'_>) {
    let (tokens, width) = (out.dim(0), out.dim(1));
    let out = out.shared();
    parallel::ranges(tokens, GRAIN / width.max(1), |tokens| {
        for token in tokens {
            let (gate, up) = gate_up.row::<E>(token).split_at(width);
            // SAFETY: a token's row belongs to one task.
            activate(unsafe { out.row_mut(token) }, gate, up);
        }
    });
}

pub(crate) fn backward<E: Element>(d_gate_up: ViewMut<'_>, d_out: View<'_>, gate_up: View<'_>) {
    let (tokens, width) = (d_out.dim(0), d_out.dim(1));
    let d_gate_up = d_gate_up.shared();
    parallel::ranges(tokens, GRAIN / width.max(1), |tokens| {
        for token in tokens {
            let (gate, up) = gate_up.row::<E>(token).split_at(width);
            // SAFETY: a token's row belongs to one task.
            let (d_gate, d_up) = unsafe { d_gate_up.row_mut(token) }.split_at_mut(width);
            differentiate(d_gate, d_up, d_out.row(token), gate, up);
        }
    });
}

multiversion! {
    fn activate<E: Element>(out: &mut [E], gate: &[E], up: &[E]) {
        for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
            let gate = gate.to_f32();
            *out = E::from_f32(gate * sigmoid(gate) * up.to_f32());
        }
    }
}

multiversion! {
    fn differentiate<E: Element>(
        d_gate: &mut [E],
        d_up: &mut [E],
        d_out: &[E],
        gate: &[E],
        up: &[E],
    ) {
        let width = d_out.len();
        let (d_gate, d_up) = (&mut d_gate[..width], &mut d_up[..width]);
        let (gate, up) = (&gate[..width], &up[..width]);
        for i in 0..width {
            let (d, g, u) = (d_out[i].to_f32(), gate[i].to_f32(), up[i].to_f32());
            let s = sigmoid(g);
            d_gate[i] = E::from_f32(d * u * (s * g.mul_add(1.0 - s, 1.0)));
            d_up[i] = E::from_f32(d * (g * s));
        }
    }
}
