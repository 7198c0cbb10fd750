//! Descriptions of tensors for the tensor memory accelerator of Hopper, with the rules of `cuTensorMapEncodeTiled` checked here, where a broken
//! one can be told in a sentence.

use prime_runtime::cuda::{self, TensorTiles};
use prime_runtime::{DType, Device, Error, Result};

use super::Pointer;

/// How 16-byte pieces of a tile are exchanged, so that the rows of a matrix lie in different banks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swizzle {
    /// Rows lie as they are.
    None,
    /// Within patterns of 256 bytes.
    Bytes32,
    /// Within patterns of 512 bytes.
    Bytes64,
    /// Within patterns of 1024 bytes.
    Bytes128,
}

impl Swizzle {
    /// Bytes of a row that are exchanged with each other; 0 for none.
    pub(crate) const fn span(self) -> u32 {
        match self {
            Swizzle::None => 0,
            Swizzle::Bytes32 => 32,
            Swizzle::Bytes64 => 64,
            Swizzle::Bytes128 => 128,
        }
    }
}

/// A tensor and the box of it that one copy moves. The fastest axis comes first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiling<'a> {
    /// The elements' type.
    pub(crate) dtype: DType,
    /// The first element.
    pub(crate) start: Pointer,
    /// Elements along each axis.
    pub(crate) dims: &'a [u64],
    /// Bytes from one element to the next along each axis but the first, whose elements are dense.
    pub(crate) strides: &'a [u64],
    /// Elements of the box along each axis.
    pub(crate) tile: &'a [u32],
    /// How the box lies in shared memory.
    pub(crate) swizzle: Swizzle,
}

/// `CUtensorMap`: what a kernel's argument struct holds, opaque.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorMap([u64; 16]);

const MOST_RANK: usize = 5;
const MOST_TILE: u32 = 256;
const ALIGNMENT: u64 = 16;
const ADDRESS_BITS: u64 = (1 << 48) - 1;

impl TensorMap {
    /// Describes a tensor to a device.
    ///
    /// # Errors
    /// A sentence that names the rule which the tiling breaks, or says why the driver makes no map.
    pub(crate) fn new(device: Device, tiling: &Tiling<'_>) -> Result<TensorMap> {
        tiling.check().map_err(|message| Error::Device(format!("a tensor map: {message}")))?;
        match device {
            Device::Emulated => Ok(tiling.emulated()),
            Device::Cuda(number) => {
                let tiles = TensorTiles {
                    address: tiling.start.address(),
                    dtype: tiling.dtype,
                    dims: tiling.dims,
                    strides: tiling.strides,
                    tile: tiling.tile,
                    swizzle: tiling.swizzle.span(),
                };
                cuda::tensor_map(number, &tiles).map(TensorMap)
            }
            other => Err(Error::Device(format!("{other} has no tensor memory accelerator"))),
        }
    }
}

impl Tiling<'_> {
    fn check(&self) -> std::result::Result<(), String> {
        let rank = self.dims.len();
        if rank == 0 || rank > MOST_RANK {
            return Err(format!("a tensor of {rank} axes; 1 to {MOST_RANK} can be described"));
        }
        if self.strides.len() + 1 != rank || self.tile.len() != rank {
            return Err(format!(
                "{rank} axes with {} strides and {} sizes of the box; all but the first axis have a stride, and all a size",
                self.strides.len(),
                self.tile.len()
            ));
        }
        let address = self.start.address() & ADDRESS_BITS;
        if !address.is_multiple_of(ALIGNMENT) {
            return Err(format!(
                "a tensor at {address:#x}; its address must be a multiple of {ALIGNMENT}"
            ));
        }
        for (axis, &dim) in self.dims.iter().enumerate() {
            if dim == 0 || dim > 1 << 32 {
                return Err(format!(
                    "{dim} elements along axis {axis}; 1 to 2^32 can be described"
                ));
            }
        }
        for (axis, &stride) in self.strides.iter().enumerate() {
            if !stride.is_multiple_of(ALIGNMENT) || stride >= 1 << 40 {
                return Err(format!(
                    "{stride} bytes from element to element along axis {}; they must be a multiple of {ALIGNMENT} below 2^40",
                    axis + 1
                ));
            }
        }
        for (axis, &size) in self.tile.iter().enumerate() {
            if size == 0 || size > MOST_TILE {
                return Err(format!(
                    "a box of {size} elements along axis {axis}; 1 to {MOST_TILE} can be copied at once"
                ));
            }
        }
        let row = u64::from(self.tile[0]) * self.dtype.size() as u64;
        if !row.is_multiple_of(ALIGNMENT) {
            return Err(format!(
                "rows of {row} bytes in the box; they must be a multiple of {ALIGNMENT}"
            ));
        }
        let span = self.swizzle.span();
        if span != 0 && row > u64::from(span) {
            return Err(format!(
                "rows of {row} bytes in the box; with a swizzle of {span} bytes they have at most {span}"
            ));
        }
        Ok(())
    }

    /// `EncodedTensorMap` of `kernels/emulator/tensor_map.hpp`.
    fn emulated(&self) -> TensorMap {
        const MAGIC: u32 = 0x5041_4d54;
        let mut bytes = [0u8; 128];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC.to_le_bytes());
        put(&[element_type(self.dtype), self.dims.len() as u8, self.swizzle.span() as u8, 0]);
        put(&self.start.address().to_le_bytes());
        for axis in 0..MOST_RANK {
            put(&self.dims.get(axis).copied().unwrap_or(1).to_le_bytes());
        }
        for axis in 0..MOST_RANK - 1 {
            put(&self.strides.get(axis).copied().unwrap_or(0).to_le_bytes());
        }
        for axis in 0..MOST_RANK {
            put(&(self.tile.get(axis).copied().unwrap_or(1) as u16).to_le_bytes());
        }
        let mut words = [0u64; 16];
        for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        }
        TensorMap(words)
    }
}

/// `CUtensorMapDataType`, which the emulator's `ElementType` numbers alike.
fn element_type(dtype: DType) -> u8 {
    match dtype {
        DType::U32 => 2,
        DType::F32 => 7,
        DType::BF16 => 9,
        other => unreachable!("no tensor map describes {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Tiling<'static> = Tiling {
        dtype: DType::BF16,
        start: Pointer::NULL,
        dims: &[128, 32],
        strides: &[256],
        tile: &[64, 8],
        swizzle: Swizzle::Bytes128,
    };

    #[test]
    fn every_rule_of_a_tiling_is_told_in_a_sentence() {
        assert_eq!(GOOD.check(), Ok(()));
        let broken = [
            (Tiling { dims: &[], strides: &[], tile: &[], ..GOOD }, "0 axes"),
            (Tiling { strides: &[], ..GOOD }, "2 axes with 0 strides"),
            (Tiling { dims: &[0, 32], ..GOOD }, "0 elements along axis 0"),
            (Tiling { strides: &[264], ..GOOD }, "264 bytes"),
            (Tiling { strides: &[1 << 40], ..GOOD }, "below 2^40"),
            (Tiling { tile: &[64, 257], ..GOOD }, "a box of 257"),
            (Tiling { tile: &[60, 8], ..GOOD }, "rows of 120 bytes"),
            (Tiling { tile: &[128, 8], ..GOOD }, "at most 128"),
        ];
        for (tiling, expected) in broken {
            let message = tiling.check().unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
