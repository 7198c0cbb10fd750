// Attention of tiles of query rows over the keys of their sequence, for Hopper: 64 rows of queries a warpgroup, keys in blocks of COLS.
//
// Blocks stay, and take one tile after another, the next that nobody has taken. One thread of the first warpgroup has the tensor memory accelerator bring queries, then keys and values block by block into a ring of stages; the
// other warpgroups multiply. Scores, and the weights made of them, stay in registers, where the product with the values reads them. While weights of
// one block are made, the scores of the next are under way; and where warpgroups take turns at the tensor cores, one multiplies while
// another makes weights (Shah et al., arXiv 2407.08608). Weights are powers of two relative to the largest score so far.
//
// Blocks are taken from the last to the first: those that hold keys that some query of the tile must not see come first, and all others need no mask.
// Boxes run past the end of a sequence, and a query may not see all of a block: there values are cleaned before they are multiplied by weights of 0, and
// what is not a finite number is added to the rows that do see it.
#include "prelude.cuh"
#include "boxes.cuh"
#include "sequences.cuh"

struct AttentionForwardHopper {
    // Of (tokens, heads, head_dim): boxes of 64 columns of one head, of so many rows as a tile of queries has, and as `box_rows` says of the others.
    TensorMap q, k, v;
    Global<bf16> out;
    Global<float> lse;
    Global<const bf16> values;
    // One of the two: (sequences + 1) offsets of packed sequences, or (sequences, 4) spans over a cache.
    Global<const u32> cu_seqlens, spans;
    // Of a cache in pages; null where a sequence's keys lie one after another.
    Global<const u32> table;
    // How many tiles have been taken beyond each block's first; null where there are no more.
    Global<u32> taken;
    // Tiles of a head at most, and of all heads; heads whose keys and values fit the last cache together: their tiles come one after another.
    u32 tiles, items, heads_together;
    u32 sequences, shared_by, head_dim, causal, page_shift, box_rows;
    float scale, scale_log2;
    u64 out_stride, lse_stride, values_stride, spans_stride, table_stride;
};

struct Span {
    u32 query, added, key, keys;
};

DEVICE Span span_of(const AttentionForwardHopper &args, u32 sequence) {
    if (args.spans) {
        const auto row = args.spans + sequence * args.spans_stride;
        return Span{row[0], row[1], row[2], row[3]};
    }
    const u32 start = args.cu_seqlens[sequence], length = args.cu_seqlens[sequence + 1] - start;
    return Span{start, length, start, length};
}

/// What a block of WARPGROUPS consumers holds in shared memory.
template <int D, int WARPGROUPS, int COLS> struct Layout {
    static constexpr u32 STAGES = 2, ROWS = 64 * WARPGROUPS;
    using Queries = BoxTile<ROWS, D>;
    using Block = BoxTile<COLS, D>;
    static constexpr u32 KEYS = Queries::BYTES, VALUES = KEYS + STAGES * Block::BYTES, BARRIERS = VALUES + STAGES * Block::BYTES;
    // Full and empty barriers: of the queries, of keys and of values. Then of a tile and of the next `Work`, and a word for each block that is cleaned.
    static constexpr u32 WORK = BARRIERS + 8 * (2 + 4 * STAGES), SPOILED = WORK + 2 * 32;

    static DEVICE Queries queries() { return Queries{0}; }
    static DEVICE Block keys(u32 step) { return Block{KEYS + step % STAGES * Block::BYTES}; }
    static DEVICE Block values(u32 step) { return Block{VALUES + step % STAGES * Block::BYTES}; }
    static DEVICE Shared<u64> queries_full() { return shared<u64>(BARRIERS); }
    static DEVICE Shared<u64> queries_empty() { return shared<u64>(BARRIERS) + 1; }
    static DEVICE Shared<u64> keys_full(u32 step) { return shared<u64>(BARRIERS) + (2 + step % STAGES); }
    static DEVICE Shared<u64> keys_empty(u32 step) { return keys_full(step) + STAGES; }
    static DEVICE Shared<u64> values_full(u32 step) { return keys_full(step) + 2 * STAGES; }
    static DEVICE Shared<u64> values_empty(u32 step) { return keys_full(step) + 3 * STAGES; }
    static DEVICE Shared<u32> work(u32 count) { return shared<u32>(WORK + count % 2 * 32); }
    static DEVICE Shared<u32> spoiled(u32 count, u32 step) { return shared<u32>(SPOILED) + (count % 2 * MOST_CLEANED + step); }
    static DEVICE u32 phase(u32 step) { return step / STAGES & 1; }
    /// Blocks that a tile of queries does not see all of: as many as its rows reach into, and the last.
    static constexpr u32 MOST_CLEANED = (ROWS - 1) / COLS + 2;
};

/// A tile of queries of one head. Its producer finds it; consumers read of it, in shared memory, what they need when they need it. They are done with it
/// when all have the queries of the next behind them.
struct Work {
    u32 query, added, key, keys;
    // The query head, and the tile's first row in the sequence.
    u32 head, first;
    // Blocks of keys that some query sees, none behind the last tile, and those that all see all of.
    u32 steps, whole;
};

/// How many keys a row of a sequence sees.
DEVICE u32 visible(const AttentionForwardHopper &args, u32 keys, u32 added, u32 row) { return args.causal ? min(keys - added + row + 1, keys) : keys; }

/// The tile of that number; false where there is none. All lanes of a warp take part.
template <u32 ROWS, u32 COLS> DEVICE bool find_work(const AttentionForwardHopper &args, u32 item, Work &work) {
    u32 sequence, tile;
    const u32 together = args.heads_together * args.tiles, rank = item % together;
    const auto tiles_of = [&](u32 s) { return ceil_div(span_of(args, s).added, ROWS); };
    if (!find_tile(rank / args.heads_together, args.sequences, tiles_of, sequence, tile)) return false;
    const Span span = span_of(args, sequence);
    // Under a causal mask the last tile of a sequence has the most work: it goes first.
    const u32 first = (ceil_div(span.added, ROWS) - 1 - tile) * ROWS, head = item / together * args.heads_together + rank % args.heads_together;
    const u32 most = visible(args, span.keys, span.added, min(first + ROWS, span.added) - 1), least = visible(args, span.keys, span.added, first);
    work = Work{span.query, span.added, span.key, span.keys, head, first, ceil_div(most, COLS), least / COLS};
    return true;
}

/// Turns scores of keys from `column` on into weights; keeps each row's largest score and sum of weights (its part of the four lanes that share the row),
/// and says what earlier sums are multiplied by.
template <bool MASKED, int COLS>
DEVICE void make_weights(float (&scores)[COLS / 2], float (&largest)[2], float (&weight)[2], float (&correction)[2], const u32 (&seen)[2], u32 column,
                         float scale_log2) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        float most = largest[h];
        UNROLL
        for (int n = 0; n < COLS / 8; n++) {
            UNROLL
            for (int e = 4 * n + 2 * h; e < 4 * n + 2 * h + 2; e++) {
                if (MASKED && column + 8 * n + 2 * (lane() % 4) + e % 2 >= seen[h]) scores[e] = -infinity;
                most = max(most, scores[e]);
            }
        }
        most = max(most, shuffle_xor(most, 1));
        most = max(most, shuffle_xor(most, 2));
        // A row may see no key of the blocks so far: its weights are 2^-infinity.
        const float base = MASKED && most == -infinity ? 0.0f : most, shift = base * scale_log2;
        correction[h] = exp2_fast((largest[h] - base) * scale_log2);
        largest[h] = most;
        float added = 0.0f;
        UNROLL
        for (int n = 0; n < COLS / 8; n++) {
            UNROLL
            for (int e = 4 * n + 2 * h; e < 4 * n + 2 * h + 2; e++) {
                scores[e] = exp2_fast(fma(scores[e], scale_log2, -shift));
                added += scores[e];
            }
        }
        weight[h] = fma(weight[h], correction[h], added);
    }
}

template <int D, int WARPGROUPS, int COLS> KERNEL((WARPGROUPS + 1) * 128, 1) void attention_forward_sm90(const GRID_CONSTANT AttentionForwardHopper args) {
    using Shape = Layout<D, WARPGROUPS, COLS>;
    constexpr u32 ROWS = Shape::ROWS, CONSUMERS = WARPGROUPS * 128;
    // The block has as many registers as its threads have on entry: 168 of 384, 128 of 512.
    constexpr int PRODUCER_REGISTERS = WARPGROUPS == 2 ? 40 : 32, CONSUMER_REGISTERS = WARPGROUPS == 2 ? 232 : 160;
    // Warpgroups take turns where making weights costs about as much as multiplying.
    constexpr bool TURNS = D <= 128;
    constexpr u32 TURN = 1, CLEANED = TURN + WARPGROUPS;

    if (warp_uniform() == 0) {
        if (lane() < 2 * Shape::MOST_CLEANED) shared<u32>(Shape::SPOILED)[lane()] = 0;
        if (elect_one()) {
            prefetch_tensor_map(args.q);
            prefetch_tensor_map(args.k);
            prefetch_tensor_map(args.v);
            mbarrier_init(Shape::queries_full(), 1);
            mbarrier_init(Shape::queries_empty(), WARPGROUPS * 4);
            for (u32 s = 0; s < Shape::STAGES; s++) {
                mbarrier_init(Shape::keys_full(s), 1);
                mbarrier_init(Shape::values_full(s), 1);
                mbarrier_init(Shape::keys_empty(s), WARPGROUPS * 4);
                mbarrier_init(Shape::values_empty(s), WARPGROUPS * 4);
            }
            fence_barrier_init();
        }
    }
    sync_block();

    if (warp_uniform() < 4) {
        registers_decrease<PRODUCER_REGISTERS>();
        if (warp_uniform() != 0) return;
        // Steps and tiles so far.
        u32 base = 0, count = 0;
        Work work{};
        const auto column_of = [&](u32 step) { return (work.steps - 1 - step) * COLS; };
        const auto next = [&] {
            u32 taken = args.items;
            if (args.taken && lane() == 0) taken = block_count() + atomic_add(args.taken, 1u);
            return shuffle(taken, 0);
        };
        ROLLED
        for (u32 item = block_index(); item < args.items; item = next()) {
            if (!find_work<ROWS, COLS>(args, item, work)) continue;
            if (elect_one()) {
                mbarrier_wait(Shape::queries_empty(), count & 1 ^ 1);
                store(Shape::work(count), Vector<u32, 4>{{work.query, work.added, work.key, work.keys}});
                store(Shape::work(count) + 4, Vector<u32, 4>{{work.head, work.first, work.steps, work.whole}});
                mbarrier_arrive_expect(Shape::queries_full(), Shape::Queries::BYTES);
                for (u32 piece = 0; piece < D / 64; piece++)
                    tma_load_3d(Shape::queries().piece(piece), args.q, Shape::queries_full(), piece * 64, work.head, work.query + work.first,
                                cache_evict_first);
                const CacheRows rows_of{args.table, args.table_stride, args.page_shift, work.key};
                const u32 key_head = work.head / args.shared_by;
                const auto load_block = [&](typename Shape::Block to, const TensorMap &map, Shared<u64> full, u32 column) {
                    mbarrier_arrive_expect(full, Shape::Block::BYTES);
                    ROLLED
                    for (u32 row = 0; row < COLS; row += args.box_rows) {
                        // Rows beyond the last key come from wherever: nobody sees them, and a table may have no page for them.
                        const u32 key = column + row < work.keys ? column + row : column;
                        const u32 from = u32(rows_of(key));
                        for (u32 piece = 0; piece < D / 64; piece++)
                            tma_load_3d(to.piece(piece) + row * 64, map, full, piece * 64, key_head, from, cache_evict_last);
                    }
                };
                ROLLED
                for (u32 step = 0; step <= work.steps; step++) {
                    const u32 at = base + step;
                    if (step < work.steps) {
                        mbarrier_wait(Shape::keys_empty(at), Shape::phase(at) ^ 1);
                        load_block(Shape::keys(at), args.k, Shape::keys_full(at), column_of(step));
                    }
                    if (step > 0) {
                        mbarrier_wait(Shape::values_empty(at - 1), Shape::phase(at - 1) ^ 1);
                        load_block(Shape::values(at - 1), args.v, Shape::values_full(at - 1), column_of(step - 1));
                    }
                }
            }
            base += work.steps;
            count++;
        }
        if (elect_one()) {
            mbarrier_wait(Shape::queries_empty(), count & 1 ^ 1);
            Shape::work(count)[6] = 0;
            mbarrier_arrive(Shape::queries_full());
        }
        return;
    }

    registers_increase<CONSUMER_REGISTERS>();
    const u32 thread = thread_index() - 128, group = warp_uniform() / 4 - 1, warp_row = warp_uniform() % 4 * 16, g = lane() / 4, t = lane() % 4;
    // Two rows of the tile are a thread's.
    const u32 row = group * 64 + warp_row + g;
    float scores[COLS / 2], sums[D / 2];
    u32 weights[COLS / 16][4];
    float largest[2], weight[2], correction[2];
    u32 base = 0, count = 0, steps = 0, seen[2] = {0, 0};
    // Of the tile at hand.
    const auto query = [&]() -> u32 { return Shape::work(count)[0]; };
    const auto added = [&]() -> u32 { return Shape::work(count)[1]; };
    const auto first_key = [&]() -> u32 { return Shape::work(count)[2]; };
    const auto keys = [&]() -> u32 { return Shape::work(count)[3]; };
    const auto head = [&]() -> u32 { return Shape::work(count)[4]; };
    const auto first = [&]() -> u32 { return Shape::work(count)[5]; };
    const auto column_of = [&](u32 step) { return (steps - 1 - step) * COLS; };

    const auto multiply_keys = [&](u32 step) {
        const u64 a = Shape::queries().rows(group * 64), b = Shape::keys(base + step).rows(0);
        wgmma_fence_registers(scores);
        wgmma_fence();
        UNROLL
        for (int k = 0; k < D / 16; k++) {
            const u64 a_step = advance_descriptor(a, Shape::Queries::along_columns(k)), b_step = advance_descriptor(b, Shape::Block::along_columns(k));
            wgmma_m64<COLS, bf16>(scores, a_step, b_step, k != 0);
        }
        wgmma_commit();
    };
    const auto multiply_values = [&](u32 step) {
        const u64 b = Shape::values(base + step).columns(0);
        wgmma_fence_registers(sums);
        UNROLL
        for (int k = 0; k < COLS / 16; k++) wgmma_fence_registers(weights[k]);
        wgmma_fence();
        UNROLL
        for (int k = 0; k < COLS / 16; k++) wgmma_m64<D, bf16, true>(sums, weights[k], advance_descriptor(b, Shape::Block::along_rows(k)), true);
        wgmma_commit();
    };
    const auto release = [&](Shared<u64> empty) {
        if (lane() == 0) mbarrier_arrive(empty);
    };
    // Before a block's values are multiplied, where not all queries see all of it: whether something was taken out.
    const auto clean = [&](u32 step) {
        const Shared<u32> spoiled = Shape::spoiled(count, step);
        mbarrier_wait(Shape::values_full(base + step), Shape::phase(base + step));
        clean_tile<CONSUMERS>(Shape::values(base + step), thread, keys() - column_of(step), spoiled, count + 1);
        fence_proxy_async();
        barrier_sync(CLEANED, CONSUMERS);
        return spoiled[0] == count + 1;
    };
    // What was taken out of a block's values, added where it is seen.
    const auto spoil = [&](u32 step) {
        const u32 column = column_of(step), end = min(column + COLS, seen[1]), key_head = head() / args.shared_by;
        const CacheRows rows_of{args.table, args.table_stride, args.page_shift, first_key()};
        ROLLED
        for (u32 key = column; key < end; key++) {
            const Global<const bf16> from = args.values + rows_of(key) * args.values_stride + key_head * args.head_dim + 2 * t;
            UNROLL
            for (int n = 0; n < D / 8; n++) {
                if (8 * n >= args.head_dim) continue;
                const auto pair = to_float(load<2>(from + 8 * n));
                UNROLL
                for (int e = 0; e < 4; e++) {
                    const float value = pair[e % 2];
                    if (key < seen[e / 2] && !(value - value == 0.0f)) sums[4 * n + e] += value;
                }
            }
        }
    };

    // Scores of a block, while the weights of the one before are used; then its weights.
    const auto advance = [&](u32 step, u32 masked, bool edge) {
        // Who has a turn must not wait for the others, so that where all clean, scores come before it.
        if (TURNS && !edge) barrier_sync(TURN + group, 256);
        mbarrier_wait(Shape::keys_full(base + step), Shape::phase(base + step));
        multiply_keys(step);
        const bool spoiled = edge && clean(step - 1);
        if (TURNS && edge) barrier_sync(TURN + group, 256);
        mbarrier_wait(Shape::values_full(base + step - 1), Shape::phase(base + step - 1));
        multiply_values(step - 1);
        if (TURNS) barrier_arrive(TURN + (group + 1) % WARPGROUPS, 256);
        wgmma_wait<1>();
        wgmma_fence_registers(scores);
        release(Shape::keys_empty(base + step));
        if (step + 1 == steps) release(Shape::queries_empty());
        if (edge && step < masked) make_weights<true, COLS>(scores, largest, weight, correction, seen, column_of(step), args.scale_log2);
        else make_weights<false, COLS>(scores, largest, weight, correction, seen, column_of(step), args.scale_log2);
        wgmma_wait<0>();
        wgmma_fence_registers(sums);
        release(Shape::values_empty(base + step - 1));
        if (spoiled) spoil(step - 1);
        UNROLL
        for (int i = 0; i < D / 2; i++) sums[i] *= correction[i / 2 % 2];
        pack_sums(weights, scores);
    };
    // The last warpgroup gives the first turn, and the first takes the last.
    if (TURNS && group == WARPGROUPS - 1) barrier_arrive(TURN, 256);
    ROLLED
    while (true) {
        mbarrier_wait(Shape::queries_full(), count & 1);
        steps = Shape::work(count)[6];
        if (steps == 0) break;
        const u32 whole = Shape::work(count)[7], masked = steps > whole ? steps - whole : 0;
        UNROLL
        for (int h = 0; h < 2; h++) {
            seen[h] = visible(args, keys(), added(), first() + row + 8 * h);
            largest[h] = -infinity;
            weight[h] = 0.0f;
        }
        UNROLL
        for (int i = 0; i < D / 2; i++) sums[i] = 0.0f;
        mbarrier_wait(Shape::keys_full(base), Shape::phase(base));
        multiply_keys(0);
        wgmma_wait<0>();
        wgmma_fence_registers(scores);
        release(Shape::keys_empty(base));
        if (steps == 1) release(Shape::queries_empty());
        if (masked > 0) make_weights<true, COLS>(scores, largest, weight, correction, seen, column_of(0), args.scale_log2);
        else make_weights<false, COLS>(scores, largest, weight, correction, seen, column_of(0), args.scale_log2);
        pack_sums(weights, scores);
        u32 step = 1;
        for (; step < steps && step <= masked; step++) advance(step, masked, true);
        for (; step < steps; step++) advance(step, masked, false);
        const bool spoiled = steps <= masked && clean(steps - 1);
        mbarrier_wait(Shape::values_full(base + steps - 1), Shape::phase(base + steps - 1));
        multiply_values(steps - 1);
        wgmma_wait<0>();
        wgmma_fence_registers(sums);
        release(Shape::values_empty(base + steps - 1));
        if (spoiled) spoil(steps - 1);

        const u32 rows = added(), query_row = query(), first_row = first(), own_head = head();
        float inverse[2];
        UNROLL
        for (int h = 0; h < 2; h++) {
            float total = weight[h];
            total += shuffle_xor(total, 1);
            total += shuffle_xor(total, 2);
            inverse[h] = 1.0f / total;
            const u32 at = first_row + row + 8 * h;
            if (args.lse && t == 0 && at < rows) args.lse[(query_row + at) * args.lse_stride + own_head] = largest[h] * args.scale + log(total);
        }
        u32 fragments[D / 16][4];
        pack_sums(fragments, sums, inverse[0], inverse[1]);
        // Neighbours of a quad trade pairs, so that each lane stores four columns: the odd ones those of the second chunk of 8.
        const bool odd = t % 2 != 0;
        const u32 first_column = odd ? 8 + 2 * (t - 1) : 2 * t;
        UNROLL
        for (u32 h = 0; h < 2; h++) {
            const u32 at = first_row + row + 8 * h;
            const Global<bf16> to = args.out + (query_row + at) * args.out_stride + own_head * args.head_dim + first_column;
            UNROLL
            for (u32 k = 0; k < D / 16; k++) {
                const u32 left = fragments[k][h], right = fragments[k][2 + h], other = shuffle_xor(odd ? left : right, 1);
                const Vector<u32, 2> pairs{{odd ? other : left, odd ? right : other}};
                if (at < rows && 16 * k + first_column < args.head_dim) store(to + 16 * k, bit_cast<Vector<bf16, 4>>(pairs));
            }
        }
        // All lanes have read what is known of this tile before one lets go of the next one's queries.
        sync_warp();
        base += steps;
        count++;
    }
    if (TURNS && group == 0) barrier_sync(TURN, 256);
}

INSTANCE(attention_forward_sm90<64, 2, 128>)
INSTANCE(attention_forward_sm90<64, 3, 128>)
INSTANCE(attention_forward_sm90<128, 2, 128>)
INSTANCE(attention_forward_sm90<128, 2, 176>)
INSTANCE(attention_forward_sm90<256, 2, 64>)
