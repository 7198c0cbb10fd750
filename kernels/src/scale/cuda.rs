//! The launcher of scale: rows cut into parts of 16 bytes.

use prime_runtime::{Result, ViewMut};

use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, aligned, by_dtype_and_alignment, device_struct,
    row_grid, rows_and_columns, source,
};

pub(crate) const CODE: Code =
    Code { sources: &[source!("scale", "scale.cu")], structs: &[Scale::LAYOUT] };

device_struct! {
    struct Scale {
        x: Pointer,
        columns: u64,
        stride: u64,
        rows: u32,
        threads_per_row: u32,
        factor: f32,
    }
}

pub(super) fn forward(x: ViewMut<'_>, factor: f32) -> Result<()> {
    let [rows, columns] = rows_and_columns(&[x.as_view()]);
    let mut x = x.into_shape(&[rows, columns]);
    let (dtype, stride) = (x.dtype(), x.row_stride() as u64);
    let kernel = by_dtype_and_alignment!(dtype, aligned(&[x.as_view()]), "scale<", ">");
    let grid = row_grid(rows, columns.div_ceil(16 / dtype.size()), 1);
    let mut launch = Launch::new(&CODE.sources[0], kernel, x.device());
    let arguments = Scale {
        x: launch.write(&mut x),
        columns: columns as u64,
        stride,
        rows: rows as u32,
        threads_per_row: grid.threads_per_row,
        factor,
    };
    launch.grid(grid.grid).block(THREADS).run(&arguments)
}
