// Copies from global to shared memory that do not pass through registers (sm_80). PTX ISA: cp.async.
#pragma once
#include "pointers.cuh"

#ifdef PRIME_DEVICE

/// Starts to copy BYTES (4, 8 or 16) bytes; both addresses are multiples of BYTES. Where `valid` is false the source is not read and
/// zeros are written. 16 bytes pass by the L1 cache (.cg), fewer through it (.ca). The copy is done when `copy_async_wait` of its group
/// has returned, for the thread that started it; other threads see it after a barrier.
template <int BYTES, class T, class U> DEVICE void copy_async(Shared<T> to, Global<U> from, bool valid = true) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    const u32 source_bytes = valid ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                     "l"(__cvta_generic_to_global(from.pointer)), "r"(source_bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(to)),
                     "l"(__cvta_generic_to_global(from.pointer)), "n"(BYTES), "r"(source_bytes)
                     : "memory");
}

/// Makes a group of the copies that this thread has started since the last group (an empty group counts as well).
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most N of this thread's groups, the newest, are not done.
template <int N> DEVICE void copy_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#else

using emulator::copy_async;
using emulator::copy_async_commit;
using emulator::copy_async_wait;

#endif
