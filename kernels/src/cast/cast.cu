// Casts: a thread eight elements of a row at a time, so that either side is moved in whole accesses of 16 bytes.
#include "prelude.cuh"
#include "rows.cuh"

template <class I, class O> struct Cast {
    Global<O> out;
    Global<const I> x;
    u64 columns, out_stride, x_stride;
    u32 rows, threads_per_row;
};

template <class I, class O, bool ALIGNED> KERNEL(256) void cast(const Cast<I, O> args) {
    constexpr int N = 8;
    const RowShare share = row_share(args.threads_per_row);
    if (share.row >= args.rows) return;
    Global<O> out = args.out + share.row * args.out_stride;
    Global<const I> x = args.x + share.row * args.x_stride;
    for (u64 column = share.part * N; column < args.columns; column += share.step * N) {
        const u64 count = args.columns - column;
        const Vector<I, N> values = load_part_streaming<N, ALIGNED>(x + column, count);
        // A copy keeps every bit, those of a NaN too.
        if constexpr (is_same<O, I>) store_part<ALIGNED>(out + column, values, count);
        else store_part<ALIGNED>(out + column, from_float<O>(to_float(values)), count);
    }
}

INSTANCE(cast<float, float, false>)
INSTANCE(cast<float, float, true>)
INSTANCE(cast<float, bf16, false>)
INSTANCE(cast<float, bf16, true>)
INSTANCE(cast<bf16, float, false>)
INSTANCE(cast<bf16, float, true>)
INSTANCE(cast<bf16, bf16, false>)
INSTANCE(cast<bf16, bf16, true>)
INSTANCE(cast<f16, float, false>)
INSTANCE(cast<f16, float, true>)
INSTANCE(cast<f16, bf16, false>)
INSTANCE(cast<f16, bf16, true>)
