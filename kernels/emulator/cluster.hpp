// Clusters of blocks, grids that begin early, and the pool of registers of a block.
#pragma once

#include "memory.hpp"

namespace emulator {

u32 cluster_rank();
u32 cluster_size();
void cluster_arrive();
void cluster_wait();
u32 map_address(u32 address, u32 rank);
bool elect_one();
// The thread has waited for the grid ahead.
void begin_grid();
void change_registers(u32 count, bool increase);

// Registers that each thread of a block of that many has at first: what the multiprocessor's 65536 allow, in steps of 8.
u32 registers_at_start(u32 threads);
// A thread has returned: the barrier of the cluster does not wait for it.
void cluster_thread_left(Thread *thread);

template <class T> inline Shared<T> map_shared(Shared<T> p, u32 rank) { return Shared<T>{map_address(p.address, rank)}; }
template <int N> inline void registers_increase() {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a thread has 24 to 256 registers, a multiple of 8");
    change_registers(N, true);
}
template <int N> inline void registers_decrease() {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a thread has 24 to 256 registers, a multiple of 8");
    change_registers(N, false);
}

} // namespace emulator
