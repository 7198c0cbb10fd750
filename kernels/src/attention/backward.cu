// Gradients of attention without atomics, in three kernels: the products of `d_out` with `out`; d_k and d_v by blocks of keys, with the query
// heads that share them one after another; d_q by blocks of queries. Weights are computed again from the scores and the kept log-sum-exp.
//
// With P the weights and delta = sum(d_out * out) of a row: dS = P * (d_out v^T - delta), d_v = P^T d_out, d_k = scale dS^T q, d_q = scale dS k
// (Dao, arXiv 2307.08691). A block holds its own rows; those of the other side pass by in steps of COLS, the next step's copies under way
// while one is used.
#include "prelude.cuh"
#include "sequences.cuh"
#include "tiles.cuh"

template <class T> struct AttentionDelta {
    Global<float> delta;
    Global<const T> d_out, out;
    u32 tokens, heads, head_dim, aligned;
    u64 d_out_stride, out_stride;
};

template <class T> struct AttentionBackwardKeys {
    Global<T> d_k, d_v;
    Global<const T> d_out, q, k, v;
    Global<const float> lse, delta;
    Global<const u32> cu_seqlens;
    u32 sequences;
    // Query heads of a key/value head.
    u32 shared_by;
    u32 head_dim, causal, aligned;
    float scale, scale_log2;
    u64 d_k_stride, d_v_stride, d_out_stride, q_stride, k_stride, v_stride, lse_stride, delta_stride;
};

template <class T> struct AttentionBackwardQueries {
    Global<T> d_q;
    Global<const T> d_out, q, k, v;
    Global<const float> lse, delta;
    Global<const u32> cu_seqlens;
    u32 sequences, shared_by, head_dim, causal, aligned;
    float scale, scale_log2;
    u64 d_q_stride, d_out_stride, q_stride, k_stride, v_stride, lse_stride, delta_stride;
};

DEVICE float times_log2_e(float x) { return x * 1.44269504088896341f; }

/// A warp a token and head.
template <class T> KERNEL(128) void attention_delta(const AttentionDelta<T> args) {
    constexpr u32 LANES = 16 / sizeof(T);
    const u64 row = u64(block_index()) * 4 + warp();
    if (row >= u64(args.tokens) * args.heads) return;
    const u64 token = row / args.heads, head = row % args.heads;
    const Global<const T> a = args.d_out + token * args.d_out_stride + head * args.head_dim;
    const Global<const T> b = args.out + token * args.out_stride + head * args.head_dim;
    float sum = 0.0f;
    if (args.aligned) {
        for (u32 i = lane() * LANES; i < args.head_dim; i += 32 * LANES) {
            const auto x = to_float(load<LANES>(a + i)), y = to_float(load<LANES>(b + i));
            UNROLL
            for (u32 e = 0; e < LANES; e++) sum = fma(x[e], y[e], sum);
        }
    } else {
        for (u32 i = lane(); i < args.head_dim; i += 32) sum = fma(to_float(a[i]), to_float(b[i]), sum);
    }
    sum = warp_sum(sum);
    if (lane() == 0) args.delta[row] = sum;
}

enum Part { ONLY_KEYS = 1, ONLY_VALUES = 2, KEYS_AND_VALUES = 3 };

/// d_k and d_v of 16 keys a warp, or one of them where registers do not hold both. Rows of the fragments are keys, columns are queries.
template <class T, int D, int WARPS, int COLS, int PART> KERNEL(WARPS * 32, 2) void attention_backward_keys(const AttentionBackwardKeys<T> args) {
    constexpr u32 ROWS = WARPS * 16, THREADS = WARPS * 32, BYTES = D * sizeof(T);
    constexpr int NT = COLS / 8;
    constexpr bool WITH_K = PART != ONLY_VALUES, WITH_V = PART != ONLY_KEYS;
    u32 sequence, tile;
    const auto length_of = [&](u32 s) { return args.cu_seqlens[s + 1] - args.cu_seqlens[s]; };
    if (!find_tile(block_index(), args.sequences, [&](u32 s) { return ceil_div(length_of(s), ROWS); }, sequence, tile)) return;
    const u32 start = args.cu_seqlens[sequence], length = length_of(sequence);
    const u32 key_head = block_index(1), first = tile * ROWS, warp_row = warp() * 16, warp_first = first + warp_row;
    const u32 g = lane() / 4, t = lane() % 4;

    // The block's keys and values, then twice: queries, their d_out, log-sum-exps and deltas.
    constexpr u32 OWN = (WITH_K ? 2 : 1) * ROWS * BYTES, STAGE = 2 * COLS * BYTES + 2 * COLS * 4;
    const Tile<T, D> keys{0}, values{ROWS * BYTES};
    const auto load_own = [&](Tile<T, D> to, Global<const T> from, u64 stride) {
        const Global<const T> rows = from + u64(start + first) * stride + key_head * args.head_dim;
        load_tile<ROWS, THREADS>(to, thread_index(), Strided<const T>{rows, stride}, length - first, args.head_dim, args.aligned);
    };
    load_own(keys, args.k, args.k_stride);
    if constexpr (WITH_K) load_own(values, args.v, args.v_stride);

    // Queries before the block's first key see none of it under a causal mask.
    const u32 first_step = args.causal ? first / COLS : 0, steps = ceil_div(length, u32(COLS)) - first_step;
    const auto load_step = [&](u32 step) {
        const u32 head = key_head * args.shared_by + step / steps, row = (first_step + step % steps) * COLS;
        const u32 offset = OWN + step % 2 * STAGE, rows = length - row;
        const u64 token = start + row;
        const Strided<const T> q{args.q + token * args.q_stride + head * args.head_dim, args.q_stride};
        const Strided<const T> d_out{args.d_out + token * args.d_out_stride + head * args.head_dim, args.d_out_stride};
        load_tile<COLS, THREADS>(Tile<T, D>{offset}, thread_index(), q, rows, args.head_dim, args.aligned);
        load_tile<COLS, THREADS>(Tile<T, D>{offset + COLS * BYTES}, thread_index(), d_out, rows, args.head_dim, args.aligned);
        const Shared<float> numbers = shared<float>(offset + 2 * COLS * BYTES);
        for (u32 i = thread_index(); i < COLS; i += THREADS) {
            const bool valid = i < rows;
            const u64 at = token + (valid ? i : 0);
            copy_async<4>(numbers + i, args.lse + at * args.lse_stride + head, valid);
            copy_async<4>(numbers + COLS + i, args.delta + at * args.delta_stride + head, valid);
        }
        copy_async_commit();
    };
    load_step(0);

    float d_keys[1][WITH_K ? D / 8 : 1][4], d_values[1][WITH_V ? D / 8 : 1][4];
    set_zero(d_keys);
    set_zero(d_values);
    for (u32 step = 0; step < args.shared_by * steps; step++) {
        copy_async_wait<0>();
        sync_block();
        if (step + 1 < args.shared_by * steps) load_step(step + 1);
        const u32 offset = OWN + step % 2 * STAGE, query = (first_step + step % steps) * COLS;
        // Warps below the last key, and queries that see none of the warp's keys.
        if (warp_first >= length || (args.causal && query + COLS <= warp_first)) continue;
        const Tile<T, D> queries{offset}, d_outs{offset + COLS * BYTES};
        const Shared<float> lse = shared<float>(offset + 2 * COLS * BYTES), delta = lse + COLS;
        // Queries beyond the last are zeros, as are their log-sum-exps, deltas and d_out: they add nothing.
        float weights[1][NT][4];
        multiply_rows(weights, keys, warp_row, queries);
        UNROLL
        for (int n = 0; n < NT; n++) {
            const Vector<float, 2> pair = load<2>(lse + 8 * n + 2 * t);
            UNROLL
            for (int e = 0; e < 4; e++) weights[0][n][e] = exp2_fast(fma(weights[0][n][e], args.scale_log2, -times_log2_e(pair[e % 2])));
        }
        if (args.causal && query < warp_first + 15) {
            UNROLL
            for (int n = 0; n < NT; n++) {
                UNROLL
                for (int e = 0; e < 4; e++) {
                    if (query + 8 * n + 2 * t + e % 2 < warp_first + g + e / 2 * 8) weights[0][n][e] = 0.0f;
                }
            }
        }
        if constexpr (WITH_V) add_weighted_rows(d_values, weights, d_outs);
        if constexpr (WITH_K) {
            float d_scores[1][NT][4];
            multiply_rows(d_scores, values, warp_row, d_outs);
            UNROLL
            for (int n = 0; n < NT; n++) {
                const Vector<float, 2> pair = load<2>(delta + 8 * n + 2 * t);
                UNROLL
                for (int e = 0; e < 4; e++) d_scores[0][n][e] = weights[0][n][e] * (d_scores[0][n][e] - pair[e % 2]);
            }
            add_weighted_rows(d_keys, d_scores, queries);
        }
    }
    if (warp_first >= length) return;
    // The warp alone read these rows of the keys and values, and needs them no more.
    sync_warp();
    const auto store_rows = [&](Global<T> to, u64 stride, Tile<T, D> from) {
        const Global<T> rows = to + u64(start + warp_first) * stride + key_head * args.head_dim;
        store_tile<16, 32>([&](u32 row) { return rows + row * stride; }, from, warp_row, lane(), length - warp_first, args.head_dim, args.aligned);
    };
    if constexpr (WITH_K) {
        const float factor[1][2] = {{args.scale, args.scale}};
        store_sums(keys, warp_row, d_keys, factor);
        sync_warp();
        store_rows(args.d_k, args.d_k_stride, keys);
    }
    if constexpr (WITH_V) {
        const Tile<T, D> free = WITH_K ? values : keys;
        const float factor[1][2] = {{1.0f, 1.0f}};
        store_sums(free, warp_row, d_values, factor);
        sync_warp();
        store_rows(args.d_v, args.d_v_stride, free);
    }
}

/// d_q of 16 queries a warp. Rows of the fragments are queries, columns are keys.
template <class T, int D, int WARPS, int COLS> KERNEL(WARPS * 32, 2) void attention_backward_queries(const AttentionBackwardQueries<T> args) {
    constexpr u32 ROWS = WARPS * 16, THREADS = WARPS * 32, BYTES = D * sizeof(T);
    constexpr int NT = COLS / 8;
    u32 sequence, tile;
    const auto length_of = [&](u32 s) { return args.cu_seqlens[s + 1] - args.cu_seqlens[s]; };
    if (!find_tile(block_index(), args.sequences, [&](u32 s) { return ceil_div(length_of(s), ROWS); }, sequence, tile)) return;
    const u32 start = args.cu_seqlens[sequence], length = length_of(sequence);
    const u32 head = block_index(1), key_head = head / args.shared_by;
    // The last tile of a sequence sees the most keys under a causal mask: it goes first.
    const u32 first = (ceil_div(length, ROWS) - 1 - tile) * ROWS, warp_row = warp() * 16, warp_first = first + warp_row;
    const u32 g = lane() / 4, t = lane() % 4;

    // The block's queries and d_out, then twice: keys and values.
    constexpr u32 OWN = 2 * ROWS * BYTES, STAGE = 2 * COLS * BYTES;
    const Tile<T, D> queries{0}, d_outs{ROWS * BYTES};
    const auto load_own = [&](Tile<T, D> to, Global<const T> from, u64 stride) {
        const Global<const T> rows = from + u64(start + first) * stride + head * args.head_dim;
        load_tile<ROWS, THREADS>(to, thread_index(), Strided<const T>{rows, stride}, length - first, args.head_dim, args.aligned);
    };
    load_own(queries, args.q, args.q_stride);
    load_own(d_outs, args.d_out, args.d_out_stride);
    const auto load_step = [&](u32 step) {
        const u32 row = step * COLS, offset = OWN + step % 2 * STAGE;
        const Strided<const T> k{args.k + u64(start + row) * args.k_stride + key_head * args.head_dim, args.k_stride};
        const Strided<const T> v{args.v + u64(start + row) * args.v_stride + key_head * args.head_dim, args.v_stride};
        load_tile<COLS, THREADS>(Tile<T, D>{offset}, thread_index(), k, length - row, args.head_dim, args.aligned);
        load_tile<COLS, THREADS>(Tile<T, D>{offset + COLS * BYTES}, thread_index(), v, length - row, args.head_dim, args.aligned);
        copy_async_commit();
    };
    load_step(0);

    const auto visible = [&](u32 row) { return args.causal ? min(row + 1, length) : length; };
    const u32 steps = ceil_div(visible(first + ROWS - 1), u32(COLS)), seen_last = warp_first < length ? visible(warp_first + 15) : 0;
    float lse[2], delta[2];
    UNROLL
    for (u32 h = 0; h < 2; h++) {
        const u32 row = warp_first + g + 8 * h;
        lse[h] = delta[h] = 0.0f;
        if (row < length) {
            lse[h] = times_log2_e(args.lse[u64(start + row) * args.lse_stride + head]);
            delta[h] = args.delta[u64(start + row) * args.delta_stride + head];
        }
    }
    float d_queries[1][D / 8][4];
    set_zero(d_queries);
    for (u32 step = 0; step < steps; step++) {
        copy_async_wait<0>();
        sync_block();
        if (step + 1 < steps) load_step(step + 1);
        if (step * COLS >= seen_last) continue;
        const u32 offset = OWN + step % 2 * STAGE;
        const Tile<T, D> keys{offset}, values{offset + COLS * BYTES};
        float weights[1][NT][4], d_scores[1][NT][4];
        multiply_rows(weights, queries, warp_row, keys);
        UNROLL
        for (int n = 0; n < NT; n++) {
            UNROLL
            for (int e = 0; e < 4; e++) weights[0][n][e] = exp2_fast(fma(weights[0][n][e], args.scale_log2, -lse[e / 2]));
        }
        if ((step + 1) * COLS > visible(warp_first)) {
            UNROLL
            for (int n = 0; n < NT; n++) {
                UNROLL
                for (int e = 0; e < 4; e++) {
                    if (step * COLS + 8 * n + 2 * t + e % 2 >= visible(warp_first + g + e / 2 * 8)) weights[0][n][e] = 0.0f;
                }
            }
        }
        multiply_rows(d_scores, d_outs, warp_row, values);
        UNROLL
        for (int n = 0; n < NT; n++) {
            UNROLL
            for (int e = 0; e < 4; e++) d_scores[0][n][e] = weights[0][n][e] * (d_scores[0][n][e] - delta[e / 2]);
        }
        add_weighted_rows(d_queries, d_scores, keys);
    }
    if (warp_first >= length) return;
    // The warp alone read these rows of the queries, and needs them no more.
    sync_warp();
    const float factor[1][2] = {{args.scale, args.scale}};
    store_sums(queries, warp_row, d_queries, factor);
    sync_warp();
    const Global<T> rows = args.d_q + u64(start + warp_first) * args.d_q_stride + head * args.head_dim;
    store_tile<16, 32>([&](u32 row) { return rows + row * args.d_q_stride; }, queries, warp_row, lane(), length - warp_first, args.head_dim,
                       args.aligned);
}

INSTANCE(attention_delta<float>)
INSTANCE(attention_delta<bf16>)
INSTANCE(attention_backward_keys<bf16, 32, 4, 64, 3>)
INSTANCE(attention_backward_keys<bf16, 64, 4, 64, 3>)
INSTANCE(attention_backward_keys<bf16, 80, 4, 64, 3>)
INSTANCE(attention_backward_keys<bf16, 96, 4, 64, 3>)
INSTANCE(attention_backward_keys<bf16, 128, 4, 48, 3>)
INSTANCE(attention_backward_keys<bf16, 256, 4, 16, 1>)
INSTANCE(attention_backward_keys<bf16, 256, 4, 32, 2>)
INSTANCE(attention_backward_keys<float, 32, 4, 32, 3>)
INSTANCE(attention_backward_keys<float, 64, 4, 32, 3>)
INSTANCE(attention_backward_keys<float, 80, 4, 16, 3>)
INSTANCE(attention_backward_keys<float, 96, 4, 16, 3>)
INSTANCE(attention_backward_keys<float, 128, 4, 16, 3>)
INSTANCE(attention_backward_keys<float, 256, 2, 8, 1>)
INSTANCE(attention_backward_keys<float, 256, 2, 8, 2>)
INSTANCE(attention_backward_queries<bf16, 32, 4, 64>)
INSTANCE(attention_backward_queries<bf16, 64, 4, 64>)
INSTANCE(attention_backward_queries<bf16, 80, 4, 64>)
INSTANCE(attention_backward_queries<bf16, 96, 4, 64>)
INSTANCE(attention_backward_queries<bf16, 128, 4, 64>)
INSTANCE(attention_backward_queries<bf16, 256, 4, 16>)
INSTANCE(attention_backward_queries<float, 32, 4, 32>)
INSTANCE(attention_backward_queries<float, 64, 4, 32>)
INSTANCE(attention_backward_queries<float, 80, 4, 32>)
INSTANCE(attention_backward_queries<float, 96, 4, 16>)
INSTANCE(attention_backward_queries<float, 128, 4, 16>)
INSTANCE(attention_backward_queries<float, 256, 2, 8>)
