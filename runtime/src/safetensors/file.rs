//! One file, memory-mapped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::header::{Entry, Header};
use super::{Dtype, shown};
use crate::{DType, Device, Element, Error, MAX_RANK, Result, View, ViewMut, bf16, f16};

/// Elements that are converted at once on their way to a device.
const CHUNK: usize = 1 << 20;

/// A safetensors file, mapped into memory and checked as a whole.
///
/// Opening it reads the header alone; data comes from disk as it is touched, and several processes share it.
/// The file must not be changed in place while it is mapped: values would change under the reader, and touching
/// a part that another process has cut off ends this process with `SIGBUS`. Replacing the file by renaming another
/// over it is safe, and is the only way this crate writes.
pub struct File {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

/// A tensor in a file: what its header says, and its data.
#[derive(Clone, Copy, Debug)]
pub struct TensorInfo<'a> {
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions.
    pub dims: &'a [usize],
    /// The data, little endian, without gaps.
    pub bytes: &'a [u8],
}

impl File {
    /// Maps a file and checks its header completely.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be read, [`Error::Format`] with a sentence when it is not a sound safetensors file.
    pub fn open(path: impl AsRef<Path>) -> Result<File> {
        let path = path.as_ref();
        // Asked before opening: opening a pipe would wait for a writer.
        let kind = std::fs::metadata(path).map_err(Error::io("read", path))?;
        if !kind.is_file() {
            return Err(Error::format(
                path,
                if kind.is_dir() {
                    "this is a folder, expected a safetensors file"
                } else {
                    "this is not a regular file, expected a safetensors file"
                },
            ));
        }
        let file = std::fs::File::open(path).map_err(Error::io("open", path))?;
        // SAFETY: the map is read-only and private. That no one changes the file meanwhile is the caller's part, as
        // documented on the type; it cannot be enforced.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io("map", path))?;
        let header = Header::parse(path, &map)?;
        Ok(File { path: path.to_path_buf(), map, header })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of the tensors, in the order of their data.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.header.entries.iter().map(|entry| entry.name.as_str())
    }

    /// The strings under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<TensorInfo<'_>> {
        self.header.find(name).map(|entry| self.info(entry))
    }

    /// The tensor of a name where it lies in the file, without a copy. `None` when there is no such tensor, or as
    /// [`TensorInfo::view`] says.
    pub fn view(&self, name: &str) -> Option<View<'_>> {
        self.tensor(name)?.view()
    }

    /// Copies a float tensor into `output`, on whatever device, converting between the float types; values are rounded to
    /// nearest even. What needs no conversion goes from the mapped file straight to the device.
    ///
    /// # Errors
    /// A sentence when there is no such tensor, its dimensions are not those of `output`, one of the two is not
    /// of a float type, or the device fails.
    pub fn read_into(&self, name: &str, output: &mut ViewMut<'_>) -> Result<()> {
        let tensor = self.float_tensor(name)?;
        if tensor.dims != output.dims() {
            return Err(Error::format(
                &self.path,
                format!(
                    "tensor {} has shape {:?}, expected {:?}",
                    shown(name),
                    tensor.dims,
                    output.dims()
                ),
            ));
        }
        match output.dtype() {
            DType::F32 => copy::<f32>(tensor, output),
            DType::BF16 => copy::<bf16>(tensor, output),
            DType::F16 => copy::<f16>(tensor, output),
            DType::U32 => Err(Error::format(
                &self.path,
                format!("tensor {} is {}, but was to be read as U32", shown(name), tensor.dtype),
            )),
        }
    }

    /// The elements of a float tensor as `f32`, in a new vector.
    ///
    /// # Errors
    /// A sentence when there is no such tensor or it is not of a float type.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.float_tensor(name)?;
        let mut values = vec![0.0; tensor.elements()];
        convert(tensor, &mut values);
        Ok(values)
    }

    fn float_tensor(&self, name: &str) -> Result<TensorInfo<'_>> {
        let Some(tensor) = self.tensor(name) else {
            let holds = match self.names().next() {
                Some(first) => format!("it holds {}, such as {}", self.names().len(), shown(first)),
                None => "it holds none".to_string(),
            };
            return Err(Error::format(
                &self.path,
                format!("there is no tensor {} in this file; {holds}", shown(name)),
            ));
        };
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
            return Err(Error::format(
                &self.path,
                format!("tensor {} is {}, expected F32, BF16 or F16", shown(name), tensor.dtype),
            ));
        }
        Ok(tensor)
    }

    fn info<'a>(&'a self, entry: &'a Entry) -> TensorInfo<'a> {
        TensorInfo { dtype: entry.dtype, dims: &entry.dims, bytes: &self.map[entry.range.clone()] }
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "File({}, {} tensors)", self.path.display(), self.header.entries.len())
    }
}

impl<'a> TensorInfo<'a> {
    /// How many elements.
    pub fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// The data where it lies, without a copy. `None` when tensors have no such dtype, the data is not aligned for
    /// it, or there are more than [`MAX_RANK`] dimensions.
    pub fn view(&self) -> Option<View<'a>> {
        fn cast<'a, E: Element>(info: &TensorInfo<'a>) -> Option<View<'a>> {
            Some(View::from_slice::<E>(bytemuck::try_cast_slice(info.bytes).ok()?, info.dims))
        }
        if self.dims.len() > MAX_RANK {
            return None;
        }
        match self.dtype.as_dtype()? {
            DType::F32 => cast::<f32>(self),
            DType::BF16 => cast::<bf16>(self),
            DType::F16 => cast::<f16>(self),
            DType::U32 => cast::<u32>(self),
        }
    }
}

/// Copies a float tensor into a view of its shape.
fn copy<E: Element>(tensor: TensorInfo<'_>, output: &mut ViewMut<'_>) -> Result<()> {
    if output.device() != Device::Cpu {
        return send::<E>(tensor, output);
    }
    if output.is_contiguous() {
        convert(tensor, output.as_mut_slice::<E>());
        return Ok(());
    }
    let rows = output.dim(0);
    if rows == 0 || tensor.bytes.is_empty() {
        return Ok(());
    }
    for (row, bytes) in tensor.bytes.chunks_exact(tensor.bytes.len() / rows).enumerate() {
        convert(TensorInfo { bytes, ..tensor }, output.row_mut::<E>(row));
    }
    Ok(())
}

/// [`copy`] to a device: as it lies in the file, or converted chunk by chunk.
fn send<E: Element>(tensor: TensorInfo<'_>, output: &mut ViewMut<'_>) -> Result<()> {
    if tensor.dtype.as_dtype() == Some(E::DTYPE)
        && let Some(view) = tensor.view()
    {
        return output.copy_from(view);
    }
    let elements = tensor.elements();
    // Spread rows cannot be cut anywhere: they are small parts of a buffer, and are converted at once.
    let at_once = if output.is_contiguous() { elements.min(CHUNK) } else { elements };
    let mut values = vec![E::zeroed(); at_once];
    if at_once == elements {
        convert(tensor, &mut values);
        return output.write(&values);
    }
    let size = tensor.bytes.len() / elements;
    let mut flat = output.reborrow().into_shape(&[elements]);
    for (chunk, bytes) in tensor.bytes.chunks(CHUNK * size).enumerate() {
        let values = &mut values[..bytes.len() / size];
        convert(TensorInfo { bytes, ..tensor }, values);
        let start = chunk * CHUNK;
        flat.reborrow().into_rows(start..start + values.len()).write(values)?;
    }
    Ok(())
}

/// Converts as many elements of a float tensor as `output` holds. The bytes may be unaligned.
fn convert<E: Element>(tensor: TensorInfo<'_>, output: &mut [E]) {
    fn each<S: Element, E: Element>(bytes: &[u8], output: &mut [E]) {
        for (value, bytes) in output.iter_mut().zip(bytes.chunks_exact(size_of::<S>())) {
            *value = E::from_f32(bytemuck::pod_read_unaligned::<S>(bytes).to_f32());
        }
    }
    // The same type is copied bit for bit: a conversion would quiet signalling NaNs.
    if tensor.dtype.as_dtype() == Some(E::DTYPE) {
        bytemuck::cast_slice_mut::<E, u8>(output).copy_from_slice(tensor.bytes);
        return;
    }
    match tensor.dtype {
        Dtype::F32 => each::<f32, E>(tensor.bytes, output),
        Dtype::BF16 => each::<bf16, E>(tensor.bytes, output),
        Dtype::F16 => each::<f16, E>(tensor.bytes, output),
        other => unreachable!("{other} was refused as no float type"),
    }
}
