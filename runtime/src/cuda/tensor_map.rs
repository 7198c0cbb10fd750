//! Descriptions of tensors for the tensor memory accelerator of Hopper and later chips.

use std::ffi::c_void;

use cudarc::driver::sys::{
    CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave,
    CUtensorMapL2promotion, CUtensorMapSwizzle,
};

use super::context::context;
use crate::{DType, Error, Result};

/// The most dimensions that the accelerator knows.
pub const MOST_TENSOR_DIMS: usize = 5;

/// What the accelerator is to know of a tensor: the fastest dimension first.
#[derive(Clone, Copy, Debug)]
pub struct TensorTiles<'a> {
    /// The device address of the first element, a multiple of 16.
    pub address: u64,
    /// The type of the elements.
    pub dtype: DType,
    /// Elements of each dimension.
    pub dims: &'a [u64],
    /// Bytes from one element to the next along every dimension but the first, multiples of 16.
    pub strides: &'a [u64],
    /// Elements of a tile along each dimension, at most 256.
    pub tile: &'a [u32],
    /// Bytes of the rows over which the pieces of a tile are exchanged in shared memory: 0 (they are not), 32, 64 or 128.
    pub swizzle: u32,
}

/// Describes a tensor to the accelerator: the 128 bytes of `TensorMap` in device code.
///
/// # Errors
/// When the device cannot be used, or the driver finds the description against its rules.
pub fn tensor_map(device: u32, tiles: &TensorTiles<'_>) -> Result<[u64; 16]> {
    let context = context(device)?;
    let wrong = |why: String| Error::Device(format!("{why}: no tensor map is made of {tiles:?}"));
    let rank = tiles.dims.len();
    if !(1..=MOST_TENSOR_DIMS).contains(&rank)
        || tiles.strides.len() != rank - 1
        || tiles.tile.len() != rank
    {
        return Err(wrong(format!(
            "dimensions, tile and, but for the first, strides must be as many, 1 to {MOST_TENSOR_DIMS}"
        )));
    }
    let dtype = match tiles.dtype {
        DType::F32 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        DType::BF16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        DType::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        DType::U32 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_UINT32,
    };
    let swizzle = match tiles.swizzle {
        0 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        32 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
        64 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
        128 => CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        other => return Err(wrong(format!("{other} is no swizzle; 0, 32, 64 and 128 are"))),
    };
    let mut map = CUtensorMap { opaque: [0; 16] };
    let steps = [1; MOST_TENSOR_DIMS];
    // SAFETY: there are as many dimensions, strides, tile sides and steps as the rank says, checked above; the driver reads
    // them during the call, writes the map, and does not follow the tensor's address.
    unsafe {
        context.driver.cuTensorMapEncodeTiled(
            &mut map,
            dtype,
            rank as u32,
            std::ptr::without_provenance_mut::<c_void>(tiles.address as usize),
            tiles.dims.as_ptr(),
            tiles.strides.as_ptr(),
            tiles.tile.as_ptr(),
            steps.as_ptr(),
            CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .map_err(|refusal| wrong(Error::from(refusal).to_string()))?;
    Ok(map.opaque)
}
