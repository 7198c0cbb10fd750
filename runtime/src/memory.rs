//! One aligned, zeroed block of a device's memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use memmap2::MmapMut;

use crate::emulated::Registration;
use crate::{Device, Error, Result, cuda};

/// Every buffer starts on such a boundary: one cache line, one AVX-512 register.
pub(crate) const ALIGNMENT: usize = 64;

/// Host blocks of so many bytes and more are pages of their own: zero without being written, and large ones where the system has them, so that
/// products do not wait for address translation (1 to 2 % of a bfloat16 product of 2048 cubed on Zen 5).
const PAGED: usize = 4 << 20;

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
                let registration = Registration::new(block.start, block.bytes);
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
    bytes: usize,
    /// What a large block consists of; a small one is the allocator's.
    pages: Option<MmapMut>,
}

// SAFETY: the block is plain memory; who may touch which part is settled by the tensors carved from it,
// each of which owns a disjoint range.
unsafe impl Send for HostBlock {}
// SAFETY: as above.
unsafe impl Sync for HostBlock {}

impl HostBlock {
    fn new(device: Device, bytes: usize) -> Result<Self> {
        let full = || Error::OutOfMemory { device, bytes, free: None, parts: Vec::new() };
        if bytes >= PAGED {
            let mut pages = MmapMut::map_anon(bytes).map_err(|_| full())?;
            // Advice: a system without large pages goes on with small ones.
            #[cfg(target_os = "linux")]
            let _ = pages.advise(memmap2::Advice::HugePage);
            let start = NonNull::new(pages.as_mut_ptr()).ok_or_else(full)?;
            return Ok(HostBlock { start, bytes, pages: Some(pages) });
        }
        let bytes = bytes.max(ALIGNMENT);
        let layout = Layout::from_size_align(bytes, ALIGNMENT).map_err(|_| full())?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(full)?;
        Ok(HostBlock { start, bytes, pages: None })
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        if self.pages.is_none() {
            // SAFETY: allocated in `new` with this layout.
            unsafe {
                dealloc(
                    self.start.as_ptr(),
                    Layout::from_size_align_unchecked(self.bytes, ALIGNMENT),
                );
            }
        }
    }
}
