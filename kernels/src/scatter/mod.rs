//! Puts rows where an index says: new keys and values into their cache.
//!
//! `out` is `[rows, columns]`, `x` is `[count, columns]` of the same dtype, `places` is `[count]` (u32), no two alike; rows may be spread
//! out. Rows of `out` that no place names keep their values. Caches have no gradient, and so there is no way back.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments::{self, with_float};

pub mod check;
mod cpu;
mod cuda;
pub mod reference;

pub(crate) use cuda::CODE;

/// out\[places\[i\]\] = x\[i\].
///
/// # Errors
/// When shapes or dtypes disagree, or, on the host, a place is outside `out`.
pub fn forward(out: ViewMut<'_>, x: View<'_>, places: View<'_>) -> Result<()> {
    const OPERATION: &str = "scatter.forward";
    let mut dims = NamedDims::new(OPERATION);
    dims.bind("out", out.dims(), ["rows", "columns"])?;
    dims.bind("x", x.dims(), ["count", "columns"])?;
    dims.bind("places", places.dims(), ["count"])?;
    arguments::float(OPERATION, "out", out.as_view())?;
    arguments::same_dtype(OPERATION, "x", x, out.dtype())?;
    arguments::dtype::<u32>(OPERATION, "places", places)?;
    arguments::contiguous(OPERATION, "places", places)?;
    match out.device() {
        Device::Cpu => {
            let places = places.as_slice::<u32>();
            if let Some(i) = places.iter().position(|&place| place as usize >= out.dim(0)) {
                return Err(arguments::value(
                    OPERATION,
                    format!("places[{i}] is {}, but `out` has {} rows", places[i], out.dim(0)),
                ));
            }
            with_float!(out.dtype(), E => cpu::forward::<E>(out, x, places));
            Ok(())
        }
        _ => cuda::forward(out, x, places),
    }
}

#[cfg(test)]
mod tests {
    use prime_runtime::{DType, Tensor};

    use crate::testing::{from_f32, zeros};

    #[test]
    fn rows_that_no_place_names_keep_their_values() {
        let x = from_f32(&[1.0, 2.0, 3.0, 4.0], DType::F32, &[2, 2]);
        let mut out = from_f32(&[9.0; 8], DType::F32, &[4, 2]);
        let places = Tensor::from_slice(&[3u32, 1], &[2]).unwrap();
        super::forward(out.view_mut(), x.view(), places.view()).unwrap();
        assert_eq!(out.as_slice::<f32>(), [9.0, 9.0, 3.0, 4.0, 9.0, 9.0, 1.0, 2.0]);
    }

    #[test]
    fn arguments_that_disagree_are_refused_by_name() {
        let refusal = |out: &mut Tensor, x: &Tensor, places: &[u32]| {
            let places = Tensor::from_slice(places, &[places.len()]).unwrap();
            super::forward(out.view_mut(), x.view(), places.view()).unwrap_err().to_string()
        };
        let mut out = zeros(DType::F32, &[4, 2]);
        assert_eq!(
            refusal(&mut out, &zeros(DType::F32, &[2, 2]), &[0, 4]),
            "scatter.forward: places[1] is 4, but `out` has 4 rows"
        );
        assert_eq!(
            refusal(&mut out, &zeros(DType::F32, &[2, 2]), &[0]),
            "scatter.forward: `places` is [1], but its dimension `count` is 2 in `x`"
        );
        assert_eq!(
            refusal(&mut out, &zeros(DType::BF16, &[1, 2]), &[0]),
            "scatter.forward: `x` is bfloat16, expected float32"
        );
    }
}
