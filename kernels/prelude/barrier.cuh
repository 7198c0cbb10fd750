// Barriers in shared memory that count threads and bytes (sm_90): how asynchronous copies tell that they have landed.
// PTX ISA: "mbarrier" of the chapter on parallel synchronisation.
//
// A phase of a barrier is complete when all arrivals of `mbarrier_init` and all expected bytes have come; then the next phase begins with
// the same number of arrivals. Phases alternate between parity 0 (the first) and 1. A wait for parity P returns when the phase of parity P
// is complete: a wait for parity 1 of a barrier just made returns at once.
#pragma once
#include "pointers.cuh"

#ifdef PRIME_DEVICE

/// Makes a barrier of `arrivals` arrivals a phase (8 bytes at a multiple of 8). One thread does; then `fence_barrier_init` and a barrier of
/// the block (or of the cluster) before others use it.
DEVICE void mbarrier_init(Shared<u64> barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

/// Makes barriers just initialised known to asynchronous copies and to the cluster (PTX ISA: fence.mbarrier_init).
DEVICE void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

/// One arrival (PTX ISA: mbarrier.arrive, with release semantics).
DEVICE void mbarrier_arrive(Shared<u64> barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

/// One arrival at the barrier at the same place in the block `rank` of the cluster; what this thread has stored before is seen there after.
DEVICE void mbarrier_arrive_cluster(Shared<u64> barrier, u32 rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}

/// As `mbarrier_arrive_cluster`, for who has nothing to show to the other block: it tells that wgmma has read and copies have landed here, but
/// nothing of what this thread itself has loaded or stored, for which the other waits until it has reached memory: too long for a main loop
/// (PTX ISA: mbarrier.arrive with release semantics within the own block).
DEVICE void mbarrier_arrive_cluster_relaxed(Shared<u64> barrier, u32 rank) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.release.cta.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}

/// The phase waits for `bytes` bytes more of asynchronous copies (PTX ISA: mbarrier.expect_tx).
DEVICE void mbarrier_expect(Shared<u64> barrier, u32 bytes) {
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

/// `mbarrier_expect`, then `mbarrier_arrive`.
DEVICE void mbarrier_arrive_expect(Shared<u64> barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}

/// Whether the phase of parity `phase` is complete; waits a while, bounded by the system, before it says no (PTX ISA: mbarrier.try_wait.parity).
/// Writes that came before the arrivals, and the bytes that were expected, are seen after a yes.
DEVICE bool mbarrier_try_wait(Shared<u64> barrier, u32 phase) {
    u32 complete;
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
        "selp.u32 %0, 1, 0, complete;\n"
        "}"
        : "=r"(complete)
        : "r"(shared_address(barrier)), "r"(phase)
        : "memory");
    return complete != 0;
}

/// Waits until the phase of parity `phase` is complete.
DEVICE void mbarrier_wait(Shared<u64> barrier, u32 phase) {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 complete, [%0], %1;\n"
        "@!complete bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(phase)
        : "memory");
}

/// Orders what this thread wrote to shared memory with ordinary stores before what asynchronous copies and wgmma read there after; a barrier
/// must follow where another thread starts them (PTX ISA: fence.proxy.async).
DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// The same for global memory that ordinary stores wrote and asynchronous copies read.
DEVICE void fence_proxy_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

#else

using emulator::fence_barrier_init;
using emulator::fence_proxy_async;
using emulator::fence_proxy_async_global;
using emulator::mbarrier_arrive;
using emulator::mbarrier_arrive_cluster;
using emulator::mbarrier_arrive_cluster_relaxed;
using emulator::mbarrier_arrive_expect;
using emulator::mbarrier_expect;
using emulator::mbarrier_init;
using emulator::mbarrier_try_wait;
using emulator::mbarrier_wait;

#endif
