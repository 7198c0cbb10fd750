// Short vectors of the host's compiler, for the inner loops of matrix operations.
#pragma once

#include "types.cuh"

#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace emulator {

typedef u16 Halves8 __attribute__((vector_size(16)));
typedef u32 Words4 __attribute__((vector_size(16)));
typedef u64 Longs2 __attribute__((vector_size(16)));
typedef u32 Words8 __attribute__((vector_size(32)));
typedef float Floats8 __attribute__((vector_size(32)));

template <class V> inline V load_vector(const void *from) {
    V vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}
template <class V> inline void store_vector(void *to, const V &vector) { std::memcpy(to, &vector, sizeof vector); }

// Rows become columns: word j of row i and word i of row j change places.
inline void transpose(Words4 &r0, Words4 &r1, Words4 &r2, Words4 &r3) {
    const Words4 low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5), high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
    const Words4 low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5), high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
    r0 = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
    r1 = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
    r2 = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
    r3 = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}

// The same for 8 rows of 8 two-byte elements.
inline void transpose(Halves8 (&r)[8]) {
    Halves8 a[8], b[8];
    for (int i = 0; i < 4; i++) {
        a[2 * i] = __builtin_shufflevector(r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
        a[2 * i + 1] = __builtin_shufflevector(r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 4; i++) {
        b[2 * i] = __builtin_shufflevector(a[i], a[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
        b[2 * i + 1] = __builtin_shufflevector(a[i], a[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    for (int i = 0; i < 4; i++) {
        r[2 * i] = __builtin_shufflevector(b[i], b[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
        r[2 * i + 1] = __builtin_shufflevector(b[i], b[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
}

// Eight elements of T (bf16 or f16) as floats.
template <class T> inline Floats8 floats_of(Halves8 halves) {
    if constexpr (is_same<T, bf16>) {
        return bit_cast<Floats8>(__builtin_convertvector(halves, Words8) << 16);
    } else {
#if defined(__F16C__)
        return bit_cast<Floats8>(_mm256_cvtph_ps(bit_cast<__m128i>(halves)));
#else
        Floats8 result;
        for (int i = 0; i < 8; i++) result[i] = to_float(f16{halves[i]});
        return result;
#endif
    }
}

} // namespace emulator
