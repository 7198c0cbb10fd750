// Attention of few new tokens over a cache: the rows of a tile are the query heads that share a key/value head, of one token after the other, so
// that keys and values are read once for all of them. Keys are split over blocks, and in a block over warps, each of which goes through its own
// blocks of KEYS keys; what the warps hold is joined in order, and what blocks hold by a second kernel, in order again.
#include "prelude.cuh"
#include "decoding.cuh"
#include "sequences.cuh"
#include "tiles.cuh"

template <class T> struct AttentionDecode {
    // `out` is null where several splits give parts: (splits, rows, head_dim), and their log-sum-exps to base 2: (splits, rows). Rows are
    // (token, head).
    Global<T> out;
    Global<float> part, part_lse;
    Global<const T> q, keys, values;
    // The table is null where a sequence's keys lie one after another.
    Global<const u32> spans, table;
    u32 sequences, shared_by, heads, rows, head_dim, splits, aligned, page_shift;
    float scale_log2;
    u64 out_stride, q_stride, keys_stride, values_stride, spans_stride, table_stride;
};

template <class T> struct AttentionCombine {
    Global<T> out;
    Global<const float> part, part_lse;
    Global<const u32> spans;
    u32 sequences, heads, rows, head_dim, splits;
    u64 out_stride, spans_stride;
};

template <class T, int D, int WARPS, int KEYS> KERNEL(WARPS * 32, 3) void attention_decode(const AttentionDecode<T> args) {
    begin_grid();
    constexpr u32 THREADS = WARPS * 32, ROWS = 16, BYTES = D * sizeof(T), STAGE = 2 * KEYS * BYTES;
    constexpr int NT = KEYS / 8;
    u32 sequence, tile;
    const auto tiles_of = [&](u32 s) { return ceil_div(args.spans[s * args.spans_stride + 1] * args.shared_by, ROWS); };
    if (!find_tile(block_index(), args.sequences, tiles_of, sequence, tile)) return;
    const auto span = args.spans + sequence * args.spans_stride;
    const u32 query = span[0], added = span[1], count = span[3], before = count - added;
    const CacheRows rows_of{args.table, args.table_stride, args.page_shift, span[2]};
    const u32 key_head = block_index(1), head = key_head * args.shared_by, first = tile * ROWS, rows = added * args.shared_by;
    const auto visible = [&](u32 row) { return min(before + row / args.shared_by + 1, count); };
    // Splits are whole rounds of the block's warps; the last ones of a short sequence are empty.
    const u32 length = round_up(ceil_div(count, args.splits), KEYS * WARPS), split = block_index(2) * length;
    const u32 end = min(split + length, visible(min(first + ROWS, rows) - 1));

    // The tile's queries, then for each warp twice: keys and values.
    const u32 own = ROWS * BYTES + warp() * 2 * STAGE;
    const Tile<T, D> queries{0};
    const auto token_of = [&](u32 row) { return u64(query + (first + row) / args.shared_by); };
    const auto head_of = [&](u32 row) { return head + (first + row) % args.shared_by; };
    const auto query_row = [&](u32 row) { return args.q + token_of(row) * args.q_stride + head_of(row) * args.head_dim; };
    load_tile<ROWS, THREADS>(queries, thread_index(), query_row, rows - first, args.head_dim, args.aligned);
    const auto load_block = [&](u32 at, u32 stage) {
        const u32 offset = own + stage * STAGE, left = at < end ? end - at : 0;
        if (left > 0) {
            // A block lies within one page: it starts at a multiple of KEYS, which divides the rows of a page.
            const u64 row = rows_of(at);
            const Strided<const T> k{args.keys + row * args.keys_stride + key_head * args.head_dim, args.keys_stride};
            const Strided<const T> v{args.values + row * args.values_stride + key_head * args.head_dim, args.values_stride};
            load_tile<KEYS, 32>(Tile<T, D>{offset}, lane(), k, left, args.head_dim, args.aligned);
            load_tile<KEYS, 32>(Tile<T, D>{offset + KEYS * BYTES}, lane(), v, left, args.head_dim, args.aligned);
        }
        copy_async_commit();
    };
    load_block(split + warp() * KEYS, 0);
    load_block(split + (warp() + WARPS) * KEYS, 1);
    // The queries are in every thread's first group.
    copy_async_wait<1>();
    sync_block();

    const u32 g = lane() / 4, t = lane() % 4;
    float largest[2] = {-infinity, -infinity}, weight[2] = {0.0f, 0.0f}, sums[1][D / 8][4];
    set_zero(sums);
    u32 stage = 0;
    for (u32 at = split + warp() * KEYS; at < end; at += WARPS * KEYS) {
        copy_async_wait<1>();
        sync_warp();
        const Tile<T, D> keys{own + stage * STAGE}, values{own + stage * STAGE + KEYS * BYTES};
        float scores[1][NT][4];
        multiply_rows(scores, queries, 0, keys);
        const u32 seen[2] = {visible(first + g), visible(first + g + 8)};
        weigh_scores(scores, sums, largest, weight, seen, at + 2 * t, args.scale_log2);
        add_weighted_rows(sums, scores, values);
        // All lanes have read this stage before it is copied over.
        sync_warp();
        load_block(at + 2 * WARPS * KEYS, stage);
        stage ^= 1;
    }

    // Where keys and values were.
    copy_async_wait<0>();
    sync_block();
    const auto take_lse = [&](u32 row, float lse) {
        if (args.part) args.part_lse[u64(block_index(2)) * args.rows + token_of(row) * args.heads + head_of(row)] = lse;
    };
    const auto take = [&](u32 row, u32 column, float value) {
        if (!args.part) args.out[token_of(row) * args.out_stride + head_of(row) * args.head_dim + column] = from_float<T>(value);
        else args.part[(u64(block_index(2)) * args.rows + token_of(row) * args.heads + head_of(row)) * args.head_dim + column] = value;
    };
    join_warps<WARPS>(ROWS * BYTES, sums, largest, weight, args.scale_log2, min(ROWS, rows - first), args.head_dim, take_lse, take);
}

/// A warp a token and head. Splits that hold no key of a row have a log-sum-exp of minus infinity and no sums.
template <class T> KERNEL(128) void attention_combine(const AttentionCombine<T> args) {
    begin_grid();
    constexpr u32 WARPS = 4;
    u32 sequence, tile;
    const auto tiles_of = [&](u32 s) { return ceil_div(args.spans[s * args.spans_stride + 1] * args.heads, WARPS); };
    if (!find_tile(block_index(), args.sequences, tiles_of, sequence, tile)) return;
    const auto span = args.spans + sequence * args.spans_stride;
    const u32 own = tile * WARPS + warp();
    if (own >= span[1] * args.heads) return;
    const u32 head = own % args.heads;
    const u64 token = span[0] + own / args.heads, row = token * args.heads + head;
    float top = -infinity, total = 0.0f;
    for (u32 split = 0; split < args.splits; split++) top = max(top, static_cast<float>(args.part_lse[u64(split) * args.rows + row]));
    for (u32 split = 0; split < args.splits; split++) total += exp2_fast(args.part_lse[u64(split) * args.rows + row] - top);
    const float inverse = 1.0f / total;
    for (u32 d = lane(); d < args.head_dim; d += 32) {
        float sum = 0.0f;
        for (u32 split = 0; split < args.splits; split++) {
            const u64 at = u64(split) * args.rows + row;
            const float lse = args.part_lse[at];
            if (lse > -infinity) sum = fma(args.part[at * args.head_dim + d], exp2_fast(lse - top), sum);
        }
        args.out[token * args.out_stride + head * args.head_dim + d] = from_float<T>(sum * inverse);
    }
}

INSTANCE(attention_decode<bf16, 32, 4, 16>)
INSTANCE(attention_decode<bf16, 64, 4, 16>)
INSTANCE(attention_decode<bf16, 80, 4, 16>)
INSTANCE(attention_decode<bf16, 96, 4, 16>)
INSTANCE(attention_decode<bf16, 128, 4, 16>)
INSTANCE(attention_decode<bf16, 256, 2, 16>)
INSTANCE(attention_decode<float, 32, 4, 8>)
INSTANCE(attention_decode<float, 64, 4, 8>)
INSTANCE(attention_decode<float, 80, 4, 8>)
INSTANCE(attention_decode<float, 96, 4, 8>)
INSTANCE(attention_decode<float, 128, 4, 8>)
INSTANCE(attention_decode<float, 256, 1, 16>)
INSTANCE(attention_combine<bf16>)
INSTANCE(attention_combine<float>)
