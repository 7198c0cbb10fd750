//! Launchers of the embedding: a lookup is a gather; the gradient's blocks find the tokens that share a row, in order.

use prime_runtime::{DType, Result, View, ViewMut};

use crate::device::{
    Code, DeviceStruct, Launch, Pointer, THREADS, aligned, by_dtype_and_alignment, device_struct,
    source,
};
use crate::{gather, scratch};

pub(crate) const CODE: Code = Code {
    sources: &[source!("embedding", "embedding.cu")],
    structs: &[EmbeddingClear::LAYOUT, EmbeddingCount::LAYOUT, EmbeddingBackward::LAYOUT],
};

device_struct! {
    struct EmbeddingClear {
        first: Pointer,
        count: Pointer,
        vocabulary: u32,
    }

    struct EmbeddingCount {
        first: Pointer,
        count: Pointer,
        tokens: Pointer,
        positions: u32,
    }

    struct EmbeddingBackward {
        d_table: Pointer,
        d_out: Pointer,
        tokens: Pointer,
        first: Pointer,
        count: Pointer,
        d_table_stride: u64,
        d_out_stride: u64,
        positions: u32,
        hidden: u32,
    }
}

/// Shared memory of a block of the gradient: a count a warp, and the positions found in a chunk of 1024 tokens.
const SHARED: usize = 32 + 4 * 1024;

pub(super) fn forward(out: ViewMut<'_>, tokens: View<'_>, table: View<'_>) -> Result<()> {
    gather::cuda::forward(out, table, tokens)
}

/// Bytes that [`backward`] borrows.
pub(crate) fn backward_scratch(vocabulary: usize) -> usize {
    scratch::device_bytes(DType::U32, 2 * vocabulary)
}

pub(super) fn backward(mut d_table: ViewMut<'_>, d_out: View<'_>, tokens: View<'_>) -> Result<()> {
    let (device, positions) = (d_out.device(), tokens.dim(0));
    let [vocabulary, hidden] = [d_table.dim(0), d_table.dim(1)];
    if positions == 0 {
        return Ok(());
    }
    let mut places = scratch::device(device, DType::U32, 2, vocabulary)?;
    let (mut first, mut count) = places.view_mut().split_at_row(1);

    let mut launch = Launch::new(&CODE.sources[0], "embedding_clear", device);
    let arguments = EmbeddingClear {
        first: launch.write(&mut first),
        count: launch.write(&mut count),
        vocabulary: vocabulary as u32,
    };
    let blocks = vocabulary.div_ceil(THREADS as usize);
    launch.grid([blocks, 1, 1]).block(THREADS).run(&arguments)?;

    let mut launch = Launch::new(&CODE.sources[0], "embedding_count", device);
    let arguments = EmbeddingCount {
        first: launch.write(&mut first),
        count: launch.write(&mut count),
        tokens: launch.read(tokens),
        positions: positions as u32,
    };
    let blocks = positions.div_ceil(THREADS as usize);
    launch.grid([blocks, 1, 1]).block(THREADS).run(&arguments)?;

    let aligned = aligned(&[d_table.as_view(), d_out]);
    let kernel = by_dtype_and_alignment!(d_out.dtype(), aligned, "embedding_backward<", ">");
    let d_table_stride = d_table.row_stride() as u64;
    let mut launch = Launch::new(&CODE.sources[0], kernel, device);
    let arguments = EmbeddingBackward {
        d_table: launch.write(&mut d_table),
        d_out: launch.read(d_out),
        tokens: launch.read(tokens),
        first: launch.read(first.as_view()),
        count: launch.read(count.as_view()),
        d_table_stride,
        d_out_stride: d_out.row_stride() as u64,
        positions: positions as u32,
        hidden: hidden as u32,
    };
    let columns_of_block = THREADS as usize * 16 / d_out.dtype().size();
    let across = hidden.div_ceil(columns_of_block);
    launch.grid([positions, across, 1]).block(THREADS).shared(SHARED).run(&arguments)
}
