//! Which instance of each kernel serves a dtype and head dimension, and what a block of it needs.
//!
//! Tiles are as large as registers (255 a thread, none spilled) and 99 KiB of shared memory allow, which all chips from sm_80 on offer.

use prime_runtime::{DType, Result};

use crate::arguments;
use crate::device::by_dtype;

/// Head dimensions that have instances.
const HEAD_DIMS: [usize; 6] = [32, 64, 80, 96, 128, 256];
/// Rows of a fragment.
pub(super) const FRAGMENT: usize = 16;

/// An instance of a kernel.
pub(super) struct Variant {
    /// As the `.cu` text lists it.
    pub(super) name: String,
    /// Threads of a block.
    pub(super) threads: u32,
    /// Rows of a block.
    pub(super) rows: usize,
    /// Bytes of shared memory of a block.
    pub(super) shared: usize,
}

/// Gradients that one launch of the backward of keys computes: one where registers do not hold both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    Keys = 1,
    Values = 2,
    Both = 3,
}

/// The smallest head dimension with instances that holds `head_dim`.
pub(super) fn padded(operation: &'static str, head_dim: usize) -> Result<usize> {
    HEAD_DIMS.into_iter().find(|&dim| dim >= head_dim).ok_or_else(|| {
        let message =
            format!("a head has {head_dim} elements, but devices have kernels for at most 256");
        arguments::value(operation, message)
    })
}

/// The launches that give the gradients of keys and values.
pub(super) fn parts(dim: usize) -> &'static [Part] {
    if dim == 256 { &[Part::Keys, Part::Values] } else { &[Part::Both] }
}

/// Forward: tiles of `height` fragments a warp, keys and values of one step beside them.
pub(super) fn forward(dtype: DType, dim: usize) -> Variant {
    let (height, step) = match (dtype, dim) {
        (DType::BF16, 256) => (1, 64),
        // With 64 keys a step, sums and scores would need a few more registers than a thread has.
        (DType::BF16, 128) => (2, 48),
        (DType::BF16, _) => (2, 64),
        (_, 256) => (1, 16),
        _ => (1, 32),
    };
    let kind = by_dtype!(dtype, "", "");
    let rows = 4 * FRAGMENT * height;
    Variant {
        name: format!("attention_forward<{kind}, {dim}, 4, {height}, {step}>"),
        threads: 128,
        rows,
        shared: (rows + 2 * step) * dim * dtype.size(),
    }
}

/// Backward of keys: own keys and values (the latter where d_k is computed), and of two steps queries, their gradients and two numbers each.
pub(super) fn keys(dtype: DType, dim: usize, part: Part) -> Variant {
    let (warps, step) = match (dtype, dim, part) {
        (DType::BF16, 256, Part::Values) => (4, 32),
        (DType::BF16, 256, _) => (4, 16),
        (DType::BF16, 128, _) => (4, 48),
        (DType::BF16, ..) => (4, 64),
        (_, 256, _) => (2, 8),
        (_, 32 | 64, _) => (4, 32),
        _ => (4, 16),
    };
    let (kind, number) = (by_dtype!(dtype, "", ""), part as u32);
    let rows = warps * FRAGMENT;
    let own = if part == Part::Values { rows } else { 2 * rows };
    Variant {
        name: format!("attention_backward_keys<{kind}, {dim}, {warps}, {step}, {number}>"),
        threads: 32 * warps as u32,
        rows,
        shared: (own + 4 * step) * dim * dtype.size() + 4 * step * size_of::<f32>(),
    }
}

/// Backward of queries: own queries and their gradients, and of two steps keys and values.
pub(super) fn queries(dtype: DType, dim: usize) -> Variant {
    let (warps, step) = match (dtype, dim) {
        (DType::BF16, 256) => (4, 16),
        (DType::BF16, _) => (4, 64),
        (_, 256) => (2, 8),
        (_, 32 | 64 | 80) => (4, 32),
        _ => (4, 16),
    };
    let kind = by_dtype!(dtype, "", "");
    let rows = warps * FRAGMENT;
    Variant {
        name: format!("attention_backward_queries<{kind}, {dim}, {warps}, {step}>"),
        threads: 32 * warps as u32,
        rows,
        shared: (2 * rows + 4 * step) * dim * dtype.size(),
    }
}

/// Decoding: own queries, and for each warp keys and values of two steps.
pub(super) fn decode(dtype: DType, dim: usize) -> Variant {
    let (warps, step) = match (dtype, dim) {
        (DType::BF16, 256) => (2, 16),
        (DType::BF16, _) => (4, 16),
        (_, 256) => (1, 16),
        _ => (4, 8),
    };
    let kind = by_dtype!(dtype, "", "");
    Variant {
        name: format!("attention_decode<{kind}, {dim}, {warps}, {step}>"),
        threads: 32 * warps as u32,
        rows: FRAGMENT,
        shared: (FRAGMENT + warps * 4 * step) * dim * dtype.size(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Variant> {
        let mut all = Vec::new();
        for dtype in [DType::F32, DType::BF16] {
            for dim in HEAD_DIMS {
                all.extend([forward(dtype, dim), queries(dtype, dim), decode(dtype, dim)]);
                all.extend(parts(dim).iter().map(|&part| keys(dtype, dim, part)));
            }
        }
        all
    }

    #[test]
    fn every_variant_is_listed_and_fits_the_smallest_chip() {
        for Variant { name, shared, .. } in all() {
            let line = format!("INSTANCE({name})");
            let listed = super::super::CODE
                .sources
                .iter()
                .any(|source| source.text.lines().any(|listed| listed == line));
            assert!(listed, "{line}");
            assert!(shared <= 99 * 1024, "{name} takes {shared} bytes");
        }
    }

    #[test]
    fn head_dimensions_are_padded_to_the_next_with_instances_and_refused_beyond() {
        let of = |head_dim| padded("attention.forward", head_dim);
        assert_eq!(
            [1, 32, 33, 72, 80, 100, 256].map(|d| of(d).unwrap()),
            [32, 32, 64, 80, 80, 128, 256]
        );
        assert_eq!(
            of(257).unwrap_err().to_string(),
            "attention.forward: a head has 257 elements, but devices have kernels for at most 256"
        );
    }
}
