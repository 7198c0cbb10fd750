// Rotary position embedding, in place: a thread turns a part of a head's first half together with its partners in the second.
#include "prelude.cuh"
#include "rows.cuh"

template <class T> struct Rope {
    Global<T> x;
    Global<const u32> positions;
    Global<const float> cos, sin;
    u64 x_stride, positions_stride, cos_stride, sin_stride;
    u32 tokens, heads, half, threads_per_row;
    float sign;
};

template <class T, bool ALIGNED> KERNEL(256) void rope(const Rope<T> args) {
    begin_grid();
    constexpr int N = LANES<T>;
    const RowShare share = row_share(args.threads_per_row);
    if (share.row >= args.tokens) return;
    const u64 position = args.positions[share.row * args.positions_stride];
    Global<const float> cosines = args.cos + position * args.cos_stride, sines = args.sin + position * args.sin_stride;
    Global<T> row = args.x + share.row * args.x_stride;
    const u32 parts = ceil_div(args.half, N);
    for (u64 part = share.part; part < static_cast<u64>(args.heads) * parts; part += share.step) {
        const u32 head = static_cast<u32>(part) / parts, column = static_cast<u32>(part) % parts * N;
        const u32 count = args.half - column;
        Global<T> first = row + static_cast<u64>(head) * 2 * args.half + column, second = first + args.half;
        const Vector<T, N> x1 = load_part<N, ALIGNED>(first, count), x2 = load_part<N, ALIGNED>(second, count);
        const Vector<float, N> c = load_part<N, ALIGNED>(cosines + column, count), s = load_part<N, ALIGNED>(sines + column, count);
        const Vector<float, N> a = to_float(x1), b = to_float(x2);
        Vector<float, N> turned1, turned2;
        UNROLL
        for (int i = 0; i < N; i++) {
            const float sine = s[i] * args.sign;
            turned1[i] = fma(a[i], c[i], -(b[i] * sine));
            turned2[i] = fma(b[i], c[i], a[i] * sine);
        }
        store_part<ALIGNED>(first, from_float<T>(turned1), count);
        store_part<ALIGNED>(second, from_float<T>(turned2), count);
    }
}

INSTANCE(rope<float, false>)
INSTANCE(rope<float, true>)
INSTANCE(rope<bf16, false>)
INSTANCE(rope<bf16, true>)
