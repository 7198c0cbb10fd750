// Barriers in shared memory that count arrivals and bytes (mbarrier), and the fences around asynchronous copies.
#pragma once

#include "cluster.hpp"
#include "memory.hpp"

namespace emulator {

void mbarrier_init(Shared<u64> barrier, u32 arrivals);
void fence_barrier_init();
void mbarrier_arrive(Shared<u64> barrier);
void mbarrier_arrive_cluster(Shared<u64> barrier, u32 rank);
void mbarrier_arrive_cluster_relaxed(Shared<u64> barrier, u32 rank);
void mbarrier_expect(Shared<u64> barrier, u32 bytes);
void mbarrier_arrive_expect(Shared<u64> barrier, u32 bytes);
bool mbarrier_try_wait(Shared<u64> barrier, u32 phase);
void mbarrier_wait(Shared<u64> barrier, u32 phase);
void fence_proxy_async();
void fence_proxy_async_global();

// A copy names a barrier of the own block or (by its mapped address) of another; later its bytes land there.
SharedPlace find_copy_barrier(u32 address, const char *what);
void land_bytes(const SharedPlace &barrier, u32 bytes, const Knowledge &knowledge);

} // namespace emulator
