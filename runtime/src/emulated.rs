//! Memory of the emulated device: host memory with a shadow that says, byte for byte, whether it was ever written.
//!
//! Zeroed memory counts as written. A copy from one emulated tensor to another copies the shadow with the bytes, a
//! copy from the host marks bytes as written, and a copy to the host of bytes that nobody wrote is an error.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::copy::Span;
use crate::{Device, ViewMut};

/// The shadow of the allocation that an address lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// The shadow byte of the allocation's first byte; as many follow as the allocation has bytes. 1: written, 0: never.
    pub start: *mut u8,
    /// The address of the allocation's first byte.
    pub base: u64,
    /// Bytes of the allocation.
    pub bytes: usize,
}

/// All emulated memory of the process: address of an allocation, its bytes, the address of its shadow.
static ALLOCATIONS: RwLock<BTreeMap<u64, (usize, usize)>> = RwLock::new(BTreeMap::new());

/// The shadow of the allocation that `address` lies in; none when it lies in no emulated memory.
///
/// The pointer may be followed as long as the tensors of that allocation live.
pub fn shadow(address: u64) -> Option<Shadow> {
    let allocations = ALLOCATIONS.read().unwrap_or_else(PoisonError::into_inner);
    let (&base, &(bytes, start)) = allocations.range(..=address).next_back()?;
    let start = std::ptr::with_exposed_provenance_mut(start);
    ((address - base) < bytes as u64).then_some(Shadow { start, base, bytes })
}

/// Marks the bytes of a view as never written, as memory just reserved or handed on would be. Views of other devices
/// are left alone.
pub fn forget(view: ViewMut<'_>) {
    if view.device() == Device::Emulated {
        set_written(&Span::of(&view.as_view()), false);
    }
}

/// Ends with the allocation that it was made for.
pub(crate) struct Registration {
    base: u64,
    // Kept as a pointer to leave the exposed address the one way to the bytes.
    shadow: *mut [u8],
}

// SAFETY: the shadow is only touched through atomics here and by the emulator's launches, which own their buffers.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl Registration {
    /// Enters memory that is zeroed, and so counts as written.
    pub(crate) fn new(start: NonNull<u8>, bytes: usize) -> Self {
        let shadow = Box::into_raw(vec![1u8; bytes].into_boxed_slice());
        let base = start.as_ptr().expose_provenance() as u64;
        let entry = (bytes, shadow.cast::<u8>().expose_provenance());
        ALLOCATIONS.write().unwrap_or_else(PoisonError::into_inner).insert(base, entry);
        Registration { base, shadow }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        ALLOCATIONS.write().unwrap_or_else(PoisonError::into_inner).remove(&self.base);
        // SAFETY: made by `Box::into_raw` in `new`, and no longer to be found through the table.
        drop(unsafe { Box::from_raw(self.shadow) });
    }
}

/// Marks all bytes of a span of emulated memory as written, or as never written.
pub(crate) fn set_written(span: &Span, written: bool) {
    for row in 0..span.rows {
        for byte in notes(span, row) {
            byte.store(u8::from(written), Ordering::Relaxed);
        }
    }
}

/// Copies the notes of `from` to those of `to`, byte for byte.
pub(crate) fn copy_notes(to: &Span, from: &Span) {
    for row in 0..to.rows {
        for (to, from) in notes(to, row).iter().zip(notes(from, row)) {
            to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// The first byte of a span that was never written, as row and byte in it, and how many such bytes there are.
pub(crate) fn never_written(span: &Span) -> Option<(usize, usize, usize)> {
    let mut found: Option<(usize, usize, usize)> = None;
    for row in 0..span.rows {
        for (byte, note) in notes(span, row).iter().enumerate() {
            if note.load(Ordering::Relaxed) == 0 {
                found.get_or_insert((row, byte, 0)).2 += 1;
            }
        }
    }
    found
}

fn notes(span: &Span, row: usize) -> &[AtomicU8] {
    let address = span.row(row).addr().get() as u64;
    let shadow = shadow(address).expect("a view of emulated memory lies in an allocation");
    let offset = (address - shadow.base) as usize;
    assert!(offset + span.row_bytes <= shadow.bytes, "a row leaves its allocation");
    // SAFETY: in bounds of the shadow, which lives as long as the tensor that the span was taken from, and whose bytes
    // are touched through atomics only while no launch runs on them.
    unsafe {
        std::slice::from_raw_parts(shadow.start.add(offset).cast::<AtomicU8>(), span.row_bytes)
    }
}
