#include "matrix.hpp"

#include <cstring>

namespace emulator {

namespace {

constexpr u32 MATRIX_ROW_BYTES = 16;

struct LoadOperand {
    u32 *registers;
    u32 address;
};

struct StoreOperand {
    const u32 *registers;
    u32 address;
};

struct MmaOperand {
    float *c;
    const u32 *a;
    const u32 *b;
};

// Finds the rows that the lanes name, each as an access of its own lane.
template <class Operand> void find_rows(const Warp *warp, u32 rows, SharedPlace *places, const char *what) {
    Thread *self = current_thread;
    for (u32 i = 0; i < rows; i++) {
        current_thread = warp->by_lane[i];
        places[i] = find_shared(operand<Operand>(warp, i).address, MATRIX_ROW_BYTES, MATRIX_ROW_BYTES, what);
        if (std::is_same<Operand, LoadOperand>::value) {
            check_shared_read(places[i], MATRIX_ROW_BYTES, what);
        } else {
            note_shared_write(places[i], MATRIX_ROW_BYTES, what);
        }
    }
    current_thread = self;
}

void check_whole_warp(const char *what) {
    if (current_thread->warp->lanes != 0xffffffffu) fail("%s takes all 32 lanes of a warp, and this one has fewer", what);
}

// The product of a warp's fragments. A holds rows of K floats; B holds K rows of 8 floats, and so do the 16 rows of C.
template <int K> void multiply(float (&c)[16][8], const float (&a)[16][K], const float (&b)[K][8]) {
    for (int row = 0; row < 16; row++) {
        float sum[8] = {};
        for (int k = 0; k < K; k++) {
            for (int n = 0; n < 8; n++) sum[n] += a[row][k] * b[k][n];
        }
        for (int n = 0; n < 8; n++) c[row][n] += sum[n];
    }
}

void gather_c(const Warp *warp, float (&c)[16][8]) {
    for (u32 i = 0; i < WARP; i++) {
        const float *own = operand<MmaOperand>(warp, i).c;
        const u32 row = i / 4, column = i % 4 * 2;
        c[row][column] = own[0];
        c[row][column + 1] = own[1];
        c[row + 8][column] = own[2];
        c[row + 8][column + 1] = own[3];
    }
}

void scatter_c(const Warp *warp, const float (&c)[16][8]) {
    for (u32 i = 0; i < WARP; i++) {
        float *own = operand<MmaOperand>(warp, i).c;
        const u32 row = i / 4, column = i % 4 * 2;
        own[0] = c[row][column];
        own[1] = c[row][column + 1];
        own[2] = c[row + 8][column];
        own[3] = c[row + 8][column + 1];
    }
}

template <class T> void multiply_k16(const Warp *warp) {
    float a[16][16], b[16][8], c[16][8];
    for (u32 i = 0; i < WARP; i++) {
        const MmaOperand &own = operand<MmaOperand>(warp, i);
        const u32 group = i / 4, pair = i % 4 * 2;
        unpack2<T>(own.a[0], a[group][pair], a[group][pair + 1]);
        unpack2<T>(own.a[1], a[group + 8][pair], a[group + 8][pair + 1]);
        unpack2<T>(own.a[2], a[group][pair + 8], a[group][pair + 9]);
        unpack2<T>(own.a[3], a[group + 8][pair + 8], a[group + 8][pair + 9]);
        unpack2<T>(own.b[0], b[pair][group], b[pair + 1][group]);
        unpack2<T>(own.b[1], b[pair + 8][group], b[pair + 9][group]);
    }
    gather_c(warp, c);
    multiply<16>(c, a, b);
    scatter_c(warp, c);
}

// A tf32 operand is a float of which the hardware does not see the last 13 bits.
float seen_as_tf32(u32 bits) { return bit_cast<float>(bits & 0xffffe000u); }

void multiply_tf32(const Warp *warp) {
    float a[16][8], b[8][8], c[16][8];
    for (u32 i = 0; i < WARP; i++) {
        const MmaOperand &own = operand<MmaOperand>(warp, i);
        const u32 group = i / 4, k = i % 4;
        a[group][k] = seen_as_tf32(own.a[0]);
        a[group + 8][k] = seen_as_tf32(own.a[1]);
        a[group][k + 4] = seen_as_tf32(own.a[2]);
        a[group + 8][k + 4] = seen_as_tf32(own.a[3]);
        b[k][group] = seen_as_tf32(own.b[0]);
        b[k + 4][group] = seen_as_tf32(own.b[1]);
    }
    gather_c(warp, c);
    multiply<8>(c, a, b);
    scatter_c(warp, c);
}

template <void (*MULTIPLY)(const Warp *)> inline void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    const MmaOperand own{c, a, b};
    if (!meet_all(Collective::MMA, &own)) return;
    check_whole_warp("mma");
    MULTIPLY(current_thread->warp);
    part_all();
}

} // namespace

void load_matrices(u32 *registers, u32 address, u32 count, bool transposed) {
    const LoadOperand own{registers, address};
    if (!meet_all(Collective::LOAD_MATRIX, &own)) return;
    check_whole_warp("load_matrix");
    const Warp *warp = current_thread->warp;
    SharedPlace rows[WARP];
    find_rows<LoadOperand>(warp, count * 8, rows, "load_matrix");
    for (u32 m = 0; m < count; m++) {
        u16 matrix[8][8];
        for (u32 row = 0; row < 8; row++) std::memcpy(matrix[row], rows[m * 8 + row].data(), MATRIX_ROW_BYTES);
        for (u32 i = 0; i < WARP; i++) {
            const u32 group = i / 4, pair = i % 4 * 2;
            const u32 low = transposed ? matrix[pair][group] : matrix[group][pair];
            const u32 high = transposed ? matrix[pair + 1][group] : matrix[group][pair + 1];
            operand<LoadOperand>(warp, i).registers[m] = low | high << 16;
        }
    }
    part_all();
}

void store_matrices(const u32 *registers, u32 address, u32 count, bool transposed) {
    const StoreOperand own{registers, address};
    if (!meet_all(Collective::STORE_MATRIX, &own)) return;
    check_whole_warp("store_matrix");
    const Warp *warp = current_thread->warp;
    SharedPlace rows[WARP];
    find_rows<StoreOperand>(warp, count * 8, rows, "store_matrix");
    for (u32 m = 0; m < count; m++) {
        u16 matrix[8][8];
        for (u32 i = 0; i < WARP; i++) {
            const u32 group = i / 4, pair = i % 4 * 2;
            const u32 value = operand<StoreOperand>(warp, i).registers[m];
            (transposed ? matrix[pair][group] : matrix[group][pair]) = u16(value);
            (transposed ? matrix[pair + 1][group] : matrix[group][pair + 1]) = u16(value >> 16);
        }
        for (u32 row = 0; row < 8; row++) std::memcpy(rows[m * 8 + row].data(), matrix[row], MATRIX_ROW_BYTES);
    }
    part_all();
}

void mma_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma<multiply_k16<bf16>>(c, a, b); }
void mma_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma<multiply_k16<f16>>(c, a, b); }
void mma_m16n8k8_tf32(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma<multiply_tf32>(c, a, b); }

} // namespace emulator
