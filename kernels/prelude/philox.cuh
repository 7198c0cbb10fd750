// Counter-based random numbers: the same words as `prime_runtime::random` gives on the host.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once
#include "types.cuh"

/// Four random words of a counter (`high`, `low`) and a key: ten rounds of Philox4x32.
DEVICE Vector<u32, 4> philox(u64 key, u64 high, u64 low) {
    u32 c0 = static_cast<u32>(low), c1 = static_cast<u32>(low >> 32), c2 = static_cast<u32>(high), c3 = static_cast<u32>(high >> 32);
    u32 k0 = static_cast<u32>(key), k1 = static_cast<u32>(key >> 32);
    UNROLL
    for (int round = 0; round < 10; round++) {
        const u64 p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
        c0 = static_cast<u32>(p1 >> 32) ^ c1 ^ k0;
        c1 = static_cast<u32>(p1);
        c2 = static_cast<u32>(p0 >> 32) ^ c3 ^ k1;
        c3 = static_cast<u32>(p0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Vector<u32, 4>{{c0, c1, c2, c3}};
}

/// `prime_runtime::random::block`: four random words of a place. `stream` is a number of `prime_runtime::random::Stream`.
DEVICE Vector<u32, 4> random_block(u64 seed, u32 stream, u64 sequence, u32 position) {
    return philox(seed, static_cast<u64>(stream) << 32 | sequence >> 32, sequence << 32 | position);
}

/// `prime_runtime::random::uniform`: a word as a float in the open interval (0, 1).
DEVICE float uniform(u32 word) { return (static_cast<float>(word >> 9) + 0.5f) * (1.0f / 8388608.0f); }
