// Attention of few new tokens over a cache, for Hopper: as decode.cu, but the tensor memory accelerator brings keys and values, 16 keys at a time, into a ring
// of stages that each warp has for itself. Who reads a stage fills it again, so that a barrier a stage says when it is full, and none when it is empty.
#include "prelude.cuh"
#include "boxes.cuh"
#include "decoding.cuh"
#include "sequences.cuh"

struct AttentionDecodeHopper {
    // Of (rows of the cache, heads, head_dim): boxes of 64 columns of one head, of 16 rows.
    TensorMap keys, values;
    // `out` is null where several splits give parts: (splits, rows, head_dim), and their log-sum-exps to base 2: (splits, rows). Rows are
    // (token, head).
    Global<bf16> out;
    Global<float> part, part_lse;
    Global<const bf16> q;
    // The table is null where a sequence's keys lie one after another.
    Global<const u32> spans, table;
    u32 sequences, shared_by, heads, rows, head_dim, splits, page_shift;
    float scale_log2;
    u64 out_stride, q_stride, spans_stride, table_stride;
};

template <int D, int WARPS, int STAGES> KERNEL(WARPS * 32, 2) void attention_decode_sm90(const GRID_CONSTANT AttentionDecodeHopper args) {
    begin_grid();
    constexpr u32 THREADS = WARPS * 32, ROWS = 16, KEYS = 16;
    using Rows = BoxTile<16, D>;
    // The tile's queries, then for each warp and stage keys and values, then the stages' barriers.
    constexpr u32 STAGE = 2 * Rows::BYTES, BARRIERS = Rows::BYTES + WARPS * STAGES * STAGE;
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
    const auto token_of = [&](u32 row) { return u64(query + (first + row) / args.shared_by); };
    const auto head_of = [&](u32 row) { return head + (first + row) % args.shared_by; };

    const Rows queries{0};
    const u32 rank = warp_uniform(), own = Rows::BYTES + rank * STAGES * STAGE;
    const Shared<u64> full = shared<u64>(BARRIERS) + rank * STAGES;
    if (thread_index() == 0) {
        prefetch_tensor_map(args.keys);
        prefetch_tensor_map(args.values);
        for (u32 i = 0; i < WARPS * STAGES; i++) mbarrier_init(shared<u64>(BARRIERS) + i, 1);
        fence_barrier_init();
    }
    for (u32 i = thread_index(); i < ROWS * (D / 8); i += THREADS) {
        const u32 row = i / (D / 8), column = i % (D / 8) * 8;
        const bool valid = row < rows - first && column < args.head_dim;
        const u32 from = valid ? row : 0;
        copy_async<16>(queries.chunk(row, i % (D / 8)), args.q + token_of(from) * args.q_stride + head_of(from) * args.head_dim + (valid ? column : 0), valid);
    }
    copy_async_commit();
    copy_async_wait<0>();
    sync_block();

    const auto load_block = [&](u32 at, u32 stage) {
        if (at >= end || !elect_one()) return;
        // A block lies within one page: it starts at a multiple of KEYS, which divides the rows of a page.
        const u32 row = u32(rows_of(at));
        const Rows keys{own + stage * STAGE}, values{own + stage * STAGE + Rows::BYTES};
        mbarrier_arrive_expect(full + stage, STAGE);
        UNROLL
        for (u32 piece = 0; piece < D / 64; piece++) {
            tma_load_3d(keys.piece(piece), args.keys, full + stage, piece * 64, key_head, row, cache_evict_first);
            tma_load_3d(values.piece(piece), args.values, full + stage, piece * 64, key_head, row, cache_evict_first);
        }
    };
    for (u32 stage = 0; stage < STAGES; stage++) load_block(split + (rank + stage * WARPS) * KEYS, stage);

    const u32 g = lane() / 4, t = lane() % 4;
    const u32 seen[2] = {visible(first + g), visible(first + g + 8)};
    float largest[2] = {-infinity, -infinity}, weight[2] = {0.0f, 0.0f}, sums[1][D / 8][4];
    UNROLL
    for (int i = 0; i < D / 2; i++) sums[0][i / 4][i % 4] = 0.0f;
    u32 stage = 0, phase = 0;
    for (u32 at = split + rank * KEYS; at < end; at += WARPS * KEYS) {
        const Rows keys{own + stage * STAGE}, values{own + stage * STAGE + Rows::BYTES};
        mbarrier_wait(full + stage, phase);
        if (end - at < KEYS) {
            // The last block of the sequence: what lies behind it must be numbers, as weights of 0 are multiplied by them.
            for (u32 i = (end - at) * (D / 8) + lane(); i < KEYS * (D / 8); i += 32)
                store(values.chunk(i / (D / 8), i % (D / 8)).template as<u32>(), Vector<u32, 4>{{0, 0, 0, 0}});
            sync_warp();
        }
        float scores[1][2][4];
        UNROLL
        for (int i = 0; i < 8; i++) scores[0][i / 4][i % 4] = 0.0f;
        UNROLL
        for (int k = 0; k < D / 16; k++) {
            u32 left[4], right[4];
            load_matrix_x4(left, queries.chunk(lane() % 16, 2 * k + lane() / 16));
            load_matrix_x4(right, keys.chunk(lane() / 16 * 8 + lane() % 8, 2 * k + lane() / 8 % 2));
            const u32 even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
            mma_m16n8k16<bf16>(scores[0][0], left, even);
            mma_m16n8k16<bf16>(scores[0][1], left, odd);
        }
        weigh_scores(scores, sums, largest, weight, seen, at + 2 * t, args.scale_log2);
        const u32 weights[4] = {pack2<bf16>(scores[0][0][0], scores[0][0][1]), pack2<bf16>(scores[0][0][2], scores[0][0][3]),
                                pack2<bf16>(scores[0][1][0], scores[0][1][1]), pack2<bf16>(scores[0][1][2], scores[0][1][3])};
        UNROLL
        for (int n = 0; n < D / 16; n++) {
            u32 right[4];
            load_matrix_x4_transposed(right, values.chunk(lane() % 16, 2 * n + lane() / 16));
            const u32 even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
            mma_m16n8k16<bf16>(sums[0][2 * n], weights, even);
            mma_m16n8k16<bf16>(sums[0][2 * n + 1], weights, odd);
        }
        // All lanes have read this stage before it is filled again.
        sync_warp();
        load_block(at + STAGES * WARPS * KEYS, stage);
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }

    // Where keys and values were.
    sync_block();
    const auto take_lse = [&](u32 row, float lse) {
        if (args.part) args.part_lse[u64(block_index(2)) * args.rows + token_of(row) * args.heads + head_of(row)] = lse;
    };
    const auto take = [&](u32 row, u32 column, float value) {
        if (!args.part) args.out[token_of(row) * args.out_stride + head_of(row) * args.head_dim + column] = from_float<bf16>(value);
        else args.part[(u64(block_index(2)) * args.rows + token_of(row) * args.heads + head_of(row)) * args.head_dim + column] = value;
    };
    join_warps<WARPS>(Rows::BYTES, sums, largest, weight, args.scale_log2, min(ROWS, rows - first), args.head_dim, take_lse, take);
}

INSTANCE(attention_decode_sm90<64, 4, 4>)
INSTANCE(attention_decode_sm90<128, 4, 3>)
INSTANCE(attention_decode_sm90<256, 2, 3>)
