//! One random case against the oracle.

use prime_runtime::{DType, Device, Tensor, View};

use super::reference::{self, Heads};
use super::{Mask, Span};
use crate::testing::{any_dtype, compare, cu_seqlens, generator, normal, roundoff, to_f64, zeros};

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(_device: Device, seed: u64) -> Result<(), String> {
    let mut random = generator(seed);
    let dtype = any_dtype(&mut random);
    let head_dims = [2, 16, 24, 64, 80, 96, 128, 256, 2 * (1 + random.below(64) as usize)];
    let head_dim = head_dims[random.below(head_dims.len() as u32) as usize];
    let kv_heads = 1 + random.below(2) as usize;
    let heads = kv_heads * [1, 1, 2, 3, 4, 7][random.below(6) as usize];
    let heads = Heads { heads, kv_heads, head_dim };
    // Long enough to cross blocks of keys, short enough for the oracle.
    let longest = (8192 / (heads.heads * head_dim) as u32).clamp(4, 150);
    let cu_seqlens = cu_seqlens(&mut random, 3, longest);
    let mask = if random.below(3) == 0 { Mask::Full } else { Mask::Causal };
    let tokens = *cu_seqlens.last().expect("starts with 0") as usize;
    // q, k and v are blocks of one fused buffer.
    let (queries, keys) = (heads.heads * head_dim, kv_heads * head_dim);
    let fused = normal(&mut random, dtype, &[tokens, queries + 2 * keys], 1.5);
    let d_out = normal(&mut random, dtype, &[tokens, heads.heads, head_dim], 1.0);
    let scale = 1.0 / (head_dim as f32).sqrt();
    let case = Case { dtype, heads, cu_seqlens, mask, scale, fused, d_out };
    let error = |error: prime_runtime::Error| error.to_string();
    case.training().map_err(error)??;
    case.decoding(1 + random.below(5)).map_err(error)?
}

struct Case {
    dtype: DType,
    heads: Heads,
    cu_seqlens: Vec<u32>,
    mask: Mask,
    scale: f32,
    fused: Tensor,
    d_out: Tensor,
}

impl Case {
    fn tokens(&self) -> usize {
        self.fused.dims()[0]
    }

    fn query_dims(&self) -> [usize; 3] {
        [self.tokens(), self.heads.heads, self.heads.head_dim]
    }

    fn key_dims(&self) -> [usize; 3] {
        [self.tokens(), self.heads.kv_heads, self.heads.head_dim]
    }

    fn parts(&self) -> [View<'_>; 3] {
        let (queries, keys) =
            (self.heads.heads * self.heads.head_dim, self.heads.kv_heads * self.heads.head_dim);
        let part = |start, width| self.fused.view().columns(start..start + width);
        [
            part(0, queries).reshape(&self.query_dims()),
            part(queries, keys).reshape(&self.key_dims()),
            part(queries + keys, keys).reshape(&self.key_dims()),
        ]
    }

    /// Forward and backward of the pack.
    fn training(&self) -> prime_runtime::Result<Result<(), String>> {
        let Case { dtype, heads, ref cu_seqlens, mask, scale, .. } = *self;
        let [q, k, v] = self.parts();
        let cu = View::from_slice(cu_seqlens, &[cu_seqlens.len()]);
        let mut out = zeros(dtype, &self.query_dims());
        let mut lse = zeros(DType::F32, &self.query_dims()[..2]);
        super::forward(out.view_mut(), lse.view_mut(), q, k, v, cu, scale, mask)?;
        let (mut d_q, mut d_k, mut d_v) = (
            zeros(dtype, &self.query_dims()),
            zeros(dtype, &self.key_dims()),
            zeros(dtype, &self.key_dims()),
        );
        super::backward(
            d_q.view_mut(),
            d_k.view_mut(),
            d_v.view_mut(),
            self.d_out.view(),
            q,
            k,
            v,
            out.view(),
            lse.view(),
            cu,
            scale,
            mask,
        )?;

        let [q, k, v] = [q, k, v].map(wide);
        let spans: Vec<Span> =
            (0..cu_seqlens.len() - 1).map(|sequence| Span::of_cu_seqlens(&cu, sequence)).collect();
        let (d_out, scale) = (to_f64(&self.d_out), f64::from(scale));
        let (out_exact, lse_exact) = reference::forward(&q, &k, &v, heads, &spans, scale, mask);
        let (d_q_exact, d_k_exact, d_v_exact) =
            reference::backward(&d_out, &q, &k, &v, heads, &spans, scale, mask);
        let bounds = Bounds::new(&d_out, &q, &k, &v, heads, &spans, scale, mask, roundoff(dtype));
        let rounded = |bound: &[f64], exact: &[f64], i: usize| {
            1.01 * (bound[i] + roundoff(dtype) * exact[i].abs())
        };
        Ok(compare("out", &to_f64(&out), &out_exact, |i| rounded(&bounds.out, &out_exact, i))
            .and_then(|()| compare("lse", &to_f64(&lse), &lse_exact, |i| 1.01 * bounds.lse[i]))
            .and_then(|()| {
                compare("d_q", &to_f64(&d_q), &d_q_exact, |i| rounded(&bounds.d_q, &d_q_exact, i))
            })
            .and_then(|()| {
                compare("d_k", &to_f64(&d_k), &d_k_exact, |i| rounded(&bounds.d_k, &d_k_exact, i))
            })
            .and_then(|()| {
                compare("d_v", &to_f64(&d_v), &d_v_exact, |i| rounded(&bounds.d_v, &d_v_exact, i))
            }))
    }

    /// The last few tokens of every sequence over a cache of all of them.
    fn decoding(&self, most: u32) -> prime_runtime::Result<Result<(), String>> {
        let Case { dtype, heads, ref cu_seqlens, scale, .. } = *self;
        let [q, k, v] = self.parts();
        let mut spans = Vec::new();
        for pair in cu_seqlens.windows(2) {
            let length = pair[1] - pair[0];
            let new = most.min(length);
            spans.extend([pair[1] - new, new, pair[0], length]);
        }
        let spans_view = View::from_slice(&spans, &[spans.len() / 4, 4]);
        let mut out = zeros(dtype, &self.query_dims());
        super::decode(out.view_mut(), q, k, v, spans_view, scale)?;
        let [q, k, v] = [q, k, v].map(wide);
        let spans: Vec<Span> = spans.chunks(4).map(Span::of_row).collect();
        let (scale, mask) = (f64::from(scale), Mask::Causal);
        let (exact, _) = reference::forward(&q, &k, &v, heads, &spans, scale, mask);
        let none = vec![0.0; q.len()];
        let bounds = Bounds::new(&none, &q, &k, &v, heads, &spans, scale, mask, roundoff(dtype));
        Ok(compare("decode", &to_f64(&out), &exact, |i| {
            1.01 * (bounds.out[i] + roundoff(dtype) * exact[i].abs())
        }))
    }
}

fn wide(view: View<'_>) -> Vec<f64> {
    view.to_f32_vec().into_iter().map(f64::from).collect()
}

/// The greatest errors, to first order, that float32 arithmetic allows before the result is rounded to storage: a sum of n
/// products, fused or not, is off by n roundoffs of the sum of magnitudes, an exponential by its argument's error and 4
/// roundoffs (2 units in the last place), or by the smallest normal number where it is flushed to zero.
struct Bounds {
    out: Vec<f64>,
    lse: Vec<f64>,
    d_q: Vec<f64>,
    d_k: Vec<f64>,
    d_v: Vec<f64>,
}

impl Bounds {
    fn new(
        d_out: &[f64],
        q: &[f64],
        k: &[f64],
        v: &[f64],
        heads: Heads,
        spans: &[Span],
        scale: f64,
        mask: Mask,
        storage: f64,
    ) -> Bounds {
        let unit = f64::from(f32::EPSILON) / 2.0;
        let flushed = f64::from(f32::MIN_POSITIVE);
        let (width, length) = (heads.head_dim, heads.head_dim as f64);
        let magnitude =
            |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum() };
        let mut bounds = Bounds {
            out: vec![0.0; q.len()],
            lse: vec![0.0; q.len() / width],
            d_q: vec![0.0; q.len()],
            d_k: vec![0.0; k.len()],
            d_v: vec![0.0; v.len()],
        };
        for &span in spans {
            // Terms of d_k and d_v.
            let terms = (span.new * heads.heads / heads.kv_heads) as f64;
            for index in 0..span.new {
                for head in 0..heads.heads {
                    let row = heads.query(span.query + index, head);
                    let (query, d_row) = (&q[row..row + width], &d_out[row..row + width]);
                    let (p, lse) = reference::weights(q, k, heads, span, index, head, scale, mask);
                    let keys = p.len() as f64;
                    let key_row = |key: usize| heads.key(span.key + key, head);
                    // Errors of the scores: a chain and a multiplication.
                    let scores: Vec<f64> = (0..p.len())
                        .map(|key| {
                            (length + 1.0) * unit * scale * magnitude(query, &k[key_row(key)..])
                        })
                        .collect();
                    let worst = scores.iter().copied().fold(0.0, f64::max);
                    let range = (0..p.len())
                        .map(|key| scale * reference::dot(query, &k[key_row(key)..]).abs())
                        .fold(0.0, f64::max);
                    // A weight relative to the running maximum, rescaled at most once a block of any size down to 16.
                    let exponential = 2.0 * range * unit + 4.0 * unit;
                    let blocks = (keys / 16.0).ceil();
                    let weight = worst + exponential + blocks * (exponential + unit);
                    let sum = weight + (keys + blocks) * unit;
                    let out: Vec<f64> = (0..width)
                        .map(|d| {
                            let values = |key: usize| v[key_row(key) + d].abs();
                            let weighted: f64 = (0..p.len()).map(|key| p[key] * values(key)).sum();
                            let all: f64 = (0..p.len()).map(values).sum();
                            (2.0 * sum + unit) * weighted + flushed * all * (1.0 + keys)
                        })
                        .collect();
                    let lse_error = sum + 2.0 * unit * keys.ln() + unit * lse.abs();
                    bounds.out[row..row + width].copy_from_slice(&out);
                    bounds.lse[row / width] = lse_error;

                    // The given `out` has its own error and is rounded to storage.
                    let exact: Vec<f64> = (0..width)
                        .map(|d| (0..p.len()).map(|key| p[key] * v[key_row(key) + d]).sum())
                        .collect();
                    let mean = reference::dot(d_row, &exact);
                    let mean_error: f64 = (0..width)
                        .map(|d| {
                            let given = out[d] + storage * exact[d].abs();
                            d_row[d].abs() * (given + length * unit * (exact[d].abs() + given))
                        })
                        .sum();
                    for key in 0..p.len() {
                        let k_row = key_row(key);
                        let value = &v[k_row..k_row + width];
                        let p_error = p[key] * (scores[key] + lse_error + exponential) + flushed;
                        let difference = reference::dot(d_row, value) - mean;
                        let difference_error = length * unit * magnitude(d_row, value)
                            + mean_error
                            + unit * difference.abs();
                        let d_s = scale * p[key] * difference.abs();
                        let d_s_error = scale
                            * (p_error * difference.abs() + p[key] * difference_error)
                            + 2.0 * unit * d_s;
                        for d in 0..width {
                            bounds.d_q[row + d] +=
                                (d_s_error + keys * unit * d_s) * k[k_row + d].abs();
                            bounds.d_k[k_row + d] +=
                                (d_s_error + terms * unit * d_s) * query[d].abs();
                            bounds.d_v[k_row + d] +=
                                (p_error + terms * unit * p[key]) * d_row[d].abs();
                        }
                    }
                }
            }
        }
        bounds
    }
}
