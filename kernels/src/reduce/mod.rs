//! Sums in a fixed order.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments::{self, with_float};

pub mod check;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod reference;

pub(crate) use cuda::CODE;

/// Adds to each element of `out` (float32 `[columns]`) the sum of its column of `x` (`[rows, columns]`), rows in order on the
/// host: a bias's gradient.
///
/// # Errors
/// When shapes or dtypes disagree.
pub fn columns(out: ViewMut<'_>, x: View<'_>) -> Result<()> {
    const OPERATION: &str = "reduce.columns";
    let mut dims = NamedDims::new(OPERATION);
    dims.bind("x", x.dims(), ["rows", "columns"])?;
    dims.bind("out", out.dims(), ["columns"])?;
    arguments::float(OPERATION, "x", x)?;
    arguments::dense::<f32>(OPERATION, "out", out.as_view())?;
    match x.device() {
        Device::Cpu => {
            with_float!(x.dtype(), E => cpu::columns::<E>(out.into_slice(), x));
            Ok(())
        }
        _ => cuda::columns(out, x),
    }
}

/// The sum of all elements, in float64 over fixed chunks.
///
/// # Errors
/// When the dtype is not a float.
pub fn sum(x: View<'_>) -> Result<f64> {
    const OPERATION: &str = "reduce.sum";
    arguments::float(OPERATION, "x", x)?;
    match x.device() {
        Device::Cpu => Ok(with_float!(x.dtype(), E => cpu::sum::<E>(x))),
        _ => cuda::sum(x, cuda::Of::Elements),
    }
}

#[cfg(test)]
mod tests {
    use prime_runtime::DType;
    use proptest::prelude::*;

    use crate::testing::{assert_independent_of_threads, generator, normal, zeros};

    #[test]
    fn column_sums_do_not_depend_on_the_number_of_threads() {
        let x = normal(&mut generator(1), DType::F32, &[700, 300], 1.0);
        assert_independent_of_threads(|| {
            let mut out = zeros(DType::F32, &[300]);
            super::columns(out.view_mut(), x.view()).unwrap();
            out.view().to_f32_vec()
        });
    }

    #[test]
    fn a_sum_does_not_depend_on_the_number_of_threads_or_on_how_rows_lie() {
        let wide = normal(&mut generator(2), DType::BF16, &[1100, 131], 1.0);
        let spread = wide.view().columns(3..120);
        let mut packed = zeros(DType::BF16, &[1100, 117]);
        crate::cast::forward(packed.view_mut(), spread).unwrap();
        let expected = super::sum(packed.view()).unwrap();
        assert_eq!(super::sum(spread).unwrap(), expected);
        assert_independent_of_threads(|| super::sum(spread).unwrap().to_bits());
    }

    #[cfg(feature = "emulated")]
    #[test]
    fn a_device_loses_no_element_of_a_sum_over_more_than_all_blocks_take_at_once() {
        // Of these, sums are exact in every order.
        let values: Vec<f32> = (0..2_300_001).map(|i| (i % 7) as f32).collect();
        let x = prime_runtime::Tensor::from_slice(&values, &[values.len()]).unwrap();
        let x = x.to(prime_runtime::Device::Emulated).unwrap();
        let expected: f64 = values.iter().map(|&x| f64::from(x)).sum();
        assert_eq!(super::sum(x.view()).unwrap(), expected);
    }

    #[cfg(feature = "emulated")]
    #[test]
    fn on_a_device_alignment_changes_no_bit() {
        use prime_runtime::{Device, Tensor};

        use crate::testing::Rows;

        for dtype in [DType::F32, DType::BF16] {
            // Enough rows for two stages of column sums, and elements for two of a whole sum.
            let x = normal(&mut generator(4), dtype, &[600, 40], 1.0);
            let run = |before: usize| {
                let x = Rows::behind(before, &x, Device::Emulated);
                let mut out = Tensor::zeros(Device::Emulated, DType::F32, &[40]).unwrap();
                super::columns(out.view_mut(), x.view()).unwrap();
                (out.view().to_f32_vec(), super::sum(x.view()).unwrap())
            };
            assert!(run(0) == run(1), "{dtype}");
        }
    }

    #[test]
    fn micro_batches_add_up_to_the_bits_of_one_batch() {
        let x = normal(&mut generator(3), DType::F32, &[90, 70], 1.0);
        let mut whole = zeros(DType::F32, &[70]);
        super::columns(whole.view_mut(), x.view()).unwrap();
        let mut parts = zeros(DType::F32, &[70]);
        for rows in [0..31, 31..32, 32..90] {
            super::columns(parts.view_mut(), x.view().rows(rows)).unwrap();
        }
        assert_eq!(whole.as_slice::<f32>(), parts.as_slice::<f32>());
    }

    #[test]
    fn arguments_that_disagree_are_refused_by_name() {
        let x = zeros(DType::F32, &[4, 6]);
        let message = |out: &mut prime_runtime::Tensor| {
            super::columns(out.view_mut(), x.view()).unwrap_err().to_string()
        };
        assert_eq!(
            message(&mut zeros(DType::F32, &[5])),
            "reduce.columns: `out` is [5], but its dimension `columns` is 6 in `x`"
        );
        assert_eq!(
            message(&mut zeros(DType::BF16, &[6])),
            "reduce.columns: `out` is bfloat16, expected float32"
        );
        assert_eq!(
            super::sum(zeros(DType::U32, &[3]).view()).unwrap_err().to_string(),
            "reduce.sum: `x` is uint32, expected float32 or bfloat16"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        // Sums of integers this small are exact in every order, so that a lost or doubled element cannot hide.
        #[test]
        fn sums_of_small_integers_are_exact(rows in 0usize..200, columns in 1usize..150, seed in 0u64..1000) {
            let mut random = generator(seed);
            let values: Vec<f32> = (0..rows * columns).map(|_| random.between(-9, 9) as f32).collect();
            let x = crate::testing::from_f32(&values, DType::BF16, &[rows, columns]);
            let mut out = zeros(DType::F32, &[columns]);
            super::columns(out.view_mut(), x.view()).unwrap();
            for column in 0..columns {
                let expected: f32 = (0..rows).map(|row| values[row * columns + column]).sum();
                prop_assert_eq!(out.as_slice::<f32>()[column], expected);
            }
            prop_assert_eq!(super::sum(x.view()).unwrap(), f64::from(values.iter().sum::<f32>()));
        }
    }
}
