//! A device in use: its context, its one stream, and what it is.

use std::ffi::{CStr, c_int};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUevent, CUevent_flags, CUstream, CUstream_flags,
};

use super::driver::{Driver, Refusal, driver};
use super::nvrtc::nvrtc;
use super::staging::Staging;
use crate::{Device, Error, Result};

/// The generation of a GPU: its compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chip {
    /// 8 for Ampere and Ada, 9 for Hopper, 10 and 12 for Blackwell.
    pub major: u32,
    /// The variant within the generation.
    pub minor: u32,
}

impl Chip {
    /// The oldest that the kernels run on.
    pub const OLDEST: Chip = Chip { major: 8, minor: 0 };

    /// The architecture that code for it is compiled for: from Hopper on with the instructions that only this chip has.
    pub fn architecture(self) -> String {
        let suffix = if self.major >= 9 { "a" } else { "" };
        format!("sm_{}{}{suffix}", self.major, self.minor)
    }

    /// Reads an architecture such as `sm_90a` or `sm_80`.
    pub fn parse(architecture: &str) -> Option<Chip> {
        let digits = architecture.strip_prefix("sm_")?;
        let number: u32 = digits.strip_suffix('a').unwrap_or(digits).parse().ok()?;
        let chip = Chip { major: number / 10, minor: number % 10 };
        (chip.architecture() == architecture).then_some(chip)
    }
}

impl std::fmt::Display for Chip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// The product's name.
    pub name: String,
    /// Its generation.
    pub chip: Chip,
    /// Its multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of its memory.
    pub memory: usize,
    /// The most bytes of shared memory that a block may have.
    pub shared_per_block: usize,
    /// Bytes of shared memory of a multiprocessor.
    pub shared_per_multiprocessor: usize,
    /// Bytes of its last cache.
    pub cache: usize,
    /// The highest clock of its multiprocessors in kHz; 0 where the driver does not say.
    pub clock: u32,
    /// The highest clock of its memory in kHz; 0 where the driver does not say.
    pub memory_clock: u32,
    /// Bits that its memory moves at once; 0 where the driver does not say.
    pub memory_bits: u32,
    /// The version of CUDA that the driver supports.
    pub driver: (u32, u32),
}

impl Properties {
    fn read(driver: &Driver, number: u32) -> std::result::Result<(CUdevice, Self), Refusal> {
        use CUdevice_attribute::*;
        let mut device = 0;
        // SAFETY: the place for the device lives for the call.
        unsafe { driver.cuDeviceGet(&mut device, number as c_int) }?;
        let attribute = |attribute| {
            let mut value = 0;
            // SAFETY: the place for the value lives for the call; the device is one of the driver's.
            unsafe { driver.cuDeviceGetAttribute(&mut value, attribute, device) }?;
            Ok(value.max(0) as u32)
        };
        let mut name = [0; 256];
        // SAFETY: the driver writes at most as many characters as it is told, a zero last.
        unsafe { driver.cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int, device) }?;
        let name = name.map(|c| c as u8);
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy();
        let mut memory = 0;
        // SAFETY: the place for the size lives for the call.
        unsafe { driver.cuDeviceTotalMem_v2(&mut memory, device) }?;
        let properties = Properties {
            name: name.into_owned(),
            chip: Chip {
                major: attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                minor: attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            },
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory,
            shared_per_block: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?
                as usize,
            shared_per_multiprocessor: attribute(
                CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )? as usize,
            cache: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
            // For reports only, and not known of every device.
            clock: attribute(CU_DEVICE_ATTRIBUTE_CLOCK_RATE).unwrap_or(0),
            memory_clock: attribute(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE).unwrap_or(0),
            memory_bits: attribute(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH).unwrap_or(0),
            driver: driver.version(),
        };
        Ok((device, properties))
    }
}

/// How many GPUs the driver reports; none when it reports that there is none.
///
/// # Errors
/// When there is no driver, or it does not start.
pub fn device_count() -> Result<u32> {
    Ok(driver()?.devices())
}

/// What a device is, whether or not the kernels run on it.
///
/// # Errors
/// When there is no driver or no such device.
pub fn properties(number: u32) -> Result<Properties> {
    let driver = existing(number)?;
    Ok(Properties::read(driver, number)?.1)
}

fn existing(number: u32) -> Result<&'static Driver> {
    let driver = driver()?;
    let device = Device::Cuda(number);
    let filter = match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(devices) => format!(" (CUDA_VISIBLE_DEVICES is `{devices}`)"),
        Err(_) => String::new(),
    };
    match driver.devices() {
        count if number < count => Ok(driver),
        0 => Err(Error::Device(format!(
            "there is no {device}: the NVIDIA driver at {} reports no GPU{filter}; --device cpu computes without one",
            driver.path().display()
        ))),
        count => Err(Error::Device(format!(
            "there is no {device}: the NVIDIA driver reports {count} GPU{}, the last of them cuda:{}{filter}",
            if count == 1 { "" } else { "s" },
            count - 1
        ))),
    }
}

/// A device in use. Lives as long as the process.
pub(super) struct Context {
    pub(super) driver: &'static Driver,
    pub(super) number: u32,
    pub(super) properties: Properties,
    pub(super) context: CUcontext,
    pub(super) stream: CUstream,
    pub(super) staging: Mutex<Staging>,
    capturing: AtomicBool,
}

// SAFETY: the handles belong to the driver, whose functions may be called from any thread.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

const MOST_DEVICES: usize = 64;
static CONTEXTS: [OnceLock<Context>; MOST_DEVICES] = [const { OnceLock::new() }; MOST_DEVICES];
static OPENING: Mutex<()> = Mutex::new(());

/// A device, opened by the first call, and made the one that the calling thread talks to.
///
/// # Errors
/// When there is no driver or no such device, or the device is too old.
pub(super) fn context(number: u32) -> Result<&'static Context> {
    let place = CONTEXTS.get(number as usize).ok_or_else(|| {
        Error::Device(format!(
            "cuda:{number} is out of range; devices are numbered below {MOST_DEVICES}"
        ))
    })?;
    let context = match place.get() {
        Some(context) => context,
        None => {
            let _opening = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
            match place.get() {
                Some(context) => context,
                None => {
                    let opened = Context::open(number)?;
                    place.get_or_init(|| opened)
                }
            }
        }
    };
    context.enter()?;
    Ok(context)
}

impl Context {
    fn open(number: u32) -> Result<Self> {
        let driver = existing(number)?;
        let (device, properties) = Properties::read(driver, number)?;
        if properties.chip < Chip::OLDEST {
            return Err(Error::Device(format!(
                "cuda:{number} is a {} with compute capability {}; the kernels need {} (Ampere) or newer",
                properties.name,
                properties.chip,
                Chip::OLDEST
            )));
        }
        let mut context = std::ptr::null_mut();
        // SAFETY: the place for the context lives for the call. The primary context is shared with the libraries of CUDA
        // and is kept until the process ends.
        unsafe { driver.cuDevicePrimaryCtxRetain(&mut context, device) }?;
        // SAFETY: the context was just given by the driver.
        unsafe { driver.cuCtxSetCurrent(context) }?;
        let mut stream = std::ptr::null_mut();
        // Not the default stream: that one cannot be captured as a graph.
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the place for the stream lives for the call, and a context is current.
        unsafe { driver.cuStreamCreate(&mut stream, flags) }?;
        Ok(Context {
            driver,
            number,
            properties,
            context,
            stream,
            staging: Mutex::new(Staging::default()),
            capturing: AtomicBool::new(false),
        })
    }

    /// Makes this the device that the calling thread talks to.
    pub(super) fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as the process.
        Ok(unsafe { self.driver.cuCtxSetCurrent(self.context) }?)
    }

    /// Waits until everything that was started is done.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.refuse_in_capture("waiting for the device")?;
        // SAFETY: the stream lives as long as the context, which is current.
        Ok(unsafe { self.driver.cuStreamSynchronize(self.stream) }?)
    }

    /// Bytes that are free, and all bytes.
    pub(super) fn memory(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the places for both sizes live for the call, and the context is current.
        unsafe { self.driver.cuMemGetInfo_v2(&mut free, &mut total) }?;
        Ok((free, total))
    }

    pub(super) fn set_capturing(&self, capturing: bool) {
        self.capturing.store(capturing, Ordering::Relaxed);
    }

    /// What cannot be part of a graph is refused while one is captured: the driver would break the capture off.
    pub(super) fn refuse_in_capture(&self, what: &str) -> Result<()> {
        if self.capturing.load(Ordering::Relaxed) {
            return Err(Error::Device(format!(
                "{what} cannot be part of a graph, and cuda:{} is capturing one",
                self.number
            )));
        }
        Ok(())
    }

    /// A new event of this device.
    pub(super) fn event(&self, flags: CUevent_flags) -> Result<CUevent> {
        let mut event = std::ptr::null_mut();
        // SAFETY: the place for the event lives for the call, and the context is current.
        unsafe { self.driver.cuEventCreate(&mut event, flags as u32) }?;
        Ok(event)
    }
}

/// Checks that kernels can be compiled for a device and started on it.
///
/// # Errors
/// A sentence that says what is missing.
pub fn ready(number: u32) -> Result<()> {
    let chip = context(number)?.properties.chip;
    nvrtc()?.knows(chip)
}

/// Waits until everything that was started on a device is done.
///
/// # Errors
/// When a kernel failed, or the device cannot be used.
pub fn synchronize(number: u32) -> Result<()> {
    context(number)?.synchronize()
}

/// The stream of a device, made current for this thread: for a library that is to work in order with all else there.
///
/// # Errors
/// When the device cannot be used.
pub fn stream(number: u32) -> Result<*mut std::ffi::c_void> {
    let context = context(number)?;
    context.enter()?;
    Ok(context.stream.cast())
}

/// Bytes of a device's memory that are free, and all of them.
///
/// # Errors
/// When the device cannot be used.
pub fn memory(number: u32) -> Result<(usize, usize)> {
    context(number)?.memory()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_compiled_for_the_chip_with_what_only_it_has_from_hopper_on() {
        for (major, minor, architecture) in [
            (8, 0, "sm_80"),
            (8, 9, "sm_89"),
            (9, 0, "sm_90a"),
            (10, 3, "sm_103a"),
            (12, 0, "sm_120a"),
        ] {
            let chip = Chip { major, minor };
            assert_eq!(chip.architecture(), architecture);
            assert_eq!(Chip::parse(architecture), Some(chip));
        }
        for wrong in ["sm_90", "sm_80a", "90a", "sm_", "sm_x", "compute_90a"] {
            assert_eq!(Chip::parse(wrong), None, "{wrong}");
        }
    }
}
