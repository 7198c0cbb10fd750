//! Grouped-query attention over packed sequences: out = softmax(scale * q k^T) v, causal or full, scores never held whole.
//!
//! `q` and `out` are `[tokens, heads, head_dim]`, `k` and `v` `[tokens, kv_heads, head_dim]` (rows may be spread out: blocks of a fused
//! q/k/v buffer), `cu_seqlens` is `[sequences + 1]` (u32), `lse` (float32, `[tokens, heads]`) keeps each row's log-sum-exp of scaled scores.
//! Query head h reads key/value head h / (heads / kv_heads).
//!
//! Keys are visited in blocks of a fixed size aligned to the start of their sequence, and every score and every output is one chain of
//! fused multiply-adds in order: a token's output does not depend on the batch around it, and [`decode`] over a cache gives the bits of [`forward`].
//!
//! A key that a query must not see does not reach its output, even where it is not a number. Neither does such a value on the host, nor in the forward
//! kernels for Hopper, which take it out of a tile that not all queries see. Elsewhere on devices (the portable kernels, decoding, gradients) it may
//! reach queries of its own sequence that share a tile with one that sees it, since tensor cores multiply whole tiles, weights of zero included; to
//! take it out row by row would cost registers that these kernels have not got. What lies behind the end of a sequence reaches nobody.
//!
//! A cache may lie in pages ([`decode_paged`]): a sequence's keys and values then lie wherever a table says, and sequences may share pages. The sums
//! are those of a cache without pages, in the same order.
//!
//! On devices the weights, and in backward the gradients of the scores, are rounded to bfloat16 before the next product where storage is bfloat16,
//! and nothing but storage is rounded where it is float32. Forward and backward still give a sequence the same bits in any batch. Decoding there splits
//! keys over blocks by the size of the batch, unless [`Numerics::Invariant`] is chosen: then a block walks over all keys of its queries in the steps of
//! [`forward`], and gives its bits, as on the host. Same call, same bits, unless [`Numerics::Unordered`] is chosen.
//!
//! Hopper has kernels of its own for bfloat16 in aligned rows (`cuda/hopper.rs`), to 256 elements a head. Where numerics are to be invariant it takes the portable
//! forward, which decoding shares. Which forward kernel is taken may be chosen by the size of the batch ([`tuning`]); a sequence then has the same bits in
//! the batches of a class.
//!
//! Sources: Dao et al., arXiv 2205.14135 and 2307.08691; Shah et al., arXiv 2407.08608; Ainslie et al., arXiv 2305.13245.

use prime_runtime::{Device, NamedDims, Result, View, ViewMut};

use crate::arguments;
use crate::numerics::{self, Numerics};

pub mod check;
mod cpu;
pub(crate) mod cuda;
pub mod reference;
#[cfg(test)]
mod tests;
pub mod tuning;

pub(crate) use cuda::CODE;

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// Those of its own sequence up to its own position.
    Causal,
    /// All of its own sequence.
    Full,
}

/// The rows of one sequence: its queries are the last `new` of its `keys` tokens.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// First row in `q`.
    pub query: usize,
    /// Rows in `q`.
    pub new: usize,
    /// First row in `k` and `v`; over a cache in pages the row of the table.
    pub key: usize,
    /// Rows in `k` and `v`.
    pub keys: usize,
}

impl Span {
    /// A row of `spans` of [`decode`].
    pub fn of_row(row: &[u32]) -> Span {
        let [query, new, key, keys] = [0, 1, 2, 3].map(|i| row[i] as usize);
        Span { query, new, key, keys }
    }

    /// A sequence of [`forward`].
    pub fn of_cu_seqlens(cu_seqlens: &View<'_>, sequence: usize) -> Span {
        let start = cu_seqlens.row::<u32>(sequence)[0] as usize;
        let length = cu_seqlens.row::<u32>(sequence + 1)[0] as usize - start;
        Span { query: start, new: length, key: start, keys: length }
    }

    /// How many keys the query of this index sees: those before it and its own, or all.
    pub fn visible(&self, index: usize, mask: Mask) -> usize {
        match mask {
            Mask::Causal => self.keys - self.new + index + 1,
            Mask::Full => self.keys,
        }
    }
}

/// How a cache is divided into pages.
#[derive(Clone, Copy)]
pub struct Pages<'a> {
    /// `[tables, pages]` (u32): which pages of the cache hold a sequence's keys and values, in order. Entries beyond the last that a sequence
    /// needs are not read.
    pub table: View<'a>,
    /// Rows of a page: a power of two, at least [`LEAST_PAGE`]. Page p is rows p * size to (p + 1) * size of the cache.
    pub size: usize,
}

/// Fewest rows of a page: what kernels on all devices take from one place at once.
pub const LEAST_PAGE: usize = 16;

impl Pages<'_> {
    /// The row of the cache that holds a key of a sequence with that row of the table.
    fn row(&self, table: usize, key: usize) -> usize {
        self.table.row::<u32>(table)[key / self.size] as usize * self.size + key % self.size
    }
}

/// Attention of every token over its own sequence.
///
/// # Errors
/// When shapes or dtypes disagree, `heads` is not a multiple of `kv_heads`, `scale` is not positive, or `cu_seqlens` (where the host holds it) is not
/// cumulative; elsewhere than on the host when a head has more than 256 elements.
pub fn forward(
    out: ViewMut<'_>,
    lse: ViewMut<'_>,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    cu_seqlens: View<'_>,
    scale: f32,
    mask: Mask,
) -> Result<()> {
    let operation = "attention.forward";
    let mut dims = NamedDims::new(operation);
    dims.bind("q", q.dims(), ["tokens", "heads", "head_dim"])?;
    dims.bind("k", k.dims(), ["tokens", "kv_heads", "head_dim"])?;
    dims.bind("v", v.dims(), ["tokens", "kv_heads", "head_dim"])?;
    dims.bind("out", out.dims(), ["tokens", "heads", "head_dim"])?;
    dims.bind("lse", lse.dims(), ["tokens", "heads"])?;
    dims.bind("cu_seqlens", cu_seqlens.dims(), ["sequences + 1"])?;
    check_heads(&dims)?;
    check_storage(operation, q, &[("k", k), ("v", v), ("out", out.as_view())])?;
    arguments::dtype::<f32>(operation, "lse", lse.as_view())?;
    arguments::dtype::<u32>(operation, "cu_seqlens", cu_seqlens)?;
    check_scale(&dims, scale)?;
    match q.device() {
        Device::Cpu => {
            check_cumulative(&dims, cu_seqlens)?;
            cpu::forward(out, lse, q, k, v, cu_seqlens, scale, mask)
        }
        _ => cuda::forward(out, lse, q, k, v, cu_seqlens, scale, mask),
    }
}

/// Gradients of [`forward`], all overwritten, in the inputs' dtype; deterministic unless [`Numerics::Unordered`] is chosen.
///
/// # Errors
/// As for [`forward`].
pub fn backward(
    d_q: ViewMut<'_>,
    d_k: ViewMut<'_>,
    d_v: ViewMut<'_>,
    d_out: View<'_>,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    out: View<'_>,
    lse: View<'_>,
    cu_seqlens: View<'_>,
    scale: f32,
    mask: Mask,
) -> Result<()> {
    let numerics = numerics::chosen();
    backward_any(d_q, d_k, d_v, d_out, q, k, v, out, lse, cu_seqlens, scale, mask, numerics)
}

fn backward_any(
    d_q: ViewMut<'_>,
    d_k: ViewMut<'_>,
    d_v: ViewMut<'_>,
    d_out: View<'_>,
    q: View<'_>,
    k: View<'_>,
    v: View<'_>,
    out: View<'_>,
    lse: View<'_>,
    cu_seqlens: View<'_>,
    scale: f32,
    mask: Mask,
    numerics: Numerics,
) -> Result<()> {
    let operation = "attention.backward";
    let mut dims = NamedDims::new(operation);
    dims.bind("q", q.dims(), ["tokens", "heads", "head_dim"])?;
    dims.bind("k", k.dims(), ["tokens", "kv_heads", "head_dim"])?;
    dims.bind("v", v.dims(), ["tokens", "kv_heads", "head_dim"])?;
    dims.bind("out", out.dims(), ["tokens", "heads", "head_dim"])?;
    dims.bind("d_out", d_out.dims(), ["tokens", "heads", "head_dim"])?;
    dims.bind("d_q", d_q.dims(), ["tokens", "heads", "head_dim"])?;
    dims.bind("d_k", d_k.dims(), ["tokens", "kv_heads", "head_dim"])?;
    dims.bind("d_v", d_v.dims(), ["tokens", "kv_heads", "head_dim"])?;
    dims.bind("lse", lse.dims(), ["tokens", "heads"])?;
    dims.bind("cu_seqlens", cu_seqlens.dims(), ["sequences + 1"])?;
    check_heads(&dims)?;
    let inputs = [("k", k), ("v", v), ("out", out), ("d_out", d_out)];
    check_storage(operation, q, &inputs)?;
    let gradients = [("d_q", d_q.as_view()), ("d_k", d_k.as_view()), ("d_v", d_v.as_view())];
    check_storage(operation, q, &gradients)?;
    arguments::dtype::<f32>(operation, "lse", lse)?;
    arguments::dtype::<u32>(operation, "cu_seqlens", cu_seqlens)?;
    check_scale(&dims, scale)?;
    match q.device() {
        Device::Cpu => {
            check_cumulative(&dims, cu_seqlens)?;
            cpu::backward(d_q, d_k, d_v, d_out, q, k, v, out, lse, cu_seqlens, scale, mask)
        }
        _ => cuda::backward(
            d_q, d_k, d_v, d_out, q, k, v, out, lse, cu_seqlens, scale, mask, numerics,
        ),
    }
}

/// Causal attention of new tokens over a cache that already holds their own keys and values.
///
/// `q` and `out` are `[new_tokens, heads, head_dim]`; `keys` and `values` are `[cache_rows, kv_heads, head_dim]`. `spans` is `[sequences, 4]` (u32), a row a sequence:
/// first row in `q`, number of new tokens, first row in the cache, number of cached tokens (the new ones included, at the end).
/// The rows in `q` of one span come after those of the span before; rows of `out` in no span keep their values.
///
/// # Errors
/// As for [`forward`], or when a span (where the host holds them) is out of bounds or overlaps the one before.
pub fn decode(
    out: ViewMut<'_>,
    q: View<'_>,
    keys: View<'_>,
    values: View<'_>,
    spans: View<'_>,
    scale: f32,
) -> Result<()> {
    decode_any("attention.decode", out, q, keys, values, spans, None, scale, numerics::chosen())
}

/// [`decode`] over a cache in pages: the third number of a span is the row of `pages.table` that names the sequence's pages. Sequences may share
/// pages, those of a common beginning say, as long as nobody writes there.
///
/// # Errors
/// As for [`decode`], or when the size of a page is not a power of two from [`LEAST_PAGE`] on, or (where the host holds the table) a page lies
/// outside the cache.
pub fn decode_paged(
    out: ViewMut<'_>,
    q: View<'_>,
    keys: View<'_>,
    values: View<'_>,
    spans: View<'_>,
    pages: Pages<'_>,
    scale: f32,
) -> Result<()> {
    let (operation, numerics) = ("attention.decode_paged", numerics::chosen());
    decode_any(operation, out, q, keys, values, spans, Some(pages), scale, numerics)
}

fn decode_any(
    operation: &'static str,
    out: ViewMut<'_>,
    q: View<'_>,
    keys: View<'_>,
    values: View<'_>,
    spans: View<'_>,
    pages: Option<Pages<'_>>,
    scale: f32,
    numerics: Numerics,
) -> Result<()> {
    let mut dims = NamedDims::new(operation);
    dims.bind("q", q.dims(), ["new_tokens", "heads", "head_dim"])?;
    dims.bind("keys", keys.dims(), ["cache_rows", "kv_heads", "head_dim"])?;
    dims.bind("values", values.dims(), ["cache_rows", "kv_heads", "head_dim"])?;
    dims.bind("out", out.dims(), ["new_tokens", "heads", "head_dim"])?;
    dims.bind("spans", spans.dims(), ["sequences", "span"])?;
    check_heads(&dims)?;
    if spans.dim(1) != 4 {
        return dims.fail(format!("`spans` is {:?}, expected 4 numbers a sequence", spans.dims()));
    }
    check_storage(operation, q, &[("keys", keys), ("values", values), ("out", out.as_view())])?;
    arguments::dtype::<u32>(operation, "spans", spans)?;
    check_scale(&dims, scale)?;
    if let Some(Pages { table, size }) = pages {
        dims.bind("table", table.dims(), ["tables", "pages"])?;
        arguments::dtype::<u32>(operation, "table", table)?;
        if size < LEAST_PAGE || !size.is_power_of_two() {
            return dims.fail(format!(
                "a page has {size} rows, expected a power of two of at least {LEAST_PAGE}"
            ));
        }
    }
    match q.device() {
        Device::Cpu => {
            check_spans(&dims, spans, pages)?;
            cpu::decode(out, q, keys, values, spans, pages, scale)
        }
        _ => cuda::decode(operation, out, q, keys, values, spans, pages, scale, numerics),
    }
}

fn check_heads(dims: &NamedDims) -> Result<()> {
    let (heads, kv_heads) = (dims.size("heads"), dims.size("kv_heads"));
    if kv_heads == 0 || heads == 0 || heads % kv_heads != 0 {
        return dims.fail(format!(
            "{heads} query heads cannot share {kv_heads} key/value heads: `heads` must be a multiple of `kv_heads`"
        ));
    }
    if dims.size("head_dim") == 0 {
        return dims.fail("`head_dim` is 0, expected at least 1".to_owned());
    }
    Ok(())
}

/// Largest scores are looked for before they are scaled.
fn check_scale(dims: &NamedDims, scale: f32) -> Result<()> {
    if scale > 0.0 && scale.is_finite() {
        return Ok(());
    }
    dims.fail(format!("`scale` is {scale}, expected a positive number"))
}

/// All of one storage type, which is float32 or bfloat16.
fn check_storage(
    operation: &'static str,
    q: View<'_>,
    others: &[(&'static str, View<'_>)],
) -> Result<()> {
    arguments::float(operation, "q", q)?;
    others
        .iter()
        .try_for_each(|&(tensor, view)| arguments::same_dtype(operation, tensor, view, q.dtype()))
}

fn check_cumulative(dims: &NamedDims, cu_seqlens: View<'_>) -> Result<()> {
    let (entries, tokens) = (dims.size("sequences + 1"), dims.size("tokens"));
    let entry = |i: usize| cu_seqlens.row::<u32>(i)[0];
    if entries == 0 || entry(0) != 0 {
        return dims.fail("`cu_seqlens` must start with 0".to_owned());
    }
    for i in 1..entries {
        if entry(i) < entry(i - 1) {
            return dims.fail(format!(
                "`cu_seqlens` falls from {} to {} at entry {i}, but must never fall",
                entry(i - 1),
                entry(i)
            ));
        }
    }
    if entry(entries - 1) as usize != tokens {
        return dims.fail(format!(
            "`cu_seqlens` ends at {}, but there are {tokens} tokens",
            entry(entries - 1)
        ));
    }
    Ok(())
}

fn check_spans(dims: &NamedDims, spans: View<'_>, pages: Option<Pages<'_>>) -> Result<()> {
    let (new_tokens, cache_rows) = (dims.size("new_tokens"), dims.size("cache_rows"));
    let mut end = 0;
    for sequence in 0..spans.dim(0) {
        let Span { query, new, key, keys } = Span::of_row(spans.row::<u32>(sequence));
        if query + new > new_tokens {
            return dims.fail(format!(
                "span {sequence} ends at row {} of `q`, which has {new_tokens}",
                query + new
            ));
        }
        match pages {
            None if key + keys > cache_rows => {
                return dims.fail(format!(
                    "span {sequence} ends at row {} of the cache, which has {cache_rows}",
                    key + keys
                ));
            }
            None => (),
            Some(pages) => check_pages(dims, sequence, key, keys, pages)?,
        }
        if new > keys {
            return dims.fail(format!(
                "span {sequence} has {new} new tokens but only {keys} cached, which must include the new ones"
            ));
        }
        if new > 0 {
            if query < end {
                return dims.fail(format!(
                    "span {sequence} starts at row {query} of `q`, but the spans before it reach row {end}"
                ));
            }
            end = query + new;
        }
    }
    Ok(())
}

/// Checks that the table names a page of the cache for every key of a span.
fn check_pages(
    dims: &NamedDims,
    sequence: usize,
    table: usize,
    keys: usize,
    pages: Pages<'_>,
) -> Result<()> {
    let (tables, columns, size) = (dims.size("tables"), dims.size("pages"), pages.size);
    let cache_rows = dims.size("cache_rows");
    if table >= tables {
        return dims
            .fail(format!("span {sequence} names row {table} of `table`, which has {tables}"));
    }
    if keys > columns * size {
        return dims.fail(format!(
            "span {sequence} has {keys} keys, but its {columns} pages of {size} rows hold {}",
            columns * size
        ));
    }
    let used = &pages.table.row::<u32>(table)[..keys.div_ceil(size)];
    match used.iter().find(|&&page| (page as usize + 1) * size > cache_rows) {
        None => Ok(()),
        Some(page) => dims.fail(format!(
            "span {sequence} has keys in page {page}, but the cache's {cache_rows} rows are {} pages of {size}",
            cache_rows / size
        )),
    }
}
