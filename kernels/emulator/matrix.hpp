// Matrices of 8 x 8 two-byte elements between shared memory and registers, and products of fragments, by whole warps.
#pragma once

#include "memory.hpp"

namespace emulator {

void load_matrices(u32 *registers, u32 address, u32 count, bool transposed);
void store_matrices(const u32 *registers, u32 address, u32 count, bool transposed);

template <class T> inline void load_matrix_x1(u32 (&r)[1], Shared<T> row) { load_matrices(r, row.address, 1, false); }
template <class T> inline void load_matrix_x2(u32 (&r)[2], Shared<T> row) { load_matrices(r, row.address, 2, false); }
template <class T> inline void load_matrix_x4(u32 (&r)[4], Shared<T> row) { load_matrices(r, row.address, 4, false); }
template <class T> inline void load_matrix_x1_transposed(u32 (&r)[1], Shared<T> row) { load_matrices(r, row.address, 1, true); }
template <class T> inline void load_matrix_x2_transposed(u32 (&r)[2], Shared<T> row) { load_matrices(r, row.address, 2, true); }
template <class T> inline void load_matrix_x4_transposed(u32 (&r)[4], Shared<T> row) { load_matrices(r, row.address, 4, true); }
template <class T> inline void store_matrix_x1(Shared<T> row, const u32 (&r)[1]) { store_matrices(r, row.address, 1, false); }
template <class T> inline void store_matrix_x2(Shared<T> row, const u32 (&r)[2]) { store_matrices(r, row.address, 2, false); }
template <class T> inline void store_matrix_x4(Shared<T> row, const u32 (&r)[4]) { store_matrices(r, row.address, 4, false); }
template <class T> inline void store_matrix_x1_transposed(Shared<T> row, const u32 (&r)[1]) { store_matrices(r, row.address, 1, true); }
template <class T> inline void store_matrix_x2_transposed(Shared<T> row, const u32 (&r)[2]) { store_matrices(r, row.address, 2, true); }
template <class T> inline void store_matrix_x4_transposed(Shared<T> row, const u32 (&r)[4]) { store_matrices(r, row.address, 4, true); }

// c += a b for each fragment of c, with those of a beside its rows and of b above its columns. The 16 (or 8) products of an element are added in
// float, in rising order of k, to a sum that starts at 0; the sum is then added to c. Hardware adds in an order of its own: compare with a
// tolerance. All of a call's fragments are one meeting of the warp.
void mma_bf16(float *c, const u32 *a, const u32 *b, u32 down, u32 across);
void mma_f16(float *c, const u32 *a, const u32 *b, u32 down, u32 across);
void mma_tf32(float *c, const u32 *a, const u32 *b, u32 down, u32 across);

template <class T> inline void mma(float *c, const u32 *a, const u32 *b, u32 down, u32 across) {
    static_assert(std::is_same<T, bf16>::value || std::is_same<T, f16>::value || std::is_same<T, tf32>::value, "tensor cores multiply bf16, f16 or tf32");
    if constexpr (std::is_same<T, bf16>::value) {
        mma_bf16(c, a, b, down, across);
    } else if constexpr (std::is_same<T, f16>::value) {
        mma_f16(c, a, b, down, across);
    } else {
        mma_tf32(c, a, b, down, across);
    }
}

template <class T> inline void mma_m16n8k16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    static_assert(sizeof(T) == 2, "m16n8k16 multiplies bf16 or f16");
    mma<T>(c, a, b, 1, 1);
}
inline void mma_m16n8k8_tf32(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma<tf32>(c, a, b, 1, 1); }

template <class T, int DOWN, int ACROSS>
inline void mma_fragments(float (&c)[DOWN][ACROSS][4], const u32 (&a)[DOWN][4], const u32 (&b)[ACROSS][2]) {
    mma<T>(&c[0][0][0], &a[0][0], &b[0][0], DOWN, ACROSS);
}

} // namespace emulator
