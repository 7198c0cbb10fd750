//! Working memory of an operation: buffers that are lent, given back, and used again.
//!
//! Take scratch on the thread that called the operation, before the work is spread over cores: then the same calls take the
//! same buffers in every step, and nothing is allocated after the first. Inside a task use arrays on the stack.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use prime_runtime::{DType, Device, Element, Result, Tensor, View, ViewMut};

static FREE: Mutex<Vec<Tensor>> = Mutex::new(Vec::new());

/// A lent buffer of elements of type `E`, 64-byte aligned, its contents left by its last user.
pub(crate) struct Scratch<E: Element> {
    words: Option<Tensor>,
    length: usize,
    element: std::marker::PhantomData<E>,
}

/// Lends a buffer of `length` elements.
///
/// # Errors
/// When the host has not that much memory.
pub(crate) fn take<E: Element>(length: usize) -> Result<Scratch<E>> {
    let words = (length * E::DTYPE.size()).div_ceil(4);
    let mut free = FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // The smallest that fits, so that a small request does not keep a large buffer from the next large one.
    let fitting =
        (0..free.len()).filter(|&i| free[i].dims()[0] >= words).min_by_key(|&i| free[i].dims()[0]);
    let words = match fitting {
        Some(index) => free.swap_remove(index),
        None => {
            drop(free);
            Tensor::zeros(Device::Cpu, DType::U32, &[words.next_power_of_two()])?
        }
    };
    Ok(Scratch { words: Some(words), length, element: std::marker::PhantomData })
}

impl<E: Element> Scratch<E> {
    fn words(&self) -> &Tensor {
        self.words.as_ref().expect("given back only on drop")
    }
}

impl<E: Element> Deref for Scratch<E> {
    type Target = [E];
    fn deref(&self) -> &[E] {
        let start = self.words().as_slice::<u32>().as_ptr().cast::<E>();
        // SAFETY: the buffer holds at least `length` elements of a plain type no larger than its words' sum, aligned to 64 bytes.
        unsafe { std::slice::from_raw_parts(start, self.length) }
    }
}

impl<E: Element> DerefMut for Scratch<E> {
    fn deref_mut(&mut self) -> &mut [E] {
        let words = self.words.as_mut().expect("given back only on drop");
        let start = words.as_mut_slice::<u32>().as_mut_ptr().cast::<E>();
        // SAFETY: as above; the buffer is lent to this value alone.
        unsafe { std::slice::from_raw_parts_mut(start, self.length) }
    }
}

impl<E: Element> Drop for Scratch<E> {
    fn drop(&mut self) {
        if let Some(words) = self.words.take() {
            FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(words);
        }
    }
}

/// A lent tensor on a device other than the host, its contents left by its last user.
pub(crate) struct DeviceScratch {
    tensor: Option<Tensor>,
    dims: [usize; 2],
}

/// Lends `rows x columns` elements of a device's memory. One stream orders everything on a device, so a buffer may be lent again as soon as
/// the launches that use it have been started.
///
/// # Errors
/// When the device has not that much memory.
pub(crate) fn device(
    device: Device,
    dtype: DType,
    rows: usize,
    columns: usize,
) -> Result<DeviceScratch> {
    let elements = rows * columns;
    let mut free = DEVICE_FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let fits = |tensor: &Tensor| {
        tensor.device() == device && tensor.dtype() == dtype && tensor.dims()[0] >= elements
    };
    let fitting = (0..free.len()).filter(|&i| fits(&free[i])).min_by_key(|&i| free[i].dims()[0]);
    let mut tensor = match fitting {
        Some(index) => free.swap_remove(index),
        None => {
            drop(free);
            let tensor = Tensor::zeros(device, dtype, &[elements.next_power_of_two()])?;
            RESERVED.fetch_add(device_bytes(dtype, elements), Ordering::Relaxed);
            tensor
        }
    };
    prime_runtime::emulated::forget(tensor.view_mut());
    Ok(DeviceScratch { tensor: Some(tensor), dims: [rows, columns] })
}

static DEVICE_FREE: Mutex<Vec<Tensor>> = Mutex::new(Vec::new());

static RESERVED: AtomicUsize = AtomicUsize::new(0);

/// Bytes that all buffers of devices take.
pub(crate) fn reserved() -> usize {
    RESERVED.load(Ordering::Relaxed)
}

/// Bytes that a buffer of so many elements takes.
pub(crate) fn device_bytes(dtype: DType, elements: usize) -> usize {
    elements.next_power_of_two() * dtype.size()
}

impl DeviceScratch {
    /// What was lent, to read: `[rows, columns]`.
    pub(crate) fn view(&self) -> View<'_> {
        let tensor = self.tensor.as_ref().expect("given back only on drop");
        tensor.head(self.dims[0] * self.dims[1]).reshape(&self.dims)
    }

    /// What was lent, to write.
    pub(crate) fn view_mut(&mut self) -> ViewMut<'_> {
        let tensor = self.tensor.as_mut().expect("given back only on drop");
        tensor.head_mut(self.dims[0] * self.dims[1]).into_shape(&self.dims)
    }
}

impl Drop for DeviceScratch {
    fn drop(&mut self) {
        if let Some(tensor) = self.tensor.take() {
            DEVICE_FREE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(tensor);
        }
    }
}
