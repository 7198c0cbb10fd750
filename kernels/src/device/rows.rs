//! Geometry of kernels that walk over rows: `kernels/prelude/rows.cuh`.

use prime_runtime::View;

/// Threads of a block of such a kernel.
pub(crate) const THREADS: u32 = 256;

/// Parts of a row that a thread takes before a row is cut along the grid's second axis.
const PARTS: usize = 4;

/// The grid of a kernel that walks over rows, and how many threads share one.
pub(crate) struct RowGrid {
    pub(crate) grid: [usize; 3],
    pub(crate) threads_per_row: u32,
}

/// Covers `rows` rows of `parts` parts each; `rows_each` consecutive rows fall to the same threads.
pub(crate) fn row_grid(rows: usize, parts: usize, rows_each: usize) -> RowGrid {
    const MOST_ALONG_AXIS: usize = 65535;
    if rows == 0 || parts == 0 {
        return RowGrid { grid: [0; 3], threads_per_row: 1 };
    }
    let threads_per_row = parts.min(THREADS as usize).next_power_of_two();
    let teams = THREADS as usize / threads_per_row;
    let across = parts.div_ceil(threads_per_row * PARTS).min(MOST_ALONG_AXIS);
    RowGrid {
        grid: [rows.div_ceil(teams * rows_each), across, 1],
        threads_per_row: threads_per_row as u32,
    }
}

/// Whether every row of every view starts at a multiple of 16 bytes.
pub(crate) fn aligned(views: &[View<'_>]) -> bool {
    views.iter().all(|view| {
        let rows = view.dims().first().copied().unwrap_or(1);
        let row_bytes = view.row_stride() * view.dtype().size();
        view.address().is_multiple_of(16) && (rows <= 1 || row_bytes.is_multiple_of(16))
    })
}

/// How many elements of 16 bytes together a thread may take of a row at once: all of a vector where `columns` is a multiple of it and every
/// view is [`aligned`], else 1. The views share a dtype.
pub(crate) fn vectorised(columns: usize, views: &[View<'_>]) -> usize {
    let lanes = 16 / views[0].dtype().size();
    if columns.is_multiple_of(lanes) && aligned(views) { lanes } else { 1 }
}

/// Rows and columns of views of one shape: one row where all of them are contiguous.
pub(crate) fn rows_and_columns(views: &[View<'_>]) -> [usize; 2] {
    let elements = views[0].elements();
    let rows = views[0].dims().first().copied().unwrap_or(1);
    match rows {
        _ if views.iter().all(View::is_contiguous) => [1, elements],
        0 => [0, 0],
        rows => [rows, elements / rows],
    }
}
