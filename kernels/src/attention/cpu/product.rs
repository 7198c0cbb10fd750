//! The one inner loop of attention: a small matrix product whose every element is one chain of fused multiply-adds.

use super::LANES;
use crate::simd::{Level, level, multiversion};

/// A matrix inside a slice: element (i, j) is at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a> {
    pub values: &'a [f32],
    pub row: usize,
    pub column: usize,
}

multiversion! {
    /// `c[i][j] = start + sum over s of a[i][s] * b[s][j]`, where start is `c[i][j]` itself if `add`, or 0.
    ///
    /// Rows of `c` are `c_row` apart and those of `b` `b_row`; `columns` is a multiple of the lanes. The sum is one
    /// chain in the order of `s`, whatever the number of rows: a row's bits do not depend on the rows around it.
    pub(super) fn product(
        c: &mut [f32],
        c_row: usize,
        a: Strided<'_>,
        b: &[f32],
        b_row: usize,
        rows: usize,
        columns: usize,
        steps: usize,
        add: bool,
    ) {
        if rows == 0 || columns == 0 {
            return;
        }
        assert!(columns.is_multiple_of(LANES) && (rows - 1) * c_row + columns <= c.len());
        if steps > 0 {
            assert!((rows - 1) * a.row + (steps - 1) * a.column < a.values.len());
            assert!((steps - 1) * b_row + columns <= b.len());
        }
        // 4 x 4 vectors of sums fill half of the 32 registers of AVX-512; other levels have 16, half or a quarter as wide.
        let widest = if level() >= Level::Avx512 { 4 } else { 1 };
        let mut column = 0;
        while column < columns {
            let vectors = ((columns - column) / LANES).min(widest);
            let mut row = 0;
            while row < rows {
                let height = (rows - row).min(4);
                macro_rules! tiles {
                    ($(($height:literal, $vectors:literal)),*) => {
                        match (height, vectors) {
                            // SAFETY: rows `row..row + height` and columns `column..column + 16 * vectors` of the
                            // matrices that the assertions above found inside their slices.
                            $(($height, $vectors) => unsafe {
                                tile::<$height, $vectors>(
                                    c.as_mut_ptr().add(row * c_row + column),
                                    c_row,
                                    a.values.as_ptr().add(row * a.row),
                                    a.row,
                                    a.column,
                                    b.as_ptr().add(column),
                                    b_row,
                                    steps,
                                    add,
                                )
                            },)*
                            _ => unreachable!("tiles have 1 to 4 rows and vectors"),
                        }
                    };
                }
                tiles!(
                    (4, 4), (4, 3), (4, 2), (4, 1), (3, 4), (3, 3), (3, 2), (3, 1),
                    (2, 4), (2, 3), (2, 2), (2, 1), (1, 4), (1, 3), (1, 2), (1, 1)
                );
                row += height;
            }
            column += vectors * LANES;
        }
    }
}

/// `ROWS` rows of `VECTORS` vectors of `c`, held in registers over all steps.
///
/// # Safety
/// `c` must be valid for that many rows, `c_row` apart, and `a` and `b` for as many rows, columns and steps.
#[inline(always)]
unsafe fn tile<const ROWS: usize, const VECTORS: usize>(
    c: *mut f32,
    c_row: usize,
    a: *const f32,
    a_row: usize,
    a_column: usize,
    b: *const f32,
    b_row: usize,
    steps: usize,
    add: bool,
) {
    let mut sums = [[[0f32; LANES]; VECTORS]; ROWS];
    if add {
        for i in 0..ROWS {
            for j in 0..VECTORS {
                // SAFETY: inside `c` by the caller's promise; an array of f32 is aligned as f32 is.
                sums[i][j] = unsafe { c.add(i * c_row + j * LANES).cast::<[f32; LANES]>().read() };
            }
        }
    }
    for step in 0..steps {
        let mut right = [[0f32; LANES]; VECTORS];
        for j in 0..VECTORS {
            // SAFETY: inside `b` by the caller's promise.
            right[j] = unsafe { b.add(step * b_row + j * LANES).cast::<[f32; LANES]>().read() };
        }
        for i in 0..ROWS {
            // SAFETY: inside `a` by the caller's promise.
            let left = unsafe { *a.add(i * a_row + step * a_column) };
            for j in 0..VECTORS {
                for lane in 0..LANES {
                    sums[i][j][lane] = left.mul_add(right[j][lane], sums[i][j][lane]);
                }
            }
        }
    }
    for i in 0..ROWS {
        for j in 0..VECTORS {
            // SAFETY: inside `c` by the caller's promise.
            unsafe { c.add(i * c_row + j * LANES).cast::<[f32; LANES]>().write(sums[i][j]) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_of_tile_gives_the_bits_of_a_scalar_chain() {
        let mut random = crate::testing::generator(3);
        for (rows, columns, steps) in [(9, 144, 5), (4, 64, 64), (3, 48, 1), (2, 32, 7), (1, 16, 0)]
        {
            let mut normals =
                |count: usize| (0..count).map(|_| random.normal()).collect::<Vec<f32>>();
            let (a, b) = (normals(rows * (steps + 1)), normals((steps + 1) * (columns + 3)));
            let start = normals(rows * (columns + 5));
            for (row, column) in [(steps + 1, 1), (1, rows)] {
                for add in [false, true] {
                    let mut c = start.clone();
                    let left = Strided { values: &a, row, column };
                    product(&mut c, columns + 5, left, &b, columns + 3, rows, columns, steps, add);
                    for i in 0..rows {
                        for j in 0..columns + 5 {
                            let old = start[i * (columns + 5) + j];
                            let mut sum = if add { old } else { 0.0 };
                            for s in 0..steps {
                                sum =
                                    a[i * row + s * column].mul_add(b[s * (columns + 3) + j], sum);
                            }
                            let expected = if j < columns { sum } else { old };
                            assert_eq!(c[i * (columns + 5) + j].to_bits(), expected.to_bits());
                        }
                    }
                }
            }
        }
    }
}
