//! How much working memory kernels borrow on devices other than the host, for plans that are made before anything is reserved.
//!
//! Buffers are lent from a pool, each at least of the size asked for and a power of two of elements; what was given back is lent again to whoever
//! needs no more. That two operations share a buffer depends on their order, so that the sums here are bounds.

use prime_runtime::DType;

use crate::{attention, embedding, log_prob, matmul, reduce, rms_norm, sample, scratch};

/// The sizes of a model that decide about it.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Storage of weights and activations.
    pub dtype: DType,
    /// Width of the residual stream.
    pub hidden: usize,
    /// The widest linear layer's output.
    pub widest: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Entries of the vocabulary.
    pub vocabulary: usize,
}

impl Sizes {
    /// The most bytes for a pack of so many tokens forward and backward, and an update.
    pub fn training(&self, tokens: usize) -> usize {
        let Sizes { dtype, hidden, widest, heads, head_dim, vocabulary, .. } = *self;
        matmul::cuda::most_scratch()
            + attention::cuda::backward_scratch(tokens, heads, head_dim)
            + rms_norm::cuda::backward_scratch(tokens, hidden)
            + rms_norm::cuda::backward_scratch(tokens * heads, head_dim)
            + reduce::cuda::columns_scratch(tokens, widest, dtype)
            + reduce::cuda::columns_scratch(reduce::cuda::MOST_BLOCKS, hidden, DType::F32)
            + embedding::cuda::backward_scratch(vocabulary)
            + log_prob::cuda::most_scratch(dtype, tokens, vocabulary)
            + reduce::cuda::sums_scratch()
    }

    /// The most bytes for decode steps of so many sequences, each with a cache of so many rows.
    pub fn decoding(&self, sequences: usize, reserved: usize) -> usize {
        let Sizes { heads, kv_heads, head_dim, vocabulary, .. } = *self;
        matmul::cuda::most_scratch()
            + attention::cuda::decode_scratch(sequences, reserved, [heads, kv_heads, head_dim])
            + sample::cuda::most_scratch(sequences, vocabulary)
    }
}

/// Bytes that the pool of this process has reserved on devices other than the host.
pub fn reserved() -> usize {
    scratch::reserved()
}
