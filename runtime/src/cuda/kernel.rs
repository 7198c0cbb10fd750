//! Kernels that are ready to be started, and starting them.

use std::ffi::{CString, c_int, c_void};

use cudarc::driver::sys::{
    CUfunction, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue, CUlaunchAttributeValue_union__bindgen_ty_1, CUlaunchConfig,
};

use super::context::{Context, context};
use super::nvrtc::{Compiled, nvrtc};
use crate::{Error, Result};

/// Blocks and threads of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Blocks in each direction.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// Blocks of a cluster, neighbours in the first direction of the grid; 1 for none.
    pub cluster: u32,
    /// Bytes of shared memory of a block.
    pub shared_bytes: u32,
    /// Whether the kernel may be started before the one ahead of it has ended, for which it then waits itself; counts from Hopper on.
    pub early: bool,
}

/// A kernel of a device. Copying it copies a reference; kernels live as long as the process.
#[derive(Clone, Copy)]
pub struct Function(&'static Kernel);

/// What a kernel takes of a multiprocessor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of a thread that did not fit into registers.
    pub local_bytes: u32,
    /// Threads that a block may have.
    pub most_threads: u32,
    /// Bytes of its argument struct.
    pub argument_bytes: usize,
}

struct Kernel {
    context: &'static Context,
    handle: CUfunction,
    expression: String,
    resources: Resources,
    most_shared: u32,
}

// SAFETY: a handle of the driver, whose functions may be called from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Function {
    /// Loads compiled code onto a device.
    pub(super) fn load(number: u32, expression: &str, compiled: &Compiled) -> Result<Self> {
        let context = context(number)?;
        context.refuse_in_capture("loading a kernel")?;
        let symbol = CString::new(compiled.symbol.as_str()).map_err(|_| {
            Error::Device(format!("the compiler gave `{expression}` a name with a zero in it"))
        })?;
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is a whole cubin, checked when it was compiled or read; the driver copies it.
        unsafe { context.driver.cuModuleLoadData(&mut module, compiled.cubin.as_ptr().cast()) }
            .map_err(|refusal| {
                Error::Device(format!(
                    "the code of `{expression}` does not load on cuda:{number} ({}, {}; the driver supports CUDA {}.{}): {}{}",
                    context.properties.name,
                    context.properties.chip.architecture(),
                    context.properties.driver.0,
                    context.properties.driver.1,
                    Error::from(refusal),
                    too_new(context)
                ))
            })?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module was just loaded and is never unloaded; the name ends with a zero.
        unsafe { context.driver.cuModuleGetFunction(&mut handle, module, symbol.as_ptr()) }?;
        let (resources, fixed_shared) = resources(context, handle, expression)?;
        let most_shared = (context.properties.shared_per_block as u32).saturating_sub(fixed_shared);
        // Raised once: the limit takes nothing away from launches that ask for less.
        // SAFETY: the function was just taken from its module.
        unsafe {
            context.driver.cuFuncSetAttribute(
                handle,
                CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                most_shared as c_int,
            )
        }?;
        let expression = expression.to_owned();
        let kernel = Kernel { context, handle, expression, resources, most_shared };
        Ok(Function(Box::leak(Box::new(kernel))))
    }

    /// What it takes of a multiprocessor.
    pub fn resources(&self) -> Resources {
        self.0.resources
    }

    /// How many blocks of this geometry a multiprocessor holds at once.
    ///
    /// # Errors
    /// When the device fails.
    pub fn blocks_per_multiprocessor(&self, block: u32, shared_bytes: u32) -> Result<u32> {
        self.0.context.enter()?;
        let mut blocks = 0;
        // SAFETY: the function lives as long as the process, and the place for the number for the call.
        unsafe {
            self.0.context.driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.0.handle,
                block as c_int,
                shared_bytes as usize,
            )
        }?;
        Ok(blocks.max(0) as u32)
    }

    /// How many clusters of this geometry the device holds at once.
    ///
    /// # Errors
    /// When the device has no clusters, or fails.
    pub fn clusters(&self, geometry: Geometry) -> Result<u32> {
        self.0.context.enter()?;
        // Of the attributes of a launch, the question takes the cluster's size alone.
        let geometry = Geometry { early: false, ..geometry };
        let mut attributes = Attributes::new(self.0.context, geometry);
        let config = configuration(self.0.context, geometry, &mut attributes);
        let mut clusters = 0;
        // SAFETY: the function lives as long as the process, configuration and place for the call.
        unsafe {
            self.0.context.driver.cuOccupancyMaxActiveClusters(
                &mut clusters,
                self.0.handle,
                &config,
            )
        }?;
        Ok(clusters.max(0) as u32)
    }
}

/// Why a driver may not load code: it loads that of its own major version of CUDA and of older ones.
fn too_new(context: &Context) -> String {
    let driver = context.properties.driver.0;
    match nvrtc() {
        Ok(nvrtc) if nvrtc.version().0 > driver => format!(
            "; it was compiled by NVRTC {}.{}, which is too new for this driver: install one of CUDA {driver}",
            nvrtc.version().0,
            nvrtc.version().1
        ),
        _ => String::new(),
    }
}

fn resources(context: &Context, handle: CUfunction, expression: &str) -> Result<(Resources, u32)> {
    use CUfunction_attribute::*;
    let attribute = |attribute| -> Result<u32> {
        let mut value = 0;
        // SAFETY: the function was just taken from its module, and the place for the value lives for the call.
        unsafe { context.driver.cuFuncGetAttribute(&mut value, attribute, handle) }?;
        Ok(value.max(0) as u32)
    };
    let parameter = |index| {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: as above.
        unsafe { context.driver.cuFuncGetParamInfo(handle, index, &mut offset, &mut bytes) }
            .map(|()| bytes)
    };
    let argument_bytes = parameter(0)?;
    if parameter(1).is_ok() {
        return Err(Error::Device(format!(
            "the kernel `{expression}` takes several arguments; expected one struct by value"
        )));
    }
    let resources = Resources {
        registers: attribute(CU_FUNC_ATTRIBUTE_NUM_REGS)?,
        local_bytes: attribute(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        most_threads: attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        argument_bytes,
    };
    Ok((resources, attribute(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?))
}

/// Starts a kernel with its argument struct, behind all that was started on its device before.
///
/// # Errors
/// When the struct has another size than the kernel's, or the geometry does not fit the kernel or the device.
///
/// # Safety
/// `arguments` must hold a struct of the layout that the kernel takes, and every address in it must lead to memory of
/// the kernel's device that it may read and write as it does, until it is done.
pub unsafe fn launch(function: Function, geometry: Geometry, arguments: &[u8]) -> Result<()> {
    let Function(kernel) = function;
    fits(kernel, geometry, arguments)?;
    kernel.context.enter()?;
    let mut attributes = Attributes::new(kernel.context, geometry);
    let config = configuration(kernel.context, geometry, &mut attributes);
    let mut argument: *mut c_void = arguments.as_ptr().cast_mut().cast();
    // SAFETY: one argument of the size that the kernel takes, which the driver copies; what it leads to is the caller's
    // promise. The configuration lives for the call.
    let started = unsafe {
        kernel.context.driver.cuLaunchKernelEx(
            &config,
            kernel.handle,
            &mut argument,
            std::ptr::null_mut(),
        )
    };
    started.map_err(|refusal| {
        Error::Device(format!(
            "`{}` with {geometry:?}: {}",
            kernel.expression,
            Error::from(refusal)
        ))
    })
}

fn fits(kernel: &Kernel, geometry: Geometry, arguments: &[u8]) -> Result<()> {
    let Geometry { grid, block, cluster, shared_bytes, .. } = geometry;
    let Resources { most_threads, argument_bytes, .. } = kernel.resources;
    let wrong = if arguments.len() != argument_bytes {
        format!("takes {argument_bytes} bytes of arguments, and was given {}", arguments.len())
    } else if grid.contains(&0) || block == 0 || cluster == 0 {
        format!("was started without blocks or threads: {geometry:?}")
    } else if grid[1] > 65535 || grid[2] > 65535 || grid[0] > i32::MAX as u32 {
        format!(
            "was started with a grid of {grid:?} blocks; a device takes [2147483647, 65535, 65535]"
        )
    } else if block > most_threads {
        format!("was started with {block} threads a block; it was compiled for {most_threads}")
    } else if shared_bytes > kernel.most_shared {
        format!(
            "needs {shared_bytes} bytes of shared memory a block; cuda:{} has {} for it",
            kernel.context.number, kernel.most_shared
        )
    } else if cluster > 1 && kernel.context.properties.chip.major < 9 {
        format!(
            "needs clusters of {cluster} blocks, and cuda:{} has none: its compute capability is {}",
            kernel.context.number, kernel.context.properties.chip
        )
    } else if cluster > MOST_CLUSTER {
        format!("was started in clusters of {cluster} blocks; every device takes {MOST_CLUSTER}")
    } else if cluster > 1 && !grid[0].is_multiple_of(cluster) {
        format!("was started with {} blocks in clusters of {cluster}", grid[0])
    } else {
        return Ok(());
    };
    Err(Error::Device(format!("the kernel `{}` {wrong}", kernel.expression)))
}

/// The largest cluster that every chip with clusters runs.
const MOST_CLUSTER: u32 = 8;

/// What a launch says beside its geometry.
struct Attributes {
    list: [CUlaunchAttribute; 2],
    count: u32,
}

impl Attributes {
    fn new(context: &Context, geometry: Geometry) -> Self {
        let cluster = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: CUlaunchAttributeValue {
                clusterDim: CUlaunchAttributeValue_union__bindgen_ty_1 {
                    x: geometry.cluster,
                    y: 1,
                    z: 1,
                },
            },
        };
        // In a graph that is recorded this becomes the kind of the edge between the two kernels.
        let early = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let is_early = geometry.early && context.properties.chip.major >= 9;
        match (geometry.cluster > 1, is_early) {
            (true, is_early) => {
                Attributes { list: [cluster, early], count: 1 + u32::from(is_early) }
            }
            (false, is_early) => Attributes { list: [early, early], count: u32::from(is_early) },
        }
    }
}

fn configuration(
    context: &Context,
    geometry: Geometry,
    attributes: &mut Attributes,
) -> CUlaunchConfig {
    CUlaunchConfig {
        gridDimX: geometry.grid[0],
        gridDimY: geometry.grid[1],
        gridDimZ: geometry.grid[2],
        blockDimX: geometry.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: geometry.shared_bytes,
        hStream: context.stream,
        attrs: attributes.list.as_mut_ptr(),
        numAttrs: attributes.count,
    }
}
