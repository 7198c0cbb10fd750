// Copies from global to shared memory that a thread starts and waits for itself (cp.async).
#pragma once

#include "async.hpp"
#include "memory.hpp"

namespace emulator {

// A thread's copies that were not waited for yet, oldest first, and where its groups end among them.
struct CopyQueue {
    struct Copy {
        SharedPlace to;
        const u8 *from;
        u32 bytes;
        bool landed;
    };
    std::vector<Copy> copies;
    std::vector<u32> group_ends;
    // Bulk stores and reductions likewise.
    std::vector<AsyncPointer> bulk;
    std::vector<size_t> bulk_ends;

    void clear() {
        copies.clear();
        group_ends.clear();
        bulk.clear();
        bulk_ends.clear();
    }
};

void start_copy(u32 to, u64 from, u32 bytes, bool valid);
void copy_async_commit();
void wait_copies(u32 newest);

template <int BYTES, class T, class U> inline void copy_async(Shared<T> to, Global<U> from, bool valid = true) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
    start_copy(to.address, from.address, BYTES, valid);
}

template <int N> inline void copy_async_wait() { wait_copies(N); }

} // namespace emulator
