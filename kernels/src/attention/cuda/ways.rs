//! The ways to decode: kernels, and into how many parts the keys of each sequence are split.

use prime_runtime::{DType, Result};

use super::super::tuning::decode;
use super::variants::{FRAGMENT, padded};
use super::{hopper, tiles, variants};
use crate::scratch;

/// Blocks that keep a large device busy: keys are split over blocks of decoding until there are so many.
const ENOUGH_BLOCKS: usize = 264;
/// Splits of the keys of a sequence, at most, and the reserved keys that make another worth its sums.
const MOST_SPLITS: usize = 32;
const KEYS_OF_SPLIT: usize = 256;

/// The most bytes that [`super::decode`] borrows for one new token of each of so many sequences or fewer, each with so many reserved keys.
pub(crate) fn decode_scratch(
    sequences: usize,
    reserved: usize,
    [heads, kv_heads, head_dim]: [usize; 3],
) -> usize {
    // Fewer sequences have more splits, and more keys each where the cache is theirs alone.
    let most = (1..=sequences).map(|sequences_now| {
        let row_tiles = tiles(sequences_now * heads / kv_heads, FRAGMENT, sequences_now);
        let reserved = sequences * reserved / sequences_now;
        let splits = most_splits(row_tiles * kv_heads, reserved);
        if splits > 1 { splits * sequences_now * heads } else { 0 }
    });
    let rows = most.max().unwrap_or(0);
    scratch::device_bytes(DType::F32, rows * head_dim) + scratch::device_bytes(DType::F32, rows)
}

/// Into how many parts the keys of each sequence are split when there are so many blocks of one part.
pub(super) fn splits(blocks: usize, reserved: usize) -> usize {
    let worth = (reserved / KEYS_OF_SPLIT).clamp(1, MOST_SPLITS);
    ENOUGH_BLOCKS.div_ceil(blocks).min(worth)
}

/// The most parts that may be preferred: twice as many as are taken without.
pub(super) fn most_splits(blocks: usize, reserved: usize) -> usize {
    let possible = (2 * reserved / KEYS_OF_SPLIT).clamp(1, MOST_SPLITS);
    (2 * ENOUGH_BLOCKS.div_ceil(blocks)).min(possible)
}

/// A kernel that decodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum DecodeKernel {
    /// By the name of its instance.
    Portable(String),
    /// One of Hopper's.
    Hopper(&'static hopper::DecodeVariant),
}

impl DecodeKernel {
    /// The instance's name.
    pub(in super::super) fn name(&self) -> &str {
        match self {
            DecodeKernel::Portable(name) => name,
            DecodeKernel::Hopper(variant) => variant.name,
        }
    }
}

/// Every kernel that decodes over aligned rows with each number of parts, what is taken unless another is preferred first.
pub(in super::super) fn decode_ways(
    problem: decode::Problem,
    hopper: bool,
) -> Result<Vec<decode::Variant>> {
    let decode::Problem { sequences, keys, heads, kv_heads, head_dim, dtype } = problem;
    let portable = variants::decode(dtype, padded("attention.decode", head_dim)?);
    let mut kernels = vec![DecodeKernel::Portable(portable.name)];
    // Rows and heads of such kernels begin at multiples of 16 bytes.
    if hopper
        && dtype == DType::BF16
        && head_dim.is_multiple_of(8)
        && let Some(variant) = hopper::decode_kernel(head_dim)
    {
        kernels.insert(0, DecodeKernel::Hopper(variant));
    }
    let blocks = tiles(sequences * heads / kv_heads, FRAGMENT, sequences) * kv_heads;
    let (own, most) = (splits(blocks, keys), most_splits(blocks, keys));
    let others = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32].into_iter();
    let parts: Vec<usize> =
        std::iter::once(own).chain(others.filter(|&parts| parts <= most && parts != own)).collect();
    let ways = kernels.iter().flat_map(|kernel| {
        parts.iter().map(|&splits| decode::Variant { kernel: kernel.clone(), splits })
    });
    Ok(ways.collect())
}
