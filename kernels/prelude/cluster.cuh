// Clusters of blocks (sm_90) and how registers move between the warps of a block (sm_90a, sm_100a, sm_120a).
#pragma once
#include "threads.cuh"

#ifdef PRIME_DEVICE

/// The block's number in its cluster, and the number of blocks of the cluster (PTX ISA: %cluster_ctarank, %cluster_nctarank).
DEVICE u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE u32 cluster_size() {
    u32 size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}

/// Counts as come at the cluster's barrier; waits there for all threads of all its blocks. Every thread calls both, in turn
/// (PTX ISA: barrier.cluster, with release and acquire semantics).
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

/// The same place in the shared memory of block `rank` of the cluster, to read and to write with `p[i]`, `load`, `store` (PTX ISA: mapa).
template <class T> DEVICE Shared<T> map_shared(Shared<T> p, u32 rank) {
    u64 remote;
    asm("mapa.u64 %0, %1, %2;" : "=l"(remote) : "l"(p.pointer), "r"(rank));
    return Shared<T>{reinterpret_cast<T *>(remote)};
}

/// One lane of the warp, the same each time, is told yes. All lanes take part. The compiler sees that one thread alone goes on, as
/// it does not see of `lane() == 0` (PTX ISA: elect.sync).
DEVICE bool elect_one() {
    u32 elected;
    asm volatile(
        "{\n"
        ".reg .pred elected;\n"
        "elect.sync _|elected, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, elected;\n"
        "}"
        : "=r"(elected));
    return elected != 0;
}

/// Takes registers from the block's pool until each thread has N, waiting for them; gives back all above N. The four warps of a warpgroup
/// call it together; N is a multiple of 8 from 24 to 256 (PTX ISA: setmaxnreg).
template <int N> DEVICE void registers_increase() {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a thread has 24 to 256 registers, a multiple of 8");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N> DEVICE void registers_decrease() {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a thread has 24 to 256 registers, a multiple of 8");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

#else

using emulator::cluster_arrive;
using emulator::cluster_rank;
using emulator::cluster_size;
using emulator::cluster_wait;
using emulator::elect_one;
using emulator::map_shared;
using emulator::registers_decrease;
using emulator::registers_increase;

#endif
