//! Attention: forward and backward over packed sequences, and decoding over both kinds of cache.
//!
//! Operations are counted as is usual: for each pair of a query and a key that it sees, and each element of a head, 4 forward and 10 backward
//! (which computes the scores again).

use std::rc::Rc;

use prime_kernels::attention::{self, Mask, Pages};
use prime_kernels::testing::roundoff;
use prime_runtime::{DType, Tensor};
use serde_json::{Value, json};

use super::{Case, OURS, dtypes};
use crate::shapes::Model;
use crate::work::{Comparison, Setup, UNIT, Work, dot, factor, magnitude, row, samples, sum_error};

/// Rows of a page of a cache.
const PAGE: usize = 64;

/// All models' attention in training, prefill and decoding, and awkward packs.
pub fn cases(setup: &Setup) -> Vec<Case> {
    let scale = setup.scale;
    let mut cases = Vec::new();
    for model in scale.models() {
        for &dtype in dtypes(model.is_own()) {
            let mut add = |what: &str, lengths: Vec<usize>, mask| {
                let pack = Rc::new(Pack::new(&model, what, dtype, lengths, mask));
                cases.push(pack.forward());
                if mask == Mask::Causal && what != "prefill" {
                    cases.push(pack.backward());
                }
            };
            add("training", scale.lengths(), Mask::Causal);
            add("prefill", vec![scale.prefill()], Mask::Causal);
            if !model.is_own() {
                // One sequence as long as the batch is the shape that published rates are of.
                add("long", vec![2 * scale.training()], Mask::Causal);
                add("long, no mask", vec![2 * scale.training()], Mask::Full);
            }
            if model.name == "medium" || scale.models().len() == 1 {
                add("awkward", scale.awkward_lengths(), Mask::Causal);
            }
        }
        for sequences in scale.decode() {
            for paged in [false, true] {
                cases.push(decode(&model, sequences, scale.context(), paged));
            }
        }
    }
    cases
}

/// A batch of sequences, end to end.
struct Pack {
    name: String,
    dtype: DType,
    lengths: Vec<usize>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    mask: Mask,
}

/// Buffers of a pack's work, by their places in a set.
const OUT: usize = 0;
const LSE: usize = 1;
const Q: usize = 2;
const K: usize = 3;
const V: usize = 4;
const OFFSETS: usize = 5;
const D_OUT: usize = 6;
const D_Q: usize = 7;
const D_K: usize = 8;
const D_V: usize = 9;

impl Pack {
    fn new(model: &Model, what: &str, dtype: DType, lengths: Vec<usize>, mask: Mask) -> Pack {
        let &Model { heads, kv_heads, head_dim, .. } = model;
        let equal = lengths.iter().all(|&length| length == lengths[0]);
        let shape = match equal {
            true => format!("{}x{}", lengths.len(), lengths[0]),
            false => format!("{lengths:?}"),
        };
        let name = format!(
            "{} {what}, {shape} tokens, {heads}/{kv_heads} heads of {head_dim}",
            model.name
        );
        Pack { name, dtype, lengths, heads, kv_heads, head_dim, mask }
    }

    /// For those who measure others at the same shape.
    fn shape(&self) -> Value {
        json!({
            "lengths": self.lengths,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "causal": self.mask == Mask::Causal,
        })
    }

    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim as f64).sqrt()
    }

    /// Operations of the forward pass.
    fn flops(&self) -> f64 {
        let pairs = |&length: &usize| {
            let length = length as f64;
            if self.mask == Mask::Causal { length * (length + 1.0) / 2.0 } else { length * length }
        };
        let pairs: f64 = self.lengths.iter().map(pairs).sum();
        4.0 * pairs * (self.heads * self.head_dim) as f64
    }

    /// Bytes of queries (or of outputs), and of keys (or of values).
    fn bytes(&self) -> [f64; 2] {
        [self.heads, self.kv_heads]
            .map(|heads| (self.tokens() * heads * self.head_dim * self.dtype.size()) as f64)
    }

    /// Offsets of the sequences, and the end.
    fn offsets(&self) -> Vec<u32> {
        let ends = self.lengths.iter().scan(0, |end, length| {
            *end += *length as u32;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    fn buffers(&self, setup: &Setup, backward: bool) -> anyhow::Result<Vec<Tensor>> {
        let tokens = self.tokens();
        let q = [tokens, self.heads * self.head_dim];
        let k = [tokens, self.kv_heads * self.head_dim];
        let offsets = self.offsets();
        let mut set = vec![
            setup.zeros(self.dtype, &q)?,
            setup.zeros(DType::F32, &[tokens, self.heads])?,
            setup.uniform(self.dtype, &q, 1, 1.0)?,
            setup.uniform(self.dtype, &k, 2, 1.0)?,
            setup.uniform(self.dtype, &k, 3, 1.0)?,
            setup.indices(&offsets, &[offsets.len()])?,
        ];
        if backward {
            set.push(setup.uniform(self.dtype, &q, 4, 1.0)?);
            for dims in [q, k, k] {
                set.push(setup.zeros(self.dtype, &dims)?);
            }
        }
        Ok(set)
    }

    fn run_forward(&self, set: &mut [Tensor]) -> anyhow::Result<()> {
        let (outputs, inputs) = set.split_at_mut(Q);
        let [out, lse] = outputs else { unreachable!("split before the queries") };
        let [q, k, v, cu, ..] = inputs else { unreachable!("as buffers() made them") };
        let (q_dims, k_dims) = self.dims();
        attention::forward(
            out.view_mut().into_shape(&q_dims),
            lse.view_mut(),
            q.view().reshape(&q_dims),
            k.view().reshape(&k_dims),
            v.view().reshape(&k_dims),
            cu.view(),
            self.scale() as f32,
            self.mask,
        )?;
        Ok(())
    }

    fn dims(&self) -> ([usize; 3], [usize; 3]) {
        let of = |heads| [self.tokens(), heads, self.head_dim];
        (of(self.heads), of(self.kv_heads))
    }

    fn forward(self: &Rc<Self>) -> Case {
        let [q, k] = self.bytes();
        let bytes = 2.0 * q + 2.0 * k;
        let pack = Rc::clone(self);
        let (name, amounts) = (self.name.clone(), [self.flops(), bytes]);
        Case::new("attention forward", name, self.dtype, amounts, move |setup| {
            let sets = setup.copies(pack.buffers(setup, false)?, bytes)?;
            let (checked, shape) = (Rc::clone(&pack), pack.shape());
            let mut work = Work::new(sets, move |set| Ok(checked.compare_forward(set)))
                .blank(OUT, f32::NAN)
                .blank(LSE, f32::NAN)
                .ours(OURS, move |set, _| pack.run_forward(set));
            work.about.insert("shape".to_owned(), shape);
            Ok(work)
        })
    }

    fn backward(self: &Rc<Self>) -> Case {
        let [q, k] = self.bytes();
        // Queries, outputs and their gradients; keys and values and theirs.
        let bytes = 4.0 * q + 4.0 * k;
        let pack = Rc::clone(self);
        let (name, amounts) = (self.name.clone(), [2.5 * self.flops(), bytes]);
        Case::new("attention backward", name, self.dtype, amounts, move |setup| {
            let mut set = pack.buffers(setup, true)?;
            pack.run_forward(&mut set)?;
            let sets = setup.copies(set, bytes)?;
            let (checked, shape) = (Rc::clone(&pack), pack.shape());
            let mut work = Work::new(sets, move |set| Ok(checked.compare_backward(set)))
                .blank(D_Q, f32::NAN)
                .blank(D_K, f32::NAN)
                .blank(D_V, f32::NAN)
                .ours(OURS, move |set, _| {
                    let (inputs, gradients) = set.split_at_mut(D_Q);
                    let [d_q, d_k, d_v] = gradients else { unreachable!("as made above") };
                    let (q_dims, k_dims) = pack.dims();
                    attention::backward(
                        d_q.view_mut().into_shape(&q_dims),
                        d_k.view_mut().into_shape(&k_dims),
                        d_v.view_mut().into_shape(&k_dims),
                        inputs[D_OUT].view().reshape(&q_dims),
                        inputs[Q].view().reshape(&q_dims),
                        inputs[K].view().reshape(&k_dims),
                        inputs[V].view().reshape(&k_dims),
                        inputs[OUT].view().reshape(&q_dims),
                        inputs[LSE].view(),
                        inputs[OFFSETS].view(),
                        pack.scale() as f32,
                        pack.mask,
                    )?;
                    Ok(())
                });
            work.about.insert("shape".to_owned(), shape);
            Ok(work)
        })
    }

    fn head<'a>(&self, row: &'a [f64], head: usize) -> &'a [f64] {
        &row[head * self.head_dim..][..self.head_dim]
    }

    /// The first row of a token's sequence, and the row behind its last.
    fn sequence(&self, token: usize) -> (usize, usize) {
        let offsets = self.offsets();
        let end = offsets.partition_point(|&offset| offset as usize <= token);
        (offsets[end - 1] as usize, offsets[end] as usize)
    }

    /// The rows of keys that a token sees.
    fn seen(&self, token: usize) -> std::ops::Range<usize> {
        let (first, end) = self.sequence(token);
        first..if self.mask == Mask::Causal { token + 1 } else { end }
    }

    fn compare_forward(&self, set: &[Tensor]) -> Comparison {
        let mut comparison = Comparison::default();
        for token in samples(self.tokens(), 4) {
            let seen = self.seen(token);
            let keys = Rows::of(&set[K], seen.clone());
            let values = Rows::of(&set[V], seen);
            let query = row(&set[Q], token);
            let (found, found_lse) = (row(&set[OUT], token), row(&set[LSE], token));
            for head in samples(self.heads, 2) {
                let key_head = head / (self.heads / self.kv_heads) * self.head_dim;
                let exact =
                    softmax(self.head(&query, head), &keys, &values, key_head, self.scale());
                exact.compare(&mut comparison, self.head(&found, head), self.dtype);
                // And the sum of as many weights, at worst a chain.
                let error =
                    exact.score_error + UNIT * (keys.count as f64 + 8.0 * exact.lse.abs() + 80.0);
                comparison.add(found_lse[head], exact.lse, error);
            }
        }
        comparison
    }

    /// Given the forward pass's own results, which its case compares.
    fn compare_backward(&self, set: &[Tensor]) -> Comparison {
        let mut comparison = Comparison::default();
        let (dim, scale, shared_by) = (self.head_dim, self.scale(), self.heads / self.kv_heads);
        // Of a pair: its weight, the gradient of its score before the scale, and how far off each may be before it is rounded to the dtype.
        let pair = |of_token: &OfToken, head: usize, k: &[f64], v: &[f64]| {
            let query = self.head(&of_token.query, head);
            let d_row = self.head(&of_token.d_out, head);
            let out = self.head(&of_token.out, head);
            let (score, size) = (scale * dot(query, k), scale * magnitude(query, k));
            let p = (score - of_token.lse[head]).exp();
            let p_error = p
                * ((sum_error(dim) + 8.0 * UNIT) * size
                    + UNIT * (8.0 * of_token.lse[head].abs() + 16.0));
            let difference = dot(d_row, v) - dot(d_row, out);
            let spread =
                (sum_error(dim) + 4.0 * UNIT) * (magnitude(d_row, v) + magnitude(d_row, out));
            let d_s = p * difference;
            (p, p_error, d_s, p_error * difference.abs() + (p + p_error) * spread)
        };
        let stored = roundoff(self.dtype);
        let rounded = factor(self.dtype);
        let mut sum = |tensor: &Tensor, at: usize, head: usize, terms: &[Term]| {
            let found = row(tensor, at);
            for d in 0..dim {
                let exact: f64 = terms.iter().map(|term| term.weight * term.of[d]).sum();
                let size: f64 = terms.iter().map(|term| (term.weight * term.of[d]).abs()).sum();
                let error: f64 = terms.iter().map(|term| term.error * term.of[d].abs()).sum();
                let error = error + (rounded + sum_error(terms.len())) * (size + error);
                let allowed =
                    1.01 * (error + stored * (exact.abs() + error)) + f64::from(f32::MIN_POSITIVE);
                comparison.add(self.head(&found, head)[d], exact, allowed);
            }
        };
        for token in samples(self.tokens(), 3) {
            let head = token % self.heads;
            let of_token = OfToken::of(set, token);
            let keys = Rows::of(&set[K], self.seen(token));
            let values = Rows::of(&set[V], self.seen(token));
            let at = head / shared_by * dim;
            let terms: Vec<Term> = (0..keys.count)
                .map(|key| {
                    let (k, v) = (&keys.row(key)[at..at + dim], &values.row(key)[at..at + dim]);
                    let (_, _, d_s, error) = pair(&of_token, head, k, v);
                    Term { weight: scale * d_s, error: scale * error, of: k.to_vec() }
                })
                .collect();
            sum(&set[D_Q], token, head, &terms);
        }
        for key in samples(self.tokens(), 3) {
            let key_head = key % self.kv_heads;
            let (k, v) = (row(&set[K], key), row(&set[V], key));
            let (k, v) = (self.head(&k, key_head), self.head(&v, key_head));
            let (first, end) = self.sequence(key);
            let begin = if self.mask == Mask::Causal { key } else { first };
            let (mut of_k, mut of_v) = (Vec::new(), Vec::new());
            for token in begin..end {
                let of_token = OfToken::of(set, token);
                for head in key_head * shared_by..(key_head + 1) * shared_by {
                    let (p, p_error, d_s, error) = pair(&of_token, head, k, v);
                    let query = self.head(&of_token.query, head).to_vec();
                    let d_row = self.head(&of_token.d_out, head).to_vec();
                    of_k.push(Term { weight: scale * d_s, error: scale * error, of: query });
                    of_v.push(Term { weight: p, error: p_error, of: d_row });
                }
            }
            sum(&set[D_K], key, key_head, &of_k);
            sum(&set[D_V], key, key_head, &of_v);
        }
        comparison
    }
}

/// A vector with its weight in a sum, and how far off that may be.
struct Term {
    weight: f64,
    error: f64,
    of: Vec<f64>,
}

/// What the backward pass reads of a token.
struct OfToken {
    query: Vec<f64>,
    d_out: Vec<f64>,
    out: Vec<f64>,
    lse: Vec<f64>,
}

impl OfToken {
    fn of(set: &[Tensor], token: usize) -> OfToken {
        let of = |tensor: usize| row(&set[tensor], token);
        OfToken { query: of(Q), d_out: of(D_OUT), out: of(OUT), lse: of(LSE) }
    }
}

/// Rows of a tensor in float64.
struct Rows {
    values: Vec<f64>,
    columns: usize,
    count: usize,
}

impl Rows {
    fn of(tensor: &Tensor, range: std::ops::Range<usize>) -> Rows {
        let count = range.len();
        let values = tensor.view().rows(range).to_f32_vec();
        Rows {
            values: values.into_iter().map(f64::from).collect(),
            columns: tensor.dims()[1],
            count,
        }
    }

    fn row(&self, index: usize) -> &[f64] {
        &self.values[index * self.columns..][..self.columns]
    }
}

/// One row of attention in float64.
struct Exact {
    out: Vec<f64>,
    /// Sums of the weighted values' magnitudes.
    size: Vec<f64>,
    lse: f64,
    /// The greatest error of a score.
    score_error: f64,
    keys: usize,
}

fn softmax(query: &[f64], keys: &Rows, values: &Rows, at: usize, scale: f64) -> Exact {
    let dim = query.len();
    let key = |index: usize| &keys.row(index)[at..at + dim];
    let scores: Vec<f64> = (0..keys.count).map(|index| scale * dot(query, key(index))).collect();
    let size =
        (0..keys.count).map(|index| scale * magnitude(query, key(index))).fold(0.0, f64::max);
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let lse = most + scores.iter().map(|score| (score - most).exp()).sum::<f64>().ln();
    let mut exact = Exact {
        out: vec![0.0; dim],
        size: vec![0.0; dim],
        lse,
        score_error: (sum_error(dim) + 8.0 * UNIT) * size,
        keys: keys.count,
    };
    for (index, score) in scores.iter().enumerate() {
        let (weight, v) = ((score - lse).exp(), &values.row(index)[at..at + dim]);
        for d in 0..dim {
            exact.out[d] += weight * v[d];
            exact.size[d] += weight * v[d].abs();
        }
    }
    exact
}

impl Exact {
    /// A weight follows from its score and from the sum of all; it may be rounded to the dtype before it is multiplied, and so is the result.
    fn compare(&self, comparison: &mut Comparison, found: &[f64], dtype: DType) {
        let weight = 2.0 * self.score_error + UNIT * (self.keys as f64 + 100.0);
        let relative = weight + factor(dtype) + sum_error(self.keys);
        for d in 0..self.out.len() {
            let error = 1.01 * relative * self.size[d];
            let stored = roundoff(dtype) * (self.out[d].abs() + error);
            comparison.add(found[d], self.out[d], error + stored + f64::from(f32::MIN_POSITIVE));
        }
    }
}

/// One new token of each of some sequences, over a cache in one piece or in pages that lie in another order.
fn decode(model: &Model, sequences: usize, context: usize, paged: bool) -> Case {
    let &Model { heads, kv_heads, head_dim, .. } = model;
    let dtype = DType::BF16;
    let cache = (2 * sequences * context * kv_heads * head_dim * dtype.size()) as f64;
    let bytes = cache + (2 * sequences * heads * head_dim * dtype.size()) as f64;
    let flops = 4.0 * (sequences * context * heads * head_dim) as f64;
    let kind = if paged { "pages" } else { "one piece" };
    let name = format!(
        "{} decode {sequences} over {context} keys in {kind}, {heads}/{kv_heads} heads of {head_dim}",
        model.name
    );
    Case::new("attention decode", name, dtype, [flops, bytes], move |setup| {
        let page = PAGE.min(context / 2);
        let pages = context / page;
        // Page p of sequence s lies where page s of sequence p would, read column by column.
        let place = move |sequence: usize, at: usize| at * sequences + sequence;
        let spans: Vec<u32> = (0..sequences)
            .flat_map(|s| [s, 1, if paged { s } else { s * context }, context].map(|x| x as u32))
            .collect();
        let table: Vec<u32> =
            (0..sequences * pages).map(|i| place(i / pages, i % pages) as u32).collect();
        let rows = [sequences * context, kv_heads * head_dim];
        let set = vec![
            setup.zeros(dtype, &[sequences, heads * head_dim])?,
            setup.uniform(dtype, &[sequences, heads * head_dim], 1, 1.0)?,
            setup.uniform(dtype, &rows, 2, 1.0)?,
            setup.uniform(dtype, &rows, 3, 1.0)?,
            setup.indices(&spans, &[sequences, 4])?,
            setup.indices(&table, &[sequences, pages])?,
        ];
        let sets = setup.copies(set, bytes)?;
        let scale = 1.0 / (head_dim as f64).sqrt();
        let check = move |set: &[Tensor]| {
            let mut comparison = Comparison::default();
            for sequence in samples(sequences, 3) {
                let gather = |tensor: &Tensor| -> Rows {
                    if !paged {
                        return Rows::of(tensor, sequence * context..(sequence + 1) * context);
                    }
                    let of_page = |at: usize| {
                        let first = place(sequence, at) * page;
                        Rows::of(tensor, first..first + page).values
                    };
                    let values = (0..pages).flat_map(of_page).collect();
                    Rows { values, columns: tensor.dims()[1], count: context }
                };
                let (keys, values) = (gather(&set[2]), gather(&set[3]));
                let (query, found) = (row(&set[1], sequence), row(&set[0], sequence));
                for head in samples(heads, 2) {
                    let at = head / (heads / kv_heads) * head_dim;
                    let own = head * head_dim..(head + 1) * head_dim;
                    softmax(&query[own.clone()], &keys, &values, at, scale).compare(
                        &mut comparison,
                        &found[own],
                        dtype,
                    );
                }
            }
            Ok(comparison)
        };
        Ok(Work::new(sets, check).blank(0, f32::NAN).ours(OURS, move |set, _| {
            let [out, q, k, v, spans, table] = set else { unreachable!("as made above") };
            let q_dims = [sequences, heads, head_dim];
            let k_dims = [sequences * context, kv_heads, head_dim];
            let (out, q) = (out.view_mut().into_shape(&q_dims), q.view().reshape(&q_dims));
            let (k, v) = (k.view().reshape(&k_dims), v.view().reshape(&k_dims));
            let scale = scale as f32;
            if paged {
                let pages = Pages { table: table.view(), size: page };
                attention::decode_paged(out, q, k, v, spans.view(), pages, scale)?;
            } else {
                attention::decode(out, q, k, v, spans.view(), scale)?;
            }
            Ok(())
        }))
    })
}
