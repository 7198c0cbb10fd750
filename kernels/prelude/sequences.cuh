// Where a block of a packed batch works: kernels start as many blocks as the batch could need, and each finds its sequence and tile on the
// device, so that the host never reads the lengths.
#pragma once
#include "threads.cuh"

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
