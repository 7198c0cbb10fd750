// Rows picked from others, and their gradient put back: threads that share a row move its parts of 16 bytes.
#include "prelude.cuh"
#include "rows.cuh"

template <class T> struct GatherForward {
    Global<T> out;
    Global<const T> x;
    Global<const u32> picked;
    u64 columns, out_stride, x_stride;
    u32 count, threads_per_row;
};

template <class T> struct GatherBackward {
    Global<T> d_x;
    Global<const T> d_out;
    Global<const u32> picked;
    u64 columns, d_x_stride, d_out_stride;
    u32 count, rows, threads_per_row;
};

template <class T, bool ALIGNED> KERNEL(256) void gather_forward(const GatherForward<T> args) {
    begin_grid();
    constexpr int N = LANES<T>;
    const RowShare share = row_share(args.threads_per_row);
    if (share.row >= args.count) return;
    Global<T> out = args.out + share.row * args.out_stride;
    Global<const T> x = args.x + args.picked[share.row] * args.x_stride;
    for (u64 column = share.part * N; column < args.columns; column += share.step * N) {
        const u64 count = args.columns - column;
        store_part<ALIGNED>(out + column, load_part_streaming<N, ALIGNED>(x + column, count), count);
    }
}

// Rows that the same threads write, so that one search in `picked` serves them all. The launcher knows it as ROWS_EACH.
constexpr u32 ROWS_EACH = 8;

template <class T, bool ALIGNED> KERNEL(256) void gather_backward(const GatherBackward<T> args) {
    constexpr int N = LANES<T>;
    const RowShare share = row_share(args.threads_per_row, ROWS_EACH);
    if (share.row >= args.rows) return;
    // The first of `picked` that is not below the first row: it rises, so the following ones belong to the following rows.
    u32 next = 0, end = args.count;
    while (next < end) {
        const u32 middle = next + (end - next) / 2;
        if (args.picked[middle] < share.row) next = middle + 1;
        else end = middle;
    }
    const u64 last = min(share.row + ROWS_EACH, static_cast<u64>(args.rows));
    for (u64 row = share.row; row < last; row++) {
        const bool is_picked = next < args.count && args.picked[next] == row;
        Global<T> d_x = args.d_x + row * args.d_x_stride;
        Global<const T> d_out = args.d_out + next * args.d_out_stride;
        for (u64 column = share.part * N; column < args.columns; column += share.step * N) {
            const u64 count = args.columns - column;
            Vector<T, N> values = {};
            if (is_picked) values = load_part_streaming<N, ALIGNED>(d_out + column, count);
            store_part<ALIGNED>(d_x + column, values, count);
        }
        if (is_picked) next++;
    }
}

INSTANCE(gather_forward<float, false>)
INSTANCE(gather_forward<float, true>)
INSTANCE(gather_forward<bf16, false>)
INSTANCE(gather_forward<bf16, true>)
INSTANCE(gather_backward<float, false>)
INSTANCE(gather_backward<float, true>)
INSTANCE(gather_backward<bf16, false>)
INSTANCE(gather_backward<bf16, true>)
