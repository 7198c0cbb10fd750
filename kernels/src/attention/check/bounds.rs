//! The greatest errors that the arithmetic allows.

use prime_runtime::{DType, Device};

use super::super::reference::{self, Heads};
use super::super::{Mask, Span};
use crate::testing::roundoff;

/// How a device rounds.
pub(super) struct Arithmetic {
    device: Device,
    dtype: DType,
}

/// The unit roundoff of float32.
const UNIT: f64 = f32::EPSILON as f64 / 2.0;

impl Arithmetic {
    pub(super) fn new(device: Device, dtype: DType) -> Self {
        Arithmetic { device, dtype }
    }

    fn tensor_cores(&self) -> bool {
        self.device != Device::Cpu && self.dtype == DType::BF16
    }

    /// The error of a sum of so many products, in parts of the sum of their magnitudes.
    ///
    /// A chain, fused or not, rounds once a term. Tensor cores take 16 products and the sum so far at once, align them to the largest, drop
    /// what lies below its last bit, and round what they have added: 18 errors of at most two roundoffs each.
    fn sum(&self, terms: f64) -> f64 {
        if self.tensor_cores() { 36.0 * (terms / 16.0).ceil() * UNIT } else { terms * UNIT }
    }

    /// The rounding of weights and of gradients of scores that are factors on the tensor cores.
    fn factor(&self) -> f64 {
        if self.tensor_cores() { roundoff(DType::BF16) } else { 0.0 }
    }

    /// The relative error of a weight whose score and whose largest score, both at most `range` in size, are exact.
    ///
    /// The host rounds a difference of at most 2 range, and its exponential is within 4 roundoffs. Devices compute 2^(s c - m c) with
    /// c = scale log2(e): c is off by 2 roundoffs, which s - m multiplies; m c is rounded, and the difference; for a correction (m - m') c
    /// the difference is rounded, and the product. In all 8 range. `ex2.approx` is within 2^-22, 4 roundoffs.
    fn exponential(&self, range: f64) -> f64 {
        let argument = if self.device == Device::Cpu { 2.0 } else { 8.0 };
        argument * range * UNIT + 4.0 * UNIT
    }

    /// As above, for 2^(s c - lse log2(e)) of the backward pass: c and the product with lse are off by 2 roundoffs, and the difference by one.
    fn exponential_of_kept(&self, range: f64, lse: f64) -> f64 {
        if self.device == Device::Cpu {
            return self.exponential(range);
        }
        3.0 * (range + lse.abs()) * UNIT + 4.0 * UNIT
    }
}

/// A row of the forward pass: what is exact, and the greatest errors, to first order, before the result is rounded to storage. A weight may be flushed to
/// zero below the smallest normal number.
pub(super) struct Row {
    /// Of each visible key.
    p: Vec<f64>,
    /// The errors of their scores.
    scores: Vec<f64>,
    /// The size of the largest score.
    range: f64,
    pub(super) out: Vec<f64>,
    pub(super) out_error: Vec<f64>,
    pub(super) lse: f64,
    pub(super) lse_error: f64,
}

impl Row {
    /// Of the query of a span with this index.
    pub(super) fn new(
        arithmetic: &Arithmetic,
        [q, k, v]: [&[f64]; 3],
        heads: Heads,
        span: Span,
        index: usize,
        head: usize,
        scale: f64,
        mask: Mask,
    ) -> Row {
        let (width, flushed) = (heads.head_dim, f64::from(f32::MIN_POSITIVE));
        let query = &q[heads.query(span.query + index, head)..][..width];
        let (p, lse) = reference::weights(q, k, heads, span, index, head, scale, mask);
        let keys = p.len() as f64;
        let key_row = |key: usize| heads.key(span.key + key, head);
        // Errors of the scores: a sum and a multiplication.
        let scores: Vec<f64> = (0..p.len())
            .map(|key| {
                (arithmetic.sum(width as f64) + UNIT) * scale * magnitude(query, &k[key_row(key)..])
            })
            .collect();
        let worst = scores.iter().copied().fold(0.0, f64::max);
        let range = (0..p.len())
            .map(|key| scale * reference::dot(query, &k[key_row(key)..]).abs())
            .fold(0.0, f64::max);
        // A weight relative to the running maximum, rescaled at most once a block of any size down to 8. On devices the sums of
        // the warps of a block and then of the splits of the keys are rescaled once more each, and added: 4, and 32 at most.
        let exponential = arithmetic.exponential(range);
        let (rescaled, joined) = match arithmetic.device {
            Device::Cpu => ((keys / 16.0).ceil(), 0.0),
            _ => ((keys / 8.0).ceil() + 2.0, 36.0),
        };
        let weight = worst + exponential + rescaled * (exponential + UNIT);
        let sum = weight + (keys + rescaled + joined) * UNIT;
        let weighted_sum =
            weight + arithmetic.sum(keys) + (rescaled + joined) * UNIT + arithmetic.factor();
        let (mut out, mut weighted, mut all) =
            (vec![0.0; width], vec![0.0; width], vec![0.0; width]);
        for (key, weight) in p.iter().enumerate() {
            for (d, value) in v[key_row(key)..][..width].iter().enumerate() {
                out[d] += weight * value;
                weighted[d] += weight * value.abs();
                all[d] += value.abs();
            }
        }
        // Divided by the sum: through its rounded inverse on devices.
        let out_error = weighted.iter().zip(&all).map(|(weighted, all)| {
            (weighted_sum + sum + 2.0 * UNIT) * weighted + flushed * all * (1.0 + keys)
        });
        let out_error = out_error.collect();
        // The largest score is scaled, and a logarithm within 4 roundoffs added.
        let lse_error = sum + 4.0 * UNIT * keys.ln() + UNIT * (lse.abs() + range);
        Row { p, scores, range, out, out_error, lse, lse_error }
    }
}

fn magnitude(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

/// The greatest errors of both passes, as those of a [`Row`].
pub(super) struct Bounds {
    pub(super) out: Vec<f64>,
    pub(super) lse: Vec<f64>,
    pub(super) d_q: Vec<f64>,
    pub(super) d_k: Vec<f64>,
    pub(super) d_v: Vec<f64>,
}

impl Bounds {
    pub(super) fn new(
        arithmetic: &Arithmetic,
        d_out: &[f64],
        q: &[f64],
        k: &[f64],
        v: &[f64],
        heads: Heads,
        spans: &[Span],
        scale: f64,
        mask: Mask,
    ) -> Bounds {
        let flushed = f64::from(f32::MIN_POSITIVE);
        let (width, length) = (heads.head_dim, heads.head_dim as f64);
        let (storage, factor) = (roundoff(arithmetic.dtype), arithmetic.factor());
        let mut bounds = Bounds {
            out: vec![0.0; q.len()],
            lse: vec![0.0; q.len() / width],
            d_q: vec![0.0; q.len()],
            d_k: vec![0.0; k.len()],
            d_v: vec![0.0; v.len()],
        };
        for &span in spans {
            // Sums of d_k and d_v go through the queries of one head after the other.
            let group = (heads.heads / heads.kv_heads) as f64;
            let over_queries = group * arithmetic.sum(span.new as f64);
            for index in 0..span.new {
                for head in 0..heads.heads {
                    let row = heads.query(span.query + index, head);
                    let (query, d_row) = (&q[row..row + width], &d_out[row..row + width]);
                    let Row { p, scores, range, out: exact, out_error: out, lse, lse_error } =
                        Row::new(arithmetic, [q, k, v], heads, span, index, head, scale, mask);
                    let keys = p.len() as f64;
                    let key_row = |key: usize| heads.key(span.key + key, head);
                    bounds.out[row..row + width].copy_from_slice(&out);
                    bounds.lse[row / width] = lse_error;

                    // The given `out` has its own error and is rounded to storage.
                    let mean = reference::dot(d_row, &exact);
                    let mean_error: f64 = (0..width)
                        .map(|d| {
                            let given = out[d] + storage * exact[d].abs();
                            d_row[d].abs() * (given + length * UNIT * (exact[d].abs() + given))
                        })
                        .sum();
                    let exponential = arithmetic.exponential_of_kept(range, lse);
                    for key in 0..p.len() {
                        let k_row = key_row(key);
                        let value = &v[k_row..k_row + width];
                        let p_error = p[key] * (scores[key] + lse_error + exponential) + flushed;
                        let difference = reference::dot(d_row, value) - mean;
                        let difference_error = arithmetic.sum(length) * magnitude(d_row, value)
                            + mean_error
                            + UNIT * difference.abs();
                        let d_s = scale * p[key] * difference.abs();
                        let d_s_error = scale
                            * (p_error * difference.abs() + p[key] * difference_error)
                            + (2.0 * UNIT + factor) * d_s;
                        for d in 0..width {
                            bounds.d_q[row + d] +=
                                (d_s_error + arithmetic.sum(keys) * d_s) * k[k_row + d].abs();
                            bounds.d_k[k_row + d] +=
                                (d_s_error + over_queries * d_s) * query[d].abs();
                            bounds.d_v[k_row + d] +=
                                (p_error + (factor + over_queries) * p[key]) * d_row[d].abs();
                        }
                    }
                }
            }
        }
        bounds
    }
}
