//! Heads as the inner loop wants them: float32, dense, padded with zeros to whole vectors, keys also transposed.

use prime_runtime::{Element, View};

use super::{KEYS, LANES};
use crate::simd::multiversion;

/// Neighbouring heads of some rows of a view: `heads` of `width` elements from element `column` of a row on.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub first: usize,
    pub rows: usize,
    pub column: usize,
    pub heads: usize,
    pub width: usize,
}

multiversion! {
    /// The heads of a block, one after another, each padded to whole vectors.
    pub(super) fn widen<E: Element>(to: &mut [f32], from: &View<'_>, block: Block) {
        let padded = block.width.next_multiple_of(LANES);
        let mut packed = to.chunks_exact_mut(padded);
        for row in 0..block.rows {
            let heads = &from.row::<E>(block.first + row)[block.column..][..block.heads * block.width];
            for (head, to) in heads.chunks_exact(block.width).zip(&mut packed) {
                for (to, from) in to.iter_mut().zip(head) {
                    *to = from.to_f32();
                }
                to[block.width..].fill(0.0);
            }
        }
    }
}

multiversion! {
    /// A block of keys of one head with its dimensions swapped: `to` is `[width][KEYS]`, zero where there is no key.
    pub(super) fn transpose<E: Element>(to: &mut [f32], from: &View<'_>, block: Block) {
        for (key, row) in (block.first..block.first + block.rows).enumerate() {
            let head = &from.row::<E>(row)[block.column..][..block.width];
            for (to, from) in to.chunks_exact_mut(KEYS).zip(head) {
                to[key] = from.to_f32();
            }
        }
        for to in to.chunks_exact_mut(KEYS).take(block.width) {
            to[block.rows..].fill(0.0);
        }
    }
}

multiversion! {
    /// A row of float32 times `factor`, rounded to storage.
    pub(super) fn narrow<E: Element>(to: &mut [E], from: &[f32], divisor: f32) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = E::from_f32(from / divisor);
        }
    }
}
