//! Launchers of sums: blocks sum parts into scratch, and a second kernel adds those in order.

use prime_runtime::{DType, Device, Result, View, ViewMut};

use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, aligned, by_dtype_and_alignment, device_struct,
    rows_and_columns, source,
};
use crate::scratch::{self, DeviceScratch};

pub(crate) const CODE: Code = Code {
    sources: &[source!("reduce", "reduce.cu")],
    structs: &[ReduceColumns::LAYOUT, ReduceSum::LAYOUT, ReducePartials::LAYOUT],
};

device_struct! {
    struct ReduceColumns {
        out: Pointer,
        x: Pointer,
        x_stride: u64,
        rows: u32,
        columns: u32,
        rows_each: u32,
        add: u32,
    }

    struct ReduceSum {
        partials: Pointer,
        x: Pointer,
        rows: u64,
        columns: u64,
        x_stride: u64,
    }

    struct ReducePartials {
        out: Pointer,
        partials: Pointer,
        count: u32,
        width: u32,
    }
}

/// Blocks that a sum is spread over at most: four on each multiprocessor of the largest chips. Never that of the chip at hand, so
/// that all chips give the same bits.
pub(crate) const MOST_BLOCKS: usize = 528;

/// Rows that one block of a column sum takes at least.
const LEAST_ROWS: usize = 512;

/// Blocks that share the rows of a column sum.
fn splits(rows: usize, columns: usize, dtype: DType) -> usize {
    let tiles = columns.div_ceil(32 * 16 / dtype.size());
    rows.div_ceil(LEAST_ROWS).min((MOST_BLOCKS / tiles.max(1)).max(1))
}

/// The most bytes that [`columns`] borrows.
pub(crate) fn columns_scratch(rows: usize, columns: usize, dtype: DType) -> usize {
    scratch::device_bytes(DType::F32, splits(rows, columns, dtype) * columns)
}

/// The most bytes that sums of all elements borrow, four of them at once.
pub(crate) fn sums_scratch() -> usize {
    scratch::device_bytes(DType::U32, 2 * 4 * MOST_BLOCKS) + scratch::device_bytes(DType::U32, 8)
}

pub(crate) fn columns(mut out: ViewMut<'_>, x: View<'_>) -> Result<()> {
    let [rows, columns] = [x.dim(0), x.dim(1)];
    if rows == 0 {
        return Ok(());
    }
    let splits = splits(rows, columns, x.dtype());
    let rows_each = rows.div_ceil(splits);
    let splits = rows.div_ceil(rows_each);
    if splits == 1 {
        return columns_of_parts(out.reborrow(), x, rows_each, true);
    }
    let mut partials = scratch::device(x.device(), DType::F32, splits, columns)?;
    columns_of_parts(partials.view_mut(), x, rows_each, false)?;
    columns_of_parts(out, partials.view(), splits, true)
}

/// Writes, or adds, the column sums of each `rows_each` rows of `x` to a row of `out`.
fn columns_of_parts(mut out: ViewMut<'_>, x: View<'_>, rows_each: usize, add: bool) -> Result<()> {
    let [rows, columns] = [x.dim(0), x.dim(1)];
    let columns_of_block = 32 * 16 / x.dtype().size();
    let kernel = by_dtype_and_alignment!(x.dtype(), aligned(&[x]), "reduce_columns<", ">");
    let mut launch = Launch::new(&CODE.sources[0], kernel, x.device());
    let arguments = ReduceColumns {
        out: launch.write(&mut out),
        x: launch.read(x),
        x_stride: x.row_stride() as u64,
        rows: rows as u32,
        columns: columns as u32,
        rows_each: rows_each as u32,
        add: u32::from(add),
    };
    let grid = [columns.div_ceil(columns_of_block), rows.div_ceil(rows_each), 1];
    // A float for each warp and column.
    launch.grid(grid).block(THREADS).shared(8 * columns_of_block * 4).run(&arguments)
}

/// What is summed of each element.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Of {
    Elements,
    /// float32 only.
    Squares,
}

pub(crate) fn sum(x: View<'_>, of: Of) -> Result<f64> {
    let [rows, columns] = rows_and_columns(&[x]);
    if rows * columns == 0 {
        return Ok(0.0);
    }
    let x = x.reshape(&[rows, columns]);
    // Where rows lie apart, elements are read one by one: a group of them may cross from a row into the next.
    let whole = rows == 1 && aligned(&[x]);
    let kernel = match (of, whole) {
        (Of::Elements, _) => by_dtype_and_alignment!(x.dtype(), whole, "reduce_sum<", ", false>"),
        (Of::Squares, true) => "reduce_sum<float, true, true>",
        (Of::Squares, false) => "reduce_sum<float, false, true>",
    };
    let groups = (rows * columns).div_ceil(16 / x.dtype().size());
    let blocks = groups.div_ceil(4 * THREADS as usize).min(MOST_BLOCKS);
    let mut partials = Partials::new(x.device(), blocks, 1)?;
    {
        let mut view = partials.scratch.view_mut();
        let mut launch = Launch::new(&CODE.sources[0], kernel, x.device());
        let arguments = ReduceSum {
            partials: launch.write(&mut view),
            x: launch.read(x),
            rows: rows as u64,
            columns: columns as u64,
            x_stride: x.row_stride() as u64,
        };
        launch.grid([blocks, 1, 1]).block(THREADS).shared(SUM_SHARED).run(&arguments)?;
    }
    let [sum] = partials.finish()?;
    Ok(sum)
}

/// Shared memory of a block that sums float64: one for each warp.
pub(crate) const SUM_SHARED: usize = 32 * 8;

/// Rows of float64 sums on a device, one a block, `Global<double>` in `.cu` text; added up by [`Partials::finish`].
pub(crate) struct Partials {
    pub(crate) scratch: DeviceScratch,
}

impl Partials {
    /// Room for `rows` rows of `width` sums.
    ///
    /// # Errors
    /// When the device has not that much memory.
    pub(crate) fn new(device: Device, rows: usize, width: usize) -> Result<Self> {
        // No tensor has elements of 8 bytes: two words are one.
        Ok(Partials { scratch: scratch::device(device, DType::U32, rows, 2 * width)? })
    }

    /// Adds the rows in order and waits for the sums.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn finish<const WIDTH: usize>(&self) -> Result<[f64; WIDTH]> {
        let partials = self.scratch.view();
        let (device, rows) = (partials.device(), partials.dim(0));
        if rows == 1 {
            return read(partials);
        }
        let mut out = scratch::device(device, DType::U32, 1, 2 * WIDTH)?;
        let mut view = out.view_mut();
        let mut launch = Launch::new(&CODE.sources[0], "reduce_partials", device);
        let arguments = ReducePartials {
            out: launch.write(&mut view),
            partials: launch.read(partials),
            count: rows as u32,
            width: WIDTH as u32,
        };
        launch.block(THREADS).shared(SUM_SHARED).run(&arguments)?;
        read(out.view())
    }
}

/// One row of float64 numbers, copied to the host.
fn read<const WIDTH: usize>(row: View<'_>) -> Result<[f64; WIDTH]> {
    let mut words = [[0u32; 2]; WIDTH];
    ViewMut::from_slice(words.as_flattened_mut(), &[1, 2 * WIDTH]).copy_from(row)?;
    Ok(words.map(|[low, high]| f64::from_bits(u64::from(low) | u64::from(high) << 32)))
}
