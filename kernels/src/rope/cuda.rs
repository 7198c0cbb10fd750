//! The launcher of RoPE: all heads of a token share its row of the tables.

use prime_runtime::{Result, View, ViewMut};

use super::Direction;
use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, aligned, by_dtype_and_alignment, device_struct,
    row_grid, source,
};

pub(crate) const CODE: Code =
    Code { sources: &[source!("rope", "rope.cu")], structs: &[Rope::LAYOUT] };

device_struct! {
    struct Rope {
        x: Pointer,
        positions: Pointer,
        cos: Pointer,
        sin: Pointer,
        x_stride: u64,
        positions_stride: u64,
        cos_stride: u64,
        sin_stride: u64,
        tokens: u32,
        heads: u32,
        half: u32,
        threads_per_row: u32,
        sign: f32,
    }
}

pub(super) fn turn(
    mut x: ViewMut<'_>,
    positions: View<'_>,
    cos: View<'_>,
    sin: View<'_>,
    direction: Direction,
) -> Result<()> {
    let [tokens, heads, half] = [x.dim(0), x.dim(1), x.dim(2) / 2];
    let lanes = 16 / x.dtype().size();
    let aligned = half.is_multiple_of(lanes) && aligned(&[x.as_view(), cos, sin]);
    let kernel = by_dtype_and_alignment!(x.dtype(), aligned, "rope<", ">");
    let grid = row_grid(tokens, heads * half.div_ceil(lanes), 1);
    let x_stride = x.row_stride() as u64;
    let mut launch = Launch::new(&CODE.sources[0], kernel, x.device());
    let arguments = Rope {
        x: launch.write(&mut x),
        positions: launch.read(positions),
        cos: launch.read(cos),
        sin: launch.read(sin),
        x_stride,
        positions_stride: positions.row_stride() as u64,
        cos_stride: cos.row_stride() as u64,
        sin_stride: sin.row_stride() as u64,
        tokens: tokens as u32,
        heads: heads as u32,
        half: half as u32,
        threads_per_row: grid.threads_per_row,
        sign: if direction == Direction::Forward { 1.0 } else { -1.0 },
    };
    launch.grid(grid.grid).block(THREADS).early().run(&arguments)
}
