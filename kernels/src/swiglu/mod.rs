//! SwiGLU: out = silu(gate) * up, gate and up side by side in one buffer.
//!
//! `gate_up` is `[tokens, 2 * intermediate]` (gate first), `out` is `[tokens, intermediate]`, one dtype; rows may be
//! spread out. With s = sigmoid(gate): d_up = d_out gate s, d_gate = d_out up s (1 + gate (1 - s)). Each result is
//! rounded once.
//!
//! Source: Shazeer, arXiv 2002.05202.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments::{self, with_float};

pub mod check;
pub(crate) mod cpu;
mod cuda;
pub mod reference;

pub(crate) use cuda::CODE;

/// silu(gate) * up.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn forward(out: ViewMut<'_>, gate_up: View<'_>) -> Result<()> {
    const OPERATION: &str = "swiglu.forward";
    check_arguments(OPERATION, ("out", out.as_view()), ("gate_up", gate_up))?;
    match out.device() {
        Device::Cpu => {
            with_float!(out.dtype(), E => cpu::forward::<E>(out, gate_up));
            Ok(())
        }
        _ => cuda::forward(out, gate_up),
    }
}

/// Gradient of both halves, overwritten.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn backward(d_gate_up: ViewMut<'_>, d_out: View<'_>, gate_up: View<'_>) -> Result<()> {
    const OPERATION: &str = "swiglu.backward";
    check_arguments(OPERATION, ("d_out", d_out), ("gate_up", gate_up))?;
    check_arguments(OPERATION, ("d_out", d_out), ("d_gate_up", d_gate_up.as_view()))?;
    match d_out.device() {
        Device::Cpu => {
            with_float!(d_out.dtype(), E => cpu::backward::<E>(d_gate_up, d_out, gate_up));
            Ok(())
        }
        _ => cuda::backward(d_gate_up, d_out, gate_up),
    }
}

fn check_arguments(
    operation: &'static str,
    (single_name, single): (&'static str, View<'_>),
    (double_name, double): (&'static str, View<'_>),
) -> Result<()> {
    let mut dims = NamedDims::new(operation);
    dims.bind(single_name, single.dims(), ["tokens", "intermediate"])?;
    dims.bind(double_name, double.dims(), ["tokens", "2 * intermediate"])?;
    let intermediate = single.dim(1);
    if double.dim(1) != 2 * intermediate {
        return dims.fail(format!(
            "`{double_name}` is {:?}, but with `{single_name}` {:?} it would be [{}, {}]",
            double.dims(),
            single.dims(),
            single.dim(0),
            2 * intermediate
        ));
    }
    arguments::float(operation, single_name, single)?;
    arguments::same_dtype(operation, double_name, double, single.dtype())
}

#[cfg(test)]
mod tests {
    use prime_runtime::{DType, Tensor};

    use crate::testing::{assert_independent_of_threads, generator, normal, zeros};

    fn run(gate_up: &Tensor, d_out: &Tensor, tokens: std::ops::Range<usize>) -> [Vec<f32>; 2] {
        let (rows, width) = (tokens.len(), d_out.dims()[1]);
        let mut out = zeros(d_out.dtype(), &[rows, width]);
        let mut d_gate_up = zeros(d_out.dtype(), &[rows, 2 * width]);
        let (gate_up, d_out) = (gate_up.view().rows(tokens.clone()), d_out.view().rows(tokens));
        super::forward(out.view_mut(), gate_up).unwrap();
        super::backward(d_gate_up.view_mut(), d_out, gate_up).unwrap();
        [out, d_gate_up].map(|tensor| tensor.view().to_f32_vec())
    }

    #[test]
    fn results_depend_neither_on_threads_nor_on_other_tokens() {
        for dtype in [DType::F32, DType::BF16] {
            let mut random = generator(1);
            let gate_up = normal(&mut random, dtype, &[120, 2 * 333], 2.0);
            let d_out = normal(&mut random, dtype, &[120, 333], 1.0);
            assert_independent_of_threads(|| run(&gate_up, &d_out, 0..120));
            let [out, d_gate_up] = run(&gate_up, &d_out, 0..120);
            let [alone, d_alone] = run(&gate_up, &d_out, 50..51);
            assert_eq!(alone, out[50 * 333..51 * 333]);
            assert_eq!(d_alone, d_gate_up[50 * 666..51 * 666]);
        }
    }

    #[test]
    fn extreme_gates_neither_overflow_nor_leak() {
        let gate_up = crate::testing::from_f32(&[-200.0, 200.0, 3.0, 3.0], DType::F32, &[1, 4]);
        let d_out = crate::testing::from_f32(&[1.0, 1.0], DType::F32, &[1, 2]);
        let [out, d_gate_up] = run(&gate_up, &d_out, 0..1);
        assert_eq!(out, [0.0, 600.0]);
        assert_eq!(d_gate_up, [0.0, 3.0, 0.0, 200.0]);
    }

    #[test]
    fn a_buffer_that_is_not_twice_as_wide_is_refused() {
        let mut out = zeros(DType::F32, &[2, 4]);
        let refusal = |out: &mut Tensor, gate_up: &Tensor| {
            super::forward(out.view_mut(), gate_up.view()).unwrap_err().to_string()
        };
        assert_eq!(
            refusal(&mut out, &zeros(DType::F32, &[2, 7])),
            "swiglu.forward: `gate_up` is [2, 7], but with `out` [2, 4] it would be [2, 8]"
        );
        assert_eq!(
            refusal(&mut out, &zeros(DType::BF16, &[2, 8])),
            "swiglu.forward: `gate_up` is bfloat16, expected float32"
        );
    }
}
