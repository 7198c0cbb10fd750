//! Writing: the header first, then every tensor's data as its source gives it, so that nothing is held twice.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::ser::{SerializeMap, Serializer};
use serde_json::{Value, json};

use super::header::METADATA;
use super::{Dtype, MAX_HEADER_BYTES, shown};
use crate::checkpoint::{AtomicFile, atomic_write};
use crate::{DType, Device, Element, Error, Result, View, bf16, f16};

/// Elements that are copied at once from a device.
const CHUNK: usize = 1 << 20;

type Give<'a> = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + 'a>;

/// A tensor to be written: its name, dtype and dimensions, and where its bytes come from.
pub struct Source<'a> {
    name: String,
    dtype: Dtype,
    dims: Vec<usize>,
    give: Give<'a>,
}

impl<'a> Source<'a> {
    /// A tensor whose bytes `give` writes when their turn comes: little endian, without gaps, exactly as many as the
    /// dtype and the dimensions say.
    pub fn stream(
        name: impl Into<String>,
        dtype: Dtype,
        dims: &[usize],
        give: impl FnOnce(&mut dyn Write) -> io::Result<()> + 'a,
    ) -> Self {
        Source { name: name.into(), dtype, dims: dims.to_vec(), give: Box::new(give) }
    }

    /// A tensor whose bytes are at hand, such as those of another file.
    pub fn bytes(name: impl Into<String>, dtype: Dtype, dims: &[usize], bytes: &'a [u8]) -> Self {
        Self::stream(name, dtype, dims, move |output| output.write_all(bytes))
    }

    /// A view on whatever device, in its own dtype. From a device other than the host it is copied piece by piece.
    pub fn view(name: impl Into<String>, view: View<'a>) -> Self {
        Self::view_as(name, view, view.dtype())
    }

    /// A view on whatever device, converted to `dtype` while it is written, rounded to nearest even.
    pub fn view_as(name: impl Into<String>, view: View<'a>, dtype: DType) -> Self {
        Self::stream(name, dtype.into(), view.dims(), move |output| match view.dtype() {
            DType::F32 => give_view::<f32>(view, dtype, output),
            DType::BF16 => give_view::<bf16>(view, dtype, output),
            DType::F16 => give_view::<f16>(view, dtype, output),
            DType::U32 => give_view::<u32>(view, dtype, output),
        })
    }

    /// The bytes, which `check` has found countable.
    fn len(&self) -> usize {
        self.dtype.bytes_of(&self.dims).unwrap_or(0)
    }
}

fn give_view<E: Element>(view: View<'_>, dtype: DType, output: &mut dyn Write) -> io::Result<()> {
    if view.device() != Device::Cpu {
        return give_device::<E>(view, dtype, output);
    }
    if view.is_contiguous() {
        return give_row(view.as_slice::<E>(), dtype, output);
    }
    (0..view.dim(0)).try_for_each(|row| give_row(view.row::<E>(row), dtype, output))
}

fn give_device<E: Element>(view: View<'_>, dtype: DType, output: &mut dyn Write) -> io::Result<()> {
    let view = if view.dims().is_empty() { view.reshape(&[1]) } else { view };
    let rows = view.dim(0);
    let at_once = (CHUNK * rows).checked_div(view.elements()).unwrap_or(1).max(1);
    for start in (0..rows).step_by(at_once) {
        let part = view.rows(start..rows.min(start + at_once));
        give_row(&part.to_vec::<E>().map_err(io::Error::other)?, dtype, output)?;
    }
    Ok(())
}

fn give_row<E: Element>(row: &[E], dtype: DType, output: &mut dyn Write) -> io::Result<()> {
    fn converted<E: Element, D: Element>(row: &[E], output: &mut dyn Write) -> io::Result<()> {
        const CHUNK: usize = 4096;
        let mut buffer = [<D as bytemuck::Zeroable>::zeroed(); CHUNK];
        for values in row.chunks(CHUNK) {
            for (to, from) in buffer.iter_mut().zip(values) {
                *to = D::from_f32(from.to_f32());
            }
            output.write_all(bytemuck::cast_slice(&buffer[..values.len()]))?;
        }
        Ok(())
    }
    if dtype == E::DTYPE {
        return output.write_all(bytemuck::cast_slice(row));
    }
    match dtype {
        DType::F32 => converted::<E, f32>(row, output),
        DType::BF16 => converted::<E, bf16>(row, output),
        DType::F16 => converted::<E, f16>(row, output),
        DType::U32 => converted::<E, u32>(row, output),
    }
}

/// Writes one file. It appears complete or not at all: the data goes to a temporary file of the same folder, which
/// is flushed to disk and renamed.
///
/// Tensors with larger elements come first, so that every tensor is aligned and can be read without a copy; those
/// of one size stay in the order given. `transformers` wants the metadata `("format", "pt")`.
///
/// # Errors
/// A sentence when a name stands twice or is reserved, a source gives more or fewer bytes than it should, or the
/// system refuses; nothing is left behind then.
pub fn write<'a>(
    path: impl AsRef<Path>,
    sources: impl IntoIterator<Item = Source<'a>>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    let path = path.as_ref();
    let sources: Vec<_> = sources.into_iter().collect();
    check(path, &sources)?;
    write_file(path, sources, metadata)
}

/// Writes a checkpoint into `folder`: `<stem>.safetensors` if it is no longer than `max_shard_bytes`, else shards
/// `<stem>-00001-of-0000N.safetensors` and their index. Tensors are dealt in the order given; one larger than
/// the limit has a shard of its own.
///
/// Several files cannot appear at once, so the folder must be without weights of this stem: write into a new one,
/// such as [`checkpoint::save`](crate::checkpoint::save) hands out.
///
/// # Errors
/// As [`write()`]; shards written before the error are removed.
pub fn write_sharded<'a>(
    folder: impl AsRef<Path>,
    stem: &str,
    sources: impl IntoIterator<Item = Source<'a>>,
    metadata: &[(&str, &str)],
    max_shard_bytes: u64,
) -> Result<()> {
    let folder = folder.as_ref();
    let sources: Vec<_> = sources.into_iter().collect();
    check(folder, &sources)?;
    refuse_older_weights(folder, stem)?;

    let total: u64 = sources.iter().map(|source| source.len() as u64).sum();
    if total <= max_shard_bytes {
        return write_file(&folder.join(format!("{stem}.safetensors")), sources, metadata);
    }
    let mut shards: Vec<Vec<Source<'a>>> = Vec::new();
    let mut room = 0;
    for source in sources {
        let bytes = source.len() as u64;
        match shards.last_mut() {
            Some(shard) if bytes <= room => {
                room -= bytes;
                shard.push(source);
            }
            _ => {
                room = max_shard_bytes.saturating_sub(bytes);
                shards.push(vec![source]);
            }
        }
    }

    let count = shards.len();
    let mut written: Vec<PathBuf> = Vec::new();
    let mut weight_map: BTreeMap<String, String> = BTreeMap::new();
    let deal = || {
        for (number, shard) in (1..).zip(shards) {
            let name = format!("{stem}-{number:05}-of-{count:05}.safetensors");
            weight_map.extend(shard.iter().map(|source| (source.name.clone(), name.clone())));
            write_file(&folder.join(&name), shard, metadata)?;
            written.push(folder.join(name));
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        atomic_write(
            folder.join(format!("{stem}.safetensors.index.json")),
            format!("{index:#}\n").as_bytes(),
        )
    };
    let result = deal();
    if result.is_err() {
        for path in written {
            // Best effort: the error that is on its way matters more.
            let _ = std::fs::remove_file(path);
        }
    }
    result
}

/// Shards of an earlier write, or a single file that readers would prefer, must not mix with what is written now.
fn refuse_older_weights(folder: &Path, stem: &str) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let name = entry.map_err(Error::io("list", folder))?.file_name();
        let name = name.to_string_lossy();
        let rest = name.strip_prefix(stem).unwrap_or("");
        if rest == ".safetensors"
            || rest == ".safetensors.index.json"
            || (rest.starts_with('-') && rest.ends_with(".safetensors"))
        {
            return Err(Error::format(
                folder,
                format!(
                    "the folder already holds weights ({}); choose a new folder or remove them first",
                    shown(&name)
                ),
            ));
        }
    }
    Ok(())
}

fn check(path: &Path, sources: &[Source<'_>]) -> Result<()> {
    let fail = |message: String| Err(Error::format(path, message));
    let mut total = 0usize;
    for source in sources {
        if source.name == METADATA {
            return fail(format!("a tensor cannot be named `{METADATA}`: the format reserves it"));
        }
        let sum = source.dtype.bytes_of(&source.dims).and_then(|bytes| total.checked_add(bytes));
        let Some(sum) = sum else {
            return fail(format!(
                "tensor {} of {} and shape {:?} has no countable number of bytes",
                shown(&source.name),
                source.dtype,
                source.dims
            ));
        };
        total = sum;
    }
    let mut names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => fail(format!("tensor {} was to be written twice", shown(pair[0]))),
        None => Ok(()),
    }
}

fn write_file(path: &Path, mut sources: Vec<Source<'_>>, metadata: &[(&str, &str)]) -> Result<()> {
    sources.sort_by_key(|source| std::cmp::Reverse(source.dtype.bits()));
    let header = header_of(&sources, metadata).map_err(Error::io("write", path))?;
    if header.len() as u64 > MAX_HEADER_BYTES {
        return Err(Error::format(
            path,
            format!(
                "the header would be {} bytes long, over the format's limit of {MAX_HEADER_BYTES}; write fewer tensors to a file",
                header.len()
            ),
        ));
    }
    let mut file = AtomicFile::create(path)?;
    let mut lead = (header.len() as u64).to_le_bytes().to_vec();
    lead.extend(header);
    file.write_all(&lead).map_err(Error::io("write", path))?;
    for source in sources {
        let (name, expected) = (shown(&source.name), source.len());
        let mut output = Exactly { output: &mut file, left: expected };
        let given = (source.give)(&mut output);
        let left = output.left;
        given.map_err(|error| match error.get_ref() {
            Some(inner) if inner.is::<TooMany>() => Error::format(
                path,
                format!("the source of tensor {name} gave more than its {expected} bytes"),
            ),
            _ => Error::io("write", path)(error),
        })?;
        if left != 0 {
            return Err(Error::format(
                path,
                format!(
                    "the source of tensor {name} gave {} bytes, expected {expected}",
                    expected - left
                ),
            ));
        }
    }
    file.commit()
}

/// The header's JSON, padded with spaces so that the data begins on a multiple of eight.
fn header_of(sources: &[Source<'_>], metadata: &[(&str, &str)]) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut text);
    let mut map = serializer.serialize_map(None)?;
    if !metadata.is_empty() {
        let metadata: BTreeMap<_, _> = metadata.iter().copied().collect();
        map.serialize_entry(METADATA, &metadata)?;
    }
    let mut start = 0;
    for source in sources {
        let end = start + source.len();
        let entry: Value = json!({
            "dtype": source.dtype.name(),
            "shape": source.dims,
            "data_offsets": [start, end],
        });
        map.serialize_entry(&source.name, &entry)?;
        start = end;
    }
    map.end()?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok(text)
}

/// Lets as many bytes through as a tensor has.
struct Exactly<W> {
    output: W,
    left: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("more bytes than the tensor has")]
struct TooMany;

impl<W: Write> Write for Exactly<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            return Err(io::Error::other(TooMany));
        }
        let written = self.output.write(bytes)?;
        self.left -= written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
