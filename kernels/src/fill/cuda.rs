//! The launcher of fill: rows cut into parts of 16 bytes.

use prime_runtime::{Result, ViewMut};

use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, aligned, by_dtype_and_alignment, device_struct,
    row_grid, rows_and_columns, source,
};

pub(crate) const CODE: Code =
    Code { sources: &[source!("fill", "fill.cu")], structs: &[Fill::LAYOUT] };

device_struct! {
    struct Fill {
        out: Pointer,
        columns: u64,
        stride: u64,
        rows: u32,
        threads_per_row: u32,
        value: f32,
    }
}

pub(super) fn forward(out: ViewMut<'_>, value: f32) -> Result<()> {
    let [rows, columns] = rows_and_columns(&[out.as_view()]);
    let mut out = out.into_shape(&[rows, columns]);
    let (dtype, stride) = (out.dtype(), out.row_stride() as u64);
    let kernel = by_dtype_and_alignment!(dtype, aligned(&[out.as_view()]), "fill<", ">");
    let grid = row_grid(rows, columns.div_ceil(16 / dtype.size()), 1);
    let mut launch = Launch::new(&CODE.sources[0], kernel, out.device());
    let arguments = Fill {
        out: launch.write(&mut out),
        columns: columns as u64,
        stride,
        rows: rows as u32,
        threads_per_row: grid.threads_per_row,
        value,
    };
    launch.grid(grid.grid).block(THREADS).run(&arguments)
}
