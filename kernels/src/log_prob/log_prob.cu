// log_prob: tiles of logits = hidden weight^T that are used while they lie in registers and never stored whole.
//
// A block takes some rows of `hidden` and walks through tiles of 128 vocabulary entries. Tiles of both operands pass through shared memory
// in stages of 128 bytes a row, copied ahead asynchronously across the borders of vocabulary tiles. bf16 is multiplied by tensor cores,
// float by fma in order of k; both leave a thread the same elements of a tile, so that what follows is written once: warp w of a row of
// warps has columns 32 w to 32 w + 31; of them, lane l has columns 8 j + 2 (l % 4) and the next, for j of 0 to 3, of rows l / 4 + 8 i.
//
// Sums over the vocabulary are taken in an order that knows nothing of the number of tokens or of blocks: a state (greatest logit, sum,
// weighted sum) a row, segment of 1024 entries and column of warps is written to memory, and all states of a row are joined in order by
// `log_prob_finish`. A token has the same bits in every batch and at every tile shape.
#include "prelude.cuh"
#include "softmax.cuh"

template <class T> struct LogProbForward {
    Global<float> partials, log_probs, logits;
    Global<const T> hidden, weight;
    Global<const u32> targets;
    Global<const float> inverses;
    u32 tokens, vocabulary, width, tiles;
    u64 hidden_stride, weight_stride, logits_stride;
    float inverse;
};

template <class T> struct LogProbGradient {
    Global<T> d_logits;
    Global<const T> hidden, weight;
    Global<const u32> targets;
    Global<const float> d_log_probs, d_entropy, lse, entropy;
    u32 tokens, vocabulary, width, tiles;
    u64 hidden_stride, weight_stride, d_logits_stride;
    float inverse;
};

struct LogProbFinish {
    Global<float> log_probs, entropy, lse;
    Global<const float> partials;
    Global<const u32> targets;
    u32 tokens, vocabulary, slots;
};

namespace log_prob {

/// Vocabulary entries of a tile.
constexpr u32 TILE = 128;

/// Tiles whose sums one state holds.
constexpr u32 SEGMENT = 8;

/// Columns of warps, each of which keeps states of its own.
constexpr u32 WARP_COLUMNS = 4;

/// Bytes of a row of a stage: 8 chunks of 16 bytes, chunk c of row r at place c ^ (r % 8), so that neither copies nor reads collide in a bank.
constexpr u32 ROW_BYTES = 128;

/// The rows of a block: FRAGMENTS times 16 rows a warp, WARP_ROWS rows of warps.
template <int FRAGMENTS, int WARP_ROWS> struct Shape {
    static constexpr u32 rows = 16 * FRAGMENTS * WARP_ROWS;
    static constexpr u32 threads = 32 * WARP_COLUMNS * WARP_ROWS;
    static constexpr u32 stage_bytes = (rows + TILE) * ROW_BYTES;
    /// As many as fit the 99 KiB that the smallest chips of the tier lend a block.
    static constexpr u32 stages = rows > 64 ? 3 : 4;
};

/// The two factors of the logits.
template <class T> struct Factors {
    Global<const T> hidden, weight;
    u64 hidden_stride, weight_stride;
    u32 tokens, vocabulary, width;
};

/// A chunk of a stage.
template <class T> DEVICE Shared<T> chunk_at(Shared<u8> stage, u32 row, u32 chunk) {
    return (stage + (row * ROW_BYTES + ((chunk ^ (row % 8)) * 16))).template as<T>();
}

/// Starts to copy ROWS rows of 128 bytes, from element `first` on; what lies beyond `row_count` rows or `width` elements becomes zero. Rows
/// that are not aligned to chunks go through registers.
template <class T, u32 ROWS, u32 THREADS, bool ALIGNED>
DEVICE void fetch(Shared<u8> stage, Global<const T> rows, u64 stride, u32 row_count, u32 first, u32 width) {
    constexpr u32 LANES = 16 / sizeof(T);
    UNROLL
    for (u32 i = 0; i < ROWS * 8 / THREADS; i++) {
        const u32 row = i * (THREADS / 8) + thread_index() / 8, chunk = thread_index() % 8, element = first + chunk * LANES;
        const Shared<T> place = chunk_at<T>(stage, row, chunk);
        if constexpr (ALIGNED) {
            const bool valid = row < row_count && element < width;
            copy_async<16>(place, rows + (valid ? row * stride + element : 0), valid);
        } else {
            Vector<T, LANES> values;
            UNROLL
            for (u32 k = 0; k < LANES; k++) {
                const bool valid = row < row_count && element + k < width;
                values[k] = valid ? static_cast<T>(rows[row * stride + element + k]) : from_float<T>(0.0f);
            }
            store(place, values);
        }
    }
}

/// Adds the products of one stage, in order of k.
template <int FRAGMENTS>
DEVICE void multiply_stage(float (&sums)[FRAGMENTS][4][4], Shared<u8> left, Shared<u8> right, u32 first_row, u32 first_column, bf16) {
    UNROLL
    for (u32 k = 0; k < 4; k++) {
        u32 a[FRAGMENTS][4], b[4][2];
        UNROLL
        for (u32 i = 0; i < FRAGMENTS; i++) load_matrix_x4(a[i], chunk_at<bf16>(left, first_row + 16 * i + lane() % 16, 2 * k + lane() / 16));
        UNROLL
        for (u32 j = 0; j < 4; j += 2) {
            u32 pair[4];
            const u32 row = first_column + 8 * j + lane() / 16 * 8 + lane() % 8;
            load_matrix_x4(pair, chunk_at<bf16>(right, row, 2 * k + lane() / 8 % 2));
            b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
        }
        mma_fragments<bf16>(sums, a, b);
    }
}

template <int FRAGMENTS>
DEVICE void multiply_stage(float (&sums)[FRAGMENTS][4][4], Shared<u8> left, Shared<u8> right, u32 first_row, u32 first_column, float) {
    for (u32 chunk = 0; chunk < 8; chunk++) {
        Vector<float, 4> a[2 * FRAGMENTS];
        UNROLL
        for (u32 i = 0; i < 2 * FRAGMENTS; i++) a[i] = load<4>(chunk_at<float>(left, first_row + 8 * i + lane() / 4, chunk));
        UNROLL
        for (u32 j = 0; j < 8; j++) {
            const Vector<float, 4> b = load<4>(chunk_at<float>(right, first_column + 8 * (j / 2) + 2 * (lane() % 4) + j % 2, chunk));
            UNROLL
            for (u32 i = 0; i < 2 * FRAGMENTS; i++) {
                float &sum = sums[i / 2][j / 2][2 * (i % 2) + j % 2];
                UNROLL
                for (u32 k = 0; k < 4; k++) sum = fma(a[i][k], b[k], sum);
            }
        }
    }
}

/// Computes the logits of the block's rows over some tiles and calls `use(tile, sums)` for each tile in order. Row 8 i + l / 4 of the warp
/// and column 8 j + 2 (l % 4) + e are at sums[i / 2][j][2 (i % 2) + e].
template <class T, int FRAGMENTS, int WARP_ROWS, bool ALIGNED, class Use>
DEVICE void project(const Factors<T> &factors, u32 block_row, u32 first_tile, u32 end_tile, Use use) {
    using S = Shape<FRAGMENTS, WARP_ROWS>;
    constexpr u32 ELEMENTS = ROW_BYTES / sizeof(T);
    // A row without elements has one step, of zeros.
    const u32 steps = max(ceil_div(factors.width, ELEMENTS), 1u);
    const u32 first_row = warp() / WARP_COLUMNS * (16 * FRAGMENTS), first_column = warp() % WARP_COLUMNS * (TILE / WARP_COLUMNS);
    const Shared<u8> stages = shared<u8>(0);
    const Global<const T> hidden = factors.hidden + block_row * factors.hidden_stride;

    u32 ahead_tile = first_tile, ahead_step = 0;
    const auto fetch_next = [&](u32 stage) {
        if (ahead_tile < end_tile) {
            const Shared<u8> left = stages + stage * S::stage_bytes, right = left + S::rows * ROW_BYTES;
            const u32 first = ahead_step * ELEMENTS, entry = ahead_tile * TILE;
            fetch<T, S::rows, S::threads, ALIGNED>(left, hidden, factors.hidden_stride, factors.tokens - block_row, first, factors.width);
            fetch<T, TILE, S::threads, ALIGNED>(right, factors.weight + entry * factors.weight_stride, factors.weight_stride,
                                                factors.vocabulary - entry, first, factors.width);
            if (++ahead_step == steps) ahead_step = 0, ahead_tile++;
        }
        copy_async_commit();
    };
    for (u32 stage = 0; stage + 1 < S::stages; stage++) fetch_next(stage);

    u32 stage = 0;
    for (u32 tile = first_tile; tile < end_tile; tile++) {
        float sums[FRAGMENTS][4][4] = {};
        for (u32 step = 0; step < steps; step++) {
            copy_async_wait<S::stages - 2>();
            // All have the stage, and none reads the one before it any more.
            sync_block();
            fetch_next(stage == 0 ? S::stages - 1 : stage - 1);
            const Shared<u8> left = stages + stage * S::stage_bytes;
            multiply_stage<FRAGMENTS>(sums, left, left + S::rows * ROW_BYTES, first_row, first_column, T{});
            stage = stage + 1 == S::stages ? 0 : stage + 1;
        }
        use(tile, sums);
    }
}

}  // namespace log_prob

/// States of every row, segment and column of warps; where asked, the logits themselves, and those of the targets (in `log_probs`). Blocks:
/// rows by `tiles` vocabulary tiles, a multiple of a segment's.
template <class T, int FRAGMENTS, int WARP_ROWS, bool ALIGNED>
KERNEL(128 * WARP_ROWS, 1) void log_prob_forward(const LogProbForward<T> args) {
    using namespace log_prob;
    const u32 block_row = block_index(0) * Shape<FRAGMENTS, WARP_ROWS>::rows, tile_count = ceil_div(args.vocabulary, TILE);
    const u32 first_tile = block_index(1) * args.tiles, end_tile = min(first_tile + args.tiles, tile_count);
    const u32 first_row = block_row + warp() / WARP_COLUMNS * (16 * FRAGMENTS) + lane() / 4;
    const u32 warp_column = warp() % WARP_COLUMNS, slots = ceil_div(tile_count, SEGMENT) * WARP_COLUMNS;

    State states[ceil_div(FRAGMENTS, 2)];
    const Factors<T> factors{args.hidden, args.weight, args.hidden_stride, args.weight_stride, args.tokens, args.vocabulary, args.width};
    project<T, FRAGMENTS, WARP_ROWS, ALIGNED>(factors, block_row, first_tile, end_tile, [&](u32 tile, const float (&sums)[FRAGMENTS][4][4]) {
        const u32 column = tile * TILE + warp_column * (TILE / WARP_COLUMNS) + lane() % 4 * 2;
        UNROLL
        for (u32 i = 0; i < 2 * FRAGMENTS; i++) {
            const u32 row = first_row + 8 * i;
            const bool exists = row < args.tokens;
            const float inverse = args.inverses ? (exists ? static_cast<float>(args.inverses[row]) : 1.0f) : args.inverse;
            float logits[8];
            UNROLL
            for (u32 j = 0; j < 8; j++) logits[j] = multiply(sums[i / 2][j / 2][2 * (i % 2) + j % 2], inverse);
            if (exists && args.logits) {
                UNROLL
                for (u32 j = 0; j < 8; j += 2) {
                    // Rows have room for an even number of entries.
                    if (column + 4 * j < args.vocabulary)
                        store(args.logits + (row * args.logits_stride + column + 4 * j), Vector<float, 2>{{logits[j], logits[j + 1]}});
                }
            }
            if (exists && args.targets) {
                const u32 place = args.targets[row] - column;
                UNROLL
                for (u32 j = 0; j < 8; j++) {
                    if (place == 8 * (j / 2) + j % 2) args.log_probs[row] = logits[j];
                }
            }
            absorb(states[i / 4], i % 4, logits, column, args.vocabulary);
        }
        if ((tile + 1) % SEGMENT == 0 || tile + 1 == tile_count) {
            UNROLL
            for (u32 i = 0; i < 2 * FRAGMENTS; i++) {
                const u64 row = first_row + 8 * i;
                if (lane() % 4 != i % 4) continue;
                State &state = states[i / 4];
                if (row < args.tokens) {
                    const u64 slot = row * slots + tile / SEGMENT * WARP_COLUMNS + warp_column;
                    store(args.partials + 4 * slot, Vector<float, 4>{{state.greatest, state.sum, state.weighted, 0.0f}});
                }
                state = State{};
            }
        }
    });
}

/// The gradient of the loss by the raw logits of some tokens, in storage precision.
template <class T, int FRAGMENTS, int WARP_ROWS, bool ALIGNED>
KERNEL(128 * WARP_ROWS, 1) void log_prob_gradient(const LogProbGradient<T> args) {
    using namespace log_prob;
    const u32 block_row = block_index(0) * Shape<FRAGMENTS, WARP_ROWS>::rows;
    const u32 first_tile = block_index(1) * args.tiles, end_tile = min(first_tile + args.tiles, ceil_div(args.vocabulary, TILE));
    const u32 first_row = block_row + warp() / WARP_COLUMNS * (16 * FRAGMENTS) + lane() / 4;

    const Factors<T> factors{args.hidden, args.weight, args.hidden_stride, args.weight_stride, args.tokens, args.vocabulary, args.width};
    project<T, FRAGMENTS, WARP_ROWS, ALIGNED>(factors, block_row, first_tile, end_tile, [&](u32 tile, const float (&sums)[FRAGMENTS][4][4]) {
        const u32 column = tile * TILE + warp() % WARP_COLUMNS * (TILE / WARP_COLUMNS) + lane() % 4 * 2;
        UNROLL
        for (u32 i = 0; i < 2 * FRAGMENTS; i++) {
            const u32 row = first_row + 8 * i;
            if (row >= args.tokens) continue;
            const float d_log_prob = args.d_log_probs[row], d_entropy = args.d_entropy ? static_cast<float>(args.d_entropy[row]) : 0.0f;
            const float lse = args.lse[row], entropy = args.entropy[row];
            const u32 place = args.targets[row] - column;
            const Global<T> out = args.d_logits + (row * args.d_logits_stride + column);
            UNROLL
            for (u32 j = 0; j < 4; j++) {
                // Rows have room for an even number of entries.
                if (column + 8 * j >= args.vocabulary) continue;
                Vector<T, 2> pair;
                UNROLL
                for (u32 e = 0; e < 2; e++) {
                    const float log_p = fma(sums[i / 2][j][2 * (i % 2) + e], args.inverse, -lse);
                    const float slope = fma(d_entropy, log_p + entropy, d_log_prob);
                    const float hit = place == 8 * j + e ? d_log_prob : 0.0f;
                    pair[e] = from_float<T>(fma(-exp(log_p), slope, hit) * args.inverse);
                }
                store(out + 8 * j, pair);
            }
        }
    });
}

/// Joins the states of each row: lane l those at l, l + 32 and so on, then lanes in a fixed tree. `log_probs` holds the targets' logits.
KERNEL(128) void log_prob_finish(const LogProbFinish args) {
    using namespace log_prob;
    const u32 row = block_index() * 4 + warp();
    if (row >= args.tokens) return;
    State state;
    for (u32 slot = lane(); slot < args.slots; slot += 32) {
        const auto stored = load<4>(args.partials + 4 * (u64(row) * args.slots + slot));
        state = join(state, State{stored[0], stored[1], stored[2]});
    }
    UNROLL
    for (u32 distance = 16; distance > 0; distance /= 2) {
        const State other{shuffle_down(state.greatest, distance), shuffle_down(state.sum, distance), shuffle_down(state.weighted, distance)};
        state = join(state, other);
    }
    if (lane() != 0) return;
    // With logits taken from their maximum, no term is large where the logits are.
    const double log_sum = log(static_cast<double>(state.sum));
    const u32 target = args.targets[row];
    // A row that no token was drawn from has a target beyond the vocabulary.
    const float below = target < args.vocabulary ? args.log_probs[row] - state.greatest : bit_cast<float>(0x7fffffffu);
    args.log_probs[row] = static_cast<float>(static_cast<double>(below) - log_sum);
    args.entropy[row] = static_cast<float>(log_sum - static_cast<double>(state.weighted) / static_cast<double>(state.sum));
    if (args.lse) args.lse[row] = static_cast<float>(static_cast<double>(state.greatest) + log_sum);
}
INSTANCE(log_prob_finish)

INSTANCE(log_prob_forward<bf16, 4, 2, true>)
INSTANCE(log_prob_forward<bf16, 2, 2, true>)
INSTANCE(log_prob_forward<bf16, 1, 1, true>)
INSTANCE(log_prob_forward<bf16, 2, 2, false>)
INSTANCE(log_prob_forward<float, 4, 2, true>)
INSTANCE(log_prob_forward<float, 2, 2, true>)
INSTANCE(log_prob_forward<float, 1, 1, true>)
INSTANCE(log_prob_forward<float, 2, 2, false>)
INSTANCE(log_prob_gradient<bf16, 4, 2, true>)
INSTANCE(log_prob_gradient<bf16, 2, 2, true>)
INSTANCE(log_prob_gradient<bf16, 1, 1, true>)
INSTANCE(log_prob_gradient<bf16, 2, 2, false>)
INSTANCE(log_prob_gradient<float, 4, 2, true>)
INSTANCE(log_prob_gradient<float, 2, 2, true>)
INSTANCE(log_prob_gradient<float, 1, 1, true>)
INSTANCE(log_prob_gradient<float, 2, 2, false>)
