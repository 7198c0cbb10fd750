#include "atomic.hpp"

namespace emulator {

u8 *atomic_place(u64 address, u32 bytes) {
    const GlobalPlace place = find_global(address, bytes, bytes, true, "an atomic operation");
    check_global_read(place, bytes, "an atomic operation");
    note_global_write(place, bytes, "an atomic operation");
    order_global(place, bytes, AccessKind::ATOMIC, actor_of(current_thread), "an atomic operation");
    Channels &channels = *current_worker->launch->channels;
    channels.publish(place.buffer->start + place.offset, current_thread, false);
    channels.observe(place.buffer->start + place.offset, current_thread, false);
    return place.data();
}

u8 *atomic_place_shared(u32 address, u32 bytes) {
    const SharedPlace place = find_shared(address, bytes, bytes, "an atomic operation");
    check_shared_read(place, bytes, "an atomic operation");
    note_shared_write(place, bytes, "an atomic operation");
    order_shared(place, bytes, AccessKind::ATOMIC, actor_of(current_thread), "an atomic operation");
    return place.data();
}

u32 load_acquire(u64 address) {
    // A thread that waits for another block's word must let its own block run.
    poll();
    const GlobalPlace place = find_global(address, 4, 4, false, "load_acquire");
    check_global_read(place, 4, "load_acquire");
    order_global(place, 4, AccessKind::ATOMIC, actor_of(current_thread), "load_acquire");
    const u32 value = __atomic_load_n(reinterpret_cast<const u32 *>(place.data()), __ATOMIC_SEQ_CST);
    current_worker->launch->channels->observe(place.buffer->start + place.offset, current_thread, true);
    return value;
}

void store_release(u64 address, u32 value) {
    const GlobalPlace place = find_global(address, 4, 4, true, "store_release");
    note_global_write(place, 4, "store_release");
    order_global(place, 4, AccessKind::ATOMIC, actor_of(current_thread), "store_release");
    current_worker->launch->channels->publish(place.buffer->start + place.offset, current_thread, true);
    __atomic_store_n(reinterpret_cast<u32 *>(place.data()), value, __ATOMIC_SEQ_CST);
}

void fence_device() {
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    fence_for_channels(current_thread);
}

} // namespace emulator
