// The gradient of an embedding table. Looking rows up is `gather_forward`.
//
// First every token notes where its row of the table first occurs and how often, by integer atomics, whose results do not depend on their order.
// Then the block of each first occurrence walks over the tokens from there on, in order, until it has added the gradients of all occurrences:
// the same additions in the same order as on the host. A block of any other occurrence ends at once.
#include "prelude.cuh"
#include "rows.cuh"

struct EmbeddingClear {
    Global<u32> first, count;
    u32 vocabulary;
};

struct EmbeddingCount {
    Global<u32> first, count;
    Global<const u32> tokens;
    u32 positions;
};

template <class T> struct EmbeddingBackward {
    Global<float> d_table;
    Global<const T> d_out;
    Global<const u32> tokens, first, count;
    u64 d_table_stride, d_out_stride;
    u32 positions, hidden;
};

KERNEL(256) void embedding_clear(const EmbeddingClear args) {
    const u64 token = static_cast<u64>(block_index()) * 256 + thread_index();
    if (token >= args.vocabulary) return;
    args.first[token] = 0xffffffffu;
    args.count[token] = 0;
}

KERNEL(256) void embedding_count(const EmbeddingCount args) {
    const u64 position = static_cast<u64>(block_index()) * 256 + thread_index();
    if (position >= args.positions) return;
    const u32 token = args.tokens[position];
    atomic_min(args.first + token, static_cast<u32>(position));
    atomic_add(args.count + token, 1u);
}

// Tokens that a block looks at together, and how many of them each lane does.
constexpr u32 CHUNK = 1024, EACH = CHUNK / 256;

template <class T, bool ALIGNED> KERNEL(256) void embedding_backward(const EmbeddingBackward<T> args) {
    constexpr int N = LANES<T>;
    const u32 position = block_index();
    const u32 token = args.tokens[position];
    if (args.first[token] != position) return;

    // A warp's number of occurrences in a chunk, then the positions of all of them, in order.
    Shared<u32> found_by_warp = shared<u32>(0), found = shared<u32>(32);
    const u64 column = (static_cast<u64>(block_index(1)) * 256 + thread_index()) * N;
    const u64 columns = column < args.hidden ? args.hidden - column : 0;
    Global<float> d_table = args.d_table + token * args.d_table_stride + column;
    Vector<float, N> sums = load_part<N, ALIGNED>(d_table, columns);

    u32 left = args.count[token];
    for (u32 start = position; left > 0; start += CHUNK) {
        // Warp w looks at tokens w * 128 to w * 128 + 127 of the chunk, so that the warps' findings follow each other.
        const u32 base = start + warp() * (32 * EACH) + lane();
        u32 votes[EACH], by_warp = 0;
        UNROLL
        for (u32 i = 0; i < EACH; i++) {
            const u64 at = static_cast<u64>(base) + 32 * i;
            votes[i] = ballot(at < args.positions && args.tokens[at] == token);
            by_warp += popcount(votes[i]);
        }
        sync_block();
        if (lane() == 0) found_by_warp[warp()] = by_warp;
        sync_block();
        u32 before = 0, all_found = 0;
        for (u32 w = 0; w < 8; w++) {
            const u32 by = found_by_warp[w];
            if (w < warp()) before += by;
            all_found += by;
        }
        if (all_found == 0) continue;
        UNROLL
        for (u32 i = 0; i < EACH; i++) {
            const u32 below = (1u << lane()) - 1;
            if (votes[i] >> lane() & 1u) found[before + popcount(votes[i] & below)] = base + 32 * i;
            before += popcount(votes[i]);
        }
        sync_block();
        for (u32 i = 0; i < all_found; i++) {
            const u64 row = found[i];
            const Vector<T, N> values = load_part_streaming<N, ALIGNED>(args.d_out + row * args.d_out_stride + column, columns);
            UNROLL
            for (int j = 0; j < N; j++) sums[j] += to_float(values[j]);
        }
        left -= all_found;
    }
    store_part<ALIGNED>(d_table, sums, columns);
}

INSTANCE(embedding_clear)
INSTANCE(embedding_count)
INSTANCE(embedding_backward<float, false>)
INSTANCE(embedding_backward<float, true>)
INSTANCE(embedding_backward<bf16, false>)
INSTANCE(embedding_backward<bf16, true>)
