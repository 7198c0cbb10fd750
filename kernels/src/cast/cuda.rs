//! The launcher of casts: rows cut into parts of eight elements.

use prime_runtime::{DType, Result, View, ViewMut};

use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, aligned, by_dtype_and_alignment, device_struct,
    row_grid, rows_and_columns, source,
};

pub(crate) const CODE: Code =
    Code { sources: &[source!("cast", "cast.cu")], structs: &[Cast::LAYOUT] };

device_struct! {
    struct Cast {
        out: Pointer,
        x: Pointer,
        columns: u64,
        out_stride: u64,
        x_stride: u64,
        rows: u32,
        threads_per_row: u32,
    }
}

/// Elements of a part.
const PART: usize = 8;

pub(super) fn forward(out: ViewMut<'_>, x: View<'_>) -> Result<()> {
    let [rows, columns] = rows_and_columns(&[out.as_view(), x]);
    let (mut out, x) = (out.into_shape(&[rows, columns]), x.reshape(&[rows, columns]));
    let aligned = aligned(&[out.as_view(), x]);
    let kernel = match x.dtype() {
        DType::BF16 => by_dtype_and_alignment!(out.dtype(), aligned, "cast<bf16, ", ">"),
        DType::F16 => by_dtype_and_alignment!(out.dtype(), aligned, "cast<f16, ", ">"),
        _ => by_dtype_and_alignment!(out.dtype(), aligned, "cast<float, ", ">"),
    };
    let grid = row_grid(rows, columns.div_ceil(PART), 1);
    let out_stride = out.row_stride() as u64;
    let mut launch = Launch::new(&CODE.sources[0], kernel, out.device());
    let arguments = Cast {
        out: launch.write(&mut out),
        x: launch.read(x),
        columns: columns as u64,
        out_stride,
        x_stride: x.row_stride() as u64,
        rows: rows as u32,
        threads_per_row: grid.threads_per_row,
    };
    launch.grid(grid.grid).block(THREADS).run(&arguments)
}
