//! Device memory: reserving it, clearing it, and copying rows of it.

use std::ptr::NonNull;

use cudarc::driver::sys::{CUDA_MEMCPY2D, CUdeviceptr, CUmemorytype};

use super::context::{Context, context};
use super::driver::{OUT_OF_MEMORY, Refusal};
use crate::copy::Span;
use crate::{Device, Error, Result};

/// A block of device memory that frees itself.
pub(crate) struct Block {
    context: &'static Context,
    start: NonNull<u8>,
}

// SAFETY: an address of device memory; who may touch which part is settled by the tensors carved from it.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// Zeroed memory of a device.
    pub(crate) fn new(number: u32, bytes: usize) -> Result<Self> {
        let context = context(number)?;
        context.refuse_in_capture("reserving memory")?;
        let mut address: CUdeviceptr = 0;
        // SAFETY: the place for the address lives for the call, and the context is current.
        match unsafe { context.driver.cuMemAlloc_v2(&mut address, bytes) } {
            Err(Refusal { code: OUT_OF_MEMORY, .. }) => {
                let free = context.memory().ok().map(|(free, _)| free);
                let device = Device::Cuda(number);
                return Err(Error::OutOfMemory { device, bytes, free, parts: Vec::new() });
            }
            reserved => reserved?,
        }
        let start = NonNull::new(std::ptr::without_provenance_mut(address as usize));
        let start = start.ok_or_else(|| {
            Error::Device("cuMemAlloc succeeded without giving memory".to_owned())
        })?;
        let block = Block { context, start };
        // SAFETY: the block was just reserved with this size.
        unsafe { context.driver.cuMemsetD8Async(address, 0, bytes, context.stream) }?;
        Ok(block)
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // There is nobody to tell of a failure. A device that failed, or is recording a graph, keeps the memory.
        if self.context.enter().and_then(|()| self.context.synchronize()).is_ok() {
            // SAFETY: reserved in `new`, and all work that was started with it is done.
            let _ = unsafe { self.context.driver.cuMemFree_v2(self.start.addr().get() as u64) };
        }
    }
}

/// Rows of memory, one distance apart.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) place: Place,
    pub(super) pitch: usize,
}

/// The first byte of some rows.
#[derive(Clone, Copy)]
pub(super) enum Place {
    /// Pinned host memory.
    Host(*mut u8),
    Device(CUdeviceptr),
}

/// The greatest distance of rows that the driver takes.
const MOST_PITCH: usize = (1 << 31) - 1;

impl Context {
    /// Starts a copy of `rows` rows of `bytes` bytes, of which at most one side is on the host.
    pub(super) fn start(&self, to: Rows, from: Rows, rows: usize, bytes: usize) -> Result<()> {
        if rows <= 1 || (to.pitch == bytes && from.pitch == bytes) {
            return self.start_dense(to.place, from.place, rows * bytes);
        }
        if to.pitch.max(from.pitch) > MOST_PITCH {
            for row in 0..rows {
                let (to, from) =
                    (to.place.behind(row * to.pitch), from.place.behind(row * from.pitch));
                self.start_dense(to, from, bytes)?;
            }
            return Ok(());
        }
        let mut copy = CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: 0,
            srcArray: std::ptr::null_mut(),
            srcPitch: from.pitch,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: 0,
            dstArray: std::ptr::null_mut(),
            dstPitch: to.pitch,
            WidthInBytes: bytes,
            Height: rows,
        };
        match from.place {
            Place::Device(address) => copy.srcDevice = address,
            Place::Host(start) => {
                copy.srcMemoryType = CUmemorytype::CU_MEMORYTYPE_HOST;
                copy.srcHost = start.cast();
            }
        }
        match to.place {
            Place::Device(address) => copy.dstDevice = address,
            Place::Host(start) => {
                copy.dstMemoryType = CUmemorytype::CU_MEMORYTYPE_HOST;
                copy.dstHost = start.cast();
            }
        }
        // SAFETY: the caller gives rows that exist on both sides, and pinned memory stays until the copy is done.
        Ok(unsafe { self.driver.cuMemcpy2DAsync_v2(&copy, self.stream) }?)
    }

    fn start_dense(&self, to: Place, from: Place, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: as in `start`.
        Ok(unsafe {
            match (to, from) {
                (Place::Device(to), Place::Device(from)) => {
                    self.driver.cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream)
                }
                (Place::Device(to), Place::Host(from)) => {
                    self.driver.cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, self.stream)
                }
                (Place::Host(to), Place::Device(from)) => {
                    self.driver.cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.stream)
                }
                (Place::Host(_), Place::Host(_)) => {
                    unreachable!("host memory is copied by the host")
                }
            }
        }?)
    }

    fn clear(&self, rows: &Span) -> Result<()> {
        let address = rows.start.addr().get() as u64;
        if rows.rows == 0 || rows.row_bytes == 0 {
            return Ok(());
        }
        // SAFETY: the rows lie in memory of this device that the caller borrows exclusively.
        Ok(unsafe {
            if rows.rows == 1 || rows.row_bytes == rows.stride_bytes {
                self.driver.cuMemsetD8Async(address, 0, rows.rows * rows.row_bytes, self.stream)
            } else {
                let (pitch, width) = (rows.stride_bytes, rows.row_bytes);
                self.driver.cuMemsetD2D8Async(address, pitch, 0, width, rows.rows, self.stream)
            }
        }?)
    }
}

impl Place {
    fn behind(self, bytes: usize) -> Place {
        match self {
            Place::Host(start) => Place::Host(start.wrapping_add(bytes)),
            Place::Device(address) => Place::Device(address + bytes as u64),
        }
    }
}

fn on_device(span: &Span) -> Rows {
    Rows { place: Place::Device(span.start.addr().get() as u64), pitch: span.stride_bytes }
}

/// Copies host rows to as many rows of a device. When it returns, the host's may be changed.
pub(crate) fn upload(number: u32, to: &Span, from: &Span) -> Result<()> {
    context(number)?.upload(to, from)
}

/// Copies rows of a device to as many host rows, behind everything that was started before.
pub(crate) fn download(number: u32, to: &Span, from: &Span) -> Result<()> {
    context(number)?.download(to, from)
}

/// Copies rows of a device to as many of the same or another.
pub(crate) fn move_rows(to_number: u32, from_number: u32, to: &Span, from: &Span) -> Result<()> {
    if to_number == from_number {
        return context(to_number)?.start(on_device(to), on_device(from), to.rows, to.row_bytes);
    }
    // Each device has its own order of work: the rows must be there before, and may be changed after.
    let source = context(from_number)?;
    source.synchronize()?;
    let target = context(to_number)?;
    target.refuse_in_capture("a copy from another device")?;
    let (bytes, stream) = (to.row_bytes, target.stream);
    for row in 0..to.rows {
        let (to, from) = (to.row(row).addr().get() as u64, from.row(row).addr().get() as u64);
        // SAFETY: both rows exist, each on its device, and stay until the copies are done, which is awaited below.
        unsafe {
            target.driver.cuMemcpyPeerAsync(to, target.context, from, source.context, bytes, stream)
        }?;
    }
    target.synchronize()
}

/// Sets rows of a device to zero.
pub(crate) fn clear(number: u32, rows: &Span) -> Result<()> {
    context(number)?.clear(rows)
}
