// Who a thread is, and what threads of a warp and of a block do together.
#pragma once
#include "math.cuh"
#include "pointers.cuh"

#ifdef PRIME_DEVICE

/// The thread's number in its block, and the number of threads of the block. Blocks have one dimension, and a multiple of 32 threads.
DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 block_threads() { return blockDim.x; }

/// The thread's number in its warp.
DEVICE u32 lane() { return threadIdx.x & 31u; }

/// The warp's number in the block.
DEVICE u32 warp() { return threadIdx.x >> 5; }

/// The block's place in the grid, and the number of blocks, along an axis (0, 1 or 2).
DEVICE u32 block_index(int axis = 0) { return axis == 0 ? blockIdx.x : axis == 1 ? blockIdx.y : blockIdx.z; }
DEVICE u32 block_count(int axis = 0) { return axis == 0 ? gridDim.x : axis == 1 ? gridDim.y : gridDim.z; }

/// Before anything else in a kernel that may be started before the one ahead of it has ended (`Launch::early`): every thread waits for that one's end, and
/// sees all that it wrote; then the next kernel may be started in turn. Nothing before Hopper, where none is started early
/// (PTX ISA: griddepcontrol).
DEVICE void begin_grid() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits for all threads of the block; what they wrote before is seen by all after (PTX ISA: bar.sync).
DEVICE void sync_block() { __syncthreads(); }

/// Waits for the lanes of `mask`, each of which calls this; what they wrote before is seen by them after (PTX ISA: bar.warp.sync).
DEVICE void sync_warp(u32 mask = 0xffffffffu) { __syncwarp(mask); }

/// Waits at one of the block's barriers 1 to 15 (0 is that of `sync_block`) until `threads` threads, whole warps, have come
/// (PTX ISA: bar.sync).
DEVICE void barrier_sync(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

/// Counts as come at a barrier of `threads` threads, without waiting (PTX ISA: bar.arrive).
DEVICE void barrier_arrive(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

/// The value of another lane: of `from`, of lane ^ mask, of lane - n, of lane + n (own value where there is no such lane). Values have
/// 4 bytes, and all 32 lanes take part (PTX ISA: shfl.sync).
template <class T> DEVICE T shuffle(T value, u32 from) {
    static_assert(sizeof(T) == 4, "shuffles move words");
    return bit_cast<T>(__shfl_sync(0xffffffffu, bit_cast<u32>(value), static_cast<int>(from)));
}
template <class T> DEVICE T shuffle_xor(T value, u32 mask) {
    static_assert(sizeof(T) == 4, "shuffles move words");
    return bit_cast<T>(__shfl_xor_sync(0xffffffffu, bit_cast<u32>(value), static_cast<int>(mask)));
}
template <class T> DEVICE T shuffle_up(T value, u32 n) {
    static_assert(sizeof(T) == 4, "shuffles move words");
    return bit_cast<T>(__shfl_up_sync(0xffffffffu, bit_cast<u32>(value), n));
}
template <class T> DEVICE T shuffle_down(T value, u32 n) {
    static_assert(sizeof(T) == 4, "shuffles move words");
    return bit_cast<T>(__shfl_down_sync(0xffffffffu, bit_cast<u32>(value), n));
}

/// The lanes whose condition holds, a bit each; whether it holds in any, in all. All 32 lanes take part (PTX ISA: vote.sync).
DEVICE u32 ballot(bool condition) { return __ballot_sync(0xffffffffu, condition); }
DEVICE bool any(bool condition) { return __any_sync(0xffffffffu, condition); }
DEVICE bool all(bool condition) { return __all_sync(0xffffffffu, condition); }

#else

using emulator::all;
using emulator::any;
using emulator::ballot;
using emulator::barrier_arrive;
using emulator::barrier_sync;
using emulator::begin_grid;
using emulator::block_count;
using emulator::block_index;
using emulator::block_threads;
using emulator::lane;
using emulator::shuffle;
using emulator::shuffle_down;
using emulator::shuffle_up;
using emulator::shuffle_xor;
using emulator::sync_block;
using emulator::sync_warp;
using emulator::thread_index;
using emulator::warp;

#endif

/// `warp()` as the compiler can see to be the same in all lanes, so that what follows from it is kept in uniform registers. All lanes
/// take part.
DEVICE u32 warp_uniform() { return shuffle(warp(), 0); }

/// Shuffles of float64, as two words.
DEVICE double shuffle(double value, u32 from) {
    const auto words = bit_cast<Vector<u32, 2>>(value);
    return bit_cast<double>(Vector<u32, 2>{{shuffle(words[0], from), shuffle(words[1], from)}});
}
DEVICE double shuffle_up(double value, u32 n) {
    const auto words = bit_cast<Vector<u32, 2>>(value);
    return bit_cast<double>(Vector<u32, 2>{{shuffle_up(words[0], n), shuffle_up(words[1], n)}});
}
DEVICE double shuffle_xor(double value, u32 mask) {
    const auto words = bit_cast<Vector<u32, 2>>(value);
    return bit_cast<double>(Vector<u32, 2>{{shuffle_xor(words[0], mask), shuffle_xor(words[1], mask)}});
}

/// The sum (float, double, u32, i32) or largest value over the warp's 32 lanes, in each of them. Pairs at distance 16, 8, 4, 2, 1 are
/// joined, so the order is always the same and all lanes hold the same bits.
template <class T> DEVICE T warp_sum(T value) {
    UNROLL
    for (u32 distance = 16; distance > 0; distance /= 2) value += shuffle_xor(value, distance);
    return value;
}
template <class T> DEVICE T warp_max(T value) {
    UNROLL
    for (u32 distance = 16; distance > 0; distance /= 2) value = max(value, shuffle_xor(value, distance));
    return value;
}

namespace prelude {
template <class T, class Join> DEVICE T block_join(T of_warp, Shared<T> scratch, Join join) {
    // Who is still reading the scratch of an earlier call is waited for first.
    sync_block();
    if (lane() == 0) scratch[warp()] = of_warp;
    sync_block();
    T result = scratch[0];
    for (u32 i = 1; i < block_threads() / 32; i++) result = join(result, static_cast<T>(scratch[i]));
    return result;
}
}  // namespace prelude

/// The sum (or largest value) over all threads of the block, in each of them. `scratch` holds a value for each warp (32 at most) and may
/// be used again by the next call at once. Warps are joined in order.
template <class T> DEVICE T block_sum(T value, Shared<T> scratch) {
    return prelude::block_join(warp_sum(value), scratch, [](T a, T b) { return a + b; });
}
template <class T> DEVICE T block_max(T value, Shared<T> scratch) {
    return prelude::block_join(warp_max(value), scratch, [](T a, T b) { return max(a, b); });
}
