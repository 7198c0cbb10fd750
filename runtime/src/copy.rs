//! Explicit copies: between any two devices, from host values, to host values.

use std::ptr::NonNull;

use crate::{
    DType, Device, Element, Error, Result, Tensor, View, ViewMut, bf16, cuda, emulated, f16,
};

const OPERATION: &str = "copy";

/// The memory of a view: rows of bytes, one distance apart. Rows without gaps are one long row.
pub(crate) struct Span {
    pub(crate) start: NonNull<u8>,
    pub(crate) rows: usize,
    pub(crate) row_bytes: usize,
    pub(crate) stride_bytes: usize,
}

// SAFETY: an address and sizes; who may touch the memory is settled by the view that the span was taken from, and each
// thread that shares a span touches bytes of its own.
unsafe impl Sync for Span {}

impl Span {
    pub(crate) fn of(view: &View<'_>) -> Self {
        let size = view.dtype().size();
        let rows = view.dims().first().copied().unwrap_or(1);
        let bytes = view.elements() * size;
        if bytes == 0 || view.is_contiguous() {
            return Span::dense(view.start(), bytes);
        }
        Span {
            start: view.start(),
            rows,
            row_bytes: bytes / rows,
            stride_bytes: view.row_stride() * size,
        }
    }

    fn dense(start: NonNull<u8>, bytes: usize) -> Self {
        Span { start, rows: usize::from(bytes > 0), row_bytes: bytes, stride_bytes: bytes }
    }

    /// The same rows as `other` has, so that both can be walked in step.
    fn cut_like(&self, other: &Span) -> Self {
        if self.rows == other.rows || self.rows != 1 {
            return Span { ..*self };
        }
        Span {
            rows: other.rows,
            row_bytes: other.row_bytes,
            stride_bytes: other.row_bytes,
            ..*self
        }
    }

    /// Where a row begins.
    pub(crate) fn row(&self, row: usize) -> NonNull<u8> {
        self.start
            .map_addr(|start| start.checked_add(row * self.stride_bytes).expect("inside memory"))
    }
}

impl View<'_> {
    /// The elements, row after row, in a new vector. Waits for the device.
    ///
    /// # Errors
    /// When `E` is not the dtype or the device fails.
    pub fn to_vec<E: Element>(&self) -> Result<Vec<E>> {
        expect_dtype::<E>("from", self.dtype())?;
        let mut values = vec![E::zeroed(); self.elements()];
        ViewMut::from_slice(&mut values, self.dims()).copy_from(*self)?;
        Ok(values)
    }

    /// The elements as `f32`, row after row, in a new vector, whatever the device: for tests and reports.
    ///
    /// # Panics
    /// When the device fails. [`View::to_vec`] reports instead.
    pub fn to_f32_vec(&self) -> Vec<f32> {
        fn values<E: Element>(view: &View<'_>) -> Vec<f32> {
            match view.to_vec::<E>() {
                Ok(values) => values.into_iter().map(E::to_f32).collect(),
                Err(error) => panic!("{error}"),
            }
        }
        match self.dtype() {
            DType::F32 => values::<f32>(self),
            DType::BF16 => values::<bf16>(self),
            DType::F16 => values::<f16>(self),
            DType::U32 => values::<u32>(self),
        }
    }
}

impl ViewMut<'_> {
    /// Copies a view of the same dtype and dimensions, from any device; rows may be spread out on either side. A copy to
    /// the host waits until everything asked of the device before is done.
    ///
    /// # Errors
    /// When dtypes or dimensions differ, the device fails, or bytes that nobody wrote would leave the emulated device.
    pub fn copy_from(&mut self, from: View<'_>) -> Result<()> {
        if from.dtype() != self.dtype() {
            let expected = self.dtype().name();
            return Err(Error::DType {
                operation: OPERATION,
                tensor: "from",
                found: from.dtype(),
                expected,
            });
        }
        if from.dims() != self.dims() {
            let message = format!("`from` is {:?}, expected {:?}", from.dims(), self.dims());
            return Err(Error::Shape { operation: OPERATION, message });
        }
        let (to_device, from_device) = (self.device(), from.device());
        let (to, from) = (Span::of(&self.as_view()), Span::of(&from));
        let (to, from) = (to.cut_like(&from), from.cut_like(&to));
        // The notes of emulated memory first: nothing is copied from what was never written.
        match (to_device, from_device) {
            (Device::Emulated, Device::Emulated) => emulated::copy_notes(&to, &from),
            (Device::Emulated, _) => emulated::set_written(&to, true),
            (_, Device::Emulated) => expect_written(&from)?,
            _ => {}
        }
        match (to_device, from_device) {
            (Device::Cuda(to_number), Device::Cuda(from_number)) => {
                cuda::move_rows(to_number, from_number, &to, &from)
            }
            (Device::Cuda(number), _) => cuda::upload(number, &to, &from),
            (_, Device::Cuda(number)) => cuda::download(number, &to, &from),
            _ => {
                copy_rows(&to, &from);
                Ok(())
            }
        }
    }

    /// Copies host values, row after row.
    ///
    /// # Errors
    /// When there are not as many values as elements, `E` is not the dtype, or the device fails.
    pub fn write<E: Element>(&mut self, values: &[E]) -> Result<()> {
        expect_dtype::<E>("values", self.dtype())?;
        let elements = self.as_view().elements();
        if values.len() != elements {
            let message = format!(
                "`values` has {} elements, expected the {elements} of {:?}",
                values.len(),
                self.dims()
            );
            return Err(Error::Shape { operation: OPERATION, message });
        }
        let from = View::from_slice(values, self.dims());
        self.copy_from(from)
    }

    /// Sets every element to zero.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fill_zero(&mut self) -> Result<()> {
        let span = Span::of(&self.as_view());
        match self.device() {
            Device::Cuda(number) => return cuda::clear(number, &span),
            Device::Emulated => emulated::set_written(&span, true),
            Device::Cpu => {}
        }
        for row in 0..span.rows {
            // SAFETY: the row lies in host memory that this view borrows exclusively.
            unsafe { span.row(row).write_bytes(0, span.row_bytes) }
        }
        Ok(())
    }
}

impl Tensor {
    /// A copy on a device, be it the same.
    ///
    /// # Errors
    /// When the device has not the memory, or fails.
    pub fn to(&self, device: Device) -> Result<Tensor> {
        let mut copy = Tensor::zeros(device, self.dtype(), self.dims())?;
        copy.view_mut().copy_from(self.view())?;
        Ok(copy)
    }
}

fn copy_rows(to: &Span, from: &Span) {
    for row in 0..to.rows {
        // SAFETY: both rows lie in host memory; `to` is borrowed exclusively, so they do not overlap.
        unsafe { to.row(row).copy_from_nonoverlapping(from.row(row), to.row_bytes) }
    }
}

fn expect_written(span: &Span) -> Result<()> {
    let Some((row, byte, count)) = emulated::never_written(span) else { return Ok(()) };
    Err(Error::Value(format!(
        "a copy from the emulated device reads {count} bytes that were never written, the first of them byte {byte} of row {row}"
    )))
}

fn expect_dtype<E: Element>(tensor: &'static str, found: DType) -> Result<()> {
    if found == E::DTYPE {
        return Ok(());
    }
    Err(Error::DType { operation: OPERATION, tensor, found, expected: E::DTYPE.name() })
}
