// Tensor cores of one warp (sm_80) and the moves between shared memory and their fragments. All 32 lanes take part in each.
//
// Fragments of m16n8k16, with g = lane / 4 and t = lane % 4 (PTX ISA: "Matrix Fragments for mma.m16n8k16"):
//   a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t, 2t+1]   a[2] = A[g][2t+8, 2t+9]   a[3] = A[g+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][g]   b[1] = B[2t+8, 2t+9][g]
//   c[0], c[1] = C[g][2t, 2t+1]   c[2], c[3] = C[g+8][2t, 2t+1]
#pragma once
#include "pointers.cuh"

#ifdef PRIME_DEVICE

/// Loads n matrices of 8 x 8 two-byte elements. Lane i of the i/8-th group of 8 lanes gives the address of row i % 8 of matrix i / 8, 16
/// bytes at a multiple of 16 (lanes beyond n * 8 give any valid address). Lane l receives elements 2(l%4), 2(l%4)+1 of row l/4 of each
/// matrix; `_transposed`: rows 2(l%4), 2(l%4)+1 of column l/4 (PTX ISA: ldmatrix).
template <class T> DEVICE void load_matrix_x1(u32 (&r)[1], Shared<T> row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(shared_address(row)) : "memory");
}
template <class T> DEVICE void load_matrix_x2(u32 (&r)[2], Shared<T> row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
template <class T> DEVICE void load_matrix_x4(u32 (&r)[4], Shared<T> row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
template <class T> DEVICE void load_matrix_x2_transposed(u32 (&r)[2], Shared<T> row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
template <class T> DEVICE void load_matrix_x4_transposed(u32 (&r)[4], Shared<T> row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// The inverse of `load_matrix` (sm_90). PTX ISA: stmatrix.
template <class T> DEVICE void store_matrix_x2(Shared<T> row, const u32 (&r)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1]) : "memory");
}
template <class T> DEVICE void store_matrix_x4(Shared<T> row, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}
template <class T> DEVICE void store_matrix_x2_transposed(Shared<T> row, const u32 (&r)[2]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1]) : "memory");
}
template <class T> DEVICE void store_matrix_x4_transposed(Shared<T> row, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

/// c += a b for a of 16 x 16, b of 16 x 8, c of 16 x 8; T is bf16 or f16, c float (PTX ISA: mma.sync.m16n8k16).
template <class T> DEVICE void mma_m16n8k16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    static_assert(is_same<T, bf16> || is_same<T, f16>, "m16n8k16 multiplies bf16 or f16");
    if constexpr (is_same<T, bf16>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// c += a b for a of 16 x 8, b of 8 x 8, in TF32 (words of `to_tf32`). Fragments: a[0] = A[g][t], a[1] = A[g+8][t], a[2] = A[g][t+4],
/// a[3] = A[g+8][t+4], b[0] = B[t][g], b[1] = B[t+4][g], c as above (PTX ISA: mma.sync.m16n8k8).
DEVICE void mma_m16n8k8_tf32(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// c[i][j] += a[i] b[j] for DOWN x ACROSS fragments: m16n8k16 of bf16 or f16, m16n8k8 of tf32 (words of `to_tf32`).
template <class T, int DOWN, int ACROSS>
DEVICE void mma_fragments(float (&c)[DOWN][ACROSS][4], const u32 (&a)[DOWN][4], const u32 (&b)[ACROSS][2]) {
    UNROLL
    for (int i = 0; i < DOWN; i++) {
        UNROLL
        for (int j = 0; j < ACROSS; j++) {
            if constexpr (is_same<T, tf32>) mma_m16n8k8_tf32(c[i][j], a[i], b[j]);
            else mma_m16n8k16<T>(c[i][j], a[i], b[j]);
        }
    }
}

#else

using emulator::load_matrix_x1;
using emulator::load_matrix_x2;
using emulator::load_matrix_x2_transposed;
using emulator::load_matrix_x4;
using emulator::load_matrix_x4_transposed;
using emulator::mma_fragments;
using emulator::mma_m16n8k16;
using emulator::mma_m16n8k8_tf32;
using emulator::store_matrix_x2;
using emulator::store_matrix_x2_transposed;
using emulator::store_matrix_x4;
using emulator::store_matrix_x4_transposed;

#endif
