// Segmented scans: a warp a sequence. Each lane takes a few consecutive tokens of a chunk; the lanes' sums are joined in five steps of doubling
// distance, and what came out of a chunk enters the next.
#include "prelude.cuh"

struct Scan {
    Global<float> out;
    Global<const float> x;
    Global<const u32> cu_seqlens;
    u32 sequences;
    float discount;
};

// Tokens of a lane.
constexpr u32 EACH = 4;

// out[p] = x[p] + discount * out[p - 1], where p counts from the end of the sequence (REVERSE) or from its start.
template <bool REVERSE> KERNEL(128) void scan(const Scan args) {
    const u32 sequence = block_index() * 4 + warp();
    if (sequence >= args.sequences) return;
    const u32 start = args.cu_seqlens[sequence], end = args.cu_seqlens[sequence + 1];
    const float discount = args.discount, squared = discount * discount;
    // What a lane's sum is multiplied by on its way to the lane 2^i above it, and what enters the chunk on its way to this lane.
    float powers[5] = {squared * squared}, to_lane = 1.0f;
    UNROLL
    for (int i = 1; i < 5; i++) powers[i] = powers[i - 1] * powers[i - 1];
    UNROLL
    for (int i = 0; i < 5; i++) to_lane = lane() >> i & 1u ? to_lane * powers[i] : to_lane;

    float entering = 0.0f;
    for (u32 chunk = 0; chunk < end - start; chunk += 32 * EACH) {
        const u32 first = chunk + lane() * EACH;
        float x[EACH];
        UNROLL
        for (u32 i = 0; i < EACH; i++) {
            const u32 p = first + i;
            x[i] = 0.0f;
            if (p < end - start) x[i] = args.x[REVERSE ? end - 1 - p : start + p];
        }
        float sum = x[0];
        UNROLL
        for (u32 i = 1; i < EACH; i++) sum = fma(discount, sum, x[i]);
        UNROLL
        for (u32 i = 0; i < 5; i++) {
            const float below = shuffle_up(sum, 1u << i);
            if (lane() >= 1u << i) sum = fma(powers[i], below, sum);
        }
        // The sum before this lane's first token.
        const float of_lanes = shuffle_up(sum, 1);
        float running = fma(to_lane, entering, lane() == 0 ? 0.0f : of_lanes);
        UNROLL
        for (u32 i = 0; i < EACH; i++) {
            const u32 p = first + i;
            running = fma(discount, running, x[i]);
            if (p < end - start) args.out[REVERSE ? end - 1 - p : start + p] = running;
        }
        entering = shuffle(running, 31);
    }
}

INSTANCE(scan<true>)
INSTANCE(scan<false>)
