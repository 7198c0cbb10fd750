// Updates of memory that several threads share.
#pragma once

#include "memory.hpp"

namespace emulator {

// The place of an atomic operation, after the checks of a read and a write. `release` and `acquire` give the operation an order of memory.
u8 *atomic_place(u64 address, u32 bytes);
u8 *atomic_place_shared(u32 address, u32 bytes);

template <class T> inline u8 *place_of(Global<T> p) { return atomic_place(p.address, sizeof(T)); }
template <class T> inline u8 *place_of(Shared<T> p) { return atomic_place_shared(p.address, sizeof(T)); }

// Replaces the value by `change(value)` in one step; returns the value before.
template <class T, class Change> inline T replace(u8 *place, Change change) {
    static_assert(std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "atomics take integers of 4 or 8 bytes");
    T *value = reinterpret_cast<T *>(place);
    T before = __atomic_load_n(value, __ATOMIC_SEQ_CST);
    T after = change(before);
    while (!__atomic_compare_exchange_n(value, &before, after, true, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) after = change(before);
    return before;
}

template <template <class> class Pointer, class T> inline T atomic_add(Pointer<T> p, Value<T> value) {
    using Unsigned = std::make_unsigned_t<T>;
    return replace<T>(place_of(p), [value](T before) { return T(Unsigned(before) + Unsigned(value)); });
}
template <template <class> class Pointer, class T> inline T atomic_max(Pointer<T> p, Value<T> value) {
    return replace<T>(place_of(p), [value](T before) { return before > value ? before : value; });
}
template <template <class> class Pointer, class T> inline T atomic_min(Pointer<T> p, Value<T> value) {
    return replace<T>(place_of(p), [value](T before) { return before < value ? before : value; });
}
template <template <class> class Pointer, class T> inline T atomic_compare_swap(Pointer<T> p, Value<T> expected, Value<T> desired) {
    const T before = replace<T>(place_of(p), [=](T now) { return now == expected ? desired : now; });
    // Threads that wait by trying again must let the others run.
    if (before != expected) poll();
    return before;
}

u32 load_acquire(u64 address);
void store_release(u64 address, u32 value);
template <class T> inline u32 load_acquire(Global<T> p) {
    static_assert(sizeof(T) == 4, "load_acquire reads a word");
    return load_acquire(p.address);
}
inline void store_release(Global<u32> p, u32 value) { store_release(p.address, value); }
void fence_device();

} // namespace emulator
