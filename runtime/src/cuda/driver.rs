//! The driver: the functions of `libcuda` that this crate calls, and what their refusals mean.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::mem::offset_of;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, *};

use super::library::{self, LIBRARIES_VARIABLE, Opened, Search, functions};
use crate::{Error, Result};

functions! {
    /// The driver's functions.
    Functions from sys returning CUresult, failing with Refusal:
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, number: c_int);
    cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuCtxSetCurrent(context: CUcontext);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemHostAlloc(start: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemsetD8Async(to: CUdeviceptr, value: u8, bytes: usize, stream: CUstream);
    cuMemsetD2D8Async(to: CUdeviceptr, pitch: usize, value: u8, width: usize, height: usize, stream: CUstream);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpy2DAsync_v2(copy: *const CUDA_MEMCPY2D, stream: CUstream);
    cuMemcpyPeerAsync(to: CUdeviceptr, to_context: CUcontext, from: CUdeviceptr, from_context: CUcontext, bytes: usize, stream: CUstream);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamSynchronize(stream: CUstream);
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuEventElapsedTime_v2 or cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    cuEventDestroy_v2(event: CUevent);
    cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    cuGraphGetNodes(graph: CUgraph, nodes: *mut CUgraphNode, count: *mut usize);
    cuGraphUpload(executable: CUgraphExec, stream: CUstream);
    cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
    cuGraphExecUpdate_v2(executable: CUgraphExec, graph: CUgraph, result: *mut CUgraphExecUpdateResultInfo);
    cuGraphExecDestroy(executable: CUgraphExec);
    cuGraphDestroy(graph: CUgraph);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
    cuFuncGetParamInfo(function: CUfunction, index: usize, offset: *mut usize, bytes: *mut usize);
    cuLaunchKernelEx(config: *const CUlaunchConfig, function: CUfunction, arguments: *mut *mut c_void, extra: *mut *mut c_void);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, function: CUfunction, threads: c_int, shared_bytes: usize);
    cuTensorMapEncodeTiled(map: *mut CUtensorMap, dtype: CUtensorMapDataType, rank: c_uint, address: *mut c_void, dims: *const u64, strides: *const u64, tile: *const c_uint, steps: *const c_uint, interleave: CUtensorMapInterleave, swizzle: CUtensorMapSwizzle, promotion: CUtensorMapL2promotion, outside: CUtensorMapFloatOOBfill);
    cuOccupancyMaxActiveClusters(clusters: *mut c_int, function: CUfunction, config: *const CUlaunchConfig);
}

/// What crosses the border by value or by reference, as `cuda.h` of CUDA 12.8, 12.9, 13.0 and 13.5 lays it out. The bindings are generated from 13.0.
const _: () = {
    assert!(size_of::<CUlaunchConfig>() == 56 && align_of::<CUlaunchConfig>() == 8);
    assert!(offset_of!(CUlaunchConfig, sharedMemBytes) == 24);
    assert!(offset_of!(CUlaunchConfig, hStream) == 32);
    assert!(offset_of!(CUlaunchConfig, attrs) == 40);
    assert!(offset_of!(CUlaunchConfig, numAttrs) == 48);
    assert!(size_of::<CUlaunchAttribute>() == 72 && offset_of!(CUlaunchAttribute, value) == 8);
    assert!(size_of::<CUlaunchAttributeValue>() == 64);
    assert!(size_of::<CUtensorMap>() == 128 && align_of::<CUtensorMap>() >= 64);
    assert!(size_of::<CUDA_MEMCPY2D>() == 128);
    assert!(offset_of!(CUDA_MEMCPY2D, srcMemoryType) == 16);
    assert!(offset_of!(CUDA_MEMCPY2D, srcDevice) == 32);
    assert!(offset_of!(CUDA_MEMCPY2D, srcPitch) == 48);
    assert!(offset_of!(CUDA_MEMCPY2D, dstMemoryType) == 72);
    assert!(offset_of!(CUDA_MEMCPY2D, dstDevice) == 88);
    assert!(offset_of!(CUDA_MEMCPY2D, dstPitch) == 104);
    assert!(offset_of!(CUDA_MEMCPY2D, Height) == 120);
    assert!(size_of::<CUgraphExecUpdateResultInfo>() == 24);
};

const NAMES: &[&str] = &["libcuda.so.1", "libcuda.so"];

/// The driver's oldest version that has all of these functions.
const OLDEST: &str = "CUDA 12.4, which are drivers 550 and newer";

pub(super) const OUT_OF_MEMORY: u32 = CUresult::CUDA_ERROR_OUT_OF_MEMORY as u32;
const NO_DEVICE: u32 = CUresult::CUDA_ERROR_NO_DEVICE as u32;

/// A call of the driver that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) call: &'static str,
    pub(super) code: u32,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let words = match DRIVER.get() {
            Some(Ok(driver)) => driver.describe(refusal.code),
            _ => format!("error {}", refusal.code),
        };
        Error::Device(format!("{} failed: {words}{}", refusal.call, hint(refusal.code)))
    }
}

/// The loaded driver.
pub(super) struct Driver {
    functions: Functions,
    words: Words,
    path: PathBuf,
    version: (u32, u32),
    devices: u32,
}

type Describe = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;

struct Words {
    name: Describe,
    sentence: Describe,
}

static DRIVER: OnceLock<std::result::Result<Driver, String>> = OnceLock::new();

/// The driver, loaded and started by the first call.
///
/// # Errors
/// A sentence that says what is missing, where it was looked for, and what would help; the same at each call.
pub(super) fn driver() -> Result<&'static Driver> {
    DRIVER.get_or_init(load).as_ref().map_err(|message| Error::Device(message.clone()))
}

fn load() -> std::result::Result<Driver, String> {
    let mut search = Search::default();
    let opened = search
        .in_folders(library::asked_for(), NAMES, |_| {})
        .or_else(|| search.by_name(NAMES))
        .or_else(|| search.in_folders(library::driver_folders(), NAMES, |_| {}));
    let Some(Opened { library, path }) = opened else {
        return Err(format!(
            "the NVIDIA driver is not here: {}; install the driver (580 or newer for CUDA 13), or name the folder of its library in {LIBRARIES_VARIABLE}",
            search.report(&NAMES[..1])
        ));
    };
    let missing = |name: &str| {
        format!(
            "the NVIDIA driver at {} has no function {name}: it is older than {OLDEST}",
            path.display()
        )
    };
    let words = words(&library).ok_or_else(|| missing("cuGetErrorName"))?;
    let functions = Functions::resolve(library).map_err(missing)?;
    let mut driver = Driver { functions, words, path, version: (0, 0), devices: 0 };
    driver.start().map_err(|refusal| {
        format!(
            "the NVIDIA driver at {} does not start: {} failed: {}",
            driver.path.display(),
            refusal.call,
            driver.describe(refusal.code)
        )
    })?;
    Ok(driver)
}

fn words(library: &libloading::Library) -> Option<Words> {
    // SAFETY: both functions take a result and a place for a pointer to text that lives as long as the driver.
    unsafe {
        Some(Words {
            name: *library.get::<Describe>("cuGetErrorName").ok()?,
            sentence: *library.get::<Describe>("cuGetErrorString").ok()?,
        })
    }
}

impl Driver {
    fn start(&mut self) -> std::result::Result<(), Refusal> {
        let mut version = 0;
        // SAFETY: the place for the version lives for the call.
        unsafe { self.functions.cuDriverGetVersion(&mut version) }?;
        self.version = (version as u32 / 1000, version as u32 % 1000 / 10);
        // SAFETY: no flags are defined; nothing is asked of the driver before.
        match unsafe { self.functions.cuInit(0) } {
            // A driver without a GPU is no fault: there are just no devices.
            Err(Refusal { code: NO_DEVICE, .. }) => return Ok(()),
            started => started?,
        }
        let mut devices = 0;
        // SAFETY: the place for the count lives for the call.
        unsafe { self.functions.cuDeviceGetCount(&mut devices) }?;
        self.devices = devices as u32;
        Ok(())
    }

    /// Where it was found.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The version of CUDA that it supports.
    pub(super) fn version(&self) -> (u32, u32) {
        self.version
    }

    /// How many devices it reports.
    pub(super) fn devices(&self) -> u32 {
        self.devices
    }

    /// A result in the driver's words.
    fn describe(&self, code: u32) -> String {
        let say = |describe: Describe| {
            let mut text = std::ptr::null();
            // SAFETY: the place for the pointer lives for the call; the text is the driver's, ends with a zero and stays.
            unsafe {
                (describe(code, &mut text) == 0 && !text.is_null())
                    .then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        match (say(self.words.name), say(self.words.sentence)) {
            (Some(name), Some(sentence)) => format!("{sentence} ({name}, {code})"),
            _ => format!("error {code}, which this driver has no words for"),
        }
    }
}

impl Deref for Driver {
    type Target = Functions;
    fn deref(&self) -> &Functions {
        &self.functions
    }
}

// Errors that a kernel left behind are reported by whatever is called next, and stay.
fn hint(code: u32) -> &'static str {
    use CUresult::*;
    const OF_KERNELS: [CUresult; 9] = [
        CUDA_ERROR_ILLEGAL_ADDRESS,
        CUDA_ERROR_LAUNCH_TIMEOUT,
        CUDA_ERROR_ASSERT,
        CUDA_ERROR_HARDWARE_STACK_ERROR,
        CUDA_ERROR_ILLEGAL_INSTRUCTION,
        CUDA_ERROR_MISALIGNED_ADDRESS,
        CUDA_ERROR_INVALID_ADDRESS_SPACE,
        CUDA_ERROR_INVALID_PC,
        CUDA_ERROR_LAUNCH_FAILED,
    ];
    if OF_KERNELS.iter().any(|&of_kernels| of_kernels as u32 == code) {
        "; a kernel started before this call failed, and this process can no longer use the device: run it under `compute-sanitizer` to see which"
    } else {
        ""
    }
}
