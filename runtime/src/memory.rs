//! One aligned, zeroed block of host memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use crate::{Error, Result};

/// Every buffer starts on such a boundary: one cache line, one AVX-512 register.
pub(crate) const ALIGNMENT: usize = 64;

/// A block that frees itself.
pub(crate) struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the block is plain memory; who may touch which part is settled by the tensors carved from it,
// each of which owns a disjoint range.
unsafe impl Send for Allocation {}
// SAFETY: as above.
unsafe impl Sync for Allocation {}

impl Allocation {
    /// `bytes` zeroed bytes.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let layout = Layout::from_size_align(bytes.max(ALIGNMENT), ALIGNMENT).map_err(|_| {
            Error::Value(format!("a buffer of {bytes} bytes is larger than the address space"))
        })?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(|| {
            Error::Value(format!("out of host memory: could not reserve {bytes} bytes"))
        })?;
        Ok(Allocation { start, layout })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
