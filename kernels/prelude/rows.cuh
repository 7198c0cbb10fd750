// Rows of elements cut into parts of N elements, the threads that share rows, and float64 beside float32.
//
// A thread always takes the same elements of a row, whether it moves them in accesses of 16 bytes or one by one: alignment decides the speed of
// a sum, never its order.
#pragma once
#include "threads.cuh"

/// Elements of T in 16 bytes.
template <class T> constexpr int LANES = 16 / static_cast<int>(sizeof(T));

namespace prelude {
template <int N, bool ALIGNED, bool STREAMING, class T> DEVICE Vector<Value<T>, N> load_part(Global<T> p, u64 count) {
    constexpr int PIECE = N < LANES<T> ? N : LANES<T>;
    Vector<Value<T>, N> result;
    if (ALIGNED && count >= N) {
        UNROLL
        for (int i = 0; i < N; i += PIECE) {
            const Vector<Value<T>, PIECE> piece = STREAMING ? load_streaming<PIECE>(p + i) : load<PIECE>(p + i);
            UNROLL
            for (int j = 0; j < PIECE; j++) result[i + j] = piece[j];
        }
    } else {
        UNROLL
        for (int i = 0; i < N; i++) {
            result[i] = Value<T>{};
            if (static_cast<u64>(i) < count) result[i] = p[i];
        }
    }
    return result;
}
}  // namespace prelude

/// The first `count` of N elements, and zeros behind them. ALIGNED: the address is a multiple of 16 bytes, or of the N elements where they are
/// fewer. `load_part_streaming` says that what is read will not be read again soon.
template <int N, bool ALIGNED, class T> DEVICE Vector<Value<T>, N> load_part(Global<T> p, u64 count) {
    return prelude::load_part<N, ALIGNED, false>(p, count);
}
template <int N, bool ALIGNED, class T> DEVICE Vector<Value<T>, N> load_part_streaming(Global<T> p, u64 count) {
    return prelude::load_part<N, ALIGNED, true>(p, count);
}

/// Writes the first `count` of N elements.
template <bool ALIGNED, class T, int N> DEVICE void store_part(Global<T> p, const Vector<T, N> &values, u64 count) {
    constexpr int PIECE = N < LANES<T> ? N : LANES<T>;
    if (ALIGNED && count >= N) {
        UNROLL
        for (int i = 0; i < N; i += PIECE) {
            Vector<T, PIECE> piece;
            UNROLL
            for (int j = 0; j < PIECE; j++) piece[j] = values[i + j];
            store(p + i, piece);
        }
    } else {
        UNROLL
        for (int i = 0; i < N; i++) {
            if (static_cast<u64>(i) < count) p[i] = values[i];
        }
    }
}

/// Where a thread of a grid that covers rows begins: `threads_per_row` threads (a power of two, at most the block's) take the parts of a row in turn,
/// along the grid's first axis rows follow each other, along its second the parts of long rows.
struct RowShare {
    u64 row;
    /// The thread's first part of the row, and the distance to its next.
    u64 part, step;
};

/// `rows_each`: consecutive rows that fall to the same threads; `row` is the first of them.
DEVICE RowShare row_share(u32 threads_per_row, u32 rows_each = 1) {
    const u32 teams = block_threads() / threads_per_row;
    RowShare share;
    share.row = (static_cast<u64>(block_index()) * teams + thread_index() / threads_per_row) * rows_each;
    share.part = static_cast<u64>(block_index(1)) * threads_per_row + thread_index() % threads_per_row;
    share.step = static_cast<u64>(block_count(1)) * threads_per_row;
    return share;
}

/// The threads that reduce a row together: a warp, or the whole block. A block's sum uses the first 128 bytes of shared memory.
template <bool BLOCK> DEVICE u32 team_rank() { return BLOCK ? thread_index() : lane(); }
template <bool BLOCK> DEVICE u32 team_size() { return BLOCK ? block_threads() : 32u; }
template <bool BLOCK> DEVICE float team_sum(float value) {
    if constexpr (BLOCK) return block_sum(value, shared<float>(0));
    else return warp_sum(value);
}
