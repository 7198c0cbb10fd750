// AdamW over a flat range: a thread four parameters, read and written once.
#include "prelude.cuh"
#include "rows.cuh"

struct Factors {
    float scale, new_m, b2, new_v, keep, rate, root, epsilon;
};

template <class T> struct AdamwUpdate {
    Global<float> master, m, v;
    // Null where the new weights are not wanted in another place.
    Global<T> compute;
    Global<const float> gradient;
    u64 count;
    Factors factors;
};

template <class T, bool ALIGNED> KERNEL(256) void adamw_update(const AdamwUpdate<T> args) {
    constexpr int N = 4;
    const u64 at = (static_cast<u64>(block_index()) * 256 + thread_index()) * N;
    if (at >= args.count) return;
    const u64 count = args.count - at;
    const Factors f = args.factors;
    const Vector<float, N> gradient = load_part_streaming<N, ALIGNED>(args.gradient + at, count);
    Vector<float, N> m = load_part_streaming<N, ALIGNED>(args.m + at, count);
    Vector<float, N> v = load_part_streaming<N, ALIGNED>(args.v + at, count);
    Vector<float, N> w = load_part_streaming<N, ALIGNED>(args.master + at, count);
    UNROLL
    for (int i = 0; i < N; i++) {
        const float g = gradient[i] * f.scale;
        m[i] = fma(f.new_m, g - m[i], m[i]);
        v[i] = fma(f.b2, v[i], f.new_v * g * g);
        const float denominator = sqrt(v[i]) / f.root + f.epsilon;
        w[i] = w[i] * f.keep - f.rate * m[i] / denominator;
    }
    store_part<ALIGNED>(args.master + at, w, count);
    store_part<ALIGNED>(args.m + at, m, count);
    store_part<ALIGNED>(args.v + at, v, count);
    if (args.compute) store_part<ALIGNED>(args.compute + at, from_float<T>(w), count);
}

INSTANCE(adamw_update<float, false>)
INSTANCE(adamw_update<float, true>)
INSTANCE(adamw_update<bf16, false>)
INSTANCE(adamw_update<bf16, true>)
