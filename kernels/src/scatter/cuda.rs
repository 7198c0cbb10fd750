//! The launcher: a thread a vector of 16 bytes where rows allow it, a thread an element elsewhere.

use prime_runtime::{Result, View, ViewMut};

use crate::device::{
    Code, DeviceStruct, Launch, Pointer, by_dtype, device_struct, source, vectorised,
};

pub(crate) const CODE: Code =
    Code { sources: &[source!("scatter", "scatter.cu")], structs: &[ScatterForward::LAYOUT] };

device_struct! {
    struct ScatterForward {
        out: Pointer,
        x: Pointer,
        places: Pointer,
        count: u32,
        columns: u32,
        out_stride: u64,
        x_stride: u64,
    }
}

const THREADS: u32 = 256;

pub(super) fn forward(mut out: ViewMut<'_>, x: View<'_>, places: View<'_>) -> Result<()> {
    let (count, columns, dtype) = (x.dim(0), x.dim(1), x.dtype());
    let lanes = vectorised(columns, &[out.as_view(), x]);
    let kernel = match lanes {
        1 => by_dtype!(dtype, "scatter_forward<", ", 1>"),
        4 => "scatter_forward<float, 4>",
        _ => "scatter_forward<bf16, 8>",
    };
    let out_stride = out.row_stride() as u64;
    let mut launch = Launch::new(&CODE.sources[0], kernel, out.device());
    let arguments = ScatterForward {
        out: launch.write(&mut out),
        x: launch.read(x),
        places: launch.read(places),
        count: count as u32,
        columns: columns as u32,
        out_stride,
        x_stride: x.row_stride() as u64,
    };
    let blocks = (count * (columns / lanes)).div_ceil(THREADS as usize);
    launch.grid([blocks, 1, 1]).block(THREADS).early().run(&arguments)
}
