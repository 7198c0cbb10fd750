// Matrices in shared memory as wgmma's 64-bit descriptors describe them.
#pragma once

#include "tensor_map.hpp"

namespace emulator {

// PTX ISA: "Matrix descriptor format".
struct MatrixDescriptor {
    u32 start;
    u32 leading;
    u32 stride;
    // Bytes of the swizzle's span; 0 for none.
    u32 span;

    static MatrixDescriptor decode(u64 word) {
        constexpr u32 FIELD = 0x3fff;
        constexpr u32 SPANS[] = {0, 128, 64, 32};
        if (word >> 49 & 7) fail("a matrix descriptor with base offset %llu: patterns that start within a pattern's size are not offered", word >> 49 & 7);
        return MatrixDescriptor{u32(word & FIELD) << 4, u32(word >> 16 & FIELD) << 4, u32(word >> 32 & FIELD) << 4, SPANS[word >> 62]};
    }

    // Offset of the 16 bytes that hold, of row `mn`, piece `piece` along K (0 or 1): K is contiguous.
    u32 piece_along_k(u32 mn, u32 piece) const {
        if (span == 0) return start + mn / 8 * stride + mn % 8 * 16 + piece * leading;
        return swizzled(start + mn / 8 * stride + mn % 8 * span + piece * 16, span);
    }

    // Offset of the 16 bytes that hold, of row `k`, the 8 elements of two bytes from `mn` on: M or N is contiguous.
    u32 piece_along_mn(u32 mn, u32 k) const {
        if (span == 0) return start + mn / 8 * stride + k / 8 * leading + k % 8 * 16;
        const u32 elements = span / 2;
        return swizzled(start + mn / elements * leading + k / 8 * stride + k % 8 * span + mn % elements * 2, span);
    }
};

} // namespace emulator
