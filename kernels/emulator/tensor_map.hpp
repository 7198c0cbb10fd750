// The description of a tensor for the tensor memory accelerator, as the emulated device packs it into the 128 bytes of a TensorMap.
// `kernels/src/device/tensor_map.rs` writes it and has checked it against the rules of cuTensorMapEncodeTiled.
#pragma once

#include "bulk.hpp"

namespace emulator {

constexpr u32 TENSOR_MAP_MAGIC = 0x50414d54;
constexpr u32 MOST_TENSOR_RANK = 5;

struct EncodedTensorMap {
    u32 magic;
    // An ElementType.
    u8 type;
    u8 rank;
    // Bytes of the swizzle's span: 0, 32, 64 or 128.
    u8 swizzle;
    u8 reserved;
    // With the number of its pointer, like all addresses of a launch.
    u64 address;
    u64 dims[MOST_TENSOR_RANK];
    // Bytes from one element to the next along all axes but the first, whose elements are dense.
    u64 strides[MOST_TENSOR_RANK - 1];
    u16 box[MOST_TENSOR_RANK];
};
static_assert(sizeof(EncodedTensorMap) <= sizeof(TensorMap), "the description fits the hardware's size");

u32 bytes_of(ElementType type);

// Where a byte of a tile lies: 16-byte pieces are exchanged within patterns of 8 rows, by the bits of the address itself.
inline u32 swizzled(u32 offset, u32 span) { return offset ^ ((offset >> 3) & (span == 128 ? 0x70u : span == 64 ? 0x30u : span == 32 ? 0x10u : 0u)); }

// Adds `count` elements to memory that other threads of the host may be adding to.
void add_elements(u8 *to, const u8 *values, u32 count, ElementType type);

} // namespace emulator
