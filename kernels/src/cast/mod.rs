//! Copies between float32 and bfloat16 (rounded to nearest, ties to even) and from float16.

use prime_runtime::{DType, Device, Error, NamedDims, Result, View, ViewMut};

use crate::arguments;

pub mod check;
pub(crate) mod cpu;
mod cuda;
pub mod reference;

pub(crate) use cuda::CODE;

/// out = x in `out`'s dtype, element by element; shapes agree.
///
/// # Errors
/// When shapes disagree or a dtype is not a float.
pub fn forward(out: ViewMut<'_>, x: View<'_>) -> Result<()> {
    const OPERATION: &str = "cast.forward";
    if out.dims() != x.dims() {
        return NamedDims::new(OPERATION).fail(format!(
            "`out` is {:?}, but `x` is {:?}",
            out.dims(),
            x.dims()
        ));
    }
    arguments::float(OPERATION, "out", out.as_view())?;
    if x.dtype() == DType::U32 {
        return Err(Error::DType {
            operation: OPERATION,
            tensor: "x",
            found: x.dtype(),
            expected: "float32, bfloat16 or float16",
        });
    }
    match out.device() {
        Device::Cpu => {
            cpu::forward(out, x);
            Ok(())
        }
        _ => cuda::forward(out, x),
    }
}

/// The gradient of a cast is a cast.
///
/// # Errors
/// As for [`forward`].
pub fn backward(d_x: ViewMut<'_>, d_out: View<'_>) -> Result<()> {
    forward(d_x, d_out)
}

#[cfg(test)]
mod tests {
    use prime_runtime::{DType, Tensor, bf16, f16};
    use proptest::prelude::*;

    use crate::testing::{assert_independent_of_threads, generator, normal, zeros};

    #[test]
    fn every_float16_becomes_the_float32_of_its_value() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let x = Tensor::from_slice(&all, &[all.len()]).unwrap();
        let mut out = zeros(DType::F32, &[all.len()]);
        super::forward(out.view_mut(), x.view()).unwrap();
        for (&ours, half) in out.as_slice::<f32>().iter().zip(&all) {
            assert!(ours == half.to_f32() || (ours.is_nan() && half.is_nan()), "{half:?}");
        }
    }

    #[test]
    fn a_copy_keeps_every_bit() {
        let all: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let x = Tensor::from_slice(&all, &[256, 256]).unwrap();
        let mut out = zeros(DType::BF16, &[256, 256]);
        super::forward(out.view_mut(), x.view()).unwrap();
        let bits = |tensor: &Tensor| -> Vec<u16> {
            tensor.as_slice::<bf16>().iter().map(|x| x.to_bits()).collect()
        };
        assert_eq!(bits(&out), bits(&x));
    }

    #[test]
    fn casts_do_not_depend_on_the_number_of_threads() {
        let x = normal(&mut generator(1), DType::F32, &[300, 401], 1.0);
        assert_independent_of_threads(|| {
            let mut out = zeros(DType::BF16, &[300, 390]);
            super::forward(out.view_mut(), x.view().columns(5..395)).unwrap();
            out.view().to_f32_vec()
        });
    }

    #[test]
    fn a_tensor_without_dimensions_is_one_element() {
        let x = Tensor::from_slice(&[1.5f32], &[]).unwrap();
        let mut out = zeros(DType::BF16, &[]);
        super::forward(out.view_mut(), x.view()).unwrap();
        assert_eq!(out.as_slice::<bf16>(), [bf16::from_f32(1.5)]);
    }

    #[test]
    fn shapes_and_dtypes_that_cannot_be_cast_are_refused() {
        let mut out = zeros(DType::F32, &[2, 3]);
        let message = |out: &mut Tensor, x: &Tensor| {
            super::forward(out.view_mut(), x.view()).unwrap_err().to_string()
        };
        assert_eq!(
            message(&mut out, &zeros(DType::F32, &[3, 2])),
            "cast.forward: `out` is [2, 3], but `x` is [3, 2]"
        );
        assert_eq!(
            message(&mut out, &zeros(DType::U32, &[2, 3])),
            "cast.forward: `x` is uint32, expected float32, bfloat16 or float16"
        );
        assert_eq!(
            message(&mut zeros(DType::F16, &[2]), &zeros(DType::F32, &[2])),
            "cast.forward: `out` is float16, expected float32 or bfloat16"
        );
    }

    proptest! {
        #[test]
        fn any_float32_rounds_as_the_half_crate_rounds_it(bits in proptest::collection::vec(any::<u32>(), 1..80)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let x = Tensor::from_slice(&values, &[values.len()]).unwrap();
            let mut out = zeros(DType::BF16, &[values.len()]);
            super::forward(out.view_mut(), x.view()).unwrap();
            for (ours, &value) in out.as_slice::<bf16>().iter().zip(&values) {
                let theirs = bf16::from_f32(value);
                prop_assert!(ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()));
            }
        }
    }
}
