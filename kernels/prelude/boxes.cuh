// Tiles of bfloat16 in shared memory as boxes of the tensor memory accelerator leave them in the 128-byte swizzle, and as wgmma reads them (sm_90a).
//
// A tile of ROWS rows of D columns is D / 64 pieces, one after another, each ROWS rows of 64 columns: 128 bytes, whose eight chunks of 16 bytes trade
// places by the row. wgmma takes a tile either way: with K along columns, or with K along rows.
#pragma once
#include "atomics.cuh"
#include "matrix.cuh"
#include "threads.cuh"
#include "wgmma.cuh"

template <int ROWS, int D> struct BoxTile {
    static_assert(ROWS % 8 == 0 && D % 64 == 0, "patterns of 8 rows, pieces of 64 columns");
    static constexpr u32 PIECE = ROWS * 128, BYTES = D / 64 * PIECE, CHUNKS = D / 8;
    /// A multiple of 1024 bytes.
    u32 offset;

    DEVICE Shared<bf16> piece(u32 index) const { return shared<bf16>(offset + index * PIECE); }

    /// 16 bytes: columns 8 `chunk` to 8 `chunk` + 7 of a row.
    DEVICE Shared<bf16> chunk(u32 row, u32 chunk) const {
        return shared<bf16>(offset + chunk / 8 * PIECE + row * 128 + (chunk % 8 ^ row % 8) * 16);
    }

    /// Rows from `row` (a multiple of 8) on, as A or B with K along columns; `along_columns` is what step k of 16 columns adds.
    DEVICE u64 rows(u32 row) const { return matrix_descriptor(shared<bf16>(offset + row * 128), 0, 1024, Swizzle::Bytes128); }
    static DEVICE constexpr u32 along_columns(u32 k) { return k / 4 * PIECE + k % 4 * 32; }

    /// Columns from 64 `piece` on, as A or B transposed, with K along rows; `along_rows` is what step k of 16 rows adds.
    DEVICE u64 columns(u32 piece) const { return matrix_descriptor(shared<bf16>(offset + piece * PIECE), PIECE, 1024, Swizzle::Bytes128); }
    static DEVICE constexpr u32 along_rows(u32 k) { return k * 2048; }

    /// Stores a warp's fragment of 16 rows from `row` on and 16 columns from 16 `k` on, as A of mma_m16n8k16 has it.
    DEVICE void store(u32 row, u32 k, const u32 (&fragment)[4]) const {
        store_matrix_x4(chunk(row + lane() % 16, 2 * k + lane() / 16), fragment);
    }
};

/// Sums of wgmma, 64 rows by 16 steps columns, times a factor for each of a thread's two rows, rounded to the fragments of A in registers.
template <int STEPS> DEVICE void pack_sums(u32 (&fragments)[STEPS][4], const float (&sums)[STEPS * 8], float low = 1.0f, float high = 1.0f) {
    UNROLL
    for (int k = 0; k < STEPS; k++) {
        fragments[k][0] = pack2<bf16>(sums[8 * k] * low, sums[8 * k + 1] * low);
        fragments[k][1] = pack2<bf16>(sums[8 * k + 2] * high, sums[8 * k + 3] * high);
        fragments[k][2] = pack2<bf16>(sums[8 * k + 4] * low, sums[8 * k + 5] * low);
        fragments[k][3] = pack2<bf16>(sums[8 * k + 6] * high, sums[8 * k + 7] * high);
    }
}

/// Makes what lies in a tile harmless to products in which its weights are 0: rows from `rows` on become zeros, and so does each element that is not a
/// finite number; then `spoiled`, a word that only rises, becomes `mark`. THREADS threads share the work; `fence_proxy_async` and a barrier of them must follow.
template <int THREADS, int ROWS, int D> DEVICE void clean_tile(BoxTile<ROWS, D> tile, u32 thread, u32 rows, Shared<u32> spoiled, u32 mark) {
    constexpr u32 INFINITE = 0x7f80u, BOTH = INFINITE << 16 | INFINITE, LOWEST = 0x00800080u, CARRIES = 0x80008000u, CHUNKS = ROWS * D / 8;
    const auto place_of = [&](u32 i) { return tile.chunk(i / (D / 8), i % (D / 8)).template as<u32>(); };
    // Nearly always there is nothing to clean, which shows in few instructions: an exponent of ones carries when one is added to it.
    u32 carries = rows < u32(ROWS) ? CARRIES : 0;
    UNROLL
    for (u32 n = 0; n < (CHUNKS + THREADS - 1) / THREADS; n++) {
        const u32 i = thread + n * THREADS;
        if (CHUNKS % THREADS != 0 && i >= CHUNKS) continue;
        const Vector<u32, 4> words = load<4>(place_of(i));
        UNROLL
        for (int w = 0; w < 4; w++) carries |= (words[w] & BOTH) + LOWEST;
    }
    if ((carries & CARRIES) == 0) return;
    bool found = false;
    ROLLED
    for (u32 i = thread; i < CHUNKS; i += THREADS) {
        Vector<u32, 4> words = load<4>(place_of(i));
        bool changed = false;
        UNROLL
        for (int w = 0; w < 4; w++) {
            u32 kept = words[w];
            if ((kept & INFINITE) == INFINITE) kept &= 0xffff0000u;
            if ((kept >> 16 & INFINITE) == INFINITE) kept &= 0x0000ffffu;
            if (i / (D / 8) >= rows) kept = 0;
            else found |= kept != words[w];
            changed |= kept != words[w];
            words[w] = kept;
        }
        if (changed) store(place_of(i), words);
    }
    if (found) atomic_max(spoiled, mark);
}

/// Makes rows from `rows` on zeros. THREADS threads share the work; `fence_proxy_async` and a barrier of them must follow.
template <int THREADS, int ROWS, int D> DEVICE void clear_rows(BoxTile<ROWS, D> tile, u32 thread, u32 rows) {
    const Vector<u32, 4> zeros{{0, 0, 0, 0}};
    for (u32 i = rows * (D / 8) + thread; i < ROWS * (D / 8); i += THREADS) store(tile.chunk(i / (D / 8), i % (D / 8)).template as<u32>(), zeros);
}
