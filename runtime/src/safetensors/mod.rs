//! Weights on disk: the safetensors format, read through a memory map and written as a stream.
//!
//! A file is eight bytes of header length (little endian), that many bytes of JSON, then the data:
//!
//! ```text
//! | n: u64 | {"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}   | data |
//! ```
//!
//! Offsets count from the end of the header. The tensors cover the data completely: no byte belongs to none of
//! them or to two. [`File::open`] checks all of it before anything is read, so that what follows needs no checks.
//!
//! - [`File`] is one file, [`Folder`] a checkpoint of one file or of shards with an index.
//! - [`write()`] and [`write_sharded`] write what the reference implementation and `transformers` load.

mod file;
mod folder;
mod header;
mod write;

pub use file::{File, TensorInfo};
pub use folder::Folder;
pub use write::{Source, write, write_sharded};

use crate::DType;

#[cfg(target_endian = "big")]
compile_error!(
    "safetensors data is little endian and is used in place, which needs a little-endian host"
);

/// The longest header that is read or written: the limit of the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The element type of a tensor in a file. Some of them only files hold: see [`Dtype::as_dtype`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // The names are the format's own.
pub enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl Dtype {
    // Every type with its name in a header and its bits per element.
    const TABLE: [(Dtype, &'static str, usize); 22] = [
        (Dtype::Bool, "BOOL", 8),
        (Dtype::F4, "F4", 4),
        (Dtype::F6E2M3, "F6_E2M3", 6),
        (Dtype::F6E3M2, "F6_E3M2", 6),
        (Dtype::U8, "U8", 8),
        (Dtype::I8, "I8", 8),
        (Dtype::F8E5M2, "F8_E5M2", 8),
        (Dtype::F8E4M3, "F8_E4M3", 8),
        (Dtype::F8E8M0, "F8_E8M0", 8),
        (Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", 8),
        (Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", 8),
        (Dtype::I16, "I16", 16),
        (Dtype::U16, "U16", 16),
        (Dtype::F16, "F16", 16),
        (Dtype::BF16, "BF16", 16),
        (Dtype::I32, "I32", 32),
        (Dtype::U32, "U32", 32),
        (Dtype::F32, "F32", 32),
        (Dtype::C64, "C64", 64),
        (Dtype::F64, "F64", 64),
        (Dtype::I64, "I64", 64),
        (Dtype::U64, "U64", 64),
    ];

    /// The type of this name in a header, such as `BF16`.
    pub fn parse(name: &str) -> Option<Dtype> {
        Self::TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The name in a header.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// Bits of one element.
    pub fn bits(self) -> usize {
        self.row().2
    }

    /// The same type as tensors have it, if they can.
    pub fn as_dtype(self) -> Option<DType> {
        match self {
            Dtype::F32 => Some(DType::F32),
            Dtype::BF16 => Some(DType::BF16),
            Dtype::F16 => Some(DType::F16),
            Dtype::U32 => Some(DType::U32),
            _ => None,
        }
    }

    /// Bytes of a tensor of these dimensions; `None` when they overflow or end within a byte.
    pub(crate) fn bytes_of(self, dims: &[usize]) -> Option<usize> {
        let elements = dims.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
        let bits = elements.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    fn row(self) -> &'static (Dtype, &'static str, usize) {
        &Self::TABLE[self as usize]
    }
}

impl From<DType> for Dtype {
    fn from(dtype: DType) -> Self {
        match dtype {
            DType::F32 => Dtype::F32,
            DType::BF16 => Dtype::BF16,
            DType::F16 => Dtype::F16,
            DType::U32 => Dtype::U32,
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A name from a file, fit for a message: control characters escaped, cut where it is absurdly long.
fn shown(name: &str) -> String {
    const LONGEST: usize = 120;
    let mut text: String = name.chars().take(LONGEST).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST).is_some() {
        text.push_str("...");
    }
    format!("`{text}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dtype_is_the_row_of_the_table_that_its_position_says() {
        for (index, &(dtype, name, _)) in Dtype::TABLE.iter().enumerate() {
            assert_eq!(dtype as usize, index);
            assert_eq!(Dtype::parse(name), Some(dtype));
            assert_eq!(dtype.name(), name);
        }
        assert_eq!(Dtype::parse("f32"), None);
    }

    #[test]
    fn a_dtype_of_tensors_survives_the_way_through_a_file() {
        for dtype in [DType::F32, DType::BF16, DType::F16, DType::U32] {
            assert_eq!(Dtype::from(dtype).as_dtype(), Some(dtype));
            assert_eq!(Dtype::from(dtype).bits(), dtype.size() * 8);
        }
        assert_eq!(Dtype::I64.as_dtype(), None);
    }

    #[test]
    fn sizes_that_overflow_or_end_within_a_byte_are_none() {
        assert_eq!(Dtype::F32.bytes_of(&[2, 3]), Some(24));
        assert_eq!(Dtype::F32.bytes_of(&[]), Some(4));
        assert_eq!(Dtype::F4.bytes_of(&[2]), Some(1));
        assert_eq!(Dtype::F4.bytes_of(&[3]), None);
        assert_eq!(Dtype::U8.bytes_of(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::U8.bytes_of(&[usize::MAX / 8 + 1]), None);
    }

    #[test]
    fn a_hostile_name_cannot_flood_or_steer_the_terminal() {
        assert_eq!(shown("a\u{1b}[2J"), "`a\\u{1b}[2J`");
        assert!(shown(&"x".repeat(1_000_000)).len() < 200);
    }
}
