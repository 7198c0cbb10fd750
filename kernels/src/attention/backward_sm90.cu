// Gradients of attention for Hopper: d_k and d_v by blocks of keys, with the query heads that share them one after another; d_q in the same pass, where
// every block adds its part to sums in float.
//
// Two warpgroups take 64 keys each. Scores and their gradients are computed with keys as rows, so that weights and gradients of scores stay in registers,
// where the products for d_v and d_k read them; only d_q, whose sums are over keys of both, needs the gradients of scores in shared memory. A warp
// of the first warpgroup loads, two others carry parts of d_q out (Shah et al., arXiv 2407.08608).
//
// Parts of d_q are added by the memory in the order in which they come, or, where there are turns, in a fixed one: the block of a query tile's last keys
// first. Blocks are started in that order too, so that whoever waits, waits for one that was started before; and under a causal mask each
// begins where the one before has just been.
//
// With P the weights and delta = sum(d_out * out) of a row: dS = P * (d_out v^T - delta), d_v = P^T d_out, d_k = scale dS^T q, d_q = scale dS k.
#include "prelude.cuh"
#include "boxes.cuh"
#include "sequences.cuh"

// Numbers of query rows lie by tiles of QUERIES rows, a slot each: (heads, slots, QUERIES). Slots of a sequence follow each other; between sequences one
// may be free.
struct AttentionPrepareHopper {
    Global<float> lse, delta, sums;
    // Null where parts of d_q are added in any order.
    Global<u32> turns;
    Global<const bf16> d_out, out;
    Global<const float> lse_in;
    Global<const u32> cu_seqlens;
    u32 sequences, tokens, slots, head_dim, pieces;
    u64 d_out_stride, out_stride, lse_in_stride;
};

struct AttentionBackwardHopper {
    // Of (tokens, heads, head_dim): boxes of 64 columns of one head, of a tile's rows.
    TensorMap q, d_out, k, v;
    Global<bf16> d_k, d_v;
    // (heads, pieces of 64 columns, tokens, 64): sums of d_q. The chunks of 4 columns of a row trade places by its token.
    Global<float> sums;
    Global<const float> lse, delta;
    // (heads, slots, 2): whose turn it is to add to half a tile. Null where there are no turns.
    Global<u32> turns;
    Global<const u32> cu_seqlens;
    u32 sequences, tokens, slots, shared_by, head_dim, causal;
    float scale, scale_log2;
    u64 d_k_stride, d_v_stride;
};

struct AttentionFinishHopper {
    Global<bf16> d_q;
    Global<const float> sums;
    u32 tokens, heads, head_dim, pieces;
    float scale;
    u64 d_q_stride;
};

/// Query rows of a tile.
constexpr int QUERIES = 64;

DEVICE u32 slot_of(u32 start, u32 sequence, u32 tile) { return start / QUERIES + sequence + tile; }

/// The place of a chunk of 4 columns in a row of 64 sums.
DEVICE u32 place_of(u32 chunk, u32 token) { return chunk ^ token % 8; }

/// Deltas, log-sum-exps to base 2, and sums of 0. A block a tile and head.
KERNEL(256) void attention_prepare_sm90(const AttentionPrepareHopper args) {
    u32 sequence, tile;
    const auto length_of = [&](u32 s) { return args.cu_seqlens[s + 1] - args.cu_seqlens[s]; };
    if (!find_tile(block_index(), args.sequences, [&](u32 s) { return ceil_div(length_of(s), u32(QUERIES)); }, sequence, tile)) return;
    const u32 start = args.cu_seqlens[sequence], head = block_index(1), rows = length_of(sequence) - tile * QUERIES;
    const u64 slot = u64(head) * args.slots + slot_of(start, sequence, tile);
    if (args.turns && thread_index() < 2) args.turns[2 * slot + thread_index()] = 0;
    for (u32 row = warp(); row < QUERIES; row += 8) {
        float sum = 0.0f, lse = infinity;
        if (row < rows) {
            const u64 token = start + tile * QUERIES + row;
            const Global<const bf16> a = args.d_out + token * args.d_out_stride + head * args.head_dim;
            const Global<const bf16> b = args.out + token * args.out_stride + head * args.head_dim;
            for (u32 i = lane() * 8; i < args.head_dim; i += 256) {
                const auto x = to_float(load<8>(a + i)), y = to_float(load<8>(b + i));
                UNROLL
                for (u32 e = 0; e < 8; e++) sum = fma(x[e], y[e], sum);
            }
            sum = warp_sum(sum);
            lse = args.lse_in[token * args.lse_in_stride + head] * 1.44269504088896341f;
            const Vector<float, 4> zeros{{0.0f, 0.0f, 0.0f, 0.0f}};
            for (u32 i = lane(); i < args.pieces * 16; i += 32)
                store(args.sums + ((u64(head) * args.pieces + i / 16) * args.tokens + token) * 64 + i % 16 * 4, zeros);
        }
        if (lane() == 0) {
            args.delta[slot * QUERIES + row] = sum;
            args.lse[slot * QUERIES + row] = lse;
        }
    }
}

/// d_q of sums: a thread 8 columns.
KERNEL(256) void attention_finish_sm90(const AttentionFinishHopper args) {
    const u32 parts = args.head_dim / 8;
    const u64 index = u64(block_index()) * 256 + thread_index();
    if (index >= u64(args.tokens) * args.heads * parts) return;
    const u32 part = index % parts, head = index / parts % args.heads, token = index / parts / args.heads;
    const Global<const float> row = args.sums + ((u64(head) * args.pieces + part / 8) * args.tokens + token) * 64;
    Vector<float, 8> values;
    UNROLL
    for (u32 i = 0; i < 2; i++) {
        const auto four = load<4>(row + place_of(part % 8 * 2 + i, token) * 4);
        UNROLL
        for (u32 e = 0; e < 4; e++) values[4 * i + e] = four[e] * args.scale;
    }
    store(args.d_q + u64(token) * args.d_q_stride + head * args.head_dim + part * 8, from_float<bf16>(values));
}

/// What a block holds in shared memory.
template <int D> struct Layout {
    static constexpr u32 STAGES = 2, OWN_ROWS = 128;
    using Own = BoxTile<OWN_ROWS, D>;
    using Passing = BoxTile<QUERIES, D>;
    using Scores = BoxTile<OWN_ROWS, QUERIES>;
    // Of a warpgroup's part of d_q: 64 rows of 64 columns.
    static constexpr u32 PART = 64 * 64 * 4;
    static constexpr u32 VALUES = Own::BYTES, PASSING = VALUES + Own::BYTES, SCORES = PASSING + 2 * STAGES * Passing::BYTES;
    static constexpr u32 PARTS = SCORES + STAGES * Scores::BYTES, NUMBERS = PARTS + 2 * PART, BARRIERS = NUMBERS + 2 * STAGES * QUERIES * 4;

    static DEVICE Own keys() { return Own{0}; }
    static DEVICE Own values() { return Own{VALUES}; }
    static DEVICE Passing queries(u32 step) { return Passing{PASSING + step % STAGES * Passing::BYTES}; }
    static DEVICE Passing d_outs(u32 step) { return Passing{PASSING + (STAGES + step % STAGES) * Passing::BYTES}; }
    static DEVICE Scores d_scores(u32 step) { return Scores{SCORES + step % STAGES * Scores::BYTES}; }
    static DEVICE Shared<float> part(u32 group) { return shared<float>(PARTS + group * PART); }
    static DEVICE Shared<float> lse(u32 step) { return shared<float>(NUMBERS + step % STAGES * QUERIES * 4); }
    static DEVICE Shared<float> delta(u32 step) { return lse(step) + STAGES * QUERIES; }
    // Of the own keys and values; full and empty ones of queries and of d_out, then of the parts of d_q.
    static DEVICE Shared<u64> own_full() { return shared<u64>(BARRIERS); }
    static DEVICE Shared<u64> queries_full(u32 step) { return shared<u64>(BARRIERS) + (1 + step % STAGES); }
    static DEVICE Shared<u64> queries_empty(u32 step) { return queries_full(step) + STAGES; }
    static DEVICE Shared<u64> d_outs_full(u32 step) { return queries_full(step) + 2 * STAGES; }
    static DEVICE Shared<u64> d_outs_empty(u32 step) { return queries_full(step) + 3 * STAGES; }
    static DEVICE Shared<u64> part_full(u32 group) { return shared<u64>(BARRIERS) + (1 + 4 * STAGES + group); }
    static DEVICE Shared<u64> part_empty(u32 group) { return part_full(group) + 2; }
    static DEVICE u32 phase(u32 step) { return step / STAGES & 1; }
};

template <int D> KERNEL(384, 1) void attention_backward_sm90(const GRID_CONSTANT AttentionBackwardHopper args) {
    using Shape = Layout<D>;
    constexpr u32 KEYS = Shape::OWN_ROWS, BLOCK = 1, OWN = 2;
    // Each warpgroup computes one of the two pieces of a tile of d_q; where there is one, they compute it by turns.
    constexpr bool BY_TURNS = D == 64;
    static_assert(D == 64 || D == 128, "a tile of d_q has a piece for each warpgroup, or one");

    u32 sequence, tile;
    const auto length_of = [&](u32 s) { return args.cu_seqlens[s + 1] - args.cu_seqlens[s]; };
    if (!find_tile(block_index(), args.sequences, [&](u32 s) { return ceil_div(length_of(s), KEYS); }, sequence, tile)) return;
    const u32 start = args.cu_seqlens[sequence], length = length_of(sequence), blocks = ceil_div(length, KEYS), key_head = block_index(1);
    // Under a causal mask the first block has the most work, and goes first unless turns are taken from the last on.
    const u32 block = args.turns ? blocks - 1 - tile : tile, first = block * KEYS;
    // Queries before the block's first key see none of it under a causal mask.
    const u32 first_tile = args.causal ? first / QUERIES : 0, tiles = ceil_div(length, u32(QUERIES)) - first_tile, steps = args.shared_by * tiles;
    const u32 first_head = key_head * args.shared_by;

    if (warp_uniform() == 0 && elect_one()) {
        prefetch_tensor_map(args.q);
        prefetch_tensor_map(args.d_out);
        prefetch_tensor_map(args.k);
        prefetch_tensor_map(args.v);
        mbarrier_init(Shape::own_full(), 1);
        for (u32 i = 0; i < 2; i++) {
            mbarrier_init(Shape::queries_full(i), 1);
            mbarrier_init(Shape::d_outs_full(i), 1);
            mbarrier_init(Shape::queries_empty(i), 8);
            mbarrier_init(Shape::d_outs_empty(i), 8);
            mbarrier_init(Shape::part_full(i), 4);
            mbarrier_init(Shape::part_empty(i), 1);
        }
        fence_barrier_init();
    }
    sync_block();

    if (warp_uniform() < 4) {
        registers_decrease<40>();
        const u32 own = warp_uniform();
        if (own == 0 && elect_one()) {
            mbarrier_arrive_expect(Shape::own_full(), 2 * Shape::Own::BYTES);
            for (u32 piece = 0; piece < D / 64; piece++) {
                tma_load_3d(Shape::keys().piece(piece), args.k, Shape::own_full(), piece * 64, key_head, start + first, cache_evict_first);
                tma_load_3d(Shape::values().piece(piece), args.v, Shape::own_full(), piece * 64, key_head, start + first, cache_evict_first);
            }
            u32 step = 0;
            ROLLED
            for (u32 head = first_head; head < first_head + args.shared_by; head++) {
                u64 numbers = (u64(head) * args.slots + slot_of(start, sequence, first_tile)) * QUERIES;
                u32 row = start + first_tile * QUERIES;
                ROLLED
                for (u32 i = 0; i < tiles; i++) {
                    const Shared<u64> queries_full = Shape::queries_full(step), d_outs_full = Shape::d_outs_full(step);
                    mbarrier_wait(Shape::queries_empty(step), Shape::phase(step) ^ 1);
                    mbarrier_arrive_expect(queries_full, Shape::Passing::BYTES + QUERIES * 4);
                    for (u32 piece = 0; piece < D / 64; piece++)
                        tma_load_3d(Shape::queries(step).piece(piece), args.q, queries_full, piece * 64, head, row, cache_evict_last);
                    bulk_load(Shape::lse(step), args.lse + numbers, QUERIES * 4, queries_full);
                    mbarrier_wait(Shape::d_outs_empty(step), Shape::phase(step) ^ 1);
                    mbarrier_arrive_expect(d_outs_full, Shape::Passing::BYTES + QUERIES * 4);
                    for (u32 piece = 0; piece < D / 64; piece++)
                        tma_load_3d(Shape::d_outs(step).piece(piece), args.d_out, d_outs_full, piece * 64, head, row, cache_evict_last);
                    bulk_load(Shape::delta(step), args.delta + numbers, QUERIES * 4, d_outs_full);
                    numbers += QUERIES;
                    row += QUERIES;
                    step++;
                }
            }
        } else if ((own == 1 || own == 2) && elect_one()) {
            const u32 group = own - 1, piece = BY_TURNS ? 0 : group;
            u32 step = 0, part = 0;
            ROLLED
            for (u32 head = first_head; head < first_head + args.shared_by; head++) {
                Global<u32> turn = args.turns + (2 * (u64(head) * args.slots + slot_of(start, sequence, first_tile)) + piece);
                Global<float> to = args.sums + ((u64(head) * (D / 64) + piece) * args.tokens + start + first_tile * QUERIES) * 64;
                ROLLED
                for (u32 query = first_tile * QUERIES; query < length; query += QUERIES) {
                    if (!BY_TURNS || step % 2 == group) {
                        // The last block that adds to this tile is the first.
                        const u32 before = (args.causal ? min(query + QUERIES - 1, length - 1) / KEYS : blocks - 1) - block;
                        mbarrier_wait(Shape::part_full(group), part & 1);
                        if (args.turns) {
                            while (load_acquire(turn) != before) {
                            }
                            fence_proxy_async_global();
                        }
                        bulk_reduce_add(to, Shape::part(group), min(length - query, u32(QUERIES)) * 256, cache_evict_last);
                        bulk_commit();
                        if (args.turns) {
                            bulk_wait<0>();
                            store_release(turn, before + 1);
                        } else {
                            bulk_wait_read<0>();
                        }
                        mbarrier_arrive(Shape::part_empty(group));
                        part++;
                    }
                    turn += 2;
                    to += QUERIES * 64;
                    step++;
                }
            }
            bulk_wait<0>();
        }
        return;
    }

    registers_increase<232>();
    const u32 thread = thread_index() - 128, group = warp_uniform() / 4 - 1, warp_row = warp_uniform() % 4 * 16, g = lane() / 4, t = lane() % 4;
    const u32 row = group * 64 + warp_row + g;
    float d_keys[D / 2], d_values[D / 2], scores[QUERIES / 2], d_scores[QUERIES / 2], d_queries[32];
    u32 weights[QUERIES / 16][4], d_weights[QUERIES / 16][4];
    UNROLL
    for (int i = 0; i < D / 2; i++) d_keys[i] = d_values[i] = 0.0f;

    // d = own rows times passing rows, over all columns.
    const auto multiply_rows = [&](float (&d)[QUERIES / 2], typename Shape::Own own, typename Shape::Passing passing) {
        const u64 a = own.rows(group * 64), b = passing.rows(0);
        wgmma_fence_registers(d);
        wgmma_fence();
        UNROLL
        for (int k = 0; k < D / 16; k++) {
            const u64 a_step = advance_descriptor(a, Shape::Own::along_columns(k)), b_step = advance_descriptor(b, Shape::Passing::along_columns(k));
            wgmma_m64<QUERIES, bf16>(d, a_step, b_step, k != 0);
        }
        wgmma_commit();
    };
    // d += weights times passing rows.
    const auto add_weighted = [&](float (&d)[D / 2], u32 (&a)[QUERIES / 16][4], typename Shape::Passing passing) {
        const u64 b = passing.columns(0);
        wgmma_fence_registers(d);
        UNROLL
        for (int k = 0; k < QUERIES / 16; k++) wgmma_fence_registers(a[k]);
        wgmma_fence();
        UNROLL
        for (int k = 0; k < QUERIES / 16; k++) wgmma_m64<D, bf16, true>(d, a[k], advance_descriptor(b, Shape::Passing::along_rows(k)), true);
        wgmma_commit();
    };
    const auto release = [&](Shared<u64> empty) {
        if (lane() == 0) mbarrier_arrive(empty);
    };

    mbarrier_wait(Shape::own_full(), 0);
    const bool partial = first + KEYS > length;
    if (partial) {
        clear_rows<256>(Shape::keys(), thread, length - first);
        fence_proxy_async();
        barrier_sync(BLOCK, 256);
    }
    // Tiles and fragments are of whole patterns of 8 rows: both rows of a thread lie alike in every tile.
    const u32 token = start + g;
    u32 query = first_tile * QUERIES;
    ROLLED
    for (u32 step = 0; step < steps; step++) {
        mbarrier_wait(Shape::queries_full(step), Shape::phase(step));
        if (query + QUERIES > length) {
            // A box runs past the end of its sequence: what weights of 0 are multiplied by must be numbers.
            mbarrier_wait(Shape::d_outs_full(step), Shape::phase(step));
            clear_rows<256>(Shape::queries(step), thread, length - query);
            clear_rows<256>(Shape::d_outs(step), thread, length - query);
            fence_proxy_async();
            barrier_sync(BLOCK, 256);
        }
        multiply_rows(scores, Shape::keys(), Shape::queries(step));
        mbarrier_wait(Shape::d_outs_full(step), Shape::phase(step));
        multiply_rows(d_scores, Shape::values(), Shape::d_outs(step));
        wgmma_wait<1>();
        wgmma_fence_registers(scores);

        const bool edge = partial || query + QUERIES > length || (args.causal && query < first + KEYS - 1);
        // Whether the query of a sum's column sees the key of its row.
        const auto sees = [&](u32 i) {
            const u32 at = query + i / 4 * 8 + 2 * t + i % 2, key = first + row + i / 2 % 2 * 8;
            return at < length && key < length && at >= (args.causal ? key : 0);
        };
        const Shared<float> lse = Shape::lse(step) + 2 * t, delta = Shape::delta(step) + 2 * t;
        UNROLL
        for (int n = 0; n < QUERIES / 8; n++) {
            const auto pair = load<2>(lse + 8 * n);
            UNROLL
            for (int e = 0; e < 4; e++) scores[4 * n + e] = exp2_fast(fma(scores[4 * n + e], args.scale_log2, -pair[e % 2]));
        }
        if (edge) {
            UNROLL
            for (int i = 0; i < QUERIES / 2; i++) {
                if (!sees(i)) scores[i] = 0.0f;
            }
        }
        wgmma_wait<0>();
        wgmma_fence_registers(d_scores);
        UNROLL
        for (int n = 0; n < QUERIES / 8; n++) {
            const auto pair = load<2>(delta + 8 * n);
            UNROLL
            for (int e = 0; e < 4; e++) d_scores[4 * n + e] = scores[4 * n + e] * (d_scores[4 * n + e] - pair[e % 2]);
        }
        if (edge) {
            UNROLL
            for (int i = 0; i < QUERIES / 2; i++) {
                if (!sees(i)) d_scores[i] = 0.0f;
            }
        }
        pack_sums(weights, scores);
        pack_sums(d_weights, d_scores);
        add_weighted(d_values, weights, Shape::d_outs(step));
        // Two tiles take turns: whoever writes one has passed the barrier of the other, before which all have read this one.
        const auto shared_scores = Shape::d_scores(step);
        UNROLL
        for (int k = 0; k < QUERIES / 16; k++) shared_scores.store(group * 64 + warp_row, k, d_weights[k]);
        fence_proxy_async();
        barrier_sync(BLOCK, 256);
        const bool carries = !BY_TURNS || step % 2 == group;
        if (carries) {
            const u64 a = shared_scores.columns(0), b = Shape::keys().columns(BY_TURNS ? 0 : group);
            wgmma_fence_registers(d_queries);
            wgmma_fence();
            UNROLL
            for (int k = 0; k < int(KEYS) / 16; k++) {
                const u64 a_step = advance_descriptor(a, Shape::Scores::along_rows(k)), b_step = advance_descriptor(b, Shape::Own::along_rows(k));
                wgmma_m64<64, bf16, true, true>(d_queries, a_step, b_step, k != 0);
            }
            wgmma_commit();
        }
        add_weighted(d_keys, d_weights, Shape::queries(step));
        wgmma_wait<1>();
        wgmma_fence_registers(d_queries);
        release(Shape::d_outs_empty(step));
        if (carries) {
            mbarrier_wait(Shape::part_empty(group), (BY_TURNS ? step / 2 : step) & 1 ^ 1);
            const Shared<float> part = Shape::part(group);
            UNROLL
            for (int n = 0; n < 8; n++) {
                UNROLL
                for (int h = 0; h < 2; h++) {
                    const u32 at = warp_row + g + 8 * h;
                    const Vector<float, 2> pair{{d_queries[4 * n + 2 * h], d_queries[4 * n + 2 * h + 1]}};
                    store(part + (at * 64 + place_of(2 * n + t / 2, token) * 4 + t % 2 * 2), pair);
                }
            }
            fence_proxy_async();
            sync_warp();
            release(Shape::part_full(group));
        }
        wgmma_wait<0>();
        wgmma_fence_registers(d_keys);
        wgmma_fence_registers(d_values);
        release(Shape::queries_empty(step));
        query = query + QUERIES < length ? query + QUERIES : first_tile * QUERIES;
    }

    // Both warpgroups have read the keys.
    barrier_sync(BLOCK, 256);
    u32 fragments[D / 16][4];
    pack_sums(fragments, d_keys, args.scale, args.scale);
    UNROLL
    for (int k = 0; k < D / 16; k++) Shape::keys().store(group * 64 + warp_row, k, fragments[k]);
    pack_sums(fragments, d_values);
    UNROLL
    for (int k = 0; k < D / 16; k++) Shape::values().store(group * 64 + warp_row, k, fragments[k]);
    barrier_sync(OWN + group, 128);
    for (u32 i = thread % 128; i < 64 * (D / 8); i += 128) {
        const u32 own = group * 64 + i / (D / 8), column = i % (D / 8) * 8;
        if (first + own >= length || column >= args.head_dim) continue;
        const u64 token = start + first + own;
        const u32 at = key_head * args.head_dim + column;
        store(args.d_k + token * args.d_k_stride + at, load<8>(Shape::keys().chunk(own, i % (D / 8))));
        store(args.d_v + token * args.d_v_stride + at, load<8>(Shape::values().chunk(own, i % (D / 8))));
    }
}

INSTANCE(attention_prepare_sm90)
INSTANCE(attention_finish_sm90)
INSTANCE(attention_backward_sm90<64>)
INSTANCE(attention_backward_sm90<128>)
