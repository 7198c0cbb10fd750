//! cuBLASLt, with which products are compared. It is loaded by name where it is found, and nothing else of this project uses it.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::ptr::{from_ref, null_mut};

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;
use prime_kernels::matmul::Layout;
use prime_runtime::cuda;
use prime_runtime::{DType, Device, View, ViewMut};

use super::Bench;

// Types and values of the cuBLAS manual, chapter 3.
type Handle = *mut c_void;
type Status = c_int;
const BFLOAT16: c_int = 14;
const FLOAT32: c_int = 0;
const COMPUTE_FLOAT32: c_int = 68;
const TRANSPOSE_A: c_int = 3;
const TRANSPOSE_B: c_int = 4;
const TRANSPOSED: c_int = 1;
const MOST_WORKSPACE: c_int = 1;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: [u64; 8],
    _workspace: usize,
    status: Status,
    _waves: f32,
    _reserved: [c_int; 4],
}

/// Algorithms that are asked for and timed, and bytes of workspace that they may use.
const ALGORITHMS: usize = 16;
const WORKSPACE: usize = 64 << 20;

type Create = unsafe extern "C" fn(*mut Handle) -> Status;
type Destroy = unsafe extern "C" fn(Handle) -> Status;
type SetAttribute = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> Status;

/// The functions that are used here.
pub(super) struct CublasLt {
    /// Where it was found.
    pub(super) path: String,
    device: u32,
    handle: Handle,
    create_operation: unsafe extern "C" fn(*mut Handle, c_int, c_int) -> Status,
    set_operation: SetAttribute,
    destroy_operation: Destroy,
    create_layout: unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> Status,
    destroy_layout: Destroy,
    create_preference: Create,
    set_preference: SetAttribute,
    destroy_preference: Destroy,
    heuristics: unsafe extern "C" fn(
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> Status,
    multiply: unsafe extern "C" fn(
        Handle,
        Handle,
        *const c_void,
        *const c_void,
        Handle,
        *const c_void,
        Handle,
        *const c_void,
        *const c_void,
        Handle,
        *mut c_void,
        Handle,
        *const [u64; 8],
        *mut c_void,
        usize,
        *mut c_void,
    ) -> Status,
    /// The functions above are part of it.
    _library: Library,
}

/// Something of the library's that is given back.
struct Owned {
    handle: Handle,
    destroy: Destroy,
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by the function that belongs to this one, and used by nobody after this.
        unsafe { (self.destroy)(self.handle) };
    }
}

fn function<T: Copy>(library: &Library, name: &CStr) -> Result<T> {
    // SAFETY: the callers' types are those of the manual.
    let symbol = unsafe { library.get::<T>(name.to_bytes_with_nul()) };
    Ok(*symbol.with_context(|| format!("libcublasLt has no {}", name.to_string_lossy()))?)
}

fn done(status: Status, what: &str) -> Result<()> {
    ensure!(status == 0, "{what} of cuBLASLt failed with status {status}");
    Ok(())
}

impl CublasLt {
    /// Looks for the library in the folders of `PRIME_CUDA_LIBRARIES` and where the system's loader looks.
    pub(super) fn open(device: u32) -> Result<CublasLt> {
        // The device's context must be this thread's before the library is asked for a handle.
        cuda::ready(device)?;
        cuda::synchronize(device)?;
        let names = ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"];
        let folders = std::env::var_os(cuda::LIBRARIES_VARIABLE).unwrap_or_default();
        let folders: Vec<PathBuf> = std::env::split_paths(&folders).collect();
        let below = ["", "lib64", "lib", "nvidia/cu13/lib", "nvidia/cublas/lib"];
        let mut paths: Vec<PathBuf> = Vec::new();
        for name in names {
            let places = folders.iter().flat_map(|folder| below.map(|part| folder.join(part)));
            paths.extend(places.map(|folder| folder.join(name)).filter(|path| path.is_file()));
        }
        paths.extend(names.map(PathBuf::from));
        // SAFETY: the libraries of CUDA run no initialisers that a program could break by loading them.
        let found = paths.iter().find_map(|path| Some((unsafe { Library::new(path) }.ok()?, path)));
        match found {
            Some((library, path)) => CublasLt::of(library, path, device),
            None => bail!(
                "libcublasLt was found neither in the folders of {} nor by the system's loader; it comes with the CUDA toolkit and with PyTorch",
                cuda::LIBRARIES_VARIABLE
            ),
        }
    }

    fn of(library: Library, path: &Path, device: u32) -> Result<CublasLt> {
        let create: Create = function(&library, c"cublasLtCreate")?;
        let mut handle = null_mut();
        // SAFETY: the place for the handle lives for the call.
        done(unsafe { create(&mut handle) }, "cublasLtCreate")?;
        Ok(CublasLt {
            path: path.display().to_string(),
            device,
            handle,
            create_operation: function(&library, c"cublasLtMatmulDescCreate")?,
            set_operation: function(&library, c"cublasLtMatmulDescSetAttribute")?,
            destroy_operation: function(&library, c"cublasLtMatmulDescDestroy")?,
            create_layout: function(&library, c"cublasLtMatrixLayoutCreate")?,
            destroy_layout: function(&library, c"cublasLtMatrixLayoutDestroy")?,
            create_preference: function(&library, c"cublasLtMatmulPreferenceCreate")?,
            set_preference: function(&library, c"cublasLtMatmulPreferenceSetAttribute")?,
            destroy_preference: function(&library, c"cublasLtMatmulPreferenceDestroy")?,
            heuristics: function(&library, c"cublasLtMatmulAlgoGetHeuristic")?,
            multiply: function(&library, c"cublasLtMatmul")?,
            _library: library,
        })
    }

    fn layout(&self, rows: usize, columns: usize) -> Result<Owned> {
        let mut handle = null_mut();
        // SAFETY: the place for the handle lives for the call.
        let status = unsafe {
            (self.create_layout)(&mut handle, BFLOAT16, rows as u64, columns as u64, rows as i64)
        };
        done(status, "a matrix layout")?;
        Ok(Owned { handle, destroy: self.destroy_layout })
    }

    /// Seconds of the fastest algorithm for a product of contiguous bfloat16 matrices in rows.
    ///
    /// The library counts in columns: a matrix of ours is its transposed one, and C^T = op(B)^T op(A)^T.
    pub(super) fn measure(
        &self,
        bench: &Bench,
        layout: Layout,
        [m, n, k]: [usize; 3],
        a: View<'_>,
        b: View<'_>,
        out: ViewMut<'_>,
    ) -> Result<f64> {
        ensure!(bench.device == Device::Cuda(self.device), "it was opened for another device");
        let (first, second) = match layout {
            Layout::NN => (self.layout(n, k)?, self.layout(k, m)?),
            Layout::NT => (self.layout(k, n)?, self.layout(k, m)?),
            Layout::TN => (self.layout(n, k)?, self.layout(m, k)?),
        };
        let result = self.layout(n, m)?;
        let mut handle = null_mut();
        // SAFETY: the place for the handle lives for the call.
        let status = unsafe { (self.create_operation)(&mut handle, COMPUTE_FLOAT32, FLOAT32) };
        done(status, "a description of a product")?;
        let operation = Owned { handle, destroy: self.destroy_operation };
        let attribute = match layout {
            Layout::NN => None,
            Layout::NT => Some(TRANSPOSE_A),
            Layout::TN => Some(TRANSPOSE_B),
        };
        if let Some(attribute) = attribute {
            let value = from_ref(&TRANSPOSED).cast();
            // SAFETY: the value is read during the call.
            let status = unsafe {
                (self.set_operation)(operation.handle, attribute, value, size_of::<c_int>())
            };
            done(status, "a transposition")?;
        }
        let mut handle = null_mut();
        // SAFETY: the place for the handle lives for the call.
        done(unsafe { (self.create_preference)(&mut handle) }, "a preference")?;
        let preference = Owned { handle, destroy: self.destroy_preference };
        let most = from_ref(&WORKSPACE).cast();
        // SAFETY: the value is read during the call.
        let status = unsafe {
            (self.set_preference)(preference.handle, MOST_WORKSPACE, most, size_of::<usize>())
        };
        done(status, "the size of the workspace")?;

        let mut found = [const { MaybeUninit::<Heuristic>::zeroed() }; ALGORITHMS];
        let mut count = 0;
        // SAFETY: the places for as many results live for the call; all handles are the library's.
        let status = unsafe {
            (self.heuristics)(
                self.handle,
                operation.handle,
                first.handle,
                second.handle,
                result.handle,
                result.handle,
                preference.handle,
                ALGORITHMS as c_int,
                found.as_mut_ptr().cast(),
                &mut count,
            )
        };
        done(status, "the choice of algorithms")?;
        let workspace = bench.zeros(DType::F32, &[WORKSPACE / 4])?;
        let stream = cuda::stream(self.device)?;
        let (one, zero) = (1.0f32, 0.0f32);
        let [a, b, c] = [a.address(), b.address(), out.address()].map(|at| at as *mut c_void);
        let room = workspace.view().address() as *mut c_void;
        let mut best = f64::INFINITY;
        for heuristic in &found[..count as usize] {
            // SAFETY: the library has written `count` results; before, all were zero.
            let heuristic = unsafe { heuristic.assume_init_ref() };
            if heuristic.status != 0 {
                continue;
            }
            let run = || {
                // SAFETY: addresses, sizes and layouts are those of the matrices, which live as long as what is timed; the stream is the device's,
                // on which all else of them happens.
                let status = unsafe {
                    (self.multiply)(
                        self.handle,
                        operation.handle,
                        from_ref(&one).cast(),
                        b,
                        first.handle,
                        a,
                        second.handle,
                        from_ref(&zero).cast(),
                        c,
                        result.handle,
                        c,
                        result.handle,
                        &heuristic.algorithm,
                        room,
                        WORKSPACE,
                        stream,
                    )
                };
                done(status, "a product")
            };
            if let Ok(Some(seconds)) = bench.time(run) {
                best = best.min(seconds);
            }
        }
        ensure!(best.is_finite(), "cuBLASLt offered no algorithm that ran, of {count}");
        Ok(best)
    }
}
