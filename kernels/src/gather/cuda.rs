//! Launchers of gather: rows cut into parts of 16 bytes.

use prime_runtime::{Result, View, ViewMut};

use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, aligned, by_dtype_and_alignment, device_struct,
    row_grid, source,
};

pub(crate) const CODE: Code = Code {
    sources: &[source!("gather", "gather.cu")],
    structs: &[GatherForward::LAYOUT, GatherBackward::LAYOUT],
};

device_struct! {
    struct GatherForward {
        out: Pointer,
        x: Pointer,
        picked: Pointer,
        columns: u64,
        out_stride: u64,
        x_stride: u64,
        count: u32,
        threads_per_row: u32,
    }

    struct GatherBackward {
        d_x: Pointer,
        d_out: Pointer,
        picked: Pointer,
        columns: u64,
        d_x_stride: u64,
        d_out_stride: u64,
        count: u32,
        rows: u32,
        threads_per_row: u32,
    }
}

/// Rows of a gradient that the same threads write, as in `gather.cu`.
const ROWS_EACH: usize = 8;

/// The forward pass; looking up embeddings is the same, with tokens in any order.
pub(crate) fn forward(mut out: ViewMut<'_>, x: View<'_>, picked: View<'_>) -> Result<()> {
    let (count, columns, dtype) = (out.dim(0), out.dim(1), out.dtype());
    let kernel =
        by_dtype_and_alignment!(dtype, aligned(&[out.as_view(), x]), "gather_forward<", ">");
    let grid = row_grid(count, columns.div_ceil(16 / dtype.size()), 1);
    let out_stride = out.row_stride() as u64;
    let mut launch = Launch::new(&CODE.sources[0], kernel, out.device());
    let arguments = GatherForward {
        out: launch.write(&mut out),
        x: launch.read(x),
        picked: launch.read(picked),
        columns: columns as u64,
        out_stride,
        x_stride: x.row_stride() as u64,
        count: count as u32,
        threads_per_row: grid.threads_per_row,
    };
    launch.grid(grid.grid).block(THREADS).early().run(&arguments)
}

pub(super) fn backward(mut d_x: ViewMut<'_>, d_out: View<'_>, picked: View<'_>) -> Result<()> {
    let (rows, columns, dtype) = (d_x.dim(0), d_x.dim(1), d_x.dtype());
    let aligned = aligned(&[d_x.as_view(), d_out]);
    let kernel = by_dtype_and_alignment!(dtype, aligned, "gather_backward<", ">");
    let grid = row_grid(rows, columns.div_ceil(16 / dtype.size()), ROWS_EACH);
    let d_x_stride = d_x.row_stride() as u64;
    let mut launch = Launch::new(&CODE.sources[0], kernel, d_x.device());
    let arguments = GatherBackward {
        d_x: launch.write(&mut d_x),
        d_out: launch.read(d_out),
        picked: launch.read(picked),
        columns: columns as u64,
        d_x_stride,
        d_out_stride: d_out.row_stride() as u64,
        count: d_out.dim(0) as u32,
        rows: rows as u32,
        threads_per_row: grid.threads_per_row,
    };
    launch.grid(grid.grid).block(THREADS).run(&arguments)
}
