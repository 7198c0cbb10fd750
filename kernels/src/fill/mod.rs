//! Sets every element of a tensor.

use prime_runtime::{Device, Result, ViewMut};

use crate::arguments::{self, with_float};

pub mod check;
pub(crate) mod cpu;
mod cuda;

pub(crate) use cuda::CODE;

/// out = value, rounded to the dtype.
///
/// # Errors
/// When the dtype is not a float.
pub fn forward(out: ViewMut<'_>, value: f32) -> Result<()> {
    const OPERATION: &str = "fill.forward";
    arguments::float(OPERATION, "out", out.as_view())?;
    match out.device() {
        Device::Cpu => {
            with_float!(out.dtype(), E => cpu::forward::<E>(out, value));
            Ok(())
        }
        _ => cuda::forward(out, value),
    }
}

#[cfg(test)]
mod tests {
    use prime_runtime::DType;

    use crate::testing::zeros;

    #[test]
    fn large_tensors_are_filled_to_the_last_element() {
        let mut out = zeros(DType::BF16, &[123_457]);
        super::forward(out.view_mut(), -0.1).unwrap();
        let rounded = crate::cast::reference::forward(f64::from(-0.1f32), DType::BF16) as f32;
        assert!(out.view().to_f32_vec().iter().all(|&x| x == rounded));
    }

    #[test]
    fn integers_are_refused() {
        let error = super::forward(zeros(DType::U32, &[2]).view_mut(), 1.0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "fill.forward: `out` is uint32, expected float32 or bfloat16"
        );
    }
}
