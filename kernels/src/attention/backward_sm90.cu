// Gradients of attention for Hopper: d_k and d_v by blocks of keys, with the query heads that share them one after another; d_q in the same pass, where
// every block adds its part to sums in float.
//
// Two warpgroups multiply. Scores and their gradients are computed with keys as rows, so that weights and gradients of scores stay in registers,
// where the products for d_v and d_k read them; only d_q, whose sums are over all keys of the block, needs the gradients of scores in shared memory. A
// warp of the first warpgroup loads, two others carry parts of d_q out (Shah et al., arXiv 2407.08608).
//
// With heads of up to 128 elements a warpgroup takes 64 of 128 keys and holds d_k and d_v of them: 128 of a thread's registers (`consume`). With 256 elements
// each gradient of 64 keys takes as many, so one warpgroup makes weights and holds d_v, the other gradients of scores and d_k, of the same 64 keys
// (`consume_values`, `consume_keys`). A step of 64 queries is then five products of 2^20 multiply-adds, none done twice: 2560 cycles of the tensor cores. It
// moves 488 KiB through shared memory, 3904 cycles: 256 that wgmma reads, 128 for parts of d_q, 64 of queries and d_out, 32 of weights, handed over in float so
// that a gradient of a score is rounded once, 8 of those gradients. And it moves 128 KiB through the second cache, twice as much a multiply-add as with 128
// keys, which registers do not allow. Half of the columns of both gradients a warpgroup would need scores in both: seven products.
// Of 232448 bytes 222056 are taken: keys and values 64 KiB, two stages of queries 64, one of d_out 32, parts of d_q 32, weights 16, gradients of scores 8.
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

/// The place of a chunk of 4 columns in a row of 64 sums. Pairs of chunks trade places, and stay pairs.
DEVICE constexpr u32 place_of(u32 chunk, u32 token) { return chunk ^ token % 4 * 2; }

/// Whether a half-warp that stores 8 bytes a lane of a fragment, four rows of two chunks, reaches each of the 32 banks once.
DEVICE constexpr bool reaches_all_banks(u32 n, u32 first) {
    u32 banks = 0;
    for (u32 lane = 0; lane < 16; lane++) banks |= 3u << (place_of(2 * n + lane % 4 / 2, first + lane / 4) * 4 + lane % 2 * 2) % 32;
    return banks == 0xffffffffu;
}
static_assert(reaches_all_banks(0, 0) && reaches_all_banks(3, 1) && reaches_all_banks(6, 2) && reaches_all_banks(7, 7), "parts of d_q are stored without conflicts");

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
    // Whether each warpgroup holds one of the two gradients of all keys, rather than both of half of them.
    static constexpr bool APART = D > 128;
    static constexpr u32 STAGES = 2, OUT_STAGES = APART ? 1 : 2, SCORE_STAGES = APART ? 1 : 2, OWN_ROWS = APART ? 64 : 128;
    using Own = BoxTile<OWN_ROWS, D>;
    using Passing = BoxTile<QUERIES, D>;
    using Scores = BoxTile<OWN_ROWS, QUERIES>;
    // Of a warpgroup's part of d_q: 64 rows of 64 columns. Pieces of 64 columns that it computes, one after another.
    static constexpr u32 PART = 64 * 64 * 4, PIECES = APART ? D / 128 : 1;
    static constexpr u32 HANDED = APART ? OWN_ROWS * QUERIES * 4 : 0;
    static constexpr u32 VALUES = Own::BYTES, QUERY_ROWS = VALUES + Own::BYTES, OUT_ROWS = QUERY_ROWS + STAGES * Passing::BYTES;
    static constexpr u32 SCORES = OUT_ROWS + OUT_STAGES * Passing::BYTES, PARTS = SCORES + SCORE_STAGES * Scores::BYTES;
    static constexpr u32 WEIGHTS = PARTS + 2 * PART, NUMBERS = WEIGHTS + HANDED, BARRIERS = NUMBERS + (STAGES + OUT_STAGES) * QUERIES * 4;

    static DEVICE Own keys() { return Own{0}; }
    static DEVICE Own values() { return Own{VALUES}; }
    static DEVICE Passing queries(u32 step) { return Passing{QUERY_ROWS + step % STAGES * Passing::BYTES}; }
    static DEVICE Passing d_outs(u32 step) { return Passing{OUT_ROWS + step % OUT_STAGES * Passing::BYTES}; }
    static DEVICE Scores d_scores(u32 step) { return Scores{SCORES + step % SCORE_STAGES * Scores::BYTES}; }
    static DEVICE Shared<float> part(u32 group) { return shared<float>(PARTS + group * PART); }
    // (chunks, threads, 4): a thread's sums, handed over to the thread of the same number.
    static DEVICE Shared<float> weights(u32 thread) { return shared<float>(WEIGHTS) + thread * 4; }
    static DEVICE Shared<float> lse(u32 step) { return shared<float>(NUMBERS + step % STAGES * QUERIES * 4); }
    static DEVICE Shared<float> delta(u32 step) { return shared<float>(NUMBERS + (STAGES + step % OUT_STAGES) * QUERIES * 4); }
    // Of the own keys and values; full and empty ones of queries and of d_out, then of the parts of d_q.
    static DEVICE Shared<u64> own_full() { return shared<u64>(BARRIERS); }
    static DEVICE Shared<u64> queries_full(u32 step) { return shared<u64>(BARRIERS) + (1 + step % STAGES); }
    static DEVICE Shared<u64> queries_empty(u32 step) { return queries_full(step) + STAGES; }
    static DEVICE Shared<u64> d_outs_full(u32 step) { return shared<u64>(BARRIERS) + (1 + 2 * STAGES + step % OUT_STAGES); }
    static DEVICE Shared<u64> d_outs_empty(u32 step) { return d_outs_full(step) + OUT_STAGES; }
    static DEVICE Shared<u64> part_full(u32 group) { return shared<u64>(BARRIERS) + (1 + 2 * STAGES + 2 * OUT_STAGES + group); }
    static DEVICE Shared<u64> part_empty(u32 group) { return part_full(group) + 2; }
    static DEVICE u32 phase(u32 step) { return step / STAGES & 1; }
    static DEVICE u32 out_phase(u32 step) { return step / OUT_STAGES & 1; }
};

/// Barriers of the warpgroups that multiply: of both, of each, and of the one that waits for the other's weights.
constexpr u32 BOTH = 1, OWN = 2, HANDED_OVER = 4;

/// A block's keys, of so many blocks of its sequence, and the queries that see one of them: tiles from `first_tile` on, of one head after another.
struct Work {
    u32 sequence, start, length, key_head, block, blocks, first, first_tile, tiles, steps;
};

/// A consumer's place: its rows of a piece of 64 keys are `row` and `row` + 8.
struct Place {
    u32 thread, group, warp_row, row;
};

DEVICE Place own_place() {
    const u32 warp_row = warp_uniform() % 4 * 16;
    return Place{thread_index() - 128, warp_uniform() / 4 - 1, warp_row, warp_row + lane() / 4};
}

/// Which sums of own rows by passing ones are of a query that sees a key: a thread's own row is `key` and `key` + 8, its first query `query` and the next.
struct Sight {
    u32 query, key, length, causal;

    DEVICE bool operator()(u32 i) const {
        const u32 at = query + i / 4 * 8 + i % 2, of = key + i / 2 % 2 * 8;
        return at < length && of < length && at >= (causal ? of : 0);
    }
};

DEVICE void release(Shared<u64> empty) {
    if (lane() == 0) mbarrier_arrive(empty);
}

/// d = own rows from `row` on times passing rows, over all columns.
template <int D> DEVICE void multiply_rows(float (&d)[QUERIES / 2], typename Layout<D>::Own own, u32 row, typename Layout<D>::Passing passing) {
    using Shape = Layout<D>;
    const u64 a = own.rows(row), b = passing.rows(0);
    wgmma_fence_registers(d);
    wgmma_fence();
    UNROLL
    for (int k = 0; k < D / 16; k++) {
        const u64 a_step = advance_descriptor(a, Shape::Own::along_columns(k)), b_step = advance_descriptor(b, Shape::Passing::along_columns(k));
        wgmma_m64<QUERIES, bf16>(d, a_step, b_step, k != 0);
    }
    wgmma_commit();
}

/// d += weights times passing rows.
template <int D> DEVICE void add_weighted(float (&d)[D / 2], u32 (&a)[QUERIES / 16][4], typename Layout<D>::Passing passing) {
    const u64 b = passing.columns(0);
    wgmma_fence_registers(d);
    UNROLL
    for (int k = 0; k < QUERIES / 16; k++) wgmma_fence_registers(a[k]);
    wgmma_fence();
    UNROLL
    for (int k = 0; k < QUERIES / 16; k++) wgmma_m64<D, bf16, true>(d, a[k], advance_descriptor(b, Layout<D>::Passing::along_rows(k)), true);
    wgmma_commit();
}

/// d = gradients of scores, transposed, times 64 columns of the own keys.
template <int D> DEVICE void multiply_scores(float (&d)[32], typename Layout<D>::Scores scores, u32 piece) {
    using Shape = Layout<D>;
    const u64 a = scores.columns(0), b = Shape::keys().columns(piece);
    wgmma_fence_registers(d);
    wgmma_fence();
    UNROLL
    for (int k = 0; k < int(Shape::OWN_ROWS) / 16; k++) {
        const u64 a_step = advance_descriptor(a, Shape::Scores::along_rows(k)), b_step = advance_descriptor(b, Shape::Own::along_rows(k));
        wgmma_m64<64, bf16, true, true>(d, a_step, b_step, k != 0);
    }
    wgmma_commit();
}

/// Scores become weights.
DEVICE void make_weights(float (&scores)[QUERIES / 2], Shared<float> lse, float scale_log2, bool edge, const Sight &sees) {
    UNROLL
    for (int n = 0; n < QUERIES / 8; n++) {
        const auto pair = load<2>(lse + (8 * n + 2 * (lane() % 4)));
        UNROLL
        for (int e = 0; e < 4; e++) scores[4 * n + e] = exp2_fast(fma(scores[4 * n + e], scale_log2, -pair[e % 2]));
    }
    if (!edge) return;
    UNROLL
    for (int i = 0; i < QUERIES / 2; i++) {
        if (!sees(i)) scores[i] = 0.0f;
    }
}

/// Gradients of weights become gradients of scores; `weight` gives four weights in a row.
template <class Weight>
DEVICE void make_gradients(float (&d_scores)[QUERIES / 2], const Weight &weight, Shared<float> delta, bool edge, const Sight &sees) {
    UNROLL
    for (int n = 0; n < QUERIES / 8; n++) {
        const auto pair = load<2>(delta + (8 * n + 2 * (lane() % 4)));
        const Vector<float, 4> weights = weight(n);
        UNROLL
        for (int e = 0; e < 4; e++) d_scores[4 * n + e] = weights[e] * (d_scores[4 * n + e] - pair[e % 2]);
    }
    if (!edge) return;
    UNROLL
    for (int i = 0; i < QUERIES / 2; i++) {
        if (!sees(i)) d_scores[i] = 0.0f;
    }
}

/// Stores a piece of a warpgroup's sums of d_q where they are carried out from, once what was there has been; sums of that number.
template <int D> DEVICE void store_part(const Place &place, const float (&sums)[32], u32 number, u32 start) {
    using Shape = Layout<D>;
    // Tiles and fragments are of whole patterns of 8 rows: both rows of a thread lie alike in every tile.
    const u32 token = start + lane() / 4, t = lane() % 4;
    mbarrier_wait(Shape::part_empty(place.group), number & 1 ^ 1);
    UNROLL
    for (u32 m = 0; m < 4; m++) {
        const Shared<float> part = Shape::part(place.group) + (place.row * 64 + place_of(2 * m, token) * 4 + t * 2);
        UNROLL
        for (u32 half = 0; half < 4; half++) {
            // 8 rows further, and 8 chunks.
            const u32 h = half % 2, n = half / 2 * 4 + m, i = 4 * n + 2 * h;
            store(part + (h * 512 + half / 2 * 32), Vector<float, 2>{{sums[i], sums[i + 1]}});
        }
    }
    fence_proxy_async();
    sync_warp();
    release(Shape::part_full(place.group));
}

/// Makes what lies behind the end of a sequence in its last box zeros: what weights of 0 are multiplied by must be numbers.
template <int D> DEVICE void clear_passing(u32 thread, u32 step, u32 rows) {
    using Shape = Layout<D>;
    mbarrier_wait(Shape::d_outs_full(step), Shape::out_phase(step));
    clear_rows<256>(Shape::queries(step), thread, rows);
    clear_rows<256>(Shape::d_outs(step), thread, rows);
    fence_proxy_async();
    barrier_sync(BOTH, 256);
}

/// Whether a sum of the block's keys by the tile of queries from `query` on may be of two that do not see each other.
template <int D> DEVICE bool at_edge(const Work &work, u32 query, u32 causal) {
    constexpr u32 KEYS = Layout<D>::OWN_ROWS;
    return work.first + KEYS > work.length || query + QUERIES > work.length || (causal && query < work.first + KEYS - 1);
}

/// Stores a warpgroup's sums of 64 rows by way of rows of a tile that nobody reads any more.
template <int D>
DEVICE void store_gradient(const Work &work, const Place &place, typename Layout<D>::Own tile, u32 row, const float (&sums)[D / 2], float scale,
                           Global<bf16> to, u64 stride, u32 head_dim) {
    u32 fragments[D / 16][4];
    pack_sums(fragments, sums, scale, scale);
    UNROLL
    for (int k = 0; k < D / 16; k++) tile.store(row + place.warp_row, k, fragments[k]);
    barrier_sync(OWN + place.group, 128);
    for (u32 i = place.thread % 128; i < 64 * (D / 8); i += 128) {
        const u32 own = row + i / (D / 8), column = i % (D / 8) * 8;
        if (work.first + own >= work.length || column >= head_dim) continue;
        const u64 token = work.start + work.first + own;
        store(to + (token * stride + work.key_head * head_dim + column), load<8>(tile.chunk(own, i % (D / 8))));
    }
}

/// A warpgroup's work of 64 of the keys, for heads of up to 128 elements.
template <int D> DEVICE void consume(const AttentionBackwardHopper &args, const Work &work) {
    using Shape = Layout<D>;
    // Each warpgroup computes one of the two pieces of a tile of d_q; where there is one, they compute it by turns.
    constexpr bool BY_TURNS = D == 64;
    const Place place = own_place();
    const u32 group = place.group;
    float d_keys[D / 2], d_values[D / 2], scores[QUERIES / 2], d_scores[QUERIES / 2], d_queries[32];
    u32 weights[QUERIES / 16][4], d_weights[QUERIES / 16][4];
    UNROLL
    for (int i = 0; i < D / 2; i++) d_keys[i] = d_values[i] = 0.0f;
    u32 query = work.first_tile * QUERIES;
    ROLLED
    for (u32 step = 0; step < work.steps; step++) {
        mbarrier_wait(Shape::queries_full(step), Shape::phase(step));
        if (query + QUERIES > work.length) clear_passing<D>(place.thread, step, work.length - query);
        multiply_rows<D>(scores, Shape::keys(), group * 64, Shape::queries(step));
        mbarrier_wait(Shape::d_outs_full(step), Shape::out_phase(step));
        multiply_rows<D>(d_scores, Shape::values(), group * 64, Shape::d_outs(step));
        wgmma_wait<1>();
        wgmma_fence_registers(scores);

        const bool edge = at_edge<D>(work, query, args.causal);
        const Sight sees{query + 2 * (lane() % 4), work.first + group * 64 + place.row, work.length, args.causal};
        make_weights(scores, Shape::lse(step), args.scale_log2, edge, sees);
        pack_sums(weights, scores);
        // The tensor cores have this to do while gradients of scores are made.
        add_weighted<D>(d_values, weights, Shape::d_outs(step));
        wgmma_wait<1>();
        wgmma_fence_registers(d_scores);
        const auto weight = [&](int n) { return Vector<float, 4>{{scores[4 * n], scores[4 * n + 1], scores[4 * n + 2], scores[4 * n + 3]}}; };
        make_gradients(d_scores, weight, Shape::delta(step), edge, sees);
        pack_sums(d_weights, d_scores);
        // Two tiles take turns: whoever writes one has passed the barrier of the other, before which all have read this one.
        UNROLL
        for (int k = 0; k < QUERIES / 16; k++) Shape::d_scores(step).store(group * 64 + place.warp_row, k, d_weights[k]);
        fence_proxy_async();
        barrier_sync(BOTH, 256);
        const bool carries = !BY_TURNS || step % 2 == group;
        if (carries) multiply_scores<D>(d_queries, Shape::d_scores(step), BY_TURNS ? 0 : group);
        add_weighted<D>(d_keys, d_weights, Shape::queries(step));
        wgmma_wait<1>();
        wgmma_fence_registers(d_queries);
        release(Shape::d_outs_empty(step));
        if (carries) store_part<D>(place, d_queries, BY_TURNS ? step / 2 : step, work.start);
        wgmma_wait<0>();
        wgmma_fence_registers(d_keys);
        wgmma_fence_registers(d_values);
        release(Shape::queries_empty(step));
        query = query + QUERIES < work.length ? query + QUERIES : work.first_tile * QUERIES;
    }

    // Both warpgroups have read the keys.
    barrier_sync(BOTH, 256);
    store_gradient<D>(work, place, Shape::keys(), group * 64, d_keys, args.scale, args.d_k, args.d_k_stride, args.head_dim);
    store_gradient<D>(work, place, Shape::values(), group * 64, d_values, 1.0f, args.d_v, args.d_v_stride, args.head_dim);
}

/// The first warpgroup's work where each has one gradient: weights of all keys, d_v, and the first half of the columns of d_q.
template <int D> DEVICE void consume_values(const AttentionBackwardHopper &args, const Work &work) {
    using Shape = Layout<D>;
    const Place place = own_place();
    float d_values[D / 2], scores[QUERIES / 2], d_queries[32];
    u32 weights[QUERIES / 16][4];
    UNROLL
    for (int i = 0; i < D / 2; i++) d_values[i] = 0.0f;
    u32 query = work.first_tile * QUERIES;
    ROLLED
    for (u32 step = 0; step < work.steps; step++) {
        mbarrier_wait(Shape::queries_full(step), Shape::phase(step));
        if (query + QUERIES > work.length) clear_passing<D>(place.thread, step, work.length - query);
        multiply_rows<D>(scores, Shape::keys(), 0, Shape::queries(step));
        wgmma_wait<0>();
        wgmma_fence_registers(scores);
        const Sight sees{query + 2 * (lane() % 4), work.first + place.row, work.length, args.causal};
        make_weights(scores, Shape::lse(step), args.scale_log2, at_edge<D>(work, query, args.causal), sees);
        sync_warp();
        release(Shape::queries_empty(step));
        // The other warpgroup has read those of the step before: it has passed the barrier below since.
        UNROLL
        for (int n = 0; n < QUERIES / 8; n++)
            store(Shape::weights(place.thread) + n * 512, Vector<float, 4>{{scores[4 * n], scores[4 * n + 1], scores[4 * n + 2], scores[4 * n + 3]}});
        barrier_arrive(HANDED_OVER, 256);
        pack_sums(weights, scores);
        mbarrier_wait(Shape::d_outs_full(step), Shape::out_phase(step));
        add_weighted<D>(d_values, weights, Shape::d_outs(step));
        barrier_sync(BOTH, 256);
        UNROLL
        for (u32 i = 0; i < Shape::PIECES; i++) {
            multiply_scores<D>(d_queries, Shape::d_scores(step), i);
            if (i == 0) {
                wgmma_wait<1>();
                wgmma_fence_registers(d_values);
                release(Shape::d_outs_empty(step));
            }
            wgmma_wait<0>();
            wgmma_fence_registers(d_queries);
            store_part<D>(place, d_queries, Shape::PIECES * step + i, work.start);
        }
        query = query + QUERIES < work.length ? query + QUERIES : work.first_tile * QUERIES;
    }
    // The other warpgroup has read the values.
    barrier_sync(BOTH, 256);
    store_gradient<D>(work, place, Shape::values(), 0, d_values, 1.0f, args.d_v, args.d_v_stride, args.head_dim);
}

/// The second warpgroup's: gradients of scores, d_k, and the other half of the columns of d_q.
template <int D> DEVICE void consume_keys(const AttentionBackwardHopper &args, const Work &work) {
    using Shape = Layout<D>;
    const Place place = own_place();
    float d_keys[D / 2], d_scores[QUERIES / 2], d_queries[32];
    u32 d_weights[QUERIES / 16][4];
    UNROLL
    for (int i = 0; i < D / 2; i++) d_keys[i] = 0.0f;
    u32 query = work.first_tile * QUERIES;
    ROLLED
    for (u32 step = 0; step < work.steps; step++) {
        mbarrier_wait(Shape::queries_full(step), Shape::phase(step));
        if (query + QUERIES > work.length) clear_passing<D>(place.thread, step, work.length - query);
        mbarrier_wait(Shape::d_outs_full(step), Shape::out_phase(step));
        multiply_rows<D>(d_scores, Shape::values(), 0, Shape::d_outs(step));
        wgmma_wait<0>();
        wgmma_fence_registers(d_scores);
        barrier_sync(HANDED_OVER, 256);
        const Sight sees{query + 2 * (lane() % 4), work.first + place.row, work.length, args.causal};
        const auto weight = [&](int n) { return load<4>(Shape::weights(place.thread - 128) + n * 512); };
        make_gradients(d_scores, weight, Shape::delta(step), at_edge<D>(work, query, args.causal), sees);
        sync_warp();
        release(Shape::d_outs_empty(step));
        pack_sums(d_weights, d_scores);
        // The other warpgroup has read those of the step before: it handed over weights since.
        UNROLL
        for (int k = 0; k < QUERIES / 16; k++) Shape::d_scores(step).store(place.warp_row, k, d_weights[k]);
        fence_proxy_async();
        barrier_sync(BOTH, 256);
        multiply_scores<D>(d_queries, Shape::d_scores(step), Shape::PIECES);
        add_weighted<D>(d_keys, d_weights, Shape::queries(step));
        wgmma_wait<1>();
        wgmma_fence_registers(d_queries);
        store_part<D>(place, d_queries, Shape::PIECES * step, work.start);
        multiply_scores<D>(d_queries, Shape::d_scores(step), Shape::PIECES + 1);
        wgmma_wait<1>();
        wgmma_fence_registers(d_keys);
        release(Shape::queries_empty(step));
        wgmma_wait<0>();
        wgmma_fence_registers(d_queries);
        store_part<D>(place, d_queries, Shape::PIECES * step + 1, work.start);
        query = query + QUERIES < work.length ? query + QUERIES : work.first_tile * QUERIES;
    }
    // The other warpgroup has read the keys.
    barrier_sync(BOTH, 256);
    store_gradient<D>(work, place, Shape::keys(), 0, d_keys, args.scale, args.d_k, args.d_k_stride, args.head_dim);
}

template <int D> KERNEL(384, 1) void attention_backward_sm90(const GRID_CONSTANT AttentionBackwardHopper args) {
    using Shape = Layout<D>;
    constexpr u32 KEYS = Shape::OWN_ROWS, PIECES = Shape::PIECES;
    // The block has 504 for a thread of each warpgroup.
    constexpr int PRODUCER_REGISTERS = Shape::APART ? 40 : 24, CONSUMER_REGISTERS = Shape::APART ? 232 : 240;
    // As in `consume`.
    constexpr bool BY_TURNS = D == 64;
    static_assert(D == 64 || D == 128 || D == 256, "a tile of d_q has as many pieces for each warpgroup, or one");

    Work work;
    u32 tile;
    const auto length_of = [&](u32 s) { return args.cu_seqlens[s + 1] - args.cu_seqlens[s]; };
    if (!find_tile(block_index(), args.sequences, [&](u32 s) { return ceil_div(length_of(s), KEYS); }, work.sequence, tile)) return;
    work.start = args.cu_seqlens[work.sequence];
    work.length = length_of(work.sequence);
    work.key_head = block_index(1);
    work.blocks = ceil_div(work.length, KEYS);
    // Under a causal mask the first block has the most work, and goes first unless turns are taken from the last on.
    work.block = args.turns ? work.blocks - 1 - tile : tile;
    work.first = work.block * KEYS;
    // Queries before the block's first key see none of it under a causal mask.
    work.first_tile = args.causal ? work.first / QUERIES : 0;
    work.tiles = ceil_div(work.length, u32(QUERIES)) - work.first_tile;
    work.steps = args.shared_by * work.tiles;
    const u32 first_head = work.key_head * args.shared_by;

    if (warp_uniform() == 0 && elect_one()) {
        prefetch_tensor_map(args.q);
        prefetch_tensor_map(args.d_out);
        prefetch_tensor_map(args.k);
        prefetch_tensor_map(args.v);
        mbarrier_init(Shape::own_full(), 1);
        for (u32 i = 0; i < Shape::STAGES; i++) {
            mbarrier_init(Shape::queries_full(i), 1);
            mbarrier_init(Shape::queries_empty(i), 8);
        }
        for (u32 i = 0; i < Shape::OUT_STAGES; i++) {
            mbarrier_init(Shape::d_outs_full(i), 1);
            mbarrier_init(Shape::d_outs_empty(i), 8);
        }
        for (u32 group = 0; group < 2; group++) {
            mbarrier_init(Shape::part_full(group), 4);
            mbarrier_init(Shape::part_empty(group), 1);
        }
        fence_barrier_init();
    }
    sync_block();

    if (warp_uniform() < 4) {
        registers_decrease<PRODUCER_REGISTERS>();
        const u32 own = warp_uniform();
        if (own == 0 && elect_one()) {
            mbarrier_arrive_expect(Shape::own_full(), 2 * Shape::Own::BYTES);
            for (u32 piece = 0; piece < D / 64; piece++) {
                const u32 row = work.start + work.first;
                tma_load_3d(Shape::keys().piece(piece), args.k, Shape::own_full(), piece * 64, work.key_head, row, cache_evict_first);
                tma_load_3d(Shape::values().piece(piece), args.v, Shape::own_full(), piece * 64, work.key_head, row, cache_evict_first);
            }
            u32 step = 0;
            ROLLED
            for (u32 head = first_head; head < first_head + args.shared_by; head++) {
                u64 numbers = (u64(head) * args.slots + slot_of(work.start, work.sequence, work.first_tile)) * QUERIES;
                u32 row = work.start + work.first_tile * QUERIES;
                ROLLED
                for (u32 i = 0; i < work.tiles; i++) {
                    const Shared<u64> queries_full = Shape::queries_full(step), d_outs_full = Shape::d_outs_full(step);
                    mbarrier_wait(Shape::queries_empty(step), Shape::phase(step) ^ 1);
                    mbarrier_arrive_expect(queries_full, Shape::Passing::BYTES + QUERIES * 4);
                    for (u32 piece = 0; piece < D / 64; piece++)
                        tma_load_3d(Shape::queries(step).piece(piece), args.q, queries_full, piece * 64, head, row, cache_evict_last);
                    bulk_load(Shape::lse(step), args.lse + numbers, QUERIES * 4, queries_full);
                    mbarrier_wait(Shape::d_outs_empty(step), Shape::out_phase(step) ^ 1);
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
            const u32 group = own - 1, first_piece = BY_TURNS ? 0 : group * PIECES;
            u32 step = 0, part = 0;
            ROLLED
            for (u32 head = first_head; head < first_head + args.shared_by; head++) {
                Global<u32> turn = args.turns + (2 * (u64(head) * args.slots + slot_of(work.start, work.sequence, work.first_tile)) + (BY_TURNS ? 0 : group));
                Global<float> to = args.sums + ((u64(head) * (D / 64) + first_piece) * args.tokens + work.start + work.first_tile * QUERIES) * 64;
                ROLLED
                for (u32 query = work.first_tile * QUERIES; query < work.length; query += QUERIES) {
                    if (!BY_TURNS || step % 2 == group) {
                        // The last block that adds to this tile is the first.
                        const u32 before = (args.causal ? min(query + QUERIES - 1, work.length - 1) / KEYS : work.blocks - 1) - work.block;
                        UNROLL
                        for (u32 i = 0; i < PIECES; i++) {
                            mbarrier_wait(Shape::part_full(group), part & 1);
                            if (args.turns && i == 0) {
                                while (load_acquire(turn) != before) {
                                }
                                fence_proxy_async_global();
                            }
                            const u32 bytes = min(work.length - query, u32(QUERIES)) * 256;
                            bulk_reduce_add(to + u64(i) * args.tokens * 64, Shape::part(group), bytes, cache_evict_last);
                            bulk_commit();
                            // The next part may come while this one is added.
                            bulk_wait_read<0>();
                            mbarrier_arrive(Shape::part_empty(group));
                            if (args.turns && i == PIECES - 1) {
                                bulk_wait<0>();
                                store_release(turn, before + 1);
                            }
                            part++;
                        }
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

    registers_increase<CONSUMER_REGISTERS>();
    mbarrier_wait(Shape::own_full(), 0);
    if (work.first + KEYS > work.length) {
        clear_rows<256>(Shape::keys(), thread_index() - 128, work.length - work.first);
        fence_proxy_async();
        barrier_sync(BOTH, 256);
    }
    if constexpr (!Shape::APART) consume<D>(args, work);
    else if (warp_uniform() < 8) consume_values<D>(args, work);
    else consume_keys<D>(args, work);
}

INSTANCE(attention_prepare_sm90)
INSTANCE(attention_finish_sm90)
INSTANCE(attention_backward_sm90<64>)
INSTANCE(attention_backward_sm90<128>)
INSTANCE(attention_backward_sm90<256>)
