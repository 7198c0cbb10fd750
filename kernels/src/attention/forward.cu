// Attention of tiles of query rows over the keys of their sequence, 16 MT rows a warp, keys in steps of COLS.
//
// Scores stay in registers as the fragments that the product with the values reads. Weights are powers of two relative to the largest score so
// far; sums of weights and of weighted values are brought to a new largest score when one appears (Dao, arXiv 2307.08691). Keys and values of
// the next step are copied while the scores of this one are used.
#include "prelude.cuh"
#include "sequences.cuh"
#include "tiles.cuh"

template <class T> struct AttentionForward {
    Global<T> out;
    Global<float> lse;
    Global<const T> q, k, v;
    // One of the two: (sequences + 1) offsets of packed sequences, or (sequences, 4) spans over a cache.
    Global<const u32> cu_seqlens, spans;
    // Of a cache in pages; null where a sequence's keys lie one after another.
    Global<const u32> table;
    u32 sequences;
    // Query heads that are rows of one tile, and query heads of a key/value head.
    u32 packed, shared_by;
    u32 head_dim, causal, aligned, page_shift;
    float scale, scale_log2;
    u64 out_stride, lse_stride, q_stride, k_stride, v_stride, spans_stride, table_stride;
};

struct Span {
    u32 query, added, key, keys;
};

template <class T> DEVICE u32 added_tokens(const AttentionForward<T> &args, u32 sequence) {
    if (args.spans) return args.spans[sequence * args.spans_stride + 1];
    return args.cu_seqlens[sequence + 1] - args.cu_seqlens[sequence];
}

template <class T> DEVICE Span span_of(const AttentionForward<T> &args, u32 sequence) {
    if (args.spans) {
        const auto row = args.spans + sequence * args.spans_stride;
        return Span{row[0], row[1], row[2], row[3]};
    }
    const u32 start = args.cu_seqlens[sequence], length = args.cu_seqlens[sequence + 1] - start;
    return Span{start, length, start, length};
}

template <class T, int D, int WARPS, int MT, int COLS> KERNEL(WARPS * 32, 2) void attention_forward(const AttentionForward<T> args) {
    constexpr u32 ROWS = WARPS * MT * 16, THREADS = WARPS * 32;
    constexpr int NT = COLS / 8;
    u32 sequence, tile;
    const auto tiles_of = [&](u32 s) { return ceil_div(added_tokens(args, s) * args.packed, ROWS); };
    if (!find_tile(block_index(), args.sequences, tiles_of, sequence, tile)) return;
    const Span span = span_of(args, sequence);
    const u32 head = block_index(1) * args.packed, key_head = head / args.shared_by;
    const u32 rows = span.added * args.packed;
    // Under a causal mask the last tile of a sequence has the most work: it goes first.
    const u32 first = (ceil_div(rows, ROWS) - 1 - tile) * ROWS;
    const u32 before = span.keys - span.added;
    const auto visible = [&](u32 row) { return args.causal ? min(before + row / args.packed + 1, span.keys) : span.keys; };

    const Tile<T, D> queries{0}, keys{ROWS * D * u32(sizeof(T))}, values{(ROWS + COLS) * D * u32(sizeof(T))};
    const auto load_block = [&](Tile<T, D> to, Global<const T> from, u64 stride, u32 step) {
        const u32 left = span.keys - step * COLS;
        if (args.table) {
            const CacheRows rows_of{args.table, args.table_stride, args.page_shift, span.key};
            const auto row_of = [&](u32 row) { return from + rows_of(step * COLS + min(row, left - 1)) * stride + key_head * args.head_dim; };
            load_tile<COLS, THREADS>(to, thread_index(), row_of, left, args.head_dim, args.aligned);
        } else {
            const Global<const T> start = from + (span.key + step * COLS) * stride + key_head * args.head_dim;
            load_tile<COLS, THREADS>(to, thread_index(), Strided<const T>{start, stride}, left, args.head_dim, args.aligned);
        }
        copy_async_commit();
    };
    const auto query_row = [&](u32 row) {
        return args.q + (span.query + (first + row) / args.packed) * args.q_stride + (head + (first + row) % args.packed) * args.head_dim;
    };
    load_tile<ROWS, THREADS>(queries, thread_index(), query_row, rows - first, args.head_dim, args.aligned);
    load_block(keys, args.k, args.k_stride, 0);

    const u32 warp_row = warp() * MT * 16, warp_first = first + warp_row, g = lane() / 4, t = lane() % 4;
    // Keys that the warp's first and last row see; warps below the last row only copy.
    const u32 seen_first = visible(warp_first), seen_last = warp_first < rows ? visible(min(warp_first + MT * 16, rows) - 1) : 0;
    const u32 steps = ceil_div(visible(min(first + ROWS, rows) - 1), COLS);
    float largest[MT][2], weight[MT][2];
    UNROLL
    for (int m = 0; m < MT; m++) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            largest[m][h] = -infinity;
            weight[m][h] = 0.0f;
        }
    }
    float sums[MT][D / 8][4];
    set_zero(sums);
    for (u32 step = 0; step < steps; step++) {
        const bool active = step * COLS < seen_last;
        copy_async_wait<0>();
        sync_block();
        load_block(values, args.v, args.v_stride, step);
        float scores[MT][NT][4];
        if (active) multiply_rows(scores, queries, warp_row, keys);
        copy_async_wait<0>();
        sync_block();
        if (step + 1 < steps) load_block(keys, args.k, args.k_stride, step + 1);
        if (!active) continue;
        if ((step + 1) * COLS > seen_first) {
            UNROLL
            for (int m = 0; m < MT; m++) {
                UNROLL
                for (int h = 0; h < 2; h++) {
                    const u32 seen = visible(warp_first + 16 * m + g + 8 * h);
                    UNROLL
                    for (int n = 0; n < NT; n++) {
                        UNROLL
                        for (int e = 2 * h; e < 2 * h + 2; e++) {
                            if (step * COLS + 8 * n + 2 * t + e % 2 >= seen) scores[m][n][e] = -infinity;
                        }
                    }
                }
            }
        }
        UNROLL
        for (int m = 0; m < MT; m++) {
            UNROLL
            for (int h = 0; h < 2; h++) {
                float most = largest[m][h];
                UNROLL
                for (int n = 0; n < NT; n++) most = max(most, max(scores[m][n][2 * h], scores[m][n][2 * h + 1]));
                most = max(most, shuffle_xor(most, 1));
                most = max(most, shuffle_xor(most, 2));
                // A row's first step always holds a key that it sees, so `most` is a number.
                const float correction = exp2_fast((largest[m][h] - most) * args.scale_log2), shift = most * args.scale_log2;
                largest[m][h] = most;
                float added = 0.0f;
                UNROLL
                for (int n = 0; n < NT; n++) {
                    UNROLL
                    for (int e = 2 * h; e < 2 * h + 2; e++) {
                        scores[m][n][e] = exp2_fast(fma(scores[m][n][e], args.scale_log2, -shift));
                        added += scores[m][n][e];
                    }
                }
                weight[m][h] = fma(weight[m][h], correction, added);
                UNROLL
                for (int n = 0; n < D / 8; n++) {
                    sums[m][n][2 * h] *= correction;
                    sums[m][n][2 * h + 1] *= correction;
                }
            }
        }
        add_weighted_rows(sums, scores, values);
    }
    if (warp_first >= rows) return;
    float inverse[MT][2];
    UNROLL
    for (int m = 0; m < MT; m++) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            float total = weight[m][h];
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
            inverse[m][h] = 1.0f / total;
            const u32 row = warp_first + 16 * m + g + 8 * h;
            if (args.lse && t == 0 && row < rows) {
                const u64 token = span.query + row / args.packed;
                args.lse[token * args.lse_stride + head + row % args.packed] = largest[m][h] * args.scale + log(total);
            }
        }
    }
    // The warp alone read these rows of the queries, and needs them no more.
    sync_warp();
    store_sums(queries, warp_row, sums, inverse);
    sync_warp();
    const auto out_row = [&](u32 row) {
        const u32 at = warp_first + row;
        return args.out + (span.query + at / args.packed) * args.out_stride + (head + at % args.packed) * args.head_dim;
    };
    store_tile<MT * 16, 32>(out_row, queries, warp_row, lane(), rows - warp_first, args.head_dim, args.aligned);
}

INSTANCE(attention_forward<bf16, 32, 4, 2, 64>)
INSTANCE(attention_forward<bf16, 64, 4, 2, 64>)
INSTANCE(attention_forward<bf16, 80, 4, 2, 64>)
INSTANCE(attention_forward<bf16, 96, 4, 2, 64>)
INSTANCE(attention_forward<bf16, 128, 4, 2, 48>)
INSTANCE(attention_forward<bf16, 256, 4, 1, 64>)
INSTANCE(attention_forward<float, 32, 4, 1, 32>)
INSTANCE(attention_forward<float, 64, 4, 1, 32>)
INSTANCE(attention_forward<float, 80, 4, 1, 32>)
INSTANCE(attention_forward<float, 96, 4, 1, 32>)
INSTANCE(attention_forward<float, 128, 4, 1, 32>)
INSTANCE(attention_forward<float, 256, 4, 1, 16>)
