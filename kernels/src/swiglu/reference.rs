//! The oracle, in float64, of one row.

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// silu(gate) * up.
pub fn forward(gate: &[f64], up: &[f64]) -> Vec<f64> {
    gate.iter().zip(up).map(|(g, u)| g * sigmoid(*g) * u).collect()
}

/// Gradients of gate and up.
pub fn backward(d_out: &[f64], gate: &[f64], up: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (mut d_gate, mut d_up) = (Vec::new(), Vec::new());
    for ((d, &g), u) in d_out.iter().zip(gate).zip(up) {
        let s = sigmoid(g);
        d_gate.push(d * u * s * (1.0 + g * (1.0 - s)));
        d_up.push(d * g * s);
    }
    (d_gate, d_up)
}

#[cfg(test)]
mod tests {
    use prime_runtime::DType;

    use crate::testing::{check_gradient, generator, normal, to_f64};

    #[test]
    fn gradients_are_the_slopes_of_the_forward_pass() {
        let mut random = generator(5);
        let mut draw = || to_f64(&normal(&mut random, DType::F32, &[20], 2.0));
        let (gate, up, d_out) = (draw(), draw(), draw());
        let loss = |gate: &[f64], up: &[f64]| -> f64 {
            super::forward(gate, up).iter().zip(&d_out).map(|(a, b)| a * b).sum()
        };
        let (d_gate, d_up) = super::backward(&d_out, &gate, &up);
        check_gradient("d_gate", &gate, &d_gate, |gate| loss(gate, &up)).unwrap();
        check_gradient("d_up", &up, &d_up, |up| loss(&gate, up)).unwrap();
    }
}
