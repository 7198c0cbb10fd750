//! Multiplies every element of a tensor, in place.
//!
//! x = x * factor, rounded to the dtype. The factor of a low-rank adapter is the use: alpha / rank, on a tensor of few columns.

use prime_runtime::{Device, Result, ViewMut};

use crate::arguments::{self, with_float};

pub mod check;
mod cpu;
mod cuda;
pub mod reference;

pub(crate) use cuda::CODE;

/// x = x * factor, rounded to the dtype.
///
/// # Errors
/// When the dtype is not a float.
pub fn forward(x: ViewMut<'_>, factor: f32) -> Result<()> {
    const OPERATION: &str = "scale.forward";
    arguments::float(OPERATION, "x", x.as_view())?;
    match x.device() {
        Device::Cpu => {
            with_float!(x.dtype(), E => cpu::forward::<E>(x, factor));
            Ok(())
        }
        _ => cuda::forward(x, factor),
    }
}

#[cfg(test)]
mod tests {
    use prime_runtime::{DType, Tensor};

    use crate::testing::{assert_independent_of_threads, generator, normal, zeros};

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let values = normal(&mut generator(1), DType::F32, &[200_003], 1.0);
        assert_independent_of_threads(|| {
            let mut x = Tensor::from_slice(values.as_slice::<f32>(), &[200_003]).unwrap();
            super::forward(x.view_mut(), 0.3).unwrap();
            x.view().to_f32_vec()
        });
    }

    #[test]
    fn integers_are_refused() {
        let error = super::forward(zeros(DType::U32, &[2]).view_mut(), 1.0).unwrap_err();
        assert_eq!(error.to_string(), "scale.forward: `x` is uint32, expected float32 or bfloat16");
    }
}
