//! Launchers of RMSNorm: a warp a short row, a block a long one. Backward, blocks take consecutive rows and leave sums for the weight's
//! gradient, which the column sums of [`crate::reduce`] add in order.

use prime_runtime::{DType, Result, View, ViewMut};

use crate::device::{
    Code, DeviceStruct, Launch, Pointer, aligned, by_dtype_and_alignment, device_struct, source,
};
use crate::reduce::cuda::MOST_BLOCKS;
use crate::{reduce, scratch};

pub(crate) const CODE: Code = Code {
    sources: &[source!("rms_norm", "rms_norm.cu")],
    structs: &[RmsNormForward::LAYOUT, RmsNormBackward::LAYOUT],
};

device_struct! {
    struct RmsNormForward {
        out: Pointer,
        sum: Pointer,
        rstd: Pointer,
        x: Pointer,
        delta: Pointer,
        weight: Pointer,
        out_stride: u64,
        sum_stride: u64,
        rstd_stride: u64,
        x_stride: u64,
        delta_stride: u64,
        tokens: u32,
        heads: u32,
        width: u32,
        epsilon: f32,
    }

    struct RmsNormBackward {
        d_x: Pointer,
        partials: Pointer,
        d_out: Pointer,
        x: Pointer,
        weight: Pointer,
        d_residual: Pointer,
        rstd: Pointer,
        d_x_stride: u64,
        d_out_stride: u64,
        x_stride: u64,
        d_residual_stride: u64,
        rstd_stride: u64,
        tokens: u32,
        heads: u32,
        width: u32,
        rows_each: u32,
        from: u32,
        to: u32,
    }
}

/// Parts of a row that a thread keeps in registers: MOST_KEPT in `rms_norm.cu`.
const MOST_KEPT: usize = 4;

/// Threads of a block whose warps have a row each.
const THREADS_OF_WARPS: u32 = 256;

/// Threads of a block that has one row, at most.
const MOST_THREADS: usize = 512;

/// Rows of a team (a warp, or a block of long rows) at least, so that its sums for the weight's gradient are little beside what it reads.
const LEAST_ROWS: usize = 16;

/// Columns whose sums fit the shared memory that every chip lends a block: rows that are longer take a launch for each so many.
const COLUMNS_AT_ONCE: usize = 24576;

/// Who works on a row of `width` elements. It decides the order of a row's sum, and depends on the row's length and dtype alone.
struct Team {
    block: bool,
    threads: u32,
    /// Rows that a block works on at once.
    rows: usize,
}

impl Team {
    fn new(width: usize, dtype: DType) -> Team {
        let parts = width.div_ceil(16 / dtype.size());
        if parts <= 32 * MOST_KEPT {
            let rows = THREADS_OF_WARPS as usize / 32;
            return Team { block: false, threads: THREADS_OF_WARPS, rows };
        }
        let threads = parts.div_ceil(MOST_KEPT).next_power_of_two().min(MOST_THREADS) as u32;
        Team { block: true, threads, rows: 1 }
    }
}

/// Tokens, heads (1 for whole rows) and width.
fn sizes(x: View<'_>, weight: View<'_>) -> [usize; 3] {
    let heads = if x.dims().len() == 3 { x.dim(1) } else { 1 };
    [x.dim(0), heads, weight.dim(0)]
}

/// Whether every normalised row of every view starts at a multiple of 16 bytes.
fn heads_aligned(heads: usize, width: usize, weight: View<'_>, views: &[View<'_>]) -> bool {
    let whole = heads == 1 || width.is_multiple_of(16 / weight.dtype().size());
    whole && aligned(&[weight]) && aligned(views)
}

pub(super) fn forward(
    out: ViewMut<'_>,
    rstd: ViewMut<'_>,
    x: View<'_>,
    weight: View<'_>,
    epsilon: f32,
) -> Result<()> {
    normalise(out, None, rstd, x, None, weight, epsilon)
}

/// Normalises `x`, or the sum of `x` and `delta`, which is written to `sum`.
pub(super) fn normalise(
    mut out: ViewMut<'_>,
    mut sum: Option<ViewMut<'_>>,
    mut rstd: ViewMut<'_>,
    x: View<'_>,
    delta: Option<View<'_>>,
    weight: View<'_>,
    epsilon: f32,
) -> Result<()> {
    let [tokens, heads, width] = sizes(x, weight);
    let both = [sum.as_ref().map(ViewMut::as_view), delta];
    let aligned = heads_aligned(heads, width, weight, &[out.as_view(), x])
        && both.iter().flatten().all(|view| aligned(&[*view]));
    let team = Team::new(width, x.dtype());
    let kernel = if team.block {
        by_dtype_and_alignment!(x.dtype(), aligned, "rms_norm_forward<", ", true>")
    } else {
        by_dtype_and_alignment!(x.dtype(), aligned, "rms_norm_forward<", ", false>")
    };
    let [sum_stride, delta_stride] =
        both.map(|view| view.map_or(0, |view| view.row_stride() as u64));
    let (out_stride, rstd_stride) = (out.row_stride() as u64, rstd.row_stride() as u64);
    let mut launch = Launch::new(&CODE.sources[0], kernel, x.device());
    let arguments = RmsNormForward {
        out: launch.write(&mut out),
        sum: launch.write_if(sum.as_mut()),
        rstd: launch.write(&mut rstd),
        x: launch.read(x),
        delta: launch.read_if(delta),
        weight: launch.read(weight),
        out_stride,
        sum_stride,
        rstd_stride,
        x_stride: x.row_stride() as u64,
        delta_stride,
        tokens: tokens as u32,
        heads: heads as u32,
        width: width as u32,
        epsilon,
    };
    let blocks = (tokens * heads).div_ceil(team.rows);
    launch.grid([blocks, 1, 1]).block(team.threads).shared(128).early().run(&arguments)
}

/// The most bytes that [`backward`] borrows beside those of the sum over its blocks.
pub(crate) fn backward_scratch(rows: usize, width: usize) -> usize {
    scratch::device_bytes(DType::F32, rows.div_ceil(LEAST_ROWS).min(MOST_BLOCKS) * width)
}

pub(super) fn backward(
    mut d_x: ViewMut<'_>,
    d_weight: ViewMut<'_>,
    d_out: View<'_>,
    x: View<'_>,
    weight: View<'_>,
    rstd: View<'_>,
    d_residual: Option<View<'_>>,
) -> Result<()> {
    let [tokens, heads, width] = sizes(x, weight);
    let (rows, device, dtype) = (tokens * heads, x.device(), x.dtype());
    if rows * width == 0 {
        return Ok(());
    }
    let aligned = heads_aligned(heads, width, weight, &[d_x.as_view(), d_out, x])
        && d_residual.is_none_or(|d_residual| aligned(&[d_residual]));
    let team = Team::new(width, dtype);
    let kernel = if team.block {
        by_dtype_and_alignment!(dtype, aligned, "rms_norm_backward<", ", true>")
    } else {
        by_dtype_and_alignment!(dtype, aligned, "rms_norm_backward<", ", false>")
    };
    let blocks = rows.div_ceil(LEAST_ROWS * team.rows).min(MOST_BLOCKS);
    let rows_each = rows.div_ceil(blocks);
    let blocks = rows.div_ceil(rows_each);
    let mut scratch = scratch::device(device, DType::F32, blocks, width)?;
    for from in (0..width).step_by(COLUMNS_AT_ONCE) {
        let to = width.min(from + COLUMNS_AT_ONCE);
        let mut partials = scratch.view_mut();
        let d_x_stride = d_x.row_stride() as u64;
        let mut launch = Launch::new(&CODE.sources[0], kernel, device);
        let arguments = RmsNormBackward {
            d_x: launch.write(&mut d_x),
            partials: launch.write(&mut partials),
            d_out: launch.read(d_out),
            x: launch.read(x),
            weight: launch.read(weight),
            d_residual: launch.read_if(d_residual),
            rstd: launch.read(rstd),
            d_x_stride,
            d_out_stride: d_out.row_stride() as u64,
            x_stride: x.row_stride() as u64,
            d_residual_stride: d_residual.map_or(0, |view| view.row_stride() as u64),
            rstd_stride: rstd.row_stride() as u64,
            tokens: tokens as u32,
            heads: heads as u32,
            width: width as u32,
            rows_each: rows_each as u32,
            from: from as u32,
            to: to as u32,
        };
        let padded = (to - from).next_multiple_of(16 / dtype.size());
        let shared = 128 + team.rows * padded * 4;
        launch.grid([blocks, 1, 1]).block(team.threads).shared(shared).run(&arguments)?;
    }
    reduce::cuda::columns(d_weight, scratch.view())
}
