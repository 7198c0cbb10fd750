// Fill: a thread a part of a row at a time.
#include "prelude.cuh"
#include "rows.cuh"

template <class T> struct Fill {
    Global<T> out;
    u64 columns, stride;
    u32 rows, threads_per_row;
    float value;
};

template <class T, bool ALIGNED> KERNEL(256) void fill(const Fill<T> args) {
    constexpr int N = LANES<T>;
    const RowShare share = row_share(args.threads_per_row);
    if (share.row >= args.rows) return;
    Global<T> out = args.out + share.row * args.stride;
    Vector<T, N> values;
    UNROLL
    for (int i = 0; i < N; i++) values[i] = from_float<T>(args.value);
    for (u64 column = share.part * N; column < args.columns; column += share.step * N) {
        store_part<ALIGNED>(out + column, values, args.columns - column);
    }
}

INSTANCE(fill<float, false>)
INSTANCE(fill<float, true>)
INSTANCE(fill<bf16, false>)
INSTANCE(fill<bf16, true>)
