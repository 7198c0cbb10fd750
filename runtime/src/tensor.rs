//! Tensors own a range of a device's memory; views borrow a tensor, whole or in part.
//!
//! A view is a pointer, a shape, a dtype and the distance between rows. Rows (everything behind the first
//! dimension) are always contiguous; the rows themselves may be spread out, so that one head block of a fused
//! q/k/v buffer is a view like any other.

use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::memory::Allocation;
use crate::{DType, Device, Element, Plan, Result, Shape};

/// An owned, contiguous, 64-byte aligned buffer with a shape.
pub struct Tensor {
    start: NonNull<u8>,
    shape: Shape,
    dtype: DType,
    device: Device,
    _allocation: Arc<Allocation>,
}

// SAFETY: a tensor owns its range alone, like a `Vec` owns its own.
unsafe impl Send for Tensor {}
// SAFETY: as above; shared access only reads.
unsafe impl Sync for Tensor {}

impl Tensor {
    /// # Safety
    /// `offset` must begin an aligned, initialised range of the allocation, large enough for the shape, that no
    /// other tensor covers.
    pub(crate) unsafe fn from_parts(
        allocation: Arc<Allocation>,
        offset: usize,
        shape: Shape,
        dtype: DType,
        device: Device,
    ) -> Self {
        let start = offset_address(allocation.start(), offset);
        Tensor { start, shape, dtype, device, _allocation: allocation }
    }

    /// A zeroed tensor with memory of its own.
    ///
    /// # Errors
    /// When the device has not that much memory.
    pub fn zeros(device: Device, dtype: DType, dims: &[usize]) -> Result<Self> {
        const NAMES: [&str; crate::MAX_RANK] = ["dim0", "dim1", "dim2", "dim3"];
        let named: Vec<_> = NAMES.into_iter().zip(dims.iter().copied()).collect();
        let mut plan = Plan::new();
        let slot = plan.add("tensor", dtype, &named);
        Ok(plan.allocate(device)?.take(slot))
    }

    /// A tensor on the host with a copy of `values`.
    ///
    /// # Panics
    /// When `values` has not as many elements as `dims` says.
    pub fn from_slice<E: Element>(values: &[E], dims: &[usize]) -> Result<Self> {
        let mut tensor = Tensor::zeros(Device::Cpu, E::DTYPE, dims)?;
        tensor.as_mut_slice().copy_from_slice(values);
        Ok(tensor)
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The whole tensor, to read.
    pub fn view(&self) -> View<'_> {
        View {
            start: self.start,
            shape: self.shape,
            row_stride: self.shape.row_elements(),
            dtype: self.dtype,
            device: self.device,
            lifetime: PhantomData,
        }
    }

    /// The whole tensor, to write.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        ViewMut { view: self.view().extend(), lifetime: PhantomData }
    }

    /// The first `count` rows, to read: a buffer is planned at its capacity and used at the size at hand.
    pub fn head(&self, count: usize) -> View<'_> {
        self.view().rows(0..count)
    }

    /// The first `count` rows, to write.
    pub fn head_mut(&mut self, count: usize) -> ViewMut<'_> {
        self.view_mut().into_rows(0..count)
    }

    /// The elements, on the host.
    ///
    /// # Panics
    /// When `E` is not the dtype or the memory is not the host's.
    pub fn as_slice<E: Element>(&self) -> &[E] {
        self.view().as_slice()
    }

    /// The elements, on the host, to write.
    ///
    /// # Panics
    /// When `E` is not the dtype or the memory is not the host's.
    pub fn as_mut_slice<E: Element>(&mut self) -> &mut [E] {
        self.view_mut().into_slice()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor({} {:?} on {})", self.dtype, self.shape, self.device)
    }
}

/// A borrowed tensor, to read. Rows are contiguous and `row_stride` elements apart.
#[derive(Clone, Copy)]
pub struct View<'a> {
    start: NonNull<u8>,
    shape: Shape,
    row_stride: usize,
    dtype: DType,
    device: Device,
    lifetime: PhantomData<&'a [u8]>,
}

// SAFETY: a view is a shared borrow of plain memory.
unsafe impl Send for View<'_> {}
// SAFETY: as above.
unsafe impl Sync for View<'_> {}

impl<'a> View<'a> {
    /// A view of a host slice.
    ///
    /// # Panics
    /// When `values` has not as many elements as `dims` says.
    pub fn from_slice<E: Element>(values: &'a [E], dims: &[usize]) -> Self {
        let shape = Shape::new(dims);
        assert_eq!(
            values.len(),
            shape.elements(),
            "{} values cannot be viewed as {dims:?}",
            values.len()
        );
        let start = NonNull::from(values).cast();
        View {
            start,
            shape,
            row_stride: shape.row_elements(),
            dtype: E::DTYPE,
            device: Device::Cpu,
            lifetime: PhantomData,
        }
    }

    // Lengthens the borrow; callers keep the original borrow alive through a lifetime of their own.
    fn extend<'b>(self) -> View<'b> {
        View { lifetime: PhantomData, ..self }
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// The dimension of this index.
    pub fn dim(&self, index: usize) -> usize {
        self.dims()[index]
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.device
    }

    /// How many elements.
    pub fn elements(&self) -> usize {
        self.shape.elements()
    }

    /// Elements from the start of one row to the start of the next.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Whether the rows follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.row_stride == self.shape.row_elements()
            || self.dims().first().is_none_or(|&rows| rows <= 1)
    }

    /// The address of the first element in the memory of its device.
    pub fn address(&self) -> u64 {
        self.start.addr().get() as u64
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// A pointer to the first element, on the host.
    ///
    /// # Panics
    /// When `E` is not the dtype or the memory is not the host's.
    pub fn as_ptr<E: Element>(&self) -> *const E {
        self.check_host::<E>();
        self.start.as_ptr().cast()
    }

    /// The rows of a range.
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn rows(self, range: Range<usize>) -> View<'a> {
        assert!(
            range.start <= range.end && range.end <= self.dim(0),
            "rows {range:?} of {:?}",
            self.shape
        );
        let start = offset_address(self.start, range.start * self.row_stride * self.dtype.size());
        View { start, shape: self.shape.with_first(range.len()), ..self }
    }

    /// Columns of a range of a view with two dimensions: the rows keep their distance.
    ///
    /// # Panics
    /// When the view has not two dimensions or the range is out of bounds.
    pub fn columns(self, range: Range<usize>) -> View<'a> {
        assert!(self.dims().len() == 2 && range.start <= range.end && range.end <= self.dim(1));
        let start = offset_address(self.start, range.start * self.dtype.size());
        View { start, shape: Shape::new(&[self.dim(0), range.len()]), ..self }
    }

    /// The same rows with their elements seen under other dimensions: `[tokens, heads * head_dim]` as
    /// `[tokens, heads, head_dim]`. A contiguous view may change its first dimension too.
    ///
    /// # Panics
    /// When the number of elements differs, or rows that are spread out would have to be joined.
    pub fn reshape(self, dims: &[usize]) -> View<'a> {
        let shape = Shape::new(dims);
        assert_eq!(
            shape.elements(),
            self.elements(),
            "{:?} cannot be viewed as {dims:?}",
            self.shape
        );
        if self.dims().first() == dims.first() {
            return View { shape, ..self };
        }
        assert!(self.is_contiguous(), "spread rows {:?} cannot be joined as {dims:?}", self.shape);
        View { shape, row_stride: shape.row_elements(), ..self }
    }

    /// One row, on the host.
    ///
    /// # Panics
    /// When `E` is not the dtype, the row is out of bounds, or the memory is not the host's.
    #[inline]
    pub fn row<E: Element>(&self, index: usize) -> &'a [E] {
        self.check_host::<E>();
        assert!(index < self.dim(0), "row {index} of {:?}", self.shape);
        // SAFETY: the row is in bounds, and its elements are initialised and borrowed for 'a.
        unsafe {
            let start = self.start.cast::<E>().as_ptr().add(index * self.row_stride);
            std::slice::from_raw_parts(start, self.shape.row_elements())
        }
    }

    /// All elements of a contiguous view, on the host.
    ///
    /// # Panics
    /// When `E` is not the dtype, the rows are spread out, or the memory is not the host's.
    pub fn as_slice<E: Element>(&self) -> &'a [E] {
        self.check_host::<E>();
        assert!(self.is_contiguous(), "rows of {:?} are spread out", self.shape);
        // SAFETY: contiguous, initialised, and borrowed for 'a.
        unsafe { std::slice::from_raw_parts(self.start.cast::<E>().as_ptr(), self.elements()) }
    }

    // Every way to a host reference passes here.
    #[inline]
    fn check_host<E: Element>(&self) {
        assert!(E::DTYPE == self.dtype, "a {} tensor was read as {}", self.dtype, E::DTYPE);
        assert!(
            self.device == Device::Cpu,
            "a tensor on {} was used as host memory; copy it to the cpu first",
            self.device
        );
    }
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({} {:?} on {})", self.dtype, self.shape, self.device)
    }
}

/// A borrowed tensor, to write.
pub struct ViewMut<'a> {
    view: View<'a>,
    lifetime: PhantomData<&'a mut [u8]>,
}

impl<'a> ViewMut<'a> {
    /// A view of a host slice.
    ///
    /// # Panics
    /// When `values` has not as many elements as `dims` says.
    pub fn from_slice<E: Element>(values: &'a mut [E], dims: &[usize]) -> Self {
        let start = NonNull::from(&mut *values).cast();
        ViewMut {
            view: View { start, ..View::from_slice(values, dims) }.extend(),
            lifetime: PhantomData,
        }
    }

    /// The same memory, to read.
    pub fn as_view(&self) -> View<'_> {
        self.view
    }

    /// The same memory for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { view: self.view, lifetime: PhantomData }
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        self.view.dims()
    }

    /// The dimension of this index.
    pub fn dim(&self, index: usize) -> usize {
        self.view.dim(index)
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.view.dtype
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        self.view.device
    }

    /// Elements from the start of one row to the start of the next.
    pub fn row_stride(&self) -> usize {
        self.view.row_stride
    }

    /// Whether the rows follow each other without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.view.is_contiguous()
    }

    /// The address of the first element in the memory of its device.
    pub fn address(&self) -> u64 {
        self.view.address()
    }

    /// A pointer to the first element, on the host. See [`View::as_ptr`].
    pub fn as_mut_ptr<E: Element>(&mut self) -> *mut E {
        self.view.as_ptr::<E>().cast_mut()
    }

    /// The rows of a range. See [`View::rows`].
    pub fn into_rows(self, range: Range<usize>) -> ViewMut<'a> {
        ViewMut { view: self.view.rows(range), lifetime: PhantomData }
    }

    /// Columns of a range. See [`View::columns`].
    pub fn into_columns(self, range: Range<usize>) -> ViewMut<'a> {
        ViewMut { view: self.view.columns(range), lifetime: PhantomData }
    }

    /// Other dimensions. See [`View::reshape`].
    pub fn into_shape(self, dims: &[usize]) -> ViewMut<'a> {
        ViewMut { view: self.view.reshape(dims), lifetime: PhantomData }
    }

    /// The rows before `row`, and those from it on.
    pub fn split_at_row(self, row: usize) -> (ViewMut<'a>, ViewMut<'a>) {
        let rows = self.dim(0);
        let (head, tail) = (self.view.rows(0..row), self.view.rows(row..rows));
        (
            ViewMut { view: head, lifetime: PhantomData },
            ViewMut { view: tail, lifetime: PhantomData },
        )
    }

    /// The columns before `column` and those from it on, of a view with two dimensions: the parts of a fused
    /// q/k/v buffer.
    pub fn split_at_column(self, column: usize) -> (ViewMut<'a>, ViewMut<'a>) {
        let columns = self.dim(1);
        let (left, right) = (self.view.columns(0..column), self.view.columns(column..columns));
        (
            ViewMut { view: left, lifetime: PhantomData },
            ViewMut { view: right, lifetime: PhantomData },
        )
    }

    /// One row, on the host. See [`View::row`].
    #[inline]
    pub fn row_mut<E: Element>(&mut self, index: usize) -> &mut [E] {
        let row = self.view.row::<E>(index);
        // SAFETY: this view borrows the memory exclusively for as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts_mut(row.as_ptr().cast_mut(), row.len()) }
    }

    /// All elements of a contiguous view, on the host. See [`View::as_slice`].
    pub fn into_slice<E: Element>(self) -> &'a mut [E] {
        let slice = self.view.as_slice::<E>();
        // SAFETY: this view borrows the memory exclusively for 'a and is consumed.
        unsafe { std::slice::from_raw_parts_mut(slice.as_ptr().cast_mut(), slice.len()) }
    }

    /// All elements of a contiguous view, on the host, for a shorter time.
    pub fn as_mut_slice<E: Element>(&mut self) -> &mut [E] {
        self.reborrow().into_slice()
    }

    /// Hands the view to several threads that each write rows, or parts of rows, of their own.
    pub fn shared(self) -> SharedMut<'a> {
        SharedMut(self.view)
    }
}

/// A view that several threads write at once, each to places of its own.
#[derive(Clone, Copy)]
pub struct SharedMut<'a>(View<'a>);

impl<'a> SharedMut<'a> {
    /// One row.
    ///
    /// # Safety
    /// While the returned slice lives, no other reference to any of its elements may be used: two threads must not ask for the same row.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn row_mut<E: Element>(&self, index: usize) -> &'a mut [E] {
        let row = self.0.row::<E>(index);
        // SAFETY: in bounds by `row`; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(row.as_ptr().cast_mut(), row.len()) }
    }

    /// Part of a row.
    ///
    /// # Safety
    /// As for [`SharedMut::row_mut`], for the elements of `range`.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn part_mut<E: Element>(&self, row: usize, range: Range<usize>) -> &'a mut [E] {
        let part = &self.0.row::<E>(row)[range];
        // SAFETY: in bounds by the slice; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(part.as_ptr().cast_mut(), part.len()) }
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        self.0.dims()
    }
}

// Addresses of a device's memory are counted with, never followed, so this is arithmetic and not pointer access.
fn offset_address(start: NonNull<u8>, bytes: usize) -> NonNull<u8> {
    start.map_addr(|start| start.checked_add(bytes).expect("memory ends below the last address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_block_of_a_fused_buffer_is_a_view_with_the_buffer_s_row_distance() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let tensor = Tensor::from_slice(&values, &[3, 4]).unwrap();
        let block = tensor.view().columns(1..3);
        assert_eq!(block.row::<f32>(2), [9.0, 10.0]);
        assert!(!block.is_contiguous());
        assert_eq!(block.reshape(&[3, 2, 1]).row::<f32>(1), [5.0, 6.0]);
        assert_eq!(block.rows(1..3).to_f32_vec(), [5.0, 6.0, 9.0, 10.0]);
    }

    #[test]
    #[should_panic(expected = "a float32 tensor was read as bfloat16")]
    fn reading_a_tensor_under_another_dtype_is_refused() {
        let tensor = Tensor::zeros(Device::Cpu, DType::F32, &[2]).unwrap();
        tensor.as_slice::<crate::bf16>();
    }

    #[test]
    fn tensors_of_one_plan_do_not_overlap_and_are_aligned() {
        let mut plan = Plan::new();
        let slots: Vec<_> =
            (1..6).map(|n| plan.add(format!("b{n}"), DType::BF16, &[("n", n)])).collect();
        let mut memory = plan.allocate(Device::Cpu).unwrap();
        let mut tensors: Vec<_> = slots.into_iter().map(|slot| memory.take(slot)).collect();
        for (i, tensor) in tensors.iter_mut().enumerate() {
            assert_eq!(tensor.view().as_ptr::<crate::bf16>() as usize % 64, 0);
            tensor.as_mut_slice::<crate::bf16>().fill(crate::bf16::from_f32(i as f32));
        }
        for (i, tensor) in tensors.iter().enumerate() {
            assert!(tensor.as_slice::<crate::bf16>().iter().all(|x| x.to_f32() == i as f32));
        }
    }
}
