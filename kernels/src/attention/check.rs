//! One random case against the oracle.

use prime_runtime::{DType, Device, Tensor, View};

use super::reference::{self, Heads};
use super::{Mask, Pages, Span};
use crate::numerics::Numerics;
use crate::testing::{
    Case, any_dtype, case, compare, cu_seqlens, from_f32, normal, roundoff, to_f64, zeros,
};
use bounds::{Arithmetic, Bounds, Row};

mod bounds;

/// Compares one token's row of [`super::forward`] or [`super::decode`], all heads one after the other, with float64: `q` is the token's, `k` and `v` those of
/// all keys that it sees, `out` in `dtype` and, of forward, `lse` what a device computed.
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check_row(
    device: Device,
    dtype: DType,
    [q, k, v]: [&[f64]; 3],
    heads: Heads,
    scale: f64,
    (out, lse): (&[f64], Option<&[f64]>),
) -> Result<(), String> {
    let (arithmetic, width) = (Arithmetic::new(device, dtype), heads.head_dim);
    let span = Span { query: 0, new: 1, key: 0, keys: k.len() / (heads.kv_heads * width) };
    for head in 0..heads.heads {
        let row = Row::new(&arithmetic, [q, k, v], heads, span, 0, head, scale, Mask::Full);
        let out = &out[head * width..][..width];
        compare("out", out, &row.out, |i| {
            1.01 * (row.out_error[i] + roundoff(dtype) * row.out[i].abs())
        })?;
        if let Some(lse) = lse {
            compare("lse", &lse[head..=head], &[row.lse], |_| 1.01 * row.lse_error)?;
        }
    }
    Ok(())
}

/// See [`crate::testing::Check`].
///
/// # Errors
/// A message with the element that disagreed most.
pub fn check(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let dtype = any_dtype(&mut random);
    let head_dims = [2, 16, 24, 64, 80, 96, 128, 256, 2 * (1 + random.below(64) as usize)];
    let head_dim = head_dims[random.below(head_dims.len() as u32) as usize];
    let kv_heads = 1 + random.below(2) as usize;
    let heads = kv_heads * [1, 1, 2, 3, 4, 7][random.below(6) as usize];
    let heads = Heads { heads, kv_heads, head_dim };
    // Long enough to cross blocks of keys, short enough for the oracle.
    let longest = (8192 / (heads.heads * head_dim) as u32).clamp(4, 150);
    let cu_seqlens = cu_seqlens(&mut random, 3, longest);
    // Now and then columns before them leave q, k and v without alignment.
    let before = [0, 0, 0, 1][random.below(4) as usize];
    let pack = Pack::random(device, &mut random, dtype, heads, cu_seqlens, before);
    let error = |error: prime_runtime::Error| error.to_string();
    pack.training(&random, Numerics::Fast).map_err(error)??;
    pack.decoding(&mut random, 5).map_err(error)?
}

/// [`check`] of what the kernels for Hopper take: bfloat16 and aligned rows. Sequences are longer, as tiles are, and new tokens more.
///
/// # Errors
/// As of [`check`].
pub fn check_hopper(device: Device, seed: u64) -> Result<(), String> {
    let mut random = case(device, seed);
    let head_dims = [8, 40, 64, 64, 72, 128, 128, 136, 192, 256, 256];
    let head_dim = head_dims[random.below(head_dims.len() as u32) as usize];
    let kv_heads = 1 + random.below(2) as usize;
    let heads = kv_heads * [1, 1, 2, 3][random.below(4) as usize];
    let heads = Heads { heads, kv_heads, head_dim };
    // One or two long sequences, or many of few tokens.
    let (sequences, longest) = match random.below(4) {
        0 => (12, 50),
        _ => (2, (40_000 / (heads.heads * head_dim) as u32).clamp(20, 400)),
    };
    let cu_seqlens = cu_seqlens(&mut random, sequences, longest);
    let before = [0, 8][random.below(2) as usize];
    let pack = Pack::random(device, &mut random, DType::BF16, heads, cu_seqlens, before);
    let error = |error: prime_runtime::Error| error.to_string();
    let numerics = [Numerics::Fast, Numerics::Unordered][random.below(2) as usize];
    pack.training(&random, numerics).map_err(error)??;
    pack.decoding(&mut random, 200).map_err(error)?
}

/// A batch, held by the host.
struct Pack {
    device: Device,
    dtype: DType,
    heads: Heads,
    cu_seqlens: Vec<u32>,
    mask: Mask,
    scale: f32,
    before: usize,
    fused: Tensor,
    d_out: Tensor,
}

impl Pack {
    /// q, k and v are blocks of one fused buffer, `before` columns before them.
    fn random(
        device: Device,
        random: &mut Case,
        dtype: DType,
        heads: Heads,
        cu_seqlens: Vec<u32>,
        before: usize,
    ) -> Pack {
        let Heads { heads: query_heads, kv_heads, head_dim } = heads;
        let mask = if random.below(3) == 0 { Mask::Full } else { Mask::Causal };
        let tokens = *cu_seqlens.last().expect("starts with 0") as usize;
        let (queries, keys) = (query_heads * head_dim, kv_heads * head_dim);
        let fused = normal(random, dtype, &[tokens, before + queries + 2 * keys], 1.5);
        let d_out = normal(random, dtype, &[tokens, query_heads, head_dim], 1.0);
        let scale = 1.0 / (head_dim as f32).sqrt();
        Pack { device, dtype, heads, cu_seqlens, mask, scale, before, fused, d_out }
    }

    fn tokens(&self) -> usize {
        self.fused.dims()[0]
    }

    fn query_dims(&self) -> [usize; 3] {
        [self.tokens(), self.heads.heads, self.heads.head_dim]
    }

    fn key_dims(&self) -> [usize; 3] {
        [self.tokens(), self.heads.kv_heads, self.heads.head_dim]
    }

    /// q, k and v in a fused buffer.
    fn parts<'a>(&self, fused: &'a Tensor) -> [View<'a>; 3] {
        let (queries, keys) =
            (self.heads.heads * self.heads.head_dim, self.heads.kv_heads * self.heads.head_dim);
        let part =
            |start, width| fused.view().columns(self.before + start..self.before + start + width);
        [
            part(0, queries).reshape(&self.query_dims()),
            part(queries, keys).reshape(&self.key_dims()),
            part(queries + keys, keys).reshape(&self.key_dims()),
        ]
    }

    /// A sequence a span, its queries all of its tokens.
    fn spans(&self) -> Vec<Span> {
        let pairs = self.cu_seqlens.windows(2);
        pairs
            .map(|pair| Span::of_row(&[pair[0], pair[1] - pair[0], pair[0], pair[1] - pair[0]]))
            .collect()
    }

    /// Forward and backward of the pack.
    fn training(
        &self,
        random: &Case,
        numerics: Numerics,
    ) -> prime_runtime::Result<Result<(), String>> {
        let Pack { dtype, heads, ref cu_seqlens, mask, scale, .. } = *self;
        let (fused, d_out) = (self.fused.to(self.device)?, self.d_out.to(self.device)?);
        let [q, k, v] = self.parts(&fused);
        let cu = random.indices(cu_seqlens);
        let mut out = random.blank(dtype, &self.query_dims());
        let mut lse = random.blank(DType::F32, &self.query_dims()[..2]);
        super::forward(out.view_mut(), lse.view_mut(), q, k, v, cu.view(), scale, mask)?;
        let (mut d_q, mut d_k, mut d_v) = (
            random.blank(dtype, &self.query_dims()),
            random.blank(dtype, &self.key_dims()),
            random.blank(dtype, &self.key_dims()),
        );
        super::backward_any(
            d_q.view_mut(),
            d_k.view_mut(),
            d_v.view_mut(),
            d_out.view(),
            q,
            k,
            v,
            out.view(),
            lse.view(),
            cu.view(),
            scale,
            mask,
            numerics,
        )?;

        let [q, k, v] = self.parts(&self.fused).map(wide);
        let spans = self.spans();
        let (d_out, scale) = (to_f64(&self.d_out), f64::from(scale));
        let (out_exact, lse_exact) = reference::forward(&q, &k, &v, heads, &spans, scale, mask);
        let (d_q_exact, d_k_exact, d_v_exact) =
            reference::backward(&d_out, &q, &k, &v, heads, &spans, scale, mask);
        let arithmetic = Arithmetic::new(self.device, dtype);
        let bounds = Bounds::new(&arithmetic, &d_out, &q, &k, &v, heads, &spans, scale, mask);
        let agrees = |what, actual: &Tensor, exact: &[f64], bound: &[f64]| {
            compare(what, &to_f64(actual), exact, |i| {
                1.01 * (bound[i] + roundoff(dtype) * exact[i].abs())
            })
        };
        Ok(agrees("out", &out, &out_exact, &bounds.out)
            .and_then(|()| compare("lse", &to_f64(&lse), &lse_exact, |i| 1.01 * bounds.lse[i]))
            .and_then(|()| agrees("d_q", &d_q, &d_q_exact, &bounds.d_q))
            .and_then(|()| agrees("d_k", &d_k, &d_k_exact, &bounds.d_k))
            .and_then(|()| agrees("d_v", &d_v, &d_v_exact, &bounds.d_v)))
    }

    /// The last tokens of every sequence, at most `most_new`, over a cache that reserves rows for more, which hold what is not a number; then over the same cache in pages
    /// that lie in any order.
    fn decoding(
        &self,
        random: &mut Case,
        most_new: u32,
    ) -> prime_runtime::Result<Result<(), String>> {
        let Pack { dtype, heads, ref cu_seqlens, scale, .. } = *self;
        let (sequences, width) = (cu_seqlens.len() - 1, heads.heads * heads.head_dim);
        let longest = cu_seqlens.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
        // Devices split the keys of sequences that reserve much.
        let row = heads.kv_heads * heads.head_dim;
        let most = (200_000 / (row * sequences) as u32).clamp(1, 1500);
        let page = 16usize << random.below(4);
        let reserved = ((longest + random.below(most)) as usize).next_multiple_of(page);
        let [q, k, v] = self.parts(&self.fused).map(|part| part.to_f32_vec());
        let cache = |values: &[f32]| {
            let mut cache = vec![f32::NAN; sequences * reserved * row];
            for (sequence, pair) in cu_seqlens.windows(2).enumerate() {
                let values = &values[pair[0] as usize * row..pair[1] as usize * row];
                cache[sequence * reserved * row..][..values.len()].copy_from_slice(values);
            }
            from_f32(&cache, dtype, &[sequences * reserved, heads.kv_heads, heads.head_dim])
        };
        let (keys, values) = (cache(&k), cache(&v));

        // New tokens alone, or among others that no span covers.
        let (new, alone) = (1 + random.below(most_new), random.below(2) == 0);
        let (mut spans, mut queries) = (Vec::new(), Vec::new());
        for (sequence, pair) in cu_seqlens.windows(2).enumerate() {
            let length = pair[1] - pair[0];
            let new = new.min(length);
            let first = pair[1] - new;
            let start = if alone { (queries.len() / width) as u32 } else { first };
            queries.extend(&q[first as usize * width..pair[1] as usize * width]);
            spans.extend([start, new, (sequence * reserved) as u32, length]);
        }
        let queries = if alone { queries } else { q };
        let dims = [queries.len() / width, heads.heads, heads.head_dim];
        let queries = from_f32(&queries, dtype, &dims);
        let numerics = [Numerics::Fast, Numerics::Fast, Numerics::Invariant];
        let numerics = numerics[random.below(3) as usize];
        let on_device = queries.to(self.device)?;
        let run = |random: &Case, keys: &Tensor, values: &Tensor, spans: &[u32], pages| {
            let mut out = random.place(zeros(dtype, &dims));
            super::decode_any(
                "attention.decode",
                out.view_mut(),
                on_device.view(),
                keys.to(self.device)?.view(),
                values.to(self.device)?.view(),
                random.place(Tensor::from_slice(spans, &[sequences, 4])?).view(),
                pages,
                scale,
                numerics,
            )?;
            prime_runtime::Result::Ok(out)
        };
        let out = run(random, &keys, &values, &spans, None)?;
        let paged = Paged::new(random, page, reserved, &spans);
        let (paged_keys, paged_values) = (paged.cache(&keys), paged.cache(&values));
        let table = random.place(Tensor::from_slice(&paged.table, &[sequences, reserved / page])?);
        let pages = Pages { table: table.view(), size: page };
        let from_pages = run(random, &paged_keys, &paged_values, &paged.spans, Some(pages))?;
        let bits = |tensor: &Tensor| {
            tensor.view().to_f32_vec().into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        if bits(&out) != bits(&from_pages) {
            return Ok(Err(format!("pages of {page} rows give other bits than one run of rows")));
        }

        let [queries, keys, values] = [&queries, &keys, &values].map(to_f64);
        let spans: Vec<Span> = spans.chunks(4).map(Span::of_row).collect();
        let (scale, mask) = (f64::from(scale), Mask::Causal);
        let (exact, _) = reference::forward(&queries, &keys, &values, heads, &spans, scale, mask);
        let none = vec![0.0; queries.len()];
        let arithmetic = Arithmetic::new(self.device, dtype);
        let bounds =
            Bounds::new(&arithmetic, &none, &queries, &keys, &values, heads, &spans, scale, mask);
        Ok(compare("decode", &to_f64(&out), &exact, |i| {
            1.01 * (bounds.out[i] + roundoff(dtype) * exact[i].abs())
        }))
    }
}

/// A cache of equal shares cut into pages that lie in another order, with one besides that nobody names.
struct Paged {
    size: usize,
    /// Where each page of the cache without pages lies.
    places: Vec<usize>,
    table: Vec<u32>,
    spans: Vec<u32>,
}

impl Paged {
    fn new(random: &mut Case, size: usize, reserved: usize, spans: &[u32]) -> Paged {
        let sequences = spans.len() / 4;
        let count = sequences * (reserved / size);
        let mut places: Vec<usize> = (0..=count).collect();
        for last in (1..=count).rev() {
            places.swap(last, random.below(last as u32 + 1) as usize);
        }
        // A sequence's row of the table is not that of its span.
        let row_of = |sequence: usize| sequences - 1 - sequence;
        let (mut table, mut spans) = (vec![u32::MAX; count], spans.to_vec());
        for (sequence, span) in spans.chunks_mut(4).enumerate() {
            span[2] = row_of(sequence) as u32;
            for page in 0..(span[3] as usize).div_ceil(size) {
                let place = places[sequence * (reserved / size) + page];
                table[row_of(sequence) * (reserved / size) + page] = place as u32;
            }
        }
        Paged { size, places, table, spans }
    }

    /// The rows of a cache without pages where the pages lie.
    fn cache(&self, rows: &Tensor) -> Tensor {
        let (dims, values) = (rows.dims(), rows.view().to_f32_vec());
        let page = self.size * dims[1] * dims[2];
        let mut paged = vec![f32::NAN; self.places.len() * page];
        for (from, &to) in values.chunks(page).zip(&self.places) {
            paged[to * page..][..page].copy_from_slice(from);
        }
        from_f32(&paged, rows.dtype(), &[self.places.len() * self.size, dims[1], dims[2]])
    }
}

fn wide(view: View<'_>) -> Vec<f64> {
    view.to_f32_vec().into_iter().map(f64::from).collect()
}
