//! Rows over cores for activations; blocks of columns over cores for the weight's gradient.

use prime_runtime::{Element, View, ViewMut};

use crate::parallel;
use crate::simd::multiversion;

/// Partial sums of a row: element i goes to lane i mod 32. Two chains on AVX-512 hide the latency of an addition.
const LANES: usize = 32;

/// Columns of the weight's gradient are dealt out in pairs of cache lines, so that tasks share none.
const BLOCK: usize = 32;

/// Elements a task takes at least.
const GRAIN: usize = 8192;

fn grain(x: View<'_>) -> usize {
    GRAIN * x.dim(0).max(1) / x.elements().max(1)
}

pub(crate) fn forward<E: Element>(
    out: ViewMut<'_>,
    rstd: ViewMut<'_>,
    x: View<'_>,
    weight: View<'_>,
    epsilon: f32,
) {
    let (out, rstd, weight) = (out.shared(), rstd.shared(), weight.as_slice::<E>());
    parallel::ranges(x.dim(0), grain(x), |tokens| {
        for token in tokens {
            // SAFETY: a token's rows belong to one task.
            let (out, rstd) = unsafe { (out.row_mut(token), rstd.row_mut(token)) };
            normalise::<E>(out, rstd, x.row(token), weight, epsilon);
        }
    });
}

pub(crate) fn forward_residual<E: Element>(
    out: ViewMut<'_>,
    sum: ViewMut<'_>,
    rstd: ViewMut<'_>,
    x: View<'_>,
    delta: View<'_>,
    weight: View<'_>,
    epsilon: f32,
) {
    let (out, sum, rstd) = (out.shared(), sum.shared(), rstd.shared());
    let weight = weight.as_slice::<E>();
    parallel::ranges(x.dim(0), grain(x), |tokens| {
        for token in tokens {
            // SAFETY: a token's rows belong to one task.
            let (out, sum) = unsafe { (out.row_mut(token), sum.row_mut(token)) };
            // SAFETY: as above.
            let rstd = unsafe { rstd.row_mut(token) };
            add::<E>(sum, x.row(token), delta.row(token));
            normalise::<E>(out, rstd, sum, weight, epsilon);
        }
    });
}

pub(crate) fn backward<E: Element>(
    d_x: ViewMut<'_>,
    d_weight: &mut [f32],
    d_out: View<'_>,
    x: View<'_>,
    weight: View<'_>,
    rstd: View<'_>,
    d_residual: Option<View<'_>>,
) {
    let (d_x, weight) = (d_x.shared(), weight.as_slice::<E>());
    parallel::ranges(x.dim(0), grain(x), |tokens| {
        for token in tokens {
            // SAFETY: a token's row belongs to one task.
            let d_x = unsafe { d_x.row_mut(token) };
            let residual = d_residual.map(|d_residual| d_residual.row(token));
            differentiate::<E>(
                d_x,
                d_out.row(token),
                x.row(token),
                weight,
                rstd.row(token),
                residual,
            );
        }
    });

    let width = d_weight.len();
    let d_weight = ViewMut::from_slice(d_weight, &[1, width]).shared();
    let grain = GRAIN * width.div_ceil(BLOCK) / x.elements().max(1);
    parallel::ranges(width.div_ceil(BLOCK), grain, |blocks| {
        let columns = blocks.start * BLOCK..(blocks.end * BLOCK).min(width);
        // SAFETY: ranges of blocks do not overlap, so neither do their columns.
        let sums = unsafe { d_weight.part_mut::<f32>(0, columns.clone()) };
        add_weight_gradient::<E>(sums, d_out, x, rstd, columns.start, width);
    });
}

#[inline(always)]
fn add_lanes(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

multiversion! {
    fn add<E: Element>(sum: &mut [E], x: &[E], delta: &[E]) {
        for ((sum, x), delta) in sum.iter_mut().zip(x).zip(delta) {
            *sum = E::from_f32(x.to_f32() + delta.to_f32());
        }
    }
}

multiversion! {
    /// Normalises one token: `rstd.len()` rows as wide as the weight.
    fn normalise<E: Element>(out: &mut [E], rstd: &mut [f32], x: &[E], weight: &[E], epsilon: f32) {
        let width = weight.len();
        for (row, rstd) in rstd.iter_mut().enumerate() {
            let x = &x[row * width..][..width];
            let out = &mut out[row * width..][..width];
            let mut sums = [0f32; LANES];
            let (groups, rest) = x.as_chunks::<LANES>();
            for group in groups {
                for lane in 0..LANES {
                    let value = group[lane].to_f32();
                    sums[lane] = value.mul_add(value, sums[lane]);
                }
            }
            for (sum, value) in sums.iter_mut().zip(rest) {
                *sum = value.to_f32().mul_add(value.to_f32(), *sum);
            }
            let r = 1.0 / (add_lanes(sums) / width as f32 + epsilon).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                let normal = E::from_f32(x.to_f32() * r);
                *out = E::from_f32(weight.to_f32() * normal.to_f32());
            }
            *rstd = r;
        }
    }
}

multiversion! {
    /// The gradient of one token's rows.
    fn differentiate<E: Element>(
        d_x: &mut [E],
        d_out: &[E],
        x: &[E],
        weight: &[E],
        rstd: &[f32],
        residual: Option<&[E]>,
    ) {
        let width = weight.len();
        for (row, &r) in rstd.iter().enumerate() {
            let range = row * width..(row + 1) * width;
            let (d_out, x, d_x) = (&d_out[range.clone()], &x[range.clone()], &mut d_x[range.clone()]);
            let mut sums = [0f32; LANES];
            let whole = width - width % LANES;
            for start in (0..whole).step_by(LANES) {
                let (d_out, x) = (&d_out[start..][..LANES], &x[start..][..LANES]);
                let weight = &weight[start..][..LANES];
                for lane in 0..LANES {
                    let g = d_out[lane].to_f32() * weight[lane].to_f32();
                    sums[lane] = g.mul_add(x[lane].to_f32() * r, sums[lane]);
                }
            }
            for i in whole..width {
                let g = d_out[i].to_f32() * weight[i].to_f32();
                sums[i - whole] = g.mul_add(x[i].to_f32() * r, sums[i - whole]);
            }
            let mean = add_lanes(sums) / width as f32;
            let through = |d_out: E, x: E, weight: E| {
                let g = d_out.to_f32() * weight.to_f32();
                r * (x.to_f32() * r).mul_add(-mean, g)
            };
            match residual {
                Some(residual) => {
                    let residual = &residual[range];
                    for i in 0..width {
                        d_x[i] = E::from_f32(through(d_out[i], x[i], weight[i]) + residual[i].to_f32());
                    }
                }
                None => {
                    for i in 0..width {
                        d_x[i] = E::from_f32(through(d_out[i], x[i], weight[i]));
                    }
                }
            }
        }
    }
}

multiversion! {
    /// Adds to `d_weight`, the columns from `first` on, the products of every row, in order.
    fn add_weight_gradient<E: Element>(
        d_weight: &mut [f32],
        d_out: View<'_>,
        x: View<'_>,
        rstd: View<'_>,
        first: usize,
        width: usize,
    ) {
        let mut start = first;
        // As many columns in registers as there are: the fewer passes over the rows, the better.
        let (wide, narrow) = d_weight.as_chunks_mut::<64>();
        for sums in wide {
            add_products::<E, 64>(sums, d_out, x, rstd, start, width);
            start += 64;
        }
        let (narrow, rest) = narrow.as_chunks_mut::<16>();
        for sums in narrow {
            add_products::<E, 16>(sums, d_out, x, rstd, start, width);
            start += 16;
        }
        for sum in rest.as_chunks_mut::<1>().0 {
            add_products::<E, 1>(sum, d_out, x, rstd, start, width);
            start += 1;
        }
    }
}

#[inline(always)]
fn add_products<E: Element, const N: usize>(
    total: &mut [f32; N],
    d_out: View<'_>,
    x: View<'_>,
    rstd: View<'_>,
    start: usize,
    width: usize,
) {
    let mut sums = *total;
    for token in 0..x.dim(0) {
        let (d_out, x) = (d_out.row::<E>(token), x.row::<E>(token));
        for (row, &r) in rstd.row::<f32>(token).iter().enumerate() {
            let d_out = &d_out[row * width + start..][..N];
            let x = &x[row * width + start..][..N];
            for lane in 0..N {
                let normal = E::from_f32(x[lane].to_f32() * r);
                sums[lane] = d_out[lane].to_f32().mul_add(normal.to_f32(), sums[lane]);
            }
        }
    }
    *total = sums;
}
