//! cuBLAS once more, linked when this is built: the crate `cublas-sys`, whose interface of 2016 knows float32 and float64. That it agrees with the library
//! that is loaded at run time, in results and in time, is an independent check of how the other is called.

use std::ptr::{from_ref, null_mut};

use anyhow::{Result, ensure};
use cublas_sys::{
    cublasCreate_v2, cublasHandle_t, cublasOperation_t, cublasSetStream_v2, cublasSgemm_v2,
};
use prime_kernels::matmul::Layout;
use prime_runtime::{DType, Tensor, cuda};

use super::cublas::Problem;

/// The linked library, for a device.
pub struct Linked {
    handle: cublasHandle_t,
}

impl Linked {
    /// Starts it on a device's stream. It lives as long as the process.
    ///
    /// # Errors
    /// When it does not start.
    pub fn open(number: u32) -> Result<Linked> {
        cuda::ready(number)?;
        cuda::synchronize(number)?;
        let mut handle = null_mut();
        // SAFETY: the place for the handle lives for the call.
        let status = unsafe { cublasCreate_v2(&mut handle) } as u32;
        ensure!(status == 0, "the linked cuBLAS does not start: status {status}");
        // SAFETY: the stream is that of the device, which is current.
        let status = unsafe { cublasSetStream_v2(handle, cuda::stream(number)?.cast()) } as u32;
        ensure!(status == 0, "the linked cuBLAS does not take the stream: status {status}");
        Ok(Linked { handle })
    }

    /// A product in float32. The buffers of a set are C, A and B.
    ///
    /// # Errors
    /// When it is not in float32, or the library fails.
    pub fn sgemm(&self, problem: Problem, set: &mut [Tensor]) -> Result<()> {
        let Problem { layout, dims: [m, n, k], dtype, out, accumulate } = problem;
        ensure!(dtype == DType::F32 && out == DType::F32, "SGEMM multiplies float32");
        use cublasOperation_t::{CUBLAS_OP_N, CUBLAS_OP_T};
        // In columns, B comes first.
        let (first, second, lead_first, lead_second) = match layout {
            Layout::NN => (CUBLAS_OP_N, CUBLAS_OP_N, n, k),
            Layout::NT => (CUBLAS_OP_T, CUBLAS_OP_N, k, k),
            Layout::TN => (CUBLAS_OP_N, CUBLAS_OP_T, n, m),
        };
        let (one, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        let [c, a, b] = [0, 1, 2].map(|at| set[at].view().address() as *mut f32);
        // SAFETY: addresses, sizes and layouts are those of the matrices, which live as long as the device works on them.
        let status = unsafe {
            cublasSgemm_v2(
                self.handle,
                first,
                second,
                n as i32,
                m as i32,
                k as i32,
                from_ref(&one),
                b,
                lead_first as i32,
                a,
                lead_second as i32,
                from_ref(&beta),
                c,
                n as i32,
            )
        } as u32;
        ensure!(status == 0, "cublasSgemm failed with status {status}");
        Ok(())
    }
}
