//! The launcher of AdamW. The norm is a sum of squares of [`crate::reduce`].

use prime_runtime::{DType, Result, View, ViewMut};

use super::Factors;
use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, aligned, by_dtype_and_alignment, device_struct,
    source,
};
use crate::reduce::cuda::{Of, sum};

pub(crate) const CODE: Code = Code {
    sources: &[source!("adamw", "adamw.cu")],
    structs: &[Factors::LAYOUT, AdamwUpdate::LAYOUT],
};

device_struct! {
    struct AdamwUpdate {
        master: Pointer,
        m: Pointer,
        v: Pointer,
        compute: Pointer,
        gradient: Pointer,
        count: u64,
        factors: Factors,
    }
}

/// Parameters of a thread.
const EACH: usize = 4;

pub(super) fn update(
    mut master: ViewMut<'_>,
    mut compute: Option<ViewMut<'_>>,
    mut m: ViewMut<'_>,
    mut v: ViewMut<'_>,
    gradient: View<'_>,
    factors: Factors,
) -> Result<()> {
    let count = gradient.dim(0);
    let all = [master.as_view(), m.as_view(), v.as_view(), gradient];
    let aligned =
        aligned(&all) && compute.as_ref().is_none_or(|compute| aligned(&[compute.as_view()]));
    let dtype = compute.as_ref().map_or(DType::F32, ViewMut::dtype);
    let kernel = by_dtype_and_alignment!(dtype, aligned, "adamw_update<", ">");
    let mut launch = Launch::new(&CODE.sources[0], kernel, gradient.device());
    let arguments = AdamwUpdate {
        master: launch.write(&mut master),
        m: launch.write(&mut m),
        v: launch.write(&mut v),
        compute: launch.write_if(compute.as_mut()),
        gradient: launch.read(gradient),
        count: count as u64,
        factors,
    };
    let blocks = count.div_ceil(EACH * THREADS as usize);
    launch.grid([blocks, 1, 1]).block(THREADS).run(&arguments)
}

pub(super) fn norm(gradient: View<'_>) -> Result<f64> {
    Ok(sum(gradient, Of::Squares)?.sqrt())
}
