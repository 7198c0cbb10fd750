// Pointers to global and to shared memory, and loads and stores of several elements at once.
#pragma once
#include "types.cuh"

#ifdef PRIME_EMULATED
#include "emulator.hpp"
#endif

#ifdef PRIME_DEVICE

namespace prelude {
template <bool condition> struct only_if {};
template <> struct only_if<true> { using type = int; };

/// A type only where U is const T, and T is not const.
template <class T, class U> using AddsConst = typename only_if<is_same<U, const T> && !is_same<U, T>>::type;
}  // namespace prelude

/// A pointer to device memory, 8 bytes, as the host passes it. `Global<const T>` is read only. Indices count elements.
template <class T> struct Global {
    T *pointer;

    template <class I> DEVICE T &operator[](I i) const { return pointer[i]; }
    template <class I> DEVICE Global operator+(I n) const { return Global{pointer + n}; }
    template <class I> DEVICE Global operator-(I n) const { return Global{pointer - n}; }
    template <class I> DEVICE Global &operator+=(I n) { pointer += n; return *this; }
    DEVICE explicit operator bool() const { return pointer != nullptr; }
    template <class U, class = prelude::AddsConst<T, U>> DEVICE operator Global<U>() const { return Global<U>{pointer}; }
    template <class U> DEVICE Global<U> as() const { return Global<U>{reinterpret_cast<U *>(pointer)}; }
};

/// A pointer into the block's dynamic shared memory (or, from `map_shared`, into that of another block of the cluster).
template <class T> struct Shared {
    T *pointer;

    template <class I> DEVICE T &operator[](I i) const { return pointer[i]; }
    template <class I> DEVICE Shared operator+(I n) const { return Shared{pointer + n}; }
    template <class I> DEVICE Shared operator-(I n) const { return Shared{pointer - n}; }
    template <class I> DEVICE Shared &operator+=(I n) { pointer += n; return *this; }
    DEVICE explicit operator bool() const { return pointer != nullptr; }
    template <class U, class = prelude::AddsConst<T, U>> DEVICE operator Shared<U>() const { return Shared<U>{pointer}; }
    template <class U> DEVICE Shared<U> as() const { return Shared<U>{reinterpret_cast<U *>(pointer)}; }
};

namespace prelude {
// 1024 bytes: the pattern of the widest swizzle of TMA and wgmma repeats at that distance.
extern __shared__ __align__(1024) u8 dynamic_shared_memory[];

template <int BYTES> struct Words;
template <> struct Words<2> { using type = u16; };
template <> struct Words<4> { using type = u32; };
template <> struct Words<8> { using type = uint2; };
template <> struct Words<16> { using type = uint4; };
}  // namespace prelude

/// The element at a byte offset of the block's dynamic shared memory. The memory starts at a multiple of 1024 bytes.
template <class T> DEVICE Shared<T> shared(u32 byte_offset) {
    return Shared<T>{reinterpret_cast<T *>(prelude::dynamic_shared_memory + byte_offset)};
}

/// The 32-bit address in the shared window that PTX instructions and matrix descriptors take.
template <class T> DEVICE u32 shared_address(Shared<T> p) { return static_cast<u32>(__cvta_generic_to_shared(p.pointer)); }

namespace prelude {
template <int N, class T> DEVICE Vector<Value<T>, N> load_words(const T *pointer) {
    using W = typename Words<N * sizeof(T)>::type;
    return bit_cast<Vector<Value<T>, N>>(*reinterpret_cast<const W *>(pointer));
}
template <int N, class T> DEVICE void store_words(T *pointer, const Vector<T, N> &v) {
    using W = typename Words<N * sizeof(T)>::type;
    *reinterpret_cast<W *>(pointer) = bit_cast<W>(v);
}
}  // namespace prelude

/// N elements in one access: N * sizeof(T) is 2, 4, 8 or 16, and the address a multiple of it.
template <int N, class T> DEVICE Vector<Value<T>, N> load(Global<T> p) { return prelude::load_words<N>(p.pointer); }
template <int N, class T> DEVICE Vector<Value<T>, N> load(Shared<T> p) { return prelude::load_words<N>(p.pointer); }
template <class T, int N> DEVICE void store(Global<T> p, const Vector<T, N> &v) {
    using W = typename prelude::Words<N * sizeof(T)>::type;
    // Named as one instruction: the compiler stores a vector of halves by the pairs that it was put together from (PTX ISA: st.global.wb).
    if constexpr (sizeof(T) == 2) __stwb(reinterpret_cast<W *>(p.pointer), bit_cast<W>(v));
    else prelude::store_words<N>(p.pointer, v);
}
template <class T, int N> DEVICE void store(Shared<T> p, const Vector<T, N> &v) { prelude::store_words<N>(p.pointer, v); }

/// `load` of memory that nobody writes while the kernel runs: the compiler may move such a load above any store
/// (PTX ISA: ld.global.nc).
template <int N, class T> DEVICE Vector<Value<T>, N> load_constant(Global<T> p) {
    using W = typename prelude::Words<N * sizeof(T)>::type;
    return bit_cast<Vector<Value<T>, N>>(__ldg(reinterpret_cast<const W *>(p.pointer)));
}

/// `load` of memory that is read once: its line is the first to leave the caches (PTX ISA: ld.global.cs).
template <int N, class T> DEVICE Vector<Value<T>, N> load_streaming(Global<T> p) {
    using W = typename prelude::Words<N * sizeof(T)>::type;
    return bit_cast<Vector<Value<T>, N>>(__ldcs(reinterpret_cast<const W *>(p.pointer)));
}

/// `store` of memory that is not read again soon (PTX ISA: st.global.cs).
template <class T, int N> DEVICE void store_streaming(Global<T> p, const Vector<T, N> &v) {
    using W = typename prelude::Words<N * sizeof(T)>::type;
    __stcs(reinterpret_cast<W *>(p.pointer), bit_cast<W>(v));
}

#else

using emulator::Global;
using emulator::load;
using emulator::load_constant;
using emulator::load_streaming;
using emulator::Shared;
using emulator::shared;
using emulator::shared_address;
using emulator::store;
using emulator::store_streaming;

#endif

static_assert(sizeof(Global<float>) == 8, "the host passes an address");
