//! Attention: forward and backward over packed sequences, and decoding over both kinds of cache.

use anyhow::Result;
use prime_kernels::attention::{self, Mask, Pages};
use prime_runtime::{DType, Tensor};

use super::{
    Bench, Case, Comparison, Data, FACTOR, Model, STORED, Sizes, UNIT, Work, dot, magnitude,
    row_of, samples, sum_error,
};

/// The case whose rate is asked for: no mask, head dimension 128.
pub(super) const FULL_FORWARD: &str = "attention forward, full, head dimension 128";

/// Rows of a page.
const PAGE: usize = 64;

/// A batch of equal sequences.
struct Pack {
    sequences: usize,
    length: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    mask: Mask,
    q: Data,
    k: Data,
    v: Data,
}

pub(super) fn run(bench: &Bench, sizes: &Sizes, cases: &mut Vec<Case>) -> Result<()> {
    for model in sizes.models {
        let pack = Pack::new(bench, model, sizes.tokens, sizes.length, Mask::Causal)?;
        pack.measure(bench, "attention, causal", model.name, cases)?;
        decode(bench, sizes, model, cases)?;
    }
    let model = &sizes.models[sizes.models.len() - 1];
    let pack = Pack::new(bench, model, 2 * sizes.length, 2 * sizes.length, Mask::Full)?;
    let name = if model.head_dim == 128 { FULL_FORWARD } else { "attention forward, full" };
    pack.measure(bench, name, model.name, cases)
}

impl Pack {
    fn new(bench: &Bench, model: &Model, tokens: usize, length: usize, mask: Mask) -> Result<Pack> {
        let &Model { heads, kv_heads, head_dim, .. } = model;
        Ok(Pack {
            sequences: tokens / length,
            length,
            heads,
            kv_heads,
            head_dim,
            mask,
            q: bench.uniform(&[tokens, heads * head_dim], 1)?,
            k: bench.uniform(&[tokens, kv_heads * head_dim], 2)?,
            v: bench.uniform(&[tokens, kv_heads * head_dim], 3)?,
        })
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Forward, and under a causal mask backward.
    fn measure(
        &self,
        bench: &Bench,
        name: &str,
        model: &'static str,
        cases: &mut Vec<Case>,
    ) -> Result<()> {
        let &Pack { sequences, length, heads, kv_heads, head_dim, mask, .. } = self;
        let tokens = sequences * length;
        let (query_dims, key_dims) = ([tokens, heads, head_dim], [tokens, kv_heads, head_dim]);
        let offsets: Vec<u32> = (0..=sequences).map(|s| (s * length) as u32).collect();
        let cu = bench.indices(&offsets, &[sequences + 1])?;
        let mut out = bench.zeros(DType::BF16, &query_dims)?;
        let mut lse = bench.zeros(DType::F32, &[tokens, heads])?;
        let q = self.q.device.view().reshape(&query_dims);
        let [k, v] = [&self.k, &self.v].map(|data| data.device.view().reshape(&key_dims));
        let (scale, cu) = (self.scale() as f32, cu.view());
        let seconds = bench.time(|| {
            Ok(attention::forward(out.view_mut(), lse.view_mut(), q, k, v, cu, scale, mask)?)
        })?;
        let causal = mask == Mask::Causal;
        let pairs = (sequences * length * length) as f64 / if causal { 2.0 } else { 1.0 };
        let operations = 4.0 * pairs * (heads * head_dim) as f64;
        let shape = format!(
            "{sequences} x {length} tokens, {heads} heads ({kv_heads} for keys) of {head_dim}"
        );
        cases.push(Case {
            operation: if causal { format!("{name}, forward") } else { name.to_owned() },
            model,
            shape: shape.clone(),
            comparison: self.compare_forward(&out, &lse),
            seconds,
            work: Work::Operations(operations),
            library: None,
        });
        if !causal {
            return Ok(());
        }
        let d_out = bench.uniform(&[tokens, heads * head_dim], 4)?;
        let d = d_out.device.view().reshape(&query_dims);
        let mut d_q = bench.zeros(DType::BF16, &query_dims)?;
        let mut d_k = bench.zeros(DType::BF16, &key_dims)?;
        let mut d_v = bench.zeros(DType::BF16, &key_dims)?;
        let seconds = bench.time(|| {
            Ok(attention::backward(
                d_q.view_mut(),
                d_k.view_mut(),
                d_v.view_mut(),
                d,
                q,
                k,
                v,
                out.view(),
                lse.view(),
                cu,
                scale,
                mask,
            )?)
        })?;
        let kept = Kept { d_out: &d_out, out: floats(&out), lse: floats(&lse) };
        cases.push(Case {
            operation: format!("{name}, backward"),
            model,
            shape,
            comparison: self.compare_backward(&kept, [&d_q, &d_k, &d_v]),
            seconds,
            work: Work::Operations(2.5 * operations),
            library: None,
        });
        Ok(())
    }

    fn head<'a>(&self, row: &'a [f64], head: usize) -> &'a [f64] {
        &row[head * self.head_dim..][..self.head_dim]
    }

    /// The first row of a token's sequence and the row behind the last that it sees.
    fn seen(&self, token: usize) -> (usize, usize) {
        let first = token / self.length * self.length;
        (first, if self.mask == Mask::Causal { token + 1 } else { first + self.length })
    }

    fn compare_forward(&self, out: &Tensor, lse: &Tensor) -> Comparison {
        let mut comparison = Comparison::default();
        for token in samples(self.sequences * self.length, 4) {
            let (first, end) = self.seen(token);
            let rows: Vec<[Vec<f64>; 2]> =
                (first..end).map(|row| [self.k.row(row), self.v.row(row)]).collect();
            let (query, found, found_lse) =
                (self.q.row(token), row_of(out, token), row_of(lse, token));
            for head in samples(self.heads, 2) {
                let key_head = head / (self.heads / self.kv_heads);
                let keys =
                    rows.iter().map(|[k, v]| (self.head(k, key_head), self.head(v, key_head)));
                let keys: Vec<_> = keys.collect();
                let exact = softmax(self.head(&query, head), &keys, self.scale());
                exact.compare(&mut comparison, &found[head * self.head_dim..][..self.head_dim]);
                // And the sum of as many weights, at worst a chain.
                let error = exact.score_error
                    + UNIT * ((end - first) as f64 + 8.0 * exact.lse.abs() + 80.0);
                comparison.add(found_lse[head], exact.lse, error);
            }
        }
        comparison
    }

    /// Given the forward pass's own results, which have been compared.
    fn compare_backward(&self, kept: &Kept<'_>, [d_q, d_k, d_v]: [&Tensor; 3]) -> Comparison {
        let mut comparison = Comparison::default();
        let (dim, scale, shared_by) = (self.head_dim, self.scale(), self.heads / self.kv_heads);
        // Of a pair: its weight, and the gradient of its score before the scale.
        let pair = |token: usize, key: usize, head: usize, k: &[f64], v: &[f64]| {
            let (query, d_row) = (self.q.row(token), kept.d_out.row(token));
            let (query, d_row) = (self.head(&query, head), self.head(&d_row, head));
            let at = token * self.heads + head;
            let delta: f64 =
                d_row.iter().zip(&kept.out[at * dim..]).map(|(d, o)| d * f64::from(*o)).sum();
            let p = (scale * dot(query, k) - f64::from(kept.lse[at])).exp();
            debug_assert!(key <= token);
            (p, p * (dot(d_row, v) - delta), query.to_vec(), d_row.to_vec())
        };
        for token in samples(self.sequences * self.length, 3) {
            let head = token % self.heads;
            let (mut exact, mut size) = (vec![0.0; dim], vec![0.0; dim]);
            for key in self.seen(token).0..token + 1 {
                let (k, v) = (self.k.row(key), self.v.row(key));
                let (k, v) = (self.head(&k, head / shared_by), self.head(&v, head / shared_by));
                let (_, d_s, ..) = pair(token, key, head, k, v);
                for d in 0..dim {
                    exact[d] += scale * d_s * k[d];
                    size[d] += scale * (d_s * k[d]).abs();
                }
            }
            let found = &row_of(d_q, token)[head * dim..][..dim];
            for d in 0..dim {
                comparison.add(found[d], exact[d], allowed(size[d], exact[d]));
            }
        }
        for key in samples(self.sequences * self.length, 3) {
            let key_head = key % self.kv_heads;
            let (k, v) = (self.k.row(key), self.v.row(key));
            let (k, v) = (self.head(&k, key_head), self.head(&v, key_head));
            let mut sums = [(); 4].map(|()| vec![0.0; dim]);
            let end = key / self.length * self.length + self.length;
            for token in key..end {
                for head in key_head * shared_by..(key_head + 1) * shared_by {
                    let (p, d_s, query, d_row) = pair(token, key, head, k, v);
                    for d in 0..dim {
                        sums[0][d] += scale * d_s * query[d];
                        sums[1][d] += scale * (d_s * query[d]).abs();
                        sums[2][d] += p * d_row[d];
                        sums[3][d] += (p * d_row[d]).abs();
                    }
                }
            }
            for (tensor, (exact, size)) in
                [(d_k, (&sums[0], &sums[1])), (d_v, (&sums[2], &sums[3]))]
            {
                let found = &row_of(tensor, key)[key_head * dim..][..dim];
                for d in 0..dim {
                    comparison.add(found[d], exact[d], allowed(size[d], exact[d]));
                }
            }
        }
        comparison
    }
}

/// What the forward pass left, and the gradient of its output.
struct Kept<'a> {
    d_out: &'a Data,
    out: Vec<f32>,
    lse: Vec<f32>,
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.view().to_f32_vec()
}

/// The error of a stored sum one of whose factors was rounded to bfloat16: two roundings of a weight follow from its score's, which the quarter in
/// `FACTOR` covers.
fn allowed(size: f64, exact: f64) -> f64 {
    FACTOR * size + STORED * exact.abs() + f64::from(f32::MIN_POSITIVE)
}

/// One row of attention in float64.
struct Exact {
    out: Vec<f64>,
    /// Sums of the weighted values' magnitudes.
    size: Vec<f64>,
    lse: f64,
    /// The greatest error of a score.
    score_error: f64,
}

fn softmax(query: &[f64], keys: &[(&[f64], &[f64])], scale: f64) -> Exact {
    let scores: Vec<f64> = keys.iter().map(|(k, _)| scale * dot(query, k)).collect();
    let size = keys.iter().map(|(k, _)| scale * magnitude(query, k)).fold(0.0, f64::max);
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = most + scores.iter().map(|score| (score - most).exp()).sum::<f64>().ln();
    let mut exact = Exact {
        out: vec![0.0; query.len()],
        size: vec![0.0; query.len()],
        lse,
        score_error: (sum_error(query.len()) + 8.0 * UNIT) * size,
    };
    for ((_, v), score) in keys.iter().zip(&scores) {
        let weight = (score - lse).exp();
        for d in 0..query.len() {
            exact.out[d] += weight * v[d];
            exact.size[d] += weight * v[d].abs();
        }
    }
    exact
}

impl Exact {
    fn compare(&self, comparison: &mut Comparison, found: &[f32]) {
        for d in 0..self.out.len() {
            comparison.add(found[d], self.out[d], allowed(self.size[d], self.out[d]));
        }
    }
}

/// One new token of many sequences, over a cache in one piece and over one in pages, which lie in another order.
fn decode(bench: &Bench, sizes: &Sizes, model: &Model, cases: &mut Vec<Case>) -> Result<()> {
    let &Model { heads, kv_heads, head_dim, .. } = model;
    let (sequences, context) = (sizes.sequences, sizes.context);
    let q = bench.uniform(&[sequences, heads * head_dim], 1)?;
    let k = bench.uniform(&[sequences * context, kv_heads * head_dim], 2)?;
    let v = bench.uniform(&[sequences * context, kv_heads * head_dim], 3)?;
    let (query_dims, key_dims) =
        ([sequences, heads, head_dim], [sequences * context, kv_heads, head_dim]);
    let [keys, values] = [&k, &v].map(|data| data.device.view().reshape(&key_dims));
    let query = q.device.view().reshape(&query_dims);
    let scale = 1.0 / (head_dim as f64).sqrt();
    let page = PAGE.min(context / 2);
    let pages = context / page;
    // Page p of sequence s lies where page s of sequence p would, read column by column.
    let place = |sequence: usize, at: usize| at * sequences + sequence;
    for paged in [false, true] {
        let spans: Vec<u32> = (0..sequences)
            .flat_map(|s| [s, 1, if paged { s } else { s * context }, context].map(|x| x as u32))
            .collect();
        let spans = bench.indices(&spans, &[sequences, 4])?;
        let table: Vec<u32> =
            (0..sequences * pages).map(|i| place(i / pages, i % pages) as u32).collect();
        let table = bench.indices(&table, &[sequences, pages])?;
        let mut out = bench.zeros(DType::BF16, &query_dims)?;
        let seconds = bench.time(|| {
            let (out, spans, scale) = (out.view_mut(), spans.view(), scale as f32);
            if paged {
                let pages = Pages { table: table.view(), size: page };
                attention::decode_paged(out, query, keys, values, spans, pages, scale)?;
            } else {
                attention::decode(out, query, keys, values, spans, scale)?;
            }
            Ok(())
        })?;
        let mut comparison = Comparison::default();
        for sequence in samples(sequences, 3) {
            let row = |key: usize| match paged {
                true => place(sequence, key / page) * page + key % page,
                false => sequence * context + key,
            };
            let rows: Vec<[Vec<f64>; 2]> =
                (0..context).map(|key| [k.row(row(key)), v.row(row(key))]).collect();
            let (query, found) = (q.row(sequence), row_of(&out, sequence));
            for head in samples(heads, 2) {
                let at = head / (heads / kv_heads) * head_dim;
                let keys: Vec<_> = rows
                    .iter()
                    .map(|[k, v]| (&k[at..at + head_dim], &v[at..at + head_dim]))
                    .collect();
                let own = head * head_dim..(head + 1) * head_dim;
                softmax(&query[own.clone()], &keys, scale).compare(&mut comparison, &found[own]);
            }
        }
        cases.push(Case {
            operation: format!("attention decode, {}", if paged { "in pages" } else { "in one piece" }),
            model: model.name,
            shape: format!(
                "{sequences} x 1 token over {context} keys, {heads} heads ({kv_heads} for keys) of {head_dim}"
            ),
            comparison,
            seconds,
            work: Work::Bytes((2 * sequences * context * kv_heads * head_dim * 2) as f64),
            library: None,
        });
    }
    Ok(())
}
