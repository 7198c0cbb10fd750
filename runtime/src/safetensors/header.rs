//! The JSON header: parsed without losing duplicate keys, then checked against the length of the data.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::{Dtype, MAX_HEADER_BYTES, shown};
use crate::{Error, Result};

/// Where the metadata stands among the tensors' names.
pub(super) const METADATA: &str = "__metadata__";

/// One tensor, its place counted from the start of the file.
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub dims: Vec<usize>,
    pub range: Range<usize>,
}

/// A checked header: the entries are in the order of their data and cover it.
pub(super) struct Header {
    pub entries: Vec<Entry>,
    /// Indices of the entries, by name.
    pub by_name: Vec<usize>,
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Checks all of `file`, the bytes of the file at `path`.
    pub fn parse(path: &Path, file: &[u8]) -> Result<Header> {
        let fail = |message: String| Error::format(path, message);
        let Some((length, rest)) = file.split_first_chunk::<8>() else {
            return Err(fail(format!(
                "the file is {} bytes long, but a safetensors file begins with 8 bytes that give its header's length",
                file.len()
            )));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER_BYTES {
            return Err(fail(format!(
                "the first 8 bytes give a header of {length} bytes, over the limit of {MAX_HEADER_BYTES}; this is not a safetensors file, or its start is damaged"
            )));
        }
        let length = length as usize;
        if length > rest.len() {
            return Err(fail(format!(
                "the header should be {length} bytes long, but only {} bytes follow its length; the file is cut short or not a safetensors file",
                rest.len()
            )));
        }
        let (text, data) = rest.split_at(length);
        let text = std::str::from_utf8(text).map_err(|error| {
            fail(format!("the header is not UTF-8 from its byte {}", error.valid_up_to()))
        })?;
        if !text.starts_with('{') {
            return Err(fail("the header is not a JSON object: it must begin with `{`".into()));
        }
        let raw: RawHeader = serde_json::from_str(text)
            .map_err(|error| fail(format!("the header cannot be read: {error}")))?;
        let mut entries = raw
            .tensors
            .into_iter()
            .map(|(name, tensor)| tensor.check(name, data.len()).map_err(fail))
            .collect::<Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
        check_cover(&entries, data.len()).map_err(fail)?;
        for entry in &mut entries {
            entry.range.start += 8 + length;
            entry.range.end += 8 + length;
        }

        let mut by_name: Vec<usize> = (0..entries.len()).collect();
        by_name.sort_by(|&a, &b| entries[a].name.cmp(&entries[b].name));
        for pair in by_name.windows(2) {
            if entries[pair[0]].name == entries[pair[1]].name {
                return Err(fail(format!(
                    "the header names tensor {} twice; every name must be its own",
                    shown(&entries[pair[0]].name)
                )));
            }
        }
        Ok(Header { entries, by_name, metadata: raw.metadata })
    }

    /// The entry of a name.
    pub fn find(&self, name: &str) -> Option<&Entry> {
        let place =
            self.by_name.binary_search_by(|&i| self.entries[i].name.as_str().cmp(name)).ok()?;
        Some(&self.entries[self.by_name[place]])
    }
}

/// Checks that sorted entries follow each other from the first byte of the data to the last.
fn check_cover(entries: &[Entry], data: usize) -> std::result::Result<(), String> {
    let mut covered = 0;
    let mut previous: Option<&Entry> = None;
    for entry in entries {
        let (name, start) = (shown(&entry.name), entry.range.start);
        if start > covered {
            return Err(format!(
                "bytes {covered}..{start} of the data, before tensor {name}, belong to no tensor; the data must be covered without holes"
            ));
        }
        if start < covered {
            let other = previous.map_or_else(String::new, |entry| shown(&entry.name));
            return Err(format!(
                "tensor {name} begins at byte {start} of the data, inside tensor {other}, which ends at {covered}; tensors must not overlap"
            ));
        }
        covered = entry.range.end;
        previous = Some(entry);
    }
    if covered != data {
        return Err(format!(
            "{data} bytes of data follow the header, but its tensors cover {covered}; both must be equal"
        ));
    }
    Ok(())
}

#[derive(Deserialize)]
struct RawTensor {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl RawTensor {
    /// The entry, its range still counted from the start of the data.
    fn check(self, name: String, data: usize) -> std::result::Result<Entry, String> {
        let tensor = shown(&name);
        let dtype = Dtype::parse(&self.dtype).ok_or_else(|| {
            let known: Vec<_> = Dtype::TABLE.iter().map(|row| row.1).collect();
            format!(
                "tensor {tensor} has dtype {}, which is none of {}",
                shown(&self.dtype),
                known.join(", ")
            )
        })?;
        let (start, end) = self.data_offsets;
        if start > end {
            return Err(format!(
                "tensor {tensor} has data_offsets [{start}, {end}]; the first must not be after the second"
            ));
        }
        if end > data {
            return Err(format!(
                "tensor {tensor} ends at byte {end} of the data, but only {data} bytes follow the header; the file is cut short or its header is wrong"
            ));
        }
        let Some(bytes) = dtype.bytes_of(&self.shape) else {
            return Err(format!(
                "tensor {tensor} of {dtype} has shape {}, whose bytes cannot be counted: the product overflows, or ends within a byte",
                shown_dims(&self.shape)
            ));
        };
        if bytes != end - start {
            return Err(format!(
                "tensor {tensor} of {dtype} and shape {} needs {bytes} bytes, but its data_offsets [{start}, {end}] hold {}",
                shown_dims(&self.shape),
                end - start
            ));
        }
        Ok(Entry { name, dtype, dims: self.shape, range: start..end })
    }
}

fn shown_dims(dims: &[usize]) -> String {
    const MOST: usize = 16;
    if dims.len() <= MOST {
        return format!("{dims:?}");
    }
    format!("{:?} and {} dimensions more", &dims[..MOST], dims.len() - MOST)
}

/// The header as written, duplicate names and all.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct HeaderVisitor;

        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with an entry for each tensor")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<RawHeader, A::Error> {
                let mut tensors = Vec::new();
                let mut metadata = None;
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        let value = map.next_value::<UniqueStrings>().map_err(|error| {
                            A::Error::custom(format!(
                                "`{METADATA}` must be an object whose values are strings: {error}"
                            ))
                        })?;
                        if metadata.replace(value.0).is_some() {
                            return Err(A::Error::custom(format!("`{METADATA}` stands twice")));
                        }
                        continue;
                    }
                    let tensor = map.next_value::<RawTensor>().map_err(|error| {
                        A::Error::custom(format!(
                            "tensor {} must have a `dtype`, a `shape` and two `data_offsets`: {error}",
                            shown(&name)
                        ))
                    })?;
                    tensors.push((name, tensor));
                }
                Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
            }
        }

        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// A JSON object of strings in which no key stands twice.
#[derive(Default)]
pub(super) struct UniqueStrings(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct StringsVisitor;

        impl<'de> Visitor<'de> for StringsVisitor {
            type Value = UniqueStrings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object whose values are strings")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<UniqueStrings, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    let name = shown(&key);
                    if strings.insert(key, value).is_some() {
                        return Err(A::Error::custom(format!("key {name} stands twice")));
                    }
                }
                Ok(UniqueStrings(strings))
            }
        }

        deserializer.deserialize_map(StringsVisitor)
    }
}
