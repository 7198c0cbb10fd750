// Attention of one tile of 16 query rows whose keys are shared by the warps of a block: each warp keeps, for the fragments of its sums, the largest score and
// the sum of weights so far of two rows, and in the end all are joined in order.
#pragma once
#include "threads.cuh"

/// Turns scores into weights relative to each row's largest score so far, and brings earlier sums to a new largest. `column` is the key of the thread's first
/// score; a row sees the keys below `seen`.
template <int NT, int N>
DEVICE void weigh_scores(float (&scores)[1][NT][4], float (&sums)[1][N][4], float (&largest)[2], float (&weight)[2], const u32 (&seen)[2], u32 column,
                         float scale_log2) {
    UNROLL
    for (int h = 0; h < 2; h++) {
        float most = largest[h];
        UNROLL
        for (int n = 0; n < NT; n++) {
            UNROLL
            for (int e = 2 * h; e < 2 * h + 2; e++) {
                if (column + 8 * n + e % 2 >= seen[h]) scores[0][n][e] = -infinity;
                most = max(most, scores[0][n][e]);
            }
        }
        most = max(most, shuffle_xor(most, 1));
        most = max(most, shuffle_xor(most, 2));
        // A row may see no key of a block: its weights are 2^-infinity.
        const float base = most == -infinity ? 0.0f : most, shift = base * scale_log2;
        const float correction = exp2_fast((largest[h] - base) * scale_log2);
        largest[h] = most;
        float added = 0.0f;
        UNROLL
        for (int n = 0; n < NT; n++) {
            UNROLL
            for (int e = 2 * h; e < 2 * h + 2; e++) {
                scores[0][n][e] = exp2_fast(fma(scores[0][n][e], scale_log2, -shift));
                added += scores[0][n][e];
            }
        }
        weight[h] = fma(weight[h], correction, added);
        UNROLL
        for (int n = 0; n < N; n++) {
            sums[0][n][2 * h] *= correction;
            sums[0][n][2 * h + 1] *= correction;
        }
    }
}

/// Joins the sums of WARPS warps through shared memory from byte `offset` on, which nobody else uses, 64 (D + 10) bytes a warp: `take_lse(row, lse)` is told of each row's log-sum-exp to
/// base 2, `take(row, column, value)` of each value of a row that saw a key.
template <u32 WARPS, int N, class TakeLse, class Take>
DEVICE void join_warps(u32 offset, const float (&sums)[1][N][4], const float (&largest)[2], const float (&weight)[2], float scale_log2, u32 rows,
                       u32 columns, const TakeLse &take_lse, const Take &take) {
    // Rows begin 8 banks apart (or 24), so that the four that a half-warp stores reach all 32.
    constexpr u32 ROWS = 16, D = N * 8, STRIDE = D + 8;
    static_assert(STRIDE % 16 == 8, "rows of a half-warp lie in different banks");
    const u32 g = lane() / 4, t = lane() % 4;
    const Shared<float> all_sums = shared<float>(offset), numbers = all_sums + WARPS * ROWS * STRIDE;
    UNROLL
    for (int h = 0; h < 2; h++) {
        float total = weight[h];
        total += shuffle_xor(total, 1);
        total += shuffle_xor(total, 2);
        if (g + 8 * h >= rows) continue;
        const u32 row = warp() * ROWS + g + 8 * h;
        if (t == 0) store(numbers + row * 2, Vector<float, 2>{{largest[h] * scale_log2, total}});
        UNROLL
        for (int n = 0; n < N; n++) store(all_sums + row * STRIDE + 8 * n + 2 * t, Vector<float, 2>{{sums[0][n][2 * h], sums[0][n][2 * h + 1]}});
    }
    sync_block();
    for (u32 row = warp(); row < rows; row += WARPS) {
        float top = -infinity, factor[WARPS], total = 0.0f;
        UNROLL
        for (u32 w = 0; w < WARPS; w++) top = max(top, static_cast<float>(numbers[(w * ROWS + row) * 2]));
        UNROLL
        for (u32 w = 0; w < WARPS; w++) {
            const Vector<float, 2> pair = load<2>(numbers + (w * ROWS + row) * 2);
            factor[w] = pair[0] == -infinity ? 0.0f : exp2_fast(pair[0] - top);
            total = fma(pair[1], factor[w], total);
        }
        if (lane() == 0) take_lse(row, top + log2(total));
        if (total == 0.0f) continue;
        const float inverse = 1.0f / total;
        for (u32 column = lane(); column < columns; column += 32) {
            float sum = 0.0f;
            UNROLL
            for (u32 w = 0; w < WARPS; w++) sum = fma(all_sums[(w * ROWS + row) * STRIDE + column], factor[w], sum);
            take(row, column, sum * inverse);
        }
    }
}
