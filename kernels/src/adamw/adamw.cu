// AdamW over a flat range: a thread four parameters, read and written once; with moments of eight bits or weights rounded at random, a warp
// a block of 256, whose lanes take four parameters twice.
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

// Moments of eight bits: see code.rs.
DEVICE u32 code_base(float smallest) { return (bit_cast<u32>(smallest) >> 20) - 8; }
DEVICE u32 encode(float x, float smallest, u32 most, u32 random) {
    const bool below = x < smallest;
    const u32 code = ((bit_cast<u32>(below ? x + smallest : x) + random) >> 20) - code_base(smallest);
    return min(below ? code - 8 : code, most);
}
DEVICE float decode(u32 code, float smallest) {
    return code < 8 ? static_cast<float>(code) * (smallest / 8) : bit_cast<float>((code + code_base(smallest)) << 20);
}
constexpr float SMALLEST_FIRST = 1.0f / 16384, SMALLEST_SECOND = 1.0f / 1073741824, LARGEST = 1.875f;
constexpr u32 ROUNDING = 8;

template <class T> struct AdamwBlocks {
    // Null where weights are bfloat16 alone, rounded at random.
    Global<float> master;
    Global<T> compute;
    Global<float> m, v;
    // Null where moments are float32.
    Global<u32> m_codes, v_codes;
    Global<float> m_scales, v_scales;
    Global<const float> gradient;
    u64 count, seed, step, first;
    Factors factors;
};

template <class T, bool ALIGNED> KERNEL(256) void adamw_blocks(const AdamwBlocks<T> args) {
    constexpr int N = 4;
    const u64 block = static_cast<u64>(block_index()) * 8 + warp();
    const u64 start = block * 256;
    if (start >= args.count) return;
    const Factors f = args.factors;
    const bool eight = static_cast<bool>(args.m_codes);
    const float m_scale = eight ? args.m_scales[block] : 0.0f, v_scale = eight ? args.v_scales[block] : 0.0f;
    Vector<float, N> m[2], v[2];
    float most_m = 0.0f, most_v = 0.0f;
    UNROLL
    for (int part = 0; part < 2; part++) {
        UNROLL
        for (int i = 0; i < N; i++) m[part][i] = v[part][i] = 0.0f;
        const u64 at = start + (part * 32 + lane()) * N;
        if (at >= args.count) continue;
        const u64 count = args.count - at;
        if (eight) {
            const u32 m_codes = args.m_codes[at / N], v_codes = args.v_codes[at / N];
            UNROLL
            for (int i = 0; i < N; i++) {
                const u32 code = m_codes >> (8 * i) & 255;
                const float magnitude = decode(code & 127, SMALLEST_FIRST) * m_scale;
                m[part][i] = code & 128 ? -magnitude : magnitude;
                v[part][i] = decode(v_codes >> (8 * i) & 255, SMALLEST_SECOND) * v_scale;
            }
        } else {
            m[part] = load_part_streaming<N, ALIGNED>(args.m + at, count);
            v[part] = load_part_streaming<N, ALIGNED>(args.v + at, count);
        }
        const Vector<float, N> gradient = load_part_streaming<N, ALIGNED>(args.gradient + at, count);
        Vector<float, N> w;
        if (args.master) w = load_part_streaming<N, ALIGNED>(args.master + at, count);
        else w = to_float(load_part_streaming<N, ALIGNED>(args.compute + at, count));
        UNROLL
        for (int i = 0; i < N; i++) {
            const float g = gradient[i] * f.scale;
            m[part][i] = fma(f.new_m, g - m[part][i], m[part][i]);
            v[part][i] = fma(f.b2, v[part][i], f.new_v * g * g);
            const float denominator = sqrt(v[part][i]) / f.root + f.epsilon;
            w[i] = w[i] * f.keep - f.rate * m[part][i] / denominator;
            if (static_cast<u64>(i) < count) {
                most_m = max(most_m, abs(m[part][i]));
                most_v = max(most_v, v[part][i]);
            }
        }
        if (args.master) {
            store_part<ALIGNED>(args.master + at, w, count);
            if (args.compute) store_part<ALIGNED>(args.compute + at, from_float<T>(w), count);
        } else {
            if constexpr (is_same<T, bf16>) {
                const u32 position = static_cast<u32>((args.first + at) / N);
                const Vector<u32, N> random = random_block(args.seed, ROUNDING, 2 * args.step + 1, position);
                Vector<T, N> rounded;
                UNROLL
                for (int i = 0; i < N; i++) rounded[i] = T{static_cast<u16>((bit_cast<u32>(w[i]) + (random[i] >> 16)) >> 16)};
                store_part<ALIGNED>(args.compute + at, rounded, count);
            }
        }
        if (!eight) {
            store_part<ALIGNED>(args.m + at, m[part], count);
            store_part<ALIGNED>(args.v + at, v[part], count);
        }
    }
    if (!eight) return;
    const float new_m_scale = warp_max(most_m) / LARGEST, new_v_scale = warp_max(most_v) / LARGEST;
    // The other lanes have read the scales.
    sync_warp();
    if (lane() == 0) {
        args.m_scales[block] = new_m_scale;
        args.v_scales[block] = new_v_scale;
    }
    UNROLL
    for (int part = 0; part < 2; part++) {
        const u64 at = start + (part * 32 + lane()) * N;
        if (at >= args.count) continue;
        const u32 position = static_cast<u32>((args.first + at) / N);
        const Vector<u32, N> random = random_block(args.seed, ROUNDING, 2 * args.step, position);
        u32 m_codes = 0, v_codes = 0;
        UNROLL
        for (int i = 0; i < N; i++) {
            if (at + i >= args.count) continue;
            const float x = new_m_scale > 0.0f ? abs(m[part][i]) / new_m_scale : 0.0f;
            const float y = new_v_scale > 0.0f ? v[part][i] / new_v_scale : 0.0f;
            const u32 sign = bit_cast<u32>(m[part][i]) >> 31;
            m_codes |= (encode(x, SMALLEST_FIRST, 127, (random[i] & 0xffff) << 4) | sign << 7) << (8 * i);
            v_codes |= encode(y, SMALLEST_SECOND, 255, random[i] >> 16 << 4) << (8 * i);
        }
        args.m_codes[at / N] = m_codes;
        args.v_codes[at / N] = v_codes;
    }
}

INSTANCE(adamw_blocks<float, false>)
INSTANCE(adamw_blocks<float, true>)
INSTANCE(adamw_blocks<bf16, false>)
INSTANCE(adamw_blocks<bf16, true>)
INSTANCE(adamw_update<float, false>)
INSTANCE(adamw_update<float, true>)
INSTANCE(adamw_update<bf16, false>)
INSTANCE(adamw_update<bf16, true>)
