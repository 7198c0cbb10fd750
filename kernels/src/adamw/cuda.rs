//! The launcher of AdamW. The norm is a sum of squares of [`crate::reduce`].

use prime_runtime::{DType, Result, View, ViewMut};

use super::{BLOCK, Factors, Moments, Parameters, Settings};
use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, aligned, by_dtype_and_alignment, device_struct,
    source,
};
use crate::reduce::cuda::{Of, sum};

pub(crate) const CODE: Code = Code {
    sources: &[source!("adamw", "adamw.cu")],
    structs: &[Factors::LAYOUT, AdamwUpdate::LAYOUT, AdamwBlocks::LAYOUT],
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

device_struct! {
    struct AdamwBlocks {
        master: Pointer,
        compute: Pointer,
        m: Pointer,
        v: Pointer,
        m_codes: Pointer,
        v_codes: Pointer,
        m_scales: Pointer,
        v_scales: Pointer,
        gradient: Pointer,
        count: u64,
        seed: u64,
        step: u64,
        first: u64,
        factors: Factors,
    }
}

/// Parameters of a thread.
const EACH: usize = 4;

pub(super) fn update(
    parameters: Parameters<'_>,
    moments: Moments<'_>,
    gradient: View<'_>,
    settings: Settings,
) -> Result<()> {
    match (parameters, moments) {
        (Parameters::Masters(master, compute), Moments::Float32 { m, v }) => {
            wide(master, compute, m, v, gradient, Factors::new(settings))
        }
        (parameters, moments) => blocks(parameters, moments, gradient, settings),
    }
}

fn wide(
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

fn blocks(
    parameters: Parameters<'_>,
    moments: Moments<'_>,
    gradient: View<'_>,
    settings: Settings,
) -> Result<()> {
    let count = gradient.dim(0);
    let (mut master, mut compute) = match parameters {
        Parameters::Masters(master, compute) => (Some(master), compute),
        Parameters::Rounded(weights) => (None, Some(weights)),
    };
    let (mut wide, mut narrow) = match moments {
        Moments::Float32 { m, v } => (Some((m, v)), None),
        Moments::Int8 { m, m_scales, v, v_scales } => (None, Some((m, m_scales, v, v_scales))),
    };
    let in_fours = |view: &ViewMut<'_>| aligned(&[view.as_view()]);
    let aligned = aligned(&[gradient])
        && master.as_ref().is_none_or(in_fours)
        && compute.as_ref().is_none_or(in_fours)
        && wide.as_ref().is_none_or(|(m, v)| in_fours(m) && in_fours(v));
    let dtype = compute.as_ref().map_or(DType::F32, ViewMut::dtype);
    let kernel = by_dtype_and_alignment!(dtype, aligned, "adamw_blocks<", ">");
    let mut launch = Launch::new(&CODE.sources[0], kernel, gradient.device());
    let (mut m, mut v) = wide.as_mut().map(|(m, v)| (m, v)).unzip();
    let arguments = AdamwBlocks {
        master: launch.write_if(master.as_mut()),
        compute: launch.write_if(compute.as_mut()),
        m: m.take().map_or(Pointer::NULL, |m| launch.write(m)),
        v: v.take().map_or(Pointer::NULL, |v| launch.write(v)),
        m_codes: Pointer::NULL,
        v_codes: Pointer::NULL,
        m_scales: Pointer::NULL,
        v_scales: Pointer::NULL,
        gradient: launch.read(gradient),
        count: count as u64,
        seed: settings.seed,
        step: settings.step,
        first: settings.first,
        factors: Factors::new(settings),
    };
    let arguments = match &mut narrow {
        None => arguments,
        Some((m, m_scales, v, v_scales)) => AdamwBlocks {
            m_codes: launch.write(m),
            v_codes: launch.write(v),
            m_scales: launch.write(m_scales),
            v_scales: launch.write(v_scales),
            ..arguments
        },
    };
    // A warp a block.
    let grid = count.div_ceil(BLOCK * THREADS as usize / 32);
    launch.grid([grid, 1, 1]).block(THREADS).run(&arguments)
}

pub(super) fn norm(gradient: View<'_>) -> Result<f64> {
    Ok(sum(gradient, Of::Squares)?.sqrt())
}
