//! Picks rows: those that carry a loss, before the final projection.
//!
//! `out` is `[picked, columns]`, `x` is `[rows, columns]` of the same dtype, `picked` is `[picked]` (u32), strictly rising;
//! rows may be spread out. `picked` on the host is checked; on a device it has been checked before it was uploaded.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments::{self, with_float};

pub mod check;
pub(crate) mod cpu;
pub(crate) mod cuda;
pub mod reference;

pub(crate) use cuda::CODE;

/// out\[i\] = x\[picked\[i\]\].
///
/// # Errors
/// When shapes or dtypes disagree, or `picked` does not rise or leaves `x`.
pub fn forward(out: ViewMut<'_>, x: View<'_>, picked: View<'_>) -> Result<()> {
    const OPERATION: &str = "gather.forward";
    check_arguments(OPERATION, ("x", x), ("out", out.as_view()), picked)?;
    match x.device() {
        Device::Cpu => {
            with_float!(x.dtype(), E => cpu::forward::<E>(out, x, picked.as_slice()));
            Ok(())
        }
        _ => cuda::forward(out, x, picked),
    }
}

/// d_x is overwritten: the gradient in picked rows, 0 in the others.
///
/// # Errors
/// As for [`forward`].
pub fn backward(d_x: ViewMut<'_>, d_out: View<'_>, picked: View<'_>) -> Result<()> {
    const OPERATION: &str = "gather.backward";
    check_arguments(OPERATION, ("d_x", d_x.as_view()), ("d_out", d_out), picked)?;
    match d_out.device() {
        Device::Cpu => {
            let picked = picked.as_slice();
            with_float!(d_out.dtype(), E => cpu::backward::<E>(d_x, d_out, picked));
            Ok(())
        }
        _ => cuda::backward(d_x, d_out, picked),
    }
}

fn check_arguments(
    operation: &'static str,
    (all_name, all): (&'static str, View<'_>),
    (some_name, some): (&'static str, View<'_>),
    picked: View<'_>,
) -> Result<()> {
    let mut dims = NamedDims::new(operation);
    dims.bind(all_name, all.dims(), ["rows", "columns"])?;
    dims.bind("picked", picked.dims(), ["picked"])?;
    dims.bind(some_name, some.dims(), ["picked", "columns"])?;
    arguments::float(operation, all_name, all)?;
    arguments::same_dtype(operation, some_name, some, all.dtype())?;
    let picked = arguments::on_host::<u32>(operation, "picked", picked)?.unwrap_or_default();
    if let Some(i) = picked.windows(2).position(|pair| pair[0] >= pair[1]) {
        return Err(arguments::value(
            operation,
            format!(
                "`picked` goes from {} to {} at position {}, expected it to rise",
                picked[i],
                picked[i + 1],
                i + 1
            ),
        ));
    }
    match picked.last() {
        Some(&last) if last as usize >= all.dim(0) => Err(arguments::value(
            operation,
            format!("`picked` names row {last}, but `{all_name}` has {}", all.dim(0)),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use prime_runtime::{DType, Tensor};
    use proptest::prelude::*;

    use crate::testing::{assert_independent_of_threads, generator, normal, zeros};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn backward_puts_every_row_back_and_zeros_between(
            kept in proptest::collection::vec(any::<bool>(), 0..60),
            columns in 1usize..70,
            seed in 0u64..1000,
        ) {
            let mut random = generator(seed);
            let x = normal(&mut random, DType::BF16, &[kept.len(), columns], 1.0);
            let rows: Vec<u32> = (0..kept.len() as u32).filter(|&row| kept[row as usize]).collect();
            let picked = Tensor::from_slice(&rows, &[rows.len()]).unwrap();
            let mut out = zeros(DType::BF16, &[rows.len(), columns]);
            super::forward(out.view_mut(), x.view(), picked.view()).unwrap();
            let mut d_x = normal(&mut random, DType::BF16, &[kept.len(), columns], 1.0);
            super::backward(d_x.view_mut(), out.view(), picked.view()).unwrap();
            for row in 0..kept.len() {
                let expected = if kept[row] { x.view().row(row) } else { &vec![prime_runtime::bf16::ZERO; columns] };
                prop_assert_eq!(d_x.view().row::<prime_runtime::bf16>(row), expected);
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let mut random = generator(1);
        let x = normal(&mut random, DType::F32, &[600, 150], 1.0);
        let rows: Vec<u32> = (0..600).filter(|row| row % 7 < 3).collect();
        let picked = Tensor::from_slice(&rows, &[rows.len()]).unwrap();
        assert_independent_of_threads(|| {
            let mut out = zeros(DType::F32, &[rows.len(), 150]);
            let mut d_x = zeros(DType::F32, &[600, 150]);
            super::forward(out.view_mut(), x.view(), picked.view()).unwrap();
            super::backward(d_x.view_mut(), out.view(), picked.view()).unwrap();
            [out, d_x].map(|tensor| tensor.view().to_f32_vec())
        });
    }

    #[test]
    fn rows_that_do_not_rise_or_do_not_exist_are_refused() {
        let x = zeros(DType::F32, &[4, 2]);
        let refusal = |rows: &[u32]| {
            let picked = Tensor::from_slice(rows, &[rows.len()]).unwrap();
            let mut out = zeros(DType::F32, &[3, 2]);
            super::forward(out.view_mut(), x.view(), picked.view()).unwrap_err().to_string()
        };
        assert_eq!(
            refusal(&[0, 2, 2]),
            "gather.forward: `picked` goes from 2 to 2 at position 2, expected it to rise"
        );
        assert_eq!(refusal(&[0, 2, 4]), "gather.forward: `picked` names row 4, but `x` has 4");
        assert_eq!(
            refusal(&[0, 2]),
            "gather.forward: `out` is [3, 2], but its dimension `picked` is 2 in `picked`"
        );
    }
}
