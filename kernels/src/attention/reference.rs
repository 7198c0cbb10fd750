//! The oracle, in float64: one query row at a time, its scores held whole.

use super::{Mask, Span};

/// The sizes of a head layout.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Heads {
    /// Where a query head of a token starts in `q` and `out`.
    pub fn query(&self, token: usize, head: usize) -> usize {
        (token * self.heads + head) * self.head_dim
    }

    /// Where the key/value head that a query head reads starts in row `row` of `k` and `v`.
    pub fn key(&self, row: usize, head: usize) -> usize {
        (row * self.kv_heads + head / (self.heads / self.kv_heads)) * self.head_dim
    }
}

/// The softmax weights of one row over its visible keys, and the log-sum-exp of its scores.
pub fn weights(
    q: &[f64],
    k: &[f64],
    heads: Heads,
    span: Span,
    index: usize,
    head: usize,
    scale: f64,
    mask: Mask,
) -> (Vec<f64>, f64) {
    let start = heads.query(span.query + index, head);
    let query = &q[start..start + heads.head_dim];
    let scores: Vec<f64> = (0..span.visible(index, mask))
        .map(|key| scale * dot(query, &k[heads.key(span.key + key, head)..]))
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = max + scores.iter().map(|score| (score - max).exp()).sum::<f64>().ln();
    (scores.iter().map(|score| (score - lse).exp()).collect(), lse)
}

/// `out` and `lse`; rows that no span covers are zero.
pub fn forward(
    q: &[f64],
    k: &[f64],
    v: &[f64],
    heads: Heads,
    spans: &[Span],
    scale: f64,
    mask: Mask,
) -> (Vec<f64>, Vec<f64>) {
    let mut out = vec![0.0; q.len()];
    let mut lse = vec![0.0; q.len() / heads.head_dim];
    for &span in spans {
        for index in 0..span.new {
            for head in 0..heads.heads {
                let (p, row_lse) = weights(q, k, heads, span, index, head, scale, mask);
                lse[(span.query + index) * heads.heads + head] = row_lse;
                let o = heads.query(span.query + index, head);
                for (key, p) in p.iter().enumerate() {
                    let value = heads.key(span.key + key, head);
                    for d in 0..heads.head_dim {
                        out[o + d] += p * v[value + d];
                    }
                }
            }
        }
    }
    (out, lse)
}

/// `d_q`, `d_k` and `d_v`. With P the weights and dP = dO v^T: dS = P * (dP - sum(P * dP)), d_q = scale * dS k,
/// d_k = scale * dS^T q, d_v = P^T dO.
pub fn backward(
    d_out: &[f64],
    q: &[f64],
    k: &[f64],
    v: &[f64],
    heads: Heads,
    spans: &[Span],
    scale: f64,
    mask: Mask,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (mut d_q, mut d_k, mut d_v) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for &span in spans {
        for index in 0..span.new {
            for head in 0..heads.heads {
                let (p, _) = weights(q, k, heads, span, index, head, scale, mask);
                let o = heads.query(span.query + index, head);
                let d_row = &d_out[o..o + heads.head_dim];
                let d_p: Vec<f64> = (0..p.len())
                    .map(|key| dot(d_row, &v[heads.key(span.key + key, head)..]))
                    .collect();
                let mean = dot(&p, &d_p);
                for key in 0..p.len() {
                    let d_s = p[key] * (d_p[key] - mean);
                    let row = heads.key(span.key + key, head);
                    for d in 0..heads.head_dim {
                        d_q[o + d] += scale * d_s * k[row + d];
                        d_k[row + d] += scale * d_s * q[o + d];
                        d_v[row + d] += p[key] * d_row[d];
                    }
                }
            }
        }
    }
    (d_q, d_k, d_v)
}

/// The sum of products over the length of `a`.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradient, compare, generator};

    #[test]
    fn backward_is_the_gradient_of_forward_under_both_masks() {
        let heads = Heads { heads: 4, kv_heads: 2, head_dim: 3 };
        let spans = [[0, 4, 0, 4], [4, 0, 4, 0], [4, 1, 4, 1]].map(|row| Span::of_row(&row));
        let mut random = generator(2);
        let mut normals =
            |count| (0..count).map(|_| f64::from(random.normal())).collect::<Vec<_>>();
        let (q, k, v) = (normals(5 * 12), normals(5 * 6), normals(5 * 6));
        let d_out = normals(5 * 12);
        for mask in [Mask::Causal, Mask::Full] {
            let loss = |q: &[f64], k: &[f64], v: &[f64]| {
                dot(&forward(q, k, v, heads, &spans, 0.7, mask).0, &d_out)
            };
            let (d_q, d_k, d_v) = backward(&d_out, &q, &k, &v, heads, &spans, 0.7, mask);
            check_gradient("d_q", &q, &d_q, |q| loss(q, &k, &v)).unwrap();
            check_gradient("d_k", &k, &d_k, |k| loss(&q, k, &v)).unwrap();
            check_gradient("d_v", &v, &d_v, |v| loss(&q, &k, v)).unwrap();
        }
    }

    #[test]
    fn equal_scores_average_the_visible_values() {
        let heads = Heads { heads: 1, kv_heads: 1, head_dim: 1 };
        let spans = [Span::of_row(&[0, 3, 0, 3])];
        let (q, v) = ([0.0; 3], [1.0, 2.0, 6.0]);
        let (out, lse) = forward(&q, &q, &v, heads, &spans, 1.0, Mask::Causal);
        compare("out", &out, &[1.0, 1.5, 3.0], |_| 1e-15).unwrap();
        compare("lse", &lse, &[0.0, 2f64.ln(), 3f64.ln()], |_| 1e-15).unwrap();
        let (out, _) = forward(&q, &q, &v, heads, &spans, 1.0, Mask::Full);
        compare("out", &out, &[3.0; 3], |_| 1e-15).unwrap();
    }
}
