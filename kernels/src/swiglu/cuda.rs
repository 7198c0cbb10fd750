//! Launchers of SwiGLU: threads take vectors of 16 bytes where rows allow it, elements elsewhere.

use prime_runtime::{Result, View, ViewMut};

use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, by_dtype, device_struct, row_grid, source,
    vectorised,
};

pub(crate) const CODE: Code = Code {
    sources: &[source!("swiglu", "swiglu.cu")],
    structs: &[SwigluForward::LAYOUT, SwigluBackward::LAYOUT],
};

device_struct! {
    struct SwigluForward {
        out: Pointer,
        gate_up: Pointer,
        tokens: u32,
        width: u32,
        threads_per_row: u32,
        out_stride: u64,
        gate_up_stride: u64,
    }

    struct SwigluBackward {
        d_gate_up: Pointer,
        d_out: Pointer,
        gate_up: Pointer,
        tokens: u32,
        width: u32,
        threads_per_row: u32,
        d_gate_up_stride: u64,
        d_out_stride: u64,
        gate_up_stride: u64,
    }
}

pub(super) fn forward(mut out: ViewMut<'_>, gate_up: View<'_>) -> Result<()> {
    let (tokens, width, dtype) = (out.dim(0), out.dim(1), out.dtype());
    let lanes = vectorised(width, &[out.as_view(), gate_up]);
    let kernel = match lanes {
        1 => by_dtype!(dtype, "swiglu_forward<", ", 1>"),
        4 => "swiglu_forward<float, 4>",
        _ => "swiglu_forward<bf16, 8>",
    };
    let grid = row_grid(tokens, width / lanes, 1);
    let out_stride = out.row_stride() as u64;
    let mut launch = Launch::new(&CODE.sources[0], kernel, out.device());
    let arguments = SwigluForward {
        out: launch.write(&mut out),
        gate_up: launch.read(gate_up),
        tokens: tokens as u32,
        width: width as u32,
        threads_per_row: grid.threads_per_row,
        out_stride,
        gate_up_stride: gate_up.row_stride() as u64,
    };
    launch.grid(grid.grid).block(THREADS).early().run(&arguments)
}

pub(super) fn backward(
    mut d_gate_up: ViewMut<'_>,
    d_out: View<'_>,
    gate_up: View<'_>,
) -> Result<()> {
    let (tokens, width, dtype) = (d_out.dim(0), d_out.dim(1), d_out.dtype());
    let lanes = vectorised(width, &[d_gate_up.as_view(), d_out, gate_up]);
    let kernel = match lanes {
        1 => by_dtype!(dtype, "swiglu_backward<", ", 1>"),
        4 => "swiglu_backward<float, 4>",
        _ => "swiglu_backward<bf16, 8>",
    };
    let grid = row_grid(tokens, width / lanes, 1);
    let d_gate_up_stride = d_gate_up.row_stride() as u64;
    let mut launch = Launch::new(&CODE.sources[0], kernel, d_out.device());
    let arguments = SwigluBackward {
        d_gate_up: launch.write(&mut d_gate_up),
        d_out: launch.read(d_out),
        gate_up: launch.read(gate_up),
        tokens: tokens as u32,
        width: width as u32,
        threads_per_row: grid.threads_per_row,
        d_gate_up_stride,
        d_out_stride: d_out.row_stride() as u64,
        gate_up_stride: gate_up.row_stride() as u64,
    };
    launch.grid(grid.grid).block(THREADS).run(&arguments)
}
