//! Heads as the inner loop wants them: float32, dense, padded with zeros to whole vectors, keys also transposed.

use prime_runtime::{DType, Element, View};

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
        let mut packed = to.chunks_exact_mut(block.width.next_multiple_of(LANES));
        for row in block.first..block.first + block.rows {
            let heads = &from.row::<E>(row)[block.column..][..block.heads * block.width];
            for (from, to) in heads.chunks_exact(block.width).zip(&mut packed) {
                let (from, from_rest) = from.as_chunks::<LANES>();
                let (to, _) = to.as_chunks_mut::<LANES>();
                for (to, from) in to.iter_mut().zip(from) {
                    // By way of registers, since the compiler cannot tell that the two do not overlap.
                    let mut vector = [0f32; LANES];
                    for lane in 0..LANES {
                        vector[lane] = from[lane].to_f32();
                    }
                    *to = vector;
                }
                if let Some(last) = to.get_mut(from.len()) {
                    last.fill(0.0);
                    for (to, from) in last.iter_mut().zip(from_rest) {
                        *to = from.to_f32();
                    }
                }
            }
        }
    }
}

/// Asks for a block of one head before it is needed: a head's rows lie apart in memory, where the processor does not foresee them.
pub(super) fn fetch<E: Element>(from: &View<'_>, block: Block) {
    #[cfg(target_arch = "x86_64")]
    for row in block.first..block.first + block.rows {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        for line in from.row::<E>(row)[block.column..][..block.width].chunks(64 / size_of::<E>()) {
            // SAFETY: every x86-64 has the instruction, and it reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, block);
}

/// A block of one head with rows and columns exchanged: `to` is `[width][KEYS]`, and where the rows end within a vector,
/// the rest of it is zero.
pub(super) fn transpose<E: Element>(to: &mut [f32], from: &View<'_>, block: Block) {
    let end = block.first + block.rows;
    for first in (block.first..end).step_by(LANES) {
        let mut rows: [&[E]; LANES] = [&[]; LANES];
        for (slot, row) in rows.iter_mut().zip(first..end) {
            *slot = &from.row::<E>(row)[block.column..][..block.width];
        }
        // A vector holds two bfloat16 columns a lane.
        let most = LANES * size_of::<f32>() / size_of::<E>();
        for column in (0..block.width).step_by(most) {
            let columns = most.min(block.width - column);
            let to = &mut to[column * KEYS + first - block.first..];
            #[cfg(target_arch = "x86_64")]
            if crate::simd::level() >= crate::simd::Level::Avx512 {
                // SAFETY: the level says that this machine has the instructions.
                unsafe { transpose_tile_avx512(to, &rows, column, columns) };
                continue;
            }
            transpose_tile(to, &rows, column, columns);
        }
    }
}

/// A tile of 16 rows, those that there are no longer empty, and some columns.
fn transpose_tile<E: Element>(to: &mut [f32], rows: &[&[E]; LANES], column: usize, columns: usize) {
    for i in 0..columns {
        for (lane, row) in rows.iter().enumerate() {
            to[i * KEYS + lane] = row.get(column + i).map_or(0.0, |x| x.to_f32());
        }
    }
}

/// [`transpose_tile`] in registers, for up to 64 bytes of a row. A stage interleaves row i with row i + 8: it turns the eight bits of a
/// word's place (four of row, four of column) by one, so that four stages exchange row and column. A word is one float32 or two
/// bfloat16, the left one in its lower half.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn transpose_tile_avx512<E: Element>(
    to: &mut [f32],
    rows: &[&[E]; LANES],
    column: usize,
    columns: usize,
) {
    use std::arch::x86_64::*;
    let mut tile = [_mm512_setzero_si512(); LANES];
    for (vector, row) in tile.iter_mut().zip(rows) {
        if !row.is_empty() {
            let from = row[column..][..columns].as_ptr();
            // SAFETY: the masks leave the `columns` elements of the slice, of the type that the branch is for.
            *vector = unsafe {
                if E::DTYPE == DType::F32 {
                    let mask = (u32::from(u16::MAX) >> (16 - columns)) as u16;
                    _mm512_maskz_loadu_epi32(mask, from.cast())
                } else {
                    _mm512_maskz_loadu_epi16(u32::MAX >> (32 - columns), from.cast())
                }
            };
        }
    }
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    for _ in 0..4 {
        let rows = tile;
        for row in 0..LANES / 2 {
            let (a, b) = (rows[row], rows[row + LANES / 2]);
            tile[2 * row] = _mm512_permutex2var_epi32(a, low, b);
            tile[2 * row + 1] = _mm512_permutex2var_epi32(a, high, b);
        }
    }
    let mut store = |column: usize, vector: __m512i| {
        let to: &mut [f32; LANES] = to[column * KEYS..].first_chunk_mut().expect("whole vectors");
        // SAFETY: 16 floats.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), vector) };
    };
    if E::DTYPE == DType::F32 {
        for (i, vector) in tile.into_iter().enumerate().take(columns) {
            store(i, vector);
        }
        return;
    }
    let upper = _mm512_set1_epi32(0xffff_0000u32 as i32);
    for (i, vector) in tile.into_iter().enumerate().take(columns.div_ceil(2)) {
        store(2 * i, _mm512_slli_epi32::<16>(vector));
        if 2 * i + 1 < columns {
            store(2 * i + 1, _mm512_and_si512(vector, upper));
        }
    }
}

multiversion! {
    /// A row of float32 divided by `divisor`, rounded to storage.
    pub(super) fn narrow<E: Element>(to: &mut [E], from: &[f32], divisor: f32) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = E::from_f32(from / divisor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposed_block_has_its_rows_as_columns_and_zeros_to_the_end_of_a_vector() {
        fn case<E: Element>(width: usize, rows: usize) {
            let (first, before, after) = (3, 5, 2);
            let total = before + width + after;
            let values: Vec<E> =
                (0..(first + rows) * total).map(|i| E::from_f32((i % 251) as f32)).collect();
            let from = View::from_slice(&values, &[first + rows, total]);
            let mut to = vec![-1.0; width.next_multiple_of(LANES) * KEYS];
            transpose::<E>(&mut to, &from, Block { first, rows, column: before, heads: 1, width });
            for column in 0..width {
                for row in 0..KEYS {
                    let expected = if row < rows {
                        values[(first + row) * total + before + column].to_f32()
                    } else if row < rows.next_multiple_of(LANES) {
                        0.0
                    } else {
                        -1.0
                    };
                    assert_eq!(to[column * KEYS + row], expected, "row {row}, column {column}");
                }
            }
        }
        for rows in [0, 1, 15, 16, 17, 40, 64] {
            for width in [1, 2, 16, 30, 31, 33, 64, 80] {
                case::<f32>(width, rows);
                case::<prime_runtime::bf16>(width, rows);
            }
        }
    }
}
