// log_prob on Hopper: tiles of logits = hidden weight^T by wgmma, as hopper_gemm.cuh says, used while they lie in registers and never stored whole. Of
// the two warpgroups of a block one multiplies while the other takes exponentials.
//
// Tiles are 128 vocabulary entries wide, whatever the number of tokens, and a token's sums are taken in an order that depends on the vocabulary alone: a
// token has the same bits in every batch. States are those of log_prob.cu, as many a segment: of its tiles the first and third make one, the second
// and fourth another, and so with the other four. Warpgroups take turns, so that the even tiles of a segment are the first one's.
#include "hopper_gemm.cuh"
#include "prelude.cuh"
#include "softmax.cuh"

struct LogProbForwardHopper {
    // Both in pieces of 64 x 64 in the 128-byte swizzle.
    TensorMap hidden, weight;
    Global<float> partials, log_probs, logits;
    Global<const u32> targets;
    Global<const float> inverses;
    u64 logits_stride;
    u32 tokens, vocabulary, width;
    float inverse;
};

struct LogProbGradientHopper {
    // The gradient leaves in slots of 64 rows of 128 bytes.
    TensorMap hidden, weight, d_logits;
    Global<const u32> targets;
    Global<const float> d_log_probs, d_entropy, lse, entropy;
    u32 tokens, vocabulary, width;
    float inverse;
};

namespace log_prob {

/// Vocabulary entries of a tile, tiles of a segment, states of a segment.
constexpr u32 TILE = 128, SEGMENT = 8, STATES = 4;

template <int M, int SHARING> using HopperConfig = hopper::Config<NT, M, int(TILE), 6, true, SHARING>;

/// The segments of rows of tokens that a cluster takes: rows first, so that those which run at the same time share the weight.
template <class C> struct Segments {
    u32 rows, index, count, step;

    DEVICE Segments(u32 tokens, u32 vocabulary)
        : rows(ceil_div(tokens, u32(C::M) * C::CLUSTER)), index(block_index() / C::CLUSTER), count(rows * ceil_div(vocabulary, TILE * SEGMENT)),
          step(block_count() / C::CLUSTER) {}

    DEVICE bool more() const { return index < count; }
    DEVICE bool last() const { return index + step >= count; }
    DEVICE void next() { index += step; }
    DEVICE u32 segment() const { return index / rows; }
    DEVICE u32 first_row() const { return (index % rows * C::CLUSTER + (C::CLUSTER > 1 ? cluster_rank() : 0)) * C::M; }
    /// Tiles of the segment: an even number, so that warpgroups have as many; the last one may lie behind the vocabulary.
    DEVICE u32 tiles(u32 vocabulary) const {
        const u32 tiles = min(SEGMENT, ceil_div(vocabulary, TILE) - segment() * SEGMENT);
        return tiles + tiles % 2;
    }
};

}  // namespace log_prob

/// States of every row and segment; where asked, the logits themselves, and those of the targets (in `log_probs`).
template <int M, int SHARING> KERNEL(384, 1) void log_prob_forward_hopper(const GRID_CONSTANT LogProbForwardHopper args) {
    using namespace log_prob;
    using C = HopperConfig<M, SHARING>;
    hopper::prepare<C>();
    Segments<C> work(args.tokens, args.vocabulary);
    // A row without elements has one step, of zeros.
    const u32 steps = max(ceil_div(args.width, hopper::TERMS), 1u);
    if (hopper::is_producer()) {
        registers_decrease<hopper::PRODUCER_REGISTERS>();
        if (warp_uniform() == 0 && elect_one()) {
            prefetch_tensor_map(args.hidden);
            prefetch_tensor_map(args.weight);
            hopper::Producer<C> producer;
            ROLLED
            for (; work.more(); work.next()) {
                const u32 row = work.first_row(), first = work.segment() * SEGMENT * TILE, tiles = work.tiles(args.vocabulary);
                ROLLED
                for (u32 tile = 0; tile < tiles; tile++) {
                    const u32 entry = first + tile * TILE;
                    producer.load(args.hidden, args.weight, row, entry, entry + TILE / 2, 0, steps);
                }
            }
        }
    } else {
        registers_increase<hopper::CONSUMER_REGISTERS>();
        hopper::Consumer<C> consumer;
        float sums[C::DEEP][TILE / 2];
        const u32 slots = ceil_div(args.vocabulary, TILE * SEGMENT) * STATES;
        bool first = true;
        ROLLED
        for (; work.more(); work.next()) {
            const u32 first_row = work.first_row() + warp() % 4 * 16 + lane() / 4, tiles = work.tiles(args.vocabulary);
            ROLLED
            for (u32 state_of = 0; state_of < 2; state_of++) {
                // The state of the row 64 i + 8 h, which is row 2 i + h of the thread's, is kept by lane 2 i + h of its quad.
                State state;
                ROLLED
                for (u32 tile = state_of * 4 + consumer.index; tile < min(tiles, state_of * 4 + 4); tile += 2) {
                    if (consumer.index == 1) consumer.skip(steps);
                    consumer.await_turn(first && consumer.index == 0);
                    first = false;
                    consumer.multiply(sums, steps);
                    consumer.pass_turn(tile + 1 < tiles || !work.last());
                    consumer.complete(sums);
                    if (consumer.index == 0) consumer.skip(steps);
                    const u32 begin = (work.segment() * SEGMENT + tile) * TILE, column = begin + lane() % 4 * 2;
                    if (begin >= args.vocabulary) continue;
                    UNROLL
                    for (u32 i = 0; i < u32(2 * C::DEEP); i++) {
                        const u32 row = first_row + i / 2 * 64 + i % 2 * 8;
                        const bool exists = row < args.tokens;
                        const float inverse = args.inverses ? (exists ? static_cast<float>(args.inverses[row]) : 1.0f) : args.inverse;
                        float logits[32];
                        UNROLL
                        for (u32 j = 0; j < 32; j++) logits[j] = multiply(sums[i / 2][j / 2 * 4 + i % 2 * 2 + j % 2], inverse);
                        if (exists && args.logits) {
                            UNROLL
                            for (u32 j = 0; j < 32; j += 2) {
                                // Rows have room for an even number of entries.
                                if (column + 4 * j < args.vocabulary)
                                    store(args.logits + (row * args.logits_stride + column + 4 * j), Vector<float, 2>{{logits[j], logits[j + 1]}});
                            }
                        }
                        if (exists && args.targets) {
                            const u32 place = args.targets[row] - column;
                            if (place < TILE) {
                                UNROLL
                                for (u32 j = 0; j < 32; j++) {
                                    if (place == 8 * (j / 2) + j % 2) args.log_probs[row] = logits[j];
                                }
                            }
                        }
                        // Most tiles are whole, and need not ask of each entry whether it exists.
                        if (begin + TILE <= args.vocabulary) absorb(state, i, logits, 0, ~0u);
                        else absorb(state, i, logits, column, args.vocabulary);
                    }
                }
                UNROLL
                for (u32 i = 0; i < u32(2 * C::DEEP); i++) {
                    const u32 row = first_row + i / 2 * 64 + i % 2 * 8;
                    if (lane() % 4 != i || row >= args.tokens) continue;
                    const u64 slot = u64(row) * slots + work.segment() * STATES + state_of * 2 + consumer.index;
                    store(args.partials + 4 * slot, Vector<float, 4>{{state.greatest, state.sum, state.weighted, 0.0f}});
                }
            }
        }
    }
    hopper::finish<C>();
}

/// The gradient of the loss by the raw logits of some tokens, in bfloat16.
template <int M, int SHARING> KERNEL(384, 1) void log_prob_gradient_hopper(const GRID_CONSTANT LogProbGradientHopper args) {
    using namespace log_prob;
    using C = HopperConfig<M, SHARING>;
    hopper::prepare<C>();
    hopper::Walk<C> walk(args.tokens, args.vocabulary, TILE, 1);
    const u32 steps = max(ceil_div(args.width, hopper::TERMS), 1u);
    if (hopper::is_producer()) {
        registers_decrease<hopper::PRODUCER_REGISTERS>();
        if (warp_uniform() == 0 && elect_one()) {
            prefetch_tensor_map(args.hidden);
            prefetch_tensor_map(args.weight);
            prefetch_tensor_map(args.d_logits);
            hopper::Producer<C> producer;
            ROLLED
            for (; walk.more(); walk.next()) {
                u32 m, n;
                walk.place(TILE, m, n);
                producer.load(args.hidden, args.weight, m, n, n + TILE / 2, 0, steps);
            }
        }
    } else {
        registers_increase<hopper::CONSUMER_REGISTERS>();
        hopper::Consumer<C> consumer;
        hopper::Outlet outlet(C::SLOTS_AT, consumer.index);
        float sums[C::DEEP][TILE / 2];
        ROLLED
        for (u32 turn = 0; walk.more(); walk.next(), turn++) {
            if (turn % 2 != consumer.index) {
                consumer.skip(steps);
                continue;
            }
            consumer.await_turn(turn == 0);
            consumer.multiply(sums, steps);
            consumer.pass_turn(!walk.last());
            consumer.complete(sums);
            u32 m, n;
            walk.place(TILE, m, n);
            UNROLL
            for (int i = 0; i < C::DEEP; i++) {
                const u32 row = m + 64 * i + warp() % 4 * 16 + lane() / 4, column = n + lane() % 4 * 2;
                float d_log_prob[2] = {}, d_entropy[2] = {}, lse[2] = {}, entropy[2] = {};
                u32 place[2] = {};
                UNROLL
                for (u32 h = 0; h < 2; h++) {
                    if (row + 8 * h >= args.tokens) continue;
                    d_log_prob[h] = args.d_log_probs[row + 8 * h];
                    if (args.d_entropy) d_entropy[h] = args.d_entropy[row + 8 * h];
                    lse[h] = args.lse[row + 8 * h];
                    entropy[h] = args.entropy[row + 8 * h];
                    place[h] = args.targets[row + 8 * h] - column;
                }
                UNROLL
                for (int s = 0; s < 2; s++) {
                    float x[32];
                    UNROLL
                    for (u32 e = 0; e < 32; e++) {
                        const u32 h = e / 2 % 2, entry = s * 64 + e / 4 * 8 + e % 2;
                        const float log_p = fma(sums[i][s * 32 + e], args.inverse, -lse[h]);
                        const float slope = fma(d_entropy[h], log_p + entropy[h], d_log_prob[h]);
                        const float hit = place[h] == entry ? d_log_prob[h] : 0.0f;
                        x[e] = fma(-exp(log_p), slope, hit) * args.inverse;
                    }
                    outlet.open();
                    hopper::put<bf16>(outlet.slot(), x);
                    outlet.close([&](u32 slot) { tma_store_3d(args.d_logits, shared<bf16>(slot), i32(n + s * 64), i32(m + 64 * i), 0); });
                }
            }
        }
        outlet.drain();
    }
    hopper::finish<C>();
}

INSTANCE(log_prob_forward_hopper<128, SHARE_B>)
INSTANCE(log_prob_forward_hopper<64, SHARE_NONE>)
INSTANCE(log_prob_gradient_hopper<128, SHARE_B>)
INSTANCE(log_prob_gradient_hopper<64, SHARE_NONE>)
