#include "matrix.hpp"

#include "vectors.hpp"

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
            order_shared(places[i], MATRIX_ROW_BYTES, AccessKind::READ, actor_of(current_thread), what);
        } else {
            note_shared_write(places[i], MATRIX_ROW_BYTES, what);
            order_shared(places[i], MATRIX_ROW_BYTES, AccessKind::WRITE, actor_of(current_thread), what);
        }
    }
    current_thread = self;
}

void check_whole_warp(const char *what) {
    if (current_thread->warp->lanes != 0xffffffffu) fail("%s takes all 32 lanes of a warp, and this one has fewer", what);
}

// c += a b, for 16 rows of K floats, K rows of 8 floats, and 16 rows of 8. Eight sums at a time are under way.
template <int K> inline void multiply(Floats8 (&c)[16], const float (&a)[16][K], const Floats8 (&b)[K]) {
    for (int row = 0; row < 16; row += 8) {
        Floats8 sum[8] = {};
        for (int k = 0; k < K; k++) {
            for (int i = 0; i < 8; i++) sum[i] += a[row + i][k] * b[k];
        }
        for (int i = 0; i < 8; i++) c[row + i] += sum[i];
    }
}

// Lanes 4g to 4g + 3 hold rows g and g + 8 of C, each two elements of both.
inline void gather_c(const Warp *warp, Floats8 (&c)[16]) {
    for (u32 g = 0; g < 8; g++) {
        Longs2 lanes[4];
        for (u32 t = 0; t < 4; t++) lanes[t] = load_vector<Longs2>(operand<MmaOperand>(warp, 4 * g + t).c);
        const Longs2 rows[4] = {__builtin_shufflevector(lanes[0], lanes[1], 0, 2), __builtin_shufflevector(lanes[2], lanes[3], 0, 2),
                                __builtin_shufflevector(lanes[0], lanes[1], 1, 3), __builtin_shufflevector(lanes[2], lanes[3], 1, 3)};
        c[g] = bit_cast<Floats8>(__builtin_shufflevector(rows[0], rows[1], 0, 1, 2, 3));
        c[g + 8] = bit_cast<Floats8>(__builtin_shufflevector(rows[2], rows[3], 0, 1, 2, 3));
    }
}

inline void scatter_c(const Warp *warp, const Floats8 (&c)[16]) {
    typedef u64 Longs4 __attribute__((vector_size(32)));
    for (u32 g = 0; g < 8; g++) {
        const Longs4 upper = bit_cast<Longs4>(c[g]), lower = bit_cast<Longs4>(c[g + 8]);
        store_vector(operand<MmaOperand>(warp, 4 * g).c, __builtin_shufflevector(upper, lower, 0, 4));
        store_vector(operand<MmaOperand>(warp, 4 * g + 1).c, __builtin_shufflevector(upper, lower, 1, 5));
        store_vector(operand<MmaOperand>(warp, 4 * g + 2).c, __builtin_shufflevector(upper, lower, 2, 6));
        store_vector(operand<MmaOperand>(warp, 4 * g + 3).c, __builtin_shufflevector(upper, lower, 3, 7));
    }
}

// The registers of lanes 4g to 4g + 3, each as one vector of its four words.
inline void gather_a(const Warp *warp, u32 g, Words4 (&registers)[4]) {
    for (u32 t = 0; t < 4; t++) registers[t] = load_vector<Words4>(operand<MmaOperand>(warp, 4 * g + t).a);
    transpose(registers[0], registers[1], registers[2], registers[3]);
}

// b[i] of lanes 4g to 4g + 3 as one vector.
inline void gather_b(const Warp *warp, u32 g, Words4 (&registers)[2]) {
    u64 lanes[4];
    for (u32 t = 0; t < 4; t++) std::memcpy(&lanes[t], operand<MmaOperand>(warp, 4 * g + t).b, 8);
    const Words4 first = bit_cast<Words4>(Longs2{lanes[0], lanes[1]}), second = bit_cast<Words4>(Longs2{lanes[2], lanes[3]});
    registers[0] = __builtin_shufflevector(first, second, 0, 2, 4, 6);
    registers[1] = __builtin_shufflevector(first, second, 1, 3, 5, 7);
}

template <class T> void multiply_k16(const Warp *warp) {
    alignas(32) float a[16][16];
    Floats8 b[16], c[16];
    Halves8 columns[2][8];
    for (u32 g = 0; g < 8; g++) {
        Words4 words[4];
        gather_a(warp, g, words);
        store_vector(&a[g][0], floats_of<T>(bit_cast<Halves8>(words[0])));
        store_vector(&a[g + 8][0], floats_of<T>(bit_cast<Halves8>(words[1])));
        store_vector(&a[g][8], floats_of<T>(bit_cast<Halves8>(words[2])));
        store_vector(&a[g + 8][8], floats_of<T>(bit_cast<Halves8>(words[3])));
        Words4 column[2];
        gather_b(warp, g, column);
        columns[0][g] = bit_cast<Halves8>(column[0]);
        columns[1][g] = bit_cast<Halves8>(column[1]);
    }
    for (u32 half = 0; half < 2; half++) {
        transpose(columns[half]);
        for (u32 k = 0; k < 8; k++) b[half * 8 + k] = floats_of<T>(columns[half][k]);
    }
    gather_c(warp, c);
    multiply<16>(c, a, b);
    scatter_c(warp, c);
}

// A tf32 operand is a float of which the hardware does not see the last 13 bits.
constexpr u32 SEEN_AS_TF32 = 0xffffe000u;

void multiply_tf32(const Warp *warp) {
    alignas(32) float a[16][8];
    Floats8 b[8], c[16];
    for (u32 g = 0; g < 8; g++) {
        Words4 words[4], column[2];
        gather_a(warp, g, words);
        store_vector(&a[g][0], words[0] & SEEN_AS_TF32);
        store_vector(&a[g + 8][0], words[1] & SEEN_AS_TF32);
        store_vector(&a[g][4], words[2] & SEEN_AS_TF32);
        store_vector(&a[g + 8][4], words[3] & SEEN_AS_TF32);
        gather_b(warp, g, column);
        for (u32 k = 0; k < 4; k++) {
            b[k][g] = bit_cast<float>(column[0][k] & SEEN_AS_TF32);
            b[k + 4][g] = bit_cast<float>(column[1][k] & SEEN_AS_TF32);
        }
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
    SharedPlace places[WARP];
    find_rows<LoadOperand>(warp, count * 8, places, "load_matrix");
    Halves8 rows[4][8] = {};
    for (u32 m = 0; m < count; m++) {
        for (u32 i = 0; i < 8; i++) rows[m][i] = load_vector<Halves8>(places[m * 8 + i].data());
        if (transposed) transpose(rows[m]);
    }
    // Lane 4g + t receives word t of row g of each matrix.
    for (u32 g = 0; g < 8; g++) {
        Words4 words[4];
        for (u32 m = 0; m < 4; m++) words[m] = bit_cast<Words4>(rows[m][g]);
        transpose(words[0], words[1], words[2], words[3]);
        for (u32 t = 0; t < 4; t++) {
            u32 *to = operand<LoadOperand>(warp, 4 * g + t).registers;
            if (count == 4) {
                store_vector(to, words[t]);
            } else {
                std::memcpy(to, &words[t], count * 4);
            }
        }
    }
    part_all();
}

void store_matrices(const u32 *registers, u32 address, u32 count, bool transposed) {
    const StoreOperand own{registers, address};
    if (!meet_all(Collective::STORE_MATRIX, &own)) return;
    check_whole_warp("store_matrix");
    const Warp *warp = current_thread->warp;
    SharedPlace places[WARP];
    find_rows<StoreOperand>(warp, count * 8, places, "store_matrix");
    for (u32 m = 0; m < count; m++) {
        u32 words[8][4];
        for (u32 i = 0; i < WARP; i++) words[i / 4][i % 4] = operand<StoreOperand>(warp, i).registers[m];
        Halves8 rows[8];
        for (u32 i = 0; i < 8; i++) rows[i] = load_vector<Halves8>(words[i]);
        if (transposed) transpose(rows);
        for (u32 i = 0; i < 8; i++) store_vector(places[m * 8 + i].data(), rows[i]);
    }
    part_all();
}

void mma_bf16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma<multiply_k16<bf16>>(c, a, b); }
void mma_f16(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma<multiply_k16<f16>>(c, a, b); }
void mma_m16n8k8_tf32(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) { mma<multiply_tf32>(c, a, b); }

} // namespace emulator
