// Where a block of a packed batch works: kernels start as many blocks as the batch could need, and each finds its sequence and tile on the
// device, so that the host never reads the lengths.
#pragma once
#include "pointers.cuh"
#include "threads.cuh"

/// Where the keys of a sequence lie in a cache: one after another from row `first` on, or, where there is a table, in pages of 2^shift rows, whose
/// numbers are row `first` of the table.
struct CacheRows {
    Global<const u32> table;
    u64 table_stride;
    u32 shift, first;

    DEVICE u64 operator()(u32 key) const {
        if (!table) return u64(first + key);
        const u32 page = table[first * table_stride + (key >> shift)];
        return (u64(page) << shift) + (key & ((1u << shift) - 1));
    }
};

/// Finds the sequence that block `index` works on when sequence s takes `tiles(s)` blocks in a row, and its tile there; false beyond the last.
/// All lanes of a warp take part and get the same answer.
template <class Tiles> DEVICE bool find_tile(u32 index, u32 sequences, const Tiles &tiles, u32 &sequence, u32 &tile) {
    for (u32 first = 0; first < sequences; first += 32) {
        const u32 own = first + lane() < sequences ? tiles(first + lane()) : 0;
        u32 sum = own;
        UNROLL
        for (u32 distance = 1; distance < 32; distance *= 2) {
            const u32 below = shuffle_up(sum, distance);
            if (lane() >= distance) sum += below;
        }
        const u32 reached = ballot(sum > index);
        if (reached != 0) {
            const u32 lowest = 31 - leading_zeros(reached & (0u - reached));
            sequence = first + lowest;
            tile = index - shuffle(sum - own, lowest);
            return true;
        }
        index -= shuffle(sum, 31);
    }
    return false;
}
