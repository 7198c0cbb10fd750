// Tensor cores of a warpgroup (sm_90a): 128 threads, the first a multiple of 128, multiply what lies in shared memory, asynchronously.
// PTX ISA: "Asynchronous warpgroup level matrix instructions".
//
//     wgmma_fence();                                    // once accumulators or a[] were touched by other code
//     for each step of 16: wgmma_m64<N, bf16>(d, a_descriptor, b_descriptor, accumulate);
//     wgmma_commit();
//     wgmma_wait<0>();                                  // before d is read, or the shared memory overwritten
//
// Accumulators of thread t (of 128), with warp w = t / 32, g = t % 32 / 4, q = t % 4: d[4j], d[4j + 1] = D[16w + g][8j + 2q, 8j + 2q + 1];
// d[4j + 2], d[4j + 3] = D[16w + g + 8][...]. A in registers has the fragment of mma_m16n8k16 for the warp's 16 rows, so that accumulators
// packed in pairs serve as A without any exchange.
#pragma once
#include "pointers.cuh"
#include "wgmma_shapes.cuh"

/// How 16-byte pieces are exchanged within a pattern of 8 rows, as TMA writes them; the value is that of the descriptor's field.
enum class Swizzle : u32 { None = 0, Bytes128 = 1, Bytes64 = 2, Bytes32 = 3 };

/// The descriptor of a matrix of two-byte elements in shared memory (PTX ISA: "Matrix descriptor format"). For the 128-byte swizzle:
/// - rows hold K contiguous (not transposed): 64 elements of K are a row of 128 bytes, 8 rows a pattern of 1024; `stride` is the distance of
///   patterns of 8 rows (1024 if dense), `leading` counts for nothing and is 0. A step of 16 along K adds 32 bytes to the start.
/// - rows hold M or N contiguous (transposed): 64 elements of M or N are a row; `stride` is the distance of patterns of 8 along K (1024 if dense),
///   `leading` that of pieces of 64 along M or N. A step of 16 along K adds 2048 bytes to the start if dense.
/// Without a swizzle, pieces of 8 rows of 16 bytes lie dense; `leading` is the distance of pieces along K, `stride` that along M or N, whatever is
/// contiguous in a row. Distances and start are multiples of 16; patterns start at multiples of their size (1024, 512, 256).
template <class T> DEVICE u64 matrix_descriptor(Shared<T> start, u32 leading_bytes, u32 stride_bytes, Swizzle swizzle) {
    return static_cast<u64>((shared_address(start) & 0x3ffffu) >> 4) | static_cast<u64>((leading_bytes & 0x3ffffu) >> 4) << 16 |
           static_cast<u64>((stride_bytes & 0x3ffffu) >> 4) << 32 | static_cast<u64>(swizzle) << 62;
}

/// The descriptor of the same matrix that starts `bytes` bytes later: the next step along K.
DEVICE u64 advance_descriptor(u64 descriptor, u32 bytes) { return descriptor + (bytes >> 4); }

#ifdef PRIME_DEVICE

/// Orders registers and shared memory touched by other code before the wgmma that follow (PTX ISA: wgmma.fence).
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/// Keeps the compiler from moving accesses of these registers across this point; call it on accumulators and on A in registers before
/// `wgmma_fence`, and on accumulators after `wgmma_wait`. No instruction.
template <int COUNT> DEVICE void wgmma_fence_registers(float (&d)[COUNT]) {
    UNROLL
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}
template <int COUNT> DEVICE void wgmma_fence_registers(u32 (&a)[COUNT]) {
    UNROLL
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+r"(a[i])::"memory");
}

/// Makes a group of the warpgroup's wgmma since the last group (PTX ISA: wgmma.commit_group).
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most N groups, the newest, are not done (PTX ISA: wgmma.wait_group).
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

/// Starts d = a b, or d += a b where `accumulate`, for a of 64 x K, b of K x N, d of 64 x N floats; K is 16 for T = bf16 and f16, 8 for tf32.
/// A and B are described in shared memory; transposed means that M (of A), N (of B) is contiguous instead of K, which tf32 does not allow.
template <int N, class T, bool A_TRANSPOSED = false, bool B_TRANSPOSED = false>
DEVICE void wgmma_m64(float (&d)[N / 2], u64 a, u64 b, bool accumulate) {
    static_assert(!is_same<T, tf32> || (!A_TRANSPOSED && !B_TRANSPOSED), "tf32 operands have K contiguous");
    prelude::Wgmma<N>::template multiply<T, A_TRANSPOSED, B_TRANSPOSED>(d, a, b, static_cast<u32>(accumulate));
}

/// The same with A in registers, which may change only after `wgmma_wait`.
template <int N, class T, bool B_TRANSPOSED = false> DEVICE void wgmma_m64(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate) {
    static_assert(!is_same<T, tf32> || !B_TRANSPOSED, "tf32 operands have K contiguous");
    prelude::Wgmma<N>::template multiply<T, B_TRANSPOSED>(d, a, b, static_cast<u32>(accumulate));
}

#else

using emulator::wgmma_commit;
using emulator::wgmma_fence;
using emulator::wgmma_fence_registers;
using emulator::wgmma_m64;
using emulator::wgmma_wait;

#endif
