// Copies of boxes of tensors by the tensor memory accelerator (sm_90). PTX ISA: cp.async.bulk.tensor, cp.reduce.async.bulk.tensor.
//
// The host describes tensor, box and swizzle in a TensorMap (cuTensorMapEncodeTiled). Coordinates count elements, the fastest axis first, and
// may lie outside: what is loaded from outside is 0, what is stored there is dropped. The place in shared memory is a multiple of 128
// bytes, of 1024 with the 128-byte swizzle (512 and 256 with those of 64 and 32). A box counts its full size in bytes for the barrier, wherever
// it lies. What is said in bulk.cuh of groups, fences and policies holds here.
#pragma once
#include "bulk.cuh"

#ifdef PRIME_DEVICE

/// Brings the descriptor into its cache before the first use (PTX ISA: prefetch.tensormap).
DEVICE void prefetch_tensor_map(const TensorMap &map) { asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory"); }

/// Starts to load the box at the coordinates; `barrier` is told of its bytes.
template <class T>
DEVICE void tma_load_1d(Shared<T> to, const TensorMap &map, Shared<u64> barrier, i32 x, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%4}], [%2], %3;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "l"(policy), "r"(x)
                 : "memory");
}
template <class T>
DEVICE void tma_load_2d(Shared<T> to, const TensorMap &map, Shared<u64> barrier, i32 x, i32 y, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "l"(policy), "r"(x), "r"(y)
                 : "memory");
}
template <class T>
DEVICE void tma_load_3d(Shared<T> to, const TensorMap &map, Shared<u64> barrier, i32 x, i32 y, i32 z, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "l"(policy), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
template <class T>
DEVICE void tma_load_4d(Shared<T> to, const TensorMap &map, Shared<u64> barrier, i32 x, i32 y, i32 z, i32 w, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "l"(policy), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
template <class T>
DEVICE void tma_load_5d(Shared<T> to, const TensorMap &map, Shared<u64> barrier, i32 x, i32 y, i32 z, i32 w, i32 v, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
                 "[%0], [%1, {%4, %5, %6, %7, %8}], [%2], %3;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "l"(policy), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
                 : "memory");
}

/// The same into the same place of every block of the cluster whose bit is set in `blocks`; each block's own barrier at the same place is
/// told of the bytes, and each block expects them itself.
template <class T>
DEVICE void tma_load_1d_multicast(Shared<T> to, const TensorMap &map, Shared<u64> barrier, u16 blocks, i32 x,
                                u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
                 "[%0], [%1, {%5}], [%2], %3, %4;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "h"(blocks), "l"(policy), "r"(x)
                 : "memory");
}
template <class T>
DEVICE void tma_load_2d_multicast(Shared<T> to, const TensorMap &map, Shared<u64> barrier, u16 blocks, i32 x, i32 y,
                                u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
                 "[%0], [%1, {%5, %6}], [%2], %3, %4;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "h"(blocks), "l"(policy), "r"(x), "r"(y)
                 : "memory");
}
template <class T>
DEVICE void tma_load_3d_multicast(Shared<T> to, const TensorMap &map, Shared<u64> barrier, u16 blocks, i32 x, i32 y, i32 z,
                                u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
                 "[%0], [%1, {%5, %6, %7}], [%2], %3, %4;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "h"(blocks), "l"(policy), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
template <class T>
DEVICE void tma_load_4d_multicast(Shared<T> to, const TensorMap &map, Shared<u64> barrier, u16 blocks, i32 x, i32 y, i32 z, i32 w,
                                u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
                 "[%0], [%1, {%5, %6, %7, %8}], [%2], %3, %4;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "h"(blocks), "l"(policy), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
template <class T>
DEVICE void tma_load_5d_multicast(Shared<T> to, const TensorMap &map, Shared<u64> barrier, u16 blocks, i32 x, i32 y, i32 z, i32 w, i32 v,
                                u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint "
                 "[%0], [%1, {%5, %6, %7, %8, %9}], [%2], %3, %4;" ::"r"(shared_address(to)),
                 "l"(&map), "r"(shared_address(barrier)), "h"(blocks), "l"(policy), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
                 : "memory");
}

/// Starts to store the box at the coordinates, in the open group.
template <class T> DEVICE void tma_store_1d(const TensorMap &map, Shared<T> from, i32 x, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%3}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x)
                 : "memory");
}
template <class T> DEVICE void tma_store_2d(const TensorMap &map, Shared<T> from, i32 x, i32 y, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%3, %4}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x), "r"(y)
                 : "memory");
}
template <class T> DEVICE void tma_store_3d(const TensorMap &map, Shared<T> from, i32 x, i32 y, i32 z, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%3, %4, %5}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
template <class T> DEVICE void tma_store_4d(const TensorMap &map, Shared<T> from, i32 x, i32 y, i32 z, i32 w, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%3, %4, %5, %6}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
template <class T> DEVICE void tma_store_5d(const TensorMap &map, Shared<T> from, i32 x, i32 y, i32 z, i32 w, i32 v, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group.L2::cache_hint [%0, {%3, %4, %5, %6, %7}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
                 : "memory");
}

/// Starts to add the box to the tensor, whose elements are of the type that the TensorMap names, in the open group.
template <class T> DEVICE void tma_reduce_add_1d(const TensorMap &map, Shared<T> from, i32 x, u64 policy = cache_normal) {
    asm volatile("cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.bulk_group.L2::cache_hint [%0, {%3}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x)
                 : "memory");
}
template <class T> DEVICE void tma_reduce_add_2d(const TensorMap &map, Shared<T> from, i32 x, i32 y, u64 policy = cache_normal) {
    asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group.L2::cache_hint [%0, {%3, %4}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x), "r"(y)
                 : "memory");
}
template <class T> DEVICE void tma_reduce_add_3d(const TensorMap &map, Shared<T> from, i32 x, i32 y, i32 z, u64 policy = cache_normal) {
    asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group.L2::cache_hint [%0, {%3, %4, %5}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
template <class T> DEVICE void tma_reduce_add_4d(const TensorMap &map, Shared<T> from, i32 x, i32 y, i32 z, i32 w, u64 policy = cache_normal) {
    asm volatile("cp.reduce.async.bulk.tensor.4d.global.shared::cta.add.bulk_group.L2::cache_hint [%0, {%3, %4, %5, %6}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x), "r"(y), "r"(z), "r"(w)
                 : "memory");
}
template <class T> DEVICE void tma_reduce_add_5d(const TensorMap &map, Shared<T> from, i32 x, i32 y, i32 z, i32 w, i32 v, u64 policy = cache_normal) {
    asm volatile("cp.reduce.async.bulk.tensor.5d.global.shared::cta.add.bulk_group.L2::cache_hint [%0, {%3, %4, %5, %6, %7}], [%1], %2;" ::"l"(&map),
                 "r"(shared_address(from)), "l"(policy), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
                 : "memory");
}

#else

using emulator::prefetch_tensor_map;
using emulator::tma_load_1d;
using emulator::tma_load_1d_multicast;
using emulator::tma_load_2d;
using emulator::tma_load_2d_multicast;
using emulator::tma_load_3d;
using emulator::tma_load_3d_multicast;
using emulator::tma_load_4d;
using emulator::tma_load_4d_multicast;
using emulator::tma_load_5d;
using emulator::tma_load_5d_multicast;
using emulator::tma_reduce_add_1d;
using emulator::tma_reduce_add_2d;
using emulator::tma_reduce_add_3d;
using emulator::tma_reduce_add_4d;
using emulator::tma_reduce_add_5d;
using emulator::tma_store_1d;
using emulator::tma_store_2d;
using emulator::tma_store_3d;
using emulator::tma_store_4d;
using emulator::tma_store_5d;

#endif
