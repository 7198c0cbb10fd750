// Copies of the tensor memory accelerator (sm_90): one thread starts them, hardware moves the bytes. This file: runs of contiguous bytes.
//
// Loads tell a barrier of shared memory how many bytes have landed. Stores and reductions are waited for in groups of the thread that started
// them. Both read and write shared memory beside the ordinary path of loads and stores: what a thread stored there before must be followed by
// `fence_proxy_async` and a barrier. PTX ISA: cp.async.bulk, cp.reduce.async.bulk.
#pragma once
#include "barrier.cuh"

/// How long what a copy touches stays in the L2 cache: policies as `createpolicy.fractional` makes them for the whole of an access.
constexpr u64 cache_normal = 0x1000000000000000ull;
constexpr u64 cache_evict_first = 0x12F0000000000000ull;
constexpr u64 cache_evict_last = 0x14F0000000000000ull;

#ifdef PRIME_DEVICE

/// Starts to copy `bytes` bytes, a multiple of 16, from global to shared memory, both at multiples of 16; `barrier` is told of them.
template <class T, class U> DEVICE void bulk_load(Shared<T> to, Global<U> from, u32 bytes, Shared<u64> barrier, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                     shared_address(to)),
                 "l"(__cvta_generic_to_global(from.pointer)), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
                 : "memory");
}

/// `bulk_load` into the same place of every block of the cluster whose bit is set in `blocks`; each block's own barrier at the same place is told.
template <class T, class U>
DEVICE void bulk_load_multicast(Shared<T> to, Global<U> from, u32 bytes, Shared<u64> barrier, u16 blocks, u64 policy = cache_normal) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1], %2, [%3], %4, %5;" ::"r"(
            shared_address(to)),
        "l"(__cvta_generic_to_global(from.pointer)), "r"(bytes), "r"(shared_address(barrier)), "h"(blocks), "l"(policy)
        : "memory");
}

/// Starts to copy `bytes` bytes, a multiple of 16, from shared to global memory, both at multiples of 16, in the open group.
template <class T, class U> DEVICE void bulk_store(Global<T> to, Shared<U> from, u32 bytes, u64 policy = cache_normal) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%0], [%1], %2, %3;" ::"l"(__cvta_generic_to_global(to.pointer)),
                 "r"(shared_address(from)), "r"(bytes), "l"(policy)
                 : "memory");
}

/// Starts to add `bytes` bytes of elements (float, bf16, f16, u32, i32, u64) of shared memory to global memory, addresses and size as in
/// `bulk_store`. Sums of floats from several blocks come in no fixed order unless something else orders them.
template <class T, class U> DEVICE void bulk_reduce_add(Global<T> to, Shared<U> from, u32 bytes, u64 policy = cache_normal) {
    static_assert(is_same<T, Value<U>>, "both sides have one type");
    const u64 address = __cvta_generic_to_global(to.pointer);
    const u32 source = shared_address(from);
#define PRELUDE_REDUCE(TYPE)                                                                                                                  \
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add" TYPE " [%0], [%1], %2, %3;" ::"l"(address), "r"(source), \
                 "r"(bytes), "l"(policy)                                                                                                          \
                 : "memory")
    if constexpr (is_same<T, float>) PRELUDE_REDUCE(".f32");
    else if constexpr (is_same<T, bf16>) PRELUDE_REDUCE(".noftz.bf16");
    else if constexpr (is_same<T, f16>) PRELUDE_REDUCE(".noftz.f16");
    else if constexpr (is_same<T, u32>) PRELUDE_REDUCE(".u32");
    else if constexpr (is_same<T, i32>) PRELUDE_REDUCE(".s32");
    else {
        static_assert(is_same<T, u64>, "reductions add float, bf16, f16, u32, i32 or u64");
        PRELUDE_REDUCE(".u64");
    }
#undef PRELUDE_REDUCE
}

/// Asks for `bytes` bytes, a multiple of 16, to be brought into the L2 cache (PTX ISA: cp.async.bulk.prefetch.L2).
template <class T> DEVICE void bulk_prefetch(Global<T> from, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from.pointer)), "r"(bytes) : "memory");
}

/// Makes a group of the stores and reductions that this thread has started since the last group.
DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

/// Waits until at most N of this thread's groups, the newest, are not done: written and visible to this thread.
template <int N> DEVICE void bulk_wait() { asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory"); }

/// Waits until at most N of this thread's groups, the newest, still read shared memory, so that it may be overwritten.
template <int N> DEVICE void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }

#else

using emulator::bulk_commit;
using emulator::bulk_load;
using emulator::bulk_load_multicast;
using emulator::bulk_prefetch;
using emulator::bulk_reduce_add;
using emulator::bulk_store;
using emulator::bulk_wait;
using emulator::bulk_wait_read;

#endif
