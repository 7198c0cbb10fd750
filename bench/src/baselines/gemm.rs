//! Products in float32 by the crate `gemm`, on all cores.

use prime_kernels::matmul::Layout;
use prime_runtime::{Tensor, View};

/// C = op(A) op(B), or C added to, of contiguous float32 matrices on the host.
///
/// # Panics
/// When the sizes do not agree.
pub fn product(out: &mut Tensor, a: View<'_>, b: View<'_>, layout: Layout, accumulate: bool) {
    let (m, n) = (out.dims()[0], out.dims()[1]);
    let k = if layout == Layout::TN { a.dim(0) } else { a.dim(1) };
    assert_eq!(a.elements(), m * k, "A is not m x k");
    assert_eq!(b.elements(), n * k, "B is not k x n");
    let strides = |transposed, rows: usize, columns: usize| {
        if transposed { (rows as isize, 1) } else { (1, columns as isize) }
    };
    let (a_column, a_row) = strides(layout == Layout::TN, m, k);
    let (b_column, b_row) = strides(layout == Layout::NT, k, n);
    let (a, b) = (a.as_slice::<f32>().as_ptr(), b.as_slice::<f32>().as_ptr());
    let c = out.as_mut_slice::<f32>().as_mut_ptr();
    let threads = gemm::Parallelism::Rayon(0);
    // SAFETY: the slices have the sizes that were checked, and the strides reach no further.
    unsafe {
        gemm::gemm(
            m, n, k, c, 1, n as isize, accumulate, a, a_column, a_row, b, b_column, b_row, 1.0f32,
            1.0f32, false, false, false, threads,
        );
    }
}
