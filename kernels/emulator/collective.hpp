// What threads of a warp and of a block do together.
#pragma once

#include "machine.hpp"

namespace emulator {

void sync_block();
void sync_warp(u32 mask = 0xffffffffu);
void barrier_sync(u32 id, u32 threads);
void barrier_arrive(u32 id, u32 threads);

// A thread has returned: barriers of the whole block do not wait for it.
void thread_left(Thread *thread);

// The value of lane `from` of the warp, which is below 32.
u32 shuffle_word(u32 value, u32 from);

template <class T> inline T shuffle(T value, u32 from) {
    static_assert(sizeof(T) == 4, "shuffles move words");
    return bit_cast<T>(shuffle_word(bit_cast<u32>(value), from % WARP));
}
template <class T> inline T shuffle_xor(T value, u32 mask) {
    static_assert(sizeof(T) == 4, "shuffles move words");
    const u32 from = lane() ^ mask;
    return bit_cast<T>(shuffle_word(bit_cast<u32>(value), from < WARP ? from : lane()));
}
template <class T> inline T shuffle_up(T value, u32 n) {
    static_assert(sizeof(T) == 4, "shuffles move words");
    return bit_cast<T>(shuffle_word(bit_cast<u32>(value), n <= lane() ? lane() - n : lane()));
}
template <class T> inline T shuffle_down(T value, u32 n) {
    static_assert(sizeof(T) == 4, "shuffles move words");
    return bit_cast<T>(shuffle_word(bit_cast<u32>(value), n < WARP - lane() ? lane() + n : lane()));
}

u32 ballot(bool condition);
inline bool any(bool condition) { return ballot(condition) != 0; }
inline bool all(bool condition) { return ballot(!condition) == 0; }

} // namespace emulator
