//! Planned memory: a step's buffers are written down first, then laid out in one allocation.

use std::sync::Arc;

use crate::memory::{ALIGNMENT, Allocation};
use crate::{DType, Device, Error, Result, Shape, Tensor};

/// A buffer of a [`Plan`], to be exchanged for its [`Tensor`] once the plan is allocated.
#[derive(Clone, Copy, Debug)]
pub struct Slot(usize);

struct Entry {
    name: String,
    dtype: DType,
    dims: Vec<(&'static str, usize)>,
    offset: usize,
}

impl Entry {
    fn shape(&self) -> Shape {
        let dims: Vec<usize> = self.dims.iter().map(|&(_, size)| size).collect();
        Shape::new(&dims)
    }

    fn bytes(&self) -> usize {
        self.shape().elements() * self.dtype.size()
    }
}

/// A list of named buffers with named dimensions.
#[derive(Default)]
pub struct Plan {
    entries: Vec<Entry>,
    bytes: usize,
}

impl Plan {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a buffer; its dimensions are given with their names, largest stride first.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        dtype: DType,
        dims: &[(&'static str, usize)],
    ) -> Slot {
        let entry = Entry { name: name.into(), dtype, dims: dims.to_vec(), offset: self.bytes };
        self.bytes += entry.bytes().next_multiple_of(ALIGNMENT);
        self.entries.push(entry);
        Slot(self.entries.len() - 1)
    }

    /// Bytes of the whole plan.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Name, dimensions with their names, and bytes of each buffer, in order.
    pub fn rows(&self) -> impl Iterator<Item = (&str, String, usize)> {
        self.entries.iter().map(|entry| {
            let dims: Vec<String> =
                entry.dims.iter().map(|(name, size)| format!("{name}={size}")).collect();
            (entry.name.as_str(), dims.join(" "), entry.bytes())
        })
    }

    // Names and bytes of the largest parts. A plan of one buffer has no parts worth naming.
    fn largest(&self) -> Vec<(String, usize)> {
        if self.entries.len() < 2 {
            return Vec::new();
        }
        let mut parts: Vec<_> =
            self.entries.iter().map(|entry| (entry.name.clone(), entry.bytes())).collect();
        parts.sort_by_key(|part| std::cmp::Reverse(part.1));
        parts.truncate(5);
        parts
    }

    /// Reserves the memory, all of it zero.
    ///
    /// # Errors
    /// When the device has not that much: with the largest parts of the plan.
    pub fn allocate(self, device: Device) -> Result<Memory> {
        let allocation = Allocation::new(device, self.bytes).map_err(|error| match error {
            Error::OutOfMemory { device, bytes, free, .. } => {
                Error::OutOfMemory { device, bytes, free, parts: self.largest() }
            }
            other => other,
        })?;
        let allocation = Arc::new(allocation);
        let taken = vec![false; self.entries.len()];
        Ok(Memory { allocation, device, entries: self.entries, taken })
    }
}

/// The memory of a [`Plan`].
pub struct Memory {
    allocation: Arc<Allocation>,
    device: Device,
    entries: Vec<Entry>,
    taken: Vec<bool>,
}

impl Memory {
    /// The tensor of a slot.
    ///
    /// # Panics
    /// When it was taken before: a buffer has one owner.
    pub fn take(&mut self, slot: Slot) -> Tensor {
        let entry = &self.entries[slot.0];
        assert!(!self.taken[slot.0], "buffer `{}` of the plan was taken twice", entry.name);
        self.taken[slot.0] = true;
        // SAFETY: the range lies inside the allocation, is aligned, zeroed, and handed out once.
        unsafe {
            Tensor::from_parts(
                self.allocation.clone(),
                entry.offset,
                entry.shape(),
                entry.dtype,
                self.device,
            )
        }
    }
}
