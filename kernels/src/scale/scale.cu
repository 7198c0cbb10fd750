// Scale: a thread a part of a row at a time.
#include "prelude.cuh"
#include "rows.cuh"

template <class T> struct Scale {
    Global<T> x;
    u64 columns, stride;
    u32 rows, threads_per_row;
    float factor;
};

template <class T, bool ALIGNED> KERNEL(256) void scale(const Scale<T> args) {
    constexpr int N = LANES<T>;
    const RowShare share = row_share(args.threads_per_row);
    if (share.row >= args.rows) return;
    Global<T> x = args.x + share.row * args.stride;
    for (u64 column = share.part * N; column < args.columns; column += share.step * N) {
        const u64 count = args.columns - column;
        Vector<float, N> values = to_float(load_part_streaming<N, ALIGNED>(x + column, count));
        UNROLL
        for (int i = 0; i < N; i++) values[i] *= args.factor;
        store_part<ALIGNED>(x + column, from_float<T>(values), count);
    }
}

INSTANCE(scale<float, false>)
INSTANCE(scale<float, true>)
INSTANCE(scale<bf16, false>)
INSTANCE(scale<bf16, true>)
