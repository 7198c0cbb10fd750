#include "atomic.hpp"

namespace emulator {

u8 *atomic_place(u64 address, u32 bytes) {
    const GlobalPlace place = find_global(address, bytes, bytes, true, "an atomic operation");
    check_global_read(place, bytes, "an atomic operation");
    note_global_write(place, bytes, "an atomic operation");
    return place.data();
}

u8 *atomic_place_shared(u32 address, u32 bytes) {
    const SharedPlace place = find_shared(address, bytes, bytes, "an atomic operation");
    check_shared_read(place, bytes, "an atomic operation");
    note_shared_write(place, bytes, "an atomic operation");
    return place.data();
}

u32 load_acquire(u64 address) {
    // A thread that waits for another block's word must let its own block run.
    poll();
    const GlobalPlace place = find_global(address, 4, 4, false, "load_acquire");
    check_global_read(place, 4, "load_acquire");
    return __atomic_load_n(reinterpret_cast<const u32 *>(place.data()), __ATOMIC_SEQ_CST);
}

void store_release(u64 address, u32 value) {
    const GlobalPlace place = find_global(address, 4, 4, true, "store_release");
    note_global_write(place, 4, "store_release");
    __atomic_store_n(reinterpret_cast<u32 *>(place.data()), value, __ATOMIC_SEQ_CST);
}

void fence_device() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

} // namespace emulator
