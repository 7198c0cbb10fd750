// Updates of memory that several threads share, and the order in which other blocks see writes.
//
// Floating-point sums are never taken with atomics: their order, and so their bits, would differ from run to run.
#pragma once
#include "pointers.cuh"

#ifdef PRIME_DEVICE

/// Adds to (or keeps the larger, the smaller of) a u32, i32 or u64 of global or shared memory and `value`; returns what was there
/// before. Relaxed: orders no other access (PTX ISA: atom).
template <class T> DEVICE T atomic_add(Global<T> p, Value<T> value) {
    // Integers wrap, so that the sum of signed words is the sum of unsigned ones.
    if constexpr (is_same<T, i64>) return static_cast<i64>(atomicAdd(reinterpret_cast<u64 *>(p.pointer), static_cast<u64>(value)));
    else return atomicAdd(p.pointer, value);
}
template <class T> DEVICE T atomic_add(Shared<T> p, Value<T> value) { return atomicAdd(p.pointer, value); }
template <class T> DEVICE T atomic_max(Global<T> p, Value<T> value) { return atomicMax(p.pointer, value); }
template <class T> DEVICE T atomic_max(Shared<T> p, Value<T> value) { return atomicMax(p.pointer, value); }
template <class T> DEVICE T atomic_min(Global<T> p, Value<T> value) { return atomicMin(p.pointer, value); }
template <class T> DEVICE T atomic_min(Shared<T> p, Value<T> value) { return atomicMin(p.pointer, value); }

/// Writes `desired` where `expected` is; returns what was there before (PTX ISA: atom.cas).
template <class T> DEVICE T atomic_compare_swap(Global<T> p, Value<T> expected, Value<T> desired) {
    return atomicCAS(p.pointer, expected, desired);
}

/// Reads a u32 such that whoever sees a value stored by `store_release` sees all that its thread wrote before (PTX ISA: ld.acquire.gpu).
DEVICE u32 load_acquire(Global<u32> p) {
    u32 value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(__cvta_generic_to_global(p.pointer)) : "memory");
    return value;
}

/// Writes a u32 after all that this thread wrote before (PTX ISA: st.release.gpu).
DEVICE void store_release(Global<u32> p, u32 value) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p.pointer)), "r"(value) : "memory");
}

/// What this thread wrote before is seen by the whole device no later than what it writes after (PTX ISA: fence.acq_rel.gpu).
DEVICE void fence_device() { __threadfence(); }

#else

using emulator::atomic_add;
using emulator::atomic_compare_swap;
using emulator::atomic_max;
using emulator::atomic_min;
using emulator::fence_device;
using emulator::load_acquire;
using emulator::store_release;

#endif
