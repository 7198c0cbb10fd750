//! The launcher of scans: a warp a sequence.

use prime_runtime::{Result, View, ViewMut};

use crate::device::{Code, DeviceStruct, Launch, Pointer, device_struct, source};

pub(crate) const CODE: Code =
    Code { sources: &[source!("scan", "scan.cu")], structs: &[Scan::LAYOUT] };

device_struct! {
    struct Scan {
        out: Pointer,
        x: Pointer,
        cu_seqlens: Pointer,
        sequences: u32,
        discount: f32,
    }
}

/// Threads of a block: four sequences.
const THREADS: u32 = 128;

pub(super) fn forward(
    out: ViewMut<'_>,
    x: View<'_>,
    cu_seqlens: View<'_>,
    discount: f32,
) -> Result<()> {
    scan("scan<true>", out, x, cu_seqlens, discount)
}

pub(super) fn backward(
    d_x: ViewMut<'_>,
    d_out: View<'_>,
    cu_seqlens: View<'_>,
    discount: f32,
) -> Result<()> {
    scan("scan<false>", d_x, d_out, cu_seqlens, discount)
}

fn scan(
    kernel: &'static str,
    mut out: ViewMut<'_>,
    x: View<'_>,
    cu_seqlens: View<'_>,
    discount: f32,
) -> Result<()> {
    let sequences = cu_seqlens.dim(0) - 1;
    let mut launch = Launch::new(&CODE.sources[0], kernel, x.device());
    let arguments = Scan {
        out: launch.write(&mut out),
        x: launch.read(x),
        cu_seqlens: launch.read(cu_seqlens),
        sequences: sequences as u32,
        discount,
    };
    launch.grid([sequences.div_ceil(4), 1, 1]).block(THREADS).run(&arguments)
}
