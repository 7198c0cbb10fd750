//! cuBLASLt, by the fastest of all algorithms that it offers, and cuBLAS by the one that it chooses itself.
//!
//! Types, values and signatures are those of the headers of cuBLAS 13.0.2 (`cublasLt.h`, `cublas_api.h`, `library_types.h` of the wheel
//! `nvidia-cublas` 13.0.2.14), which CUDA 12's agree with in everything used here.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{from_ref, null_mut};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use libloading::Library;
use prime::bench::choose::fastest;
use prime_kernels::matmul::Layout;
use prime_runtime::cuda::{self, Event};
use prime_runtime::{DType, Device, Tensor};

use super::libraries::{Status, done, function, open_versioned};

type Handle = *mut c_void;
/// `cudaDataType`, `cublasComputeType_t`, and attributes.
const BFLOAT16: c_int = 14;
const FLOAT32: c_int = 0;
const COMPUTE_FLOAT32: c_int = 68;
const TRANSPOSE_A: c_int = 3;
const TRANSPOSE_B: c_int = 4;
const MOST_WORKSPACE: c_int = 1;
/// `cublasOperation_t`, and the algorithm that cuBLAS chooses.
const PLAIN: c_int = 0;
const TRANSPOSED: c_int = 1;
const DEFAULT_ALGORITHM: c_int = -1;

/// `cublasLtMatmulAlgo_t`.
type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    status: Status,
    _waves: f32,
    _reserved: [c_int; 4],
}

/// Algorithms that are asked for at each size of workspace; at least 32, of which the library may have fewer.
const ALGORITHMS: usize = 64;
const WORKSPACES: [usize; 3] = [0, 32 << 20, 128 << 20];

type Create = unsafe extern "C" fn(*mut Handle) -> Status;
type Destroy = unsafe extern "C" fn(Handle) -> Status;
type SetAttribute = unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> Status;
type Heuristics = unsafe extern "C" fn(
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
) -> Status;
type Multiply = unsafe extern "C" fn(
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
    *const Algorithm,
    *mut c_void,
    usize,
    *mut c_void,
) -> Status;
type GemmEx = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> Status;

/// What a product is.
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    /// How A and B lie.
    pub layout: Layout,
    /// Rows of C, its columns, and terms of a sum.
    pub dims: [usize; 3],
    /// The dtype of A and B.
    pub dtype: DType,
    /// The dtype of C.
    pub out: DType,
    /// Whether C is added to.
    pub accumulate: bool,
}

/// The functions of cuBLASLt that are used here.
struct Light {
    handle: Handle,
    create_operation: unsafe extern "C" fn(*mut Handle, c_int, c_int) -> Status,
    set_operation: SetAttribute,
    destroy_operation: Destroy,
    create_layout: unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> Status,
    destroy_layout: Destroy,
    create_preference: Create,
    set_preference: SetAttribute,
    destroy_preference: Destroy,
    heuristics: Heuristics,
    multiply: Multiply,
    destroy: Destroy,
}

/// The functions of cuBLAS that are used here.
struct Full {
    handle: Handle,
    gemm: GemmEx,
    destroy: Destroy,
}

/// Both libraries for a device.
pub struct Cublas {
    /// Where cuBLASLt was found.
    pub path: String,
    number: u32,
    light: Light,
    full: Result<Full, String>,
    workspace: Tensor,
}

impl Drop for Light {
    fn drop(&mut self) {
        // SAFETY: made by the library, and used by nobody after this.
        unsafe { (self.destroy)(self.handle) };
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { (self.destroy)(self.handle) };
    }
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

impl Light {
    /// Resolves everything before anything is called.
    fn of(library: &Library) -> Result<Light> {
        let create: Create = function(library, c"cublasLtCreate")?;
        let mut light = Light {
            handle: null_mut(),
            create_operation: function(library, c"cublasLtMatmulDescCreate")?,
            set_operation: function(library, c"cublasLtMatmulDescSetAttribute")?,
            destroy_operation: function(library, c"cublasLtMatmulDescDestroy")?,
            create_layout: function(library, c"cublasLtMatrixLayoutCreate")?,
            destroy_layout: function(library, c"cublasLtMatrixLayoutDestroy")?,
            create_preference: function(library, c"cublasLtMatmulPreferenceCreate")?,
            set_preference: function(library, c"cublasLtMatmulPreferenceSetAttribute")?,
            destroy_preference: function(library, c"cublasLtMatmulPreferenceDestroy")?,
            heuristics: function(library, c"cublasLtMatmulAlgoGetHeuristic")?,
            multiply: function(library, c"cublasLtMatmul")?,
            destroy: nothing,
        };
        let destroy = function(library, c"cublasLtDestroy")?;
        // SAFETY: the place for the handle lives for the call.
        done(unsafe { create(&mut light.handle) }, "cublasLtCreate")?;
        light.destroy = destroy;
        Ok(light)
    }

    fn layout(&self, dtype: DType, rows: usize, columns: usize) -> Result<Owned> {
        let mut handle = null_mut();
        let (rows, columns, leading) = (rows as u64, columns as u64, rows as i64);
        // SAFETY: the place for the handle lives for the call.
        let status =
            unsafe { (self.create_layout)(&mut handle, type_of(dtype), rows, columns, leading) };
        done(status, "a matrix layout")?;
        Ok(Owned { handle, destroy: self.destroy_layout })
    }

    /// The description of a product: float32 sums of factors that are transposed or not.
    fn operation(&self, [first, second]: [bool; 2]) -> Result<Owned> {
        let mut handle = null_mut();
        // SAFETY: the place for the handle lives for the call.
        let status = unsafe { (self.create_operation)(&mut handle, COMPUTE_FLOAT32, FLOAT32) };
        done(status, "a description of a product")?;
        let operation = Owned { handle, destroy: self.destroy_operation };
        for (transposed, attribute) in [(first, TRANSPOSE_A), (second, TRANSPOSE_B)] {
            let value = if transposed { TRANSPOSED } else { PLAIN };
            let place = from_ref(&value).cast();
            // SAFETY: the value is read during the call.
            let status = unsafe {
                (self.set_operation)(operation.handle, attribute, place, size_of::<c_int>())
            };
            done(status, "a transposition")?;
        }
        Ok(operation)
    }

    fn preference(&self, workspace: usize) -> Result<Owned> {
        let mut handle = null_mut();
        // SAFETY: the place for the handle lives for the call.
        done(unsafe { (self.create_preference)(&mut handle) }, "a preference")?;
        let preference = Owned { handle, destroy: self.destroy_preference };
        let place = from_ref(&workspace).cast();
        // SAFETY: the value is read during the call.
        let status = unsafe {
            (self.set_preference)(preference.handle, MOST_WORKSPACE, place, size_of::<usize>())
        };
        done(status, "the size of the workspace")?;
        Ok(preference)
    }
}

/// In place of a handle's end, while there is no handle.
unsafe extern "C" fn nothing(_: Handle) -> Status {
    0
}

fn type_of(dtype: DType) -> c_int {
    if dtype == DType::BF16 { BFLOAT16 } else { FLOAT32 }
}

impl Cublas {
    /// Opens both libraries for a device.
    ///
    /// # Errors
    /// When cuBLASLt is not there, or does not start.
    pub fn open(number: u32) -> Result<Cublas> {
        // Its context is made, and current to this thread.
        cuda::ready(number)?;
        cuda::synchronize(number)?;
        let (library, path) = open_versioned("libcublasLt")?;
        let light = Light::of(library).with_context(|| path.clone())?;
        let most = WORKSPACES[WORKSPACES.len() - 1];
        let workspace = Tensor::zeros(Device::Cuda(number), DType::F32, &[most / 4])?;
        let full = full(number, &workspace).map_err(|error| format!("{error:#}"));
        Ok(Cublas { path, number, light, full, workspace })
    }

    /// Why cuBLAS is not there, where it is not.
    pub fn without_full(&self) -> Option<&str> {
        self.full.as_ref().err().map(String::as_str)
    }

    /// All algorithms that the library offers for a product, by any size of workspace, each once.
    fn algorithms(&self, operation: &Owned, layouts: &[Owned; 3]) -> Result<Vec<Heuristic>> {
        let [first, second, result] = layouts;
        let mut all: Vec<Heuristic> = Vec::new();
        for workspace in WORKSPACES {
            let preference = self.light.preference(workspace)?;
            let mut found = [const { MaybeUninit::<Heuristic>::zeroed() }; ALGORITHMS];
            let mut count = 0;
            // SAFETY: the places for as many results live for the call; all handles are the library's.
            let status = unsafe {
                (self.light.heuristics)(
                    self.light.handle,
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
            // It refuses where nothing runs in so little workspace.
            if status != 0 {
                continue;
            }
            for place in &found[..count as usize] {
                // SAFETY: the library has written `count` results; before, all were zero.
                let heuristic = unsafe { place.assume_init() };
                let known = all.iter().any(|other| other.algorithm == heuristic.algorithm);
                if heuristic.status == 0
                    && !known
                    && heuristic.workspace <= WORKSPACES[WORKSPACES.len() - 1]
                {
                    all.push(heuristic);
                }
            }
        }
        ensure!(!all.is_empty(), "cuBLASLt offers no algorithm for this product");
        Ok(all)
    }

    /// A product by the fastest of all algorithms, each timed on these matrices.
    ///
    /// The library counts in columns: a matrix of ours is its transposed one, and C^T = op(B)^T op(A)^T.
    ///
    /// # Errors
    /// When the library fails, or none of its algorithms runs.
    pub fn prepare(self: &Rc<Self>, problem: Problem, set: &mut [Tensor]) -> Result<Prepared> {
        let Problem { layout, dims: [m, n, k], dtype, out, .. } = problem;
        let (first, second) = match layout {
            Layout::NN => ((n, k), (k, m)),
            Layout::NT => ((k, n), (k, m)),
            Layout::TN => ((n, k), (m, k)),
        };
        let layouts = [
            self.light.layout(dtype, first.0, first.1)?,
            self.light.layout(dtype, second.0, second.1)?,
            self.light.layout(out, n, m)?,
        ];
        let operation = self.light.operation(transposed(layout))?;
        let candidates = self.algorithms(&operation, &layouts)?;
        let mut prepared = Prepared {
            library: Rc::clone(self),
            problem,
            operation,
            layouts,
            chosen: candidates[0],
            offered: candidates.len(),
            ran: 0,
        };
        let (mut start, mut end) = (Event::new(self.number)?, Event::new(self.number)?);
        let chosen = fastest(&candidates, |candidate, calls| {
            prepared.chosen = *candidate;
            // Some algorithms refuse some shapes only when they are called.
            prepared.run(set).ok()?;
            start.record().ok()?;
            for _ in 0..calls {
                prepared.run(set).ok()?;
            }
            end.record().ok()?;
            Some(f64::from(end.milliseconds_since(&start).ok()?) / calls as f64)
        });
        let chosen = chosen.context("none of cuBLASLt's algorithms ran")?;
        prepared.chosen = candidates[chosen.index];
        prepared.ran = chosen.ran;
        Ok(prepared)
    }

    /// The product by cuBLAS, which chooses its algorithm itself. The buffers of a set are C, A and B.
    ///
    /// # Errors
    /// When there is no cuBLAS, or it fails.
    pub fn gemm(&self, problem: Problem, set: &mut [Tensor]) -> Result<()> {
        let full = self.full.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
        let Problem { layout, dims: [m, n, k], dtype, out, accumulate } = problem;
        let (one, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        let [first, second] = transposed(layout).map(|it| if it { TRANSPOSED } else { PLAIN });
        let (lead_first, lead_second) = match layout {
            Layout::NN => (n, k),
            Layout::NT => (k, k),
            Layout::TN => (n, m),
        };
        let [c, a, b] = addresses(set);
        // SAFETY: addresses, sizes and layouts are those of the matrices, which live as long as the device works on them; the stream that the
        // handle was given is the device's, on which all else of them happens.
        let status = unsafe {
            (full.gemm)(
                full.handle,
                first,
                second,
                n as c_int,
                m as c_int,
                k as c_int,
                from_ref(&one).cast(),
                b,
                type_of(dtype),
                lead_first as c_int,
                a,
                type_of(dtype),
                lead_second as c_int,
                from_ref(&beta).cast(),
                c,
                type_of(out),
                n as c_int,
                COMPUTE_FLOAT32,
                DEFAULT_ALGORITHM,
            )
        };
        done(status, "cublasGemmEx")
    }
}

/// Whether the library's first and second factor, which are our B and A, are transposed.
fn transposed(layout: Layout) -> [bool; 2] {
    match layout {
        Layout::NN => [false, false],
        Layout::NT => [true, false],
        Layout::TN => [false, true],
    }
}

fn addresses(set: &mut [Tensor]) -> [Handle; 3] {
    [0, 1, 2].map(|at| set[at].view().address() as Handle)
}

fn full(number: u32, workspace: &Tensor) -> Result<Full> {
    let (library, path) = open_versioned("libcublas")?;
    let create: Create = function(library, c"cublasCreate_v2")?;
    let destroy: Destroy = function(library, c"cublasDestroy_v2")?;
    let gemm: GemmEx = function(library, c"cublasGemmEx")?;
    type SetStream = unsafe extern "C" fn(Handle, Handle) -> Status;
    type SetWorkspace = unsafe extern "C" fn(Handle, Handle, usize) -> Status;
    let set_stream: SetStream = function(library, c"cublasSetStream_v2")?;
    let set_workspace: SetWorkspace = function(library, c"cublasSetWorkspace_v2")?;
    let mut full = Full { handle: null_mut(), gemm, destroy: nothing };
    // SAFETY: the place for the handle lives for the call.
    done(unsafe { create(&mut full.handle) }, "cublasCreate").with_context(|| path)?;
    full.destroy = destroy;
    // SAFETY: handle and stream live as long as the process works on the device.
    done(unsafe { set_stream(full.handle, cuda::stream(number)?) }, "cublasSetStream")?;
    let (room, bytes) = (workspace.view().address() as Handle, workspace.dims()[0] * 4);
    // SAFETY: the workspace outlives the handle's last call, and is used on its stream alone.
    done(unsafe { set_workspace(full.handle, room, bytes) }, "cublasSetWorkspace")?;
    Ok(full)
}

/// A product whose algorithm is chosen.
pub struct Prepared {
    library: Rc<Cublas>,
    problem: Problem,
    operation: Owned,
    layouts: [Owned; 3],
    chosen: Heuristic,
    /// Algorithms that were offered, and how many of them ran.
    pub offered: usize,
    /// See above.
    pub ran: usize,
}

impl Prepared {
    /// Bytes of workspace that the chosen algorithm takes.
    pub fn workspace(&self) -> usize {
        self.chosen.workspace
    }

    /// The product. The buffers of a set are C, A and B.
    ///
    /// # Errors
    /// When the library fails.
    pub fn run(&self, set: &mut [Tensor]) -> Result<()> {
        let (one, beta) = (1.0f32, if self.problem.accumulate { 1.0f32 } else { 0.0 });
        let [c, a, b] = addresses(set);
        let light = &self.library.light;
        let [first, second, result] = &self.layouts;
        let room = self.library.workspace.view().address() as Handle;
        let stream = cuda::stream(self.library.number)?;
        // SAFETY: addresses, sizes and layouts are those of the matrices, which live as long as the device works on them; the stream is the
        // device's, on which all else of them happens; the workspace is as large as the largest that algorithms were asked for.
        let status = unsafe {
            (light.multiply)(
                light.handle,
                self.operation.handle,
                from_ref(&one).cast(),
                b,
                first.handle,
                a,
                second.handle,
                from_ref(&beta).cast(),
                c,
                result.handle,
                c,
                result.handle,
                &self.chosen.algorithm,
                room,
                self.chosen.workspace,
                stream,
            )
        };
        done(status, "cublasLtMatmul")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_header_says() {
        // 8 words, a size, a status, a float, four integers.
        assert_eq!(size_of::<Heuristic>(), 64 + 8 + 4 + 4 + 16);
        const { assert!(ALGORITHMS >= 32) };
    }

    /// In columns, B comes first: what is transposed follows from how each lies in rows.
    #[test]
    fn factors_are_transposed_as_layouts_ask() {
        assert_eq!(transposed(Layout::NN), [false, false]);
        assert_eq!(transposed(Layout::NT), [true, false]);
        assert_eq!(transposed(Layout::TN), [false, true]);
    }

    /// Where the library itself is at hand (`PRIME_CUDA_LIBRARIES`), it has every function that is used.
    #[test]
    fn a_library_that_is_there_has_all_functions() {
        let Ok((library, path)) = open_versioned("libcublasLt") else { return };
        match Light::of(library) {
            Ok(_) => (),
            // Without a GPU it does not start, which is the last thing that is tried.
            Err(error) => {
                let text = format!("{error:#}");
                assert!(text.contains("cublasLtCreate failed"), "{path}: {text}");
            }
        }
    }
}
