// Copies that the tensor memory accelerator makes: runs of bytes (bulk) and boxes of tensors (tma).
#pragma once

#include "memory.hpp"

namespace emulator {

// Types that reductions add.
enum class ElementType : u8 { U8, U16, U32, I32, U64, I64, F16, F32, F64, BF16, F32_FTZ, TF32, TF32_FTZ };

template <class T> constexpr ElementType reduced_type() {
    if constexpr (std::is_same<T, float>::value) return ElementType::F32;
    else if constexpr (std::is_same<T, bf16>::value) return ElementType::BF16;
    else if constexpr (std::is_same<T, f16>::value) return ElementType::F16;
    else if constexpr (std::is_same<T, u32>::value) return ElementType::U32;
    else if constexpr (std::is_same<T, i32>::value) return ElementType::I32;
    else {
        static_assert(std::is_same<T, u64>::value, "reductions add float, bf16, f16, u32, i32 or u64");
        return ElementType::U64;
    }
}

void start_bulk_load(u32 to, u64 from, u32 bytes, u32 barrier, u32 blocks);
void start_bulk_store(u64 to, u32 from, u32 bytes);
void start_bulk_reduce(u64 to, u32 from, u32 bytes, ElementType type);
void bulk_commit();
void wait_bulk(u32 newest, bool reads_only);
// A thread returns: its stores must have been waited for.
void check_bulk_done(const Thread *thread);

// Stands for the own block in `blocks`.
constexpr u32 OWN_BLOCK = 0;

template <class T, class U> inline void bulk_load(Shared<T> to, Global<U> from, u32 bytes, Shared<u64> barrier, u64 = 0) {
    start_bulk_load(to.address, from.address, bytes, barrier.address, OWN_BLOCK);
}
template <class T, class U> inline void bulk_load_multicast(Shared<T> to, Global<U> from, u32 bytes, Shared<u64> barrier, u16 blocks, u64 = 0) {
    start_bulk_load(to.address, from.address, bytes, barrier.address, blocks);
}
template <class T, class U> inline void bulk_store(Global<T> to, Shared<U> from, u32 bytes, u64 = 0) {
    start_bulk_store(to.address, from.address, bytes);
}
template <class T, class U> inline void bulk_reduce_add(Global<T> to, Shared<U> from, u32 bytes, u64 = 0) {
    static_assert(std::is_same<T, Value<U>>::value, "both sides have one type");
    start_bulk_reduce(to.address, from.address, bytes, reduced_type<T>());
}
template <class T> inline void bulk_prefetch(Global<T> from, u32 bytes) {
    if (bytes % 16 != 0 || from.address % 16 != 0) fail("bulk_prefetch of %u bytes: address and size must be multiples of 16", bytes);
    find_global(from.address, bytes, 16, false, "bulk_prefetch");
}
template <int N> inline void bulk_wait() { wait_bulk(N, false); }
template <int N> inline void bulk_wait_read() { wait_bulk(N, true); }

void prefetch_tensor_map(const TensorMap &map);
void start_tensor_load(u32 to, const TensorMap &map, u32 barrier, u32 blocks, u32 rank, const i32 *coordinates);
void start_tensor_store(const TensorMap &map, u32 from, u32 rank, const i32 *coordinates, bool add);

// The functions of each rank, whose coordinates are named in TENSOR_PARAMETERS and listed in TENSOR_COORDINATES.
#define EMULATOR_TENSOR(RANK, PARAMETERS, ...)                                                                                             \
    template <class T> inline void tma_load_##RANK##d(Shared<T> to, const TensorMap &map, Shared<u64> barrier, PARAMETERS, u64 = 0) {      \
        const i32 coordinates[] = {__VA_ARGS__};                                                                                           \
        start_tensor_load(to.address, map, barrier.address, OWN_BLOCK, RANK, coordinates);                                                 \
    }                                                                                                                                      \
    template <class T>                                                                                                                     \
    inline void tma_load_##RANK##d_multicast(Shared<T> to, const TensorMap &map, Shared<u64> barrier, u16 blocks, PARAMETERS, u64 = 0) {   \
        const i32 coordinates[] = {__VA_ARGS__};                                                                                           \
        start_tensor_load(to.address, map, barrier.address, blocks, RANK, coordinates);                                                    \
    }                                                                                                                                      \
    template <class T> inline void tma_store_##RANK##d(const TensorMap &map, Shared<T> from, PARAMETERS, u64 = 0) {                        \
        const i32 coordinates[] = {__VA_ARGS__};                                                                                           \
        start_tensor_store(map, from.address, RANK, coordinates, false);                                                                   \
    }                                                                                                                                      \
    template <class T> inline void tma_reduce_add_##RANK##d(const TensorMap &map, Shared<T> from, PARAMETERS, u64 = 0) {                   \
        const i32 coordinates[] = {__VA_ARGS__};                                                                                           \
        start_tensor_store(map, from.address, RANK, coordinates, true);                                                                    \
    }
#define EMULATOR_LIST(...) __VA_ARGS__
EMULATOR_TENSOR(1, EMULATOR_LIST(i32 x), x)
EMULATOR_TENSOR(2, EMULATOR_LIST(i32 x, i32 y), x, y)
EMULATOR_TENSOR(3, EMULATOR_LIST(i32 x, i32 y, i32 z), x, y, z)
EMULATOR_TENSOR(4, EMULATOR_LIST(i32 x, i32 y, i32 z, i32 w), x, y, z, w)
EMULATOR_TENSOR(5, EMULATOR_LIST(i32 x, i32 y, i32 z, i32 w, i32 v), x, y, z, w, v)
#undef EMULATOR_LIST
#undef EMULATOR_TENSOR

} // namespace emulator
