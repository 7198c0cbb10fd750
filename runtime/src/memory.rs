//! One aligned, zeroed block of a device's memory.

use std::alloc::{Layout, alloc, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::emulated::Registration;
use crate::{Device, Error, Result, cuda};

/// Every buffer starts on such a boundary: one cache line, one AVX-512 register.
pub(crate) const ALIGNMENT: usize = 64;

/// Host blocks of so many bytes and more are of large pages where the system has them, so that products do not wait for address translation (1 to 2 % of
/// a bfloat16 product of 2048 cubed on Zen 5).
const LARGE: usize = 4 << 20;
/// A large page of x86-64, and of AArch64 with small pages of 4 KiB.
const LARGE_PAGE: usize = 2 << 20;

/// A block that frees itself.
pub(crate) enum Allocation {
    /// Host memory.
    Host(HostBlock),
    /// Host memory that stands for a device's, with a note for each byte whether it was written.
    // Fields are dropped in order: the registration ends before the memory is given back.
    Emulated { _registration: Registration, block: HostBlock },
    /// Memory of a GPU.
    Cuda(cuda::Block),
}

impl Allocation {
    /// `bytes` zeroed bytes of a device.
    pub(crate) fn new(device: Device, bytes: usize) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Allocation::Host(HostBlock::new(device, bytes)?)),
            Device::Emulated => {
                let block = HostBlock::new(device, bytes)?;
                let registration = Registration::new(block.start, block.layout.size());
                Ok(Allocation::Emulated { _registration: registration, block })
            }
            // No memory of zero bytes exists on a device, and every tensor has an address.
            Device::Cuda(number) => {
                Ok(Allocation::Cuda(cuda::Block::new(number, bytes.max(ALIGNMENT))?))
            }
        }
    }

    /// Where it begins: an address of the device's memory, which the host may follow only on [`Device::Cpu`].
    pub(crate) fn start(&self) -> NonNull<u8> {
        match self {
            Allocation::Host(block) | Allocation::Emulated { block, .. } => block.start,
            Allocation::Cuda(block) => block.start(),
        }
    }
}

/// A block of host memory.
pub(crate) struct HostBlock {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the block is plain memory; who may touch which part is settled by the tensors carved from it,
// each of which owns a disjoint range.
unsafe impl Send for HostBlock {}
// SAFETY: as above.
unsafe impl Sync for HostBlock {}

impl HostBlock {
    fn new(device: Device, bytes: usize) -> Result<Self> {
        let full = || Error::OutOfMemory { device, bytes, free: None, parts: Vec::new() };
        let is_large = bytes >= LARGE;
        let alignment = if is_large { LARGE_PAGE } else { ALIGNMENT };
        let layout =
            Layout::from_size_align(bytes.max(ALIGNMENT), alignment).map_err(|_| full())?;
        // SAFETY: the layout's size is not zero.
        let start = unsafe { if is_large { alloc(layout) } else { alloc_zeroed(layout) } };
        let start = NonNull::new(start).ok_or_else(full)?;
        if is_large {
            // SAFETY: the block is of that size, and begins at a page. Advice: where there are no large pages, small ones remain.
            #[cfg(target_os = "linux")]
            unsafe {
                libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE);
            }
            // SAFETY: as above. This makes the pages, so it comes after the advice.
            unsafe { start.write_bytes(0, bytes) };
        }
        Ok(HostBlock { start, layout })
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
