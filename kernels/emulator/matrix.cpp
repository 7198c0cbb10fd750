#include "matrix.hpp"

#include "vectors.hpp"

#include <algorithm>

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

// A lane's part of `down` fragments of A one after the other, `across` of B, and down x across of C.
struct MmaOperand {
    float *c;
    const u32 *a;
    const u32 *b;
    u32 down;
    u32 across;
};

// Finds the bytes of the rows that the lanes name, each as an access of its own lane.
template <class Operand> void find_rows(const Warp *warp, u32 rows, u8 **bytes, const char *what) {
    Thread *self = current_thread;
    for (u32 i = 0; i < rows; i++) {
        current_thread = warp->by_lane[i];
        const SharedPlace place = find_shared(operand<Operand>(warp, i).address, MATRIX_ROW_BYTES, MATRIX_ROW_BYTES, what);
        if (std::is_same<Operand, LoadOperand>::value) {
            check_shared_read(place, MATRIX_ROW_BYTES, what);
            order_shared(place, MATRIX_ROW_BYTES, AccessKind::READ, actor_of(current_thread), what);
        } else {
            note_shared_write(place, MATRIX_ROW_BYTES, what);
            order_shared(place, MATRIX_ROW_BYTES, AccessKind::WRITE, actor_of(current_thread), what);
        }
        bytes[i] = place.data();
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
inline void gather_c(const Warp *warp, u32 fragment, Floats8 (&c)[16]) {
    for (u32 g = 0; g < 8; g++) {
        Longs2 lanes[4];
        for (u32 t = 0; t < 4; t++) lanes[t] = load_vector<Longs2>(operand<MmaOperand>(warp, 4 * g + t).c + 4 * fragment);
        const Longs2 rows[4] = {__builtin_shufflevector(lanes[0], lanes[1], 0, 2), __builtin_shufflevector(lanes[2], lanes[3], 0, 2),
                                __builtin_shufflevector(lanes[0], lanes[1], 1, 3), __builtin_shufflevector(lanes[2], lanes[3], 1, 3)};
        c[g] = bit_cast<Floats8>(__builtin_shufflevector(rows[0], rows[1], 0, 1, 2, 3));
        c[g + 8] = bit_cast<Floats8>(__builtin_shufflevector(rows[2], rows[3], 0, 1, 2, 3));
    }
}

inline void scatter_c(const Warp *warp, u32 fragment, const Floats8 (&c)[16]) {
    typedef u64 Longs4 __attribute__((vector_size(32)));
    for (u32 g = 0; g < 8; g++) {
        const Longs4 upper = bit_cast<Longs4>(c[g]), lower = bit_cast<Longs4>(c[g + 8]);
        store_vector(operand<MmaOperand>(warp, 4 * g).c + 4 * fragment, __builtin_shufflevector(upper, lower, 0, 4));
        store_vector(operand<MmaOperand>(warp, 4 * g + 1).c + 4 * fragment, __builtin_shufflevector(upper, lower, 1, 5));
        store_vector(operand<MmaOperand>(warp, 4 * g + 2).c + 4 * fragment, __builtin_shufflevector(upper, lower, 2, 6));
        store_vector(operand<MmaOperand>(warp, 4 * g + 3).c + 4 * fragment, __builtin_shufflevector(upper, lower, 3, 7));
    }
}

// The registers of lanes 4g to 4g + 3, each as one vector of its four words.
inline void gather_a(const Warp *warp, u32 fragment, u32 g, Words4 (&registers)[4]) {
    for (u32 t = 0; t < 4; t++) registers[t] = load_vector<Words4>(operand<MmaOperand>(warp, 4 * g + t).a + 4 * fragment);
    transpose(registers[0], registers[1], registers[2], registers[3]);
}

// b[i] of lanes 4g to 4g + 3 as one vector.
inline void gather_b(const Warp *warp, u32 fragment, u32 g, Words4 (&registers)[2]) {
    u64 lanes[4];
    for (u32 t = 0; t < 4; t++) std::memcpy(&lanes[t], operand<MmaOperand>(warp, 4 * g + t).b + 2 * fragment, 8);
    const Words4 first = bit_cast<Words4>(Longs2{lanes[0], lanes[1]}), second = bit_cast<Words4>(Longs2{lanes[2], lanes[3]});
    registers[0] = __builtin_shufflevector(first, second, 0, 2, 4, 6);
    registers[1] = __builtin_shufflevector(first, second, 1, 3, 5, 7);
}

// Fragments of 16 terms of two bytes.
template <class T> struct Steps16 {
    static constexpr int TERMS = 16;

    static void left(const Warp *warp, u32 fragment, float (&a)[16][16]) {
        for (u32 g = 0; g < 8; g++) {
            Words4 words[4];
            gather_a(warp, fragment, g, words);
            store_vector(&a[g][0], floats_of<T>(bit_cast<Halves8>(words[0])));
            store_vector(&a[g + 8][0], floats_of<T>(bit_cast<Halves8>(words[1])));
            store_vector(&a[g][8], floats_of<T>(bit_cast<Halves8>(words[2])));
            store_vector(&a[g + 8][8], floats_of<T>(bit_cast<Halves8>(words[3])));
        }
    }

    static void right(const Warp *warp, u32 fragment, Floats8 (&b)[16]) {
        Halves8 columns[2][8];
        for (u32 g = 0; g < 8; g++) {
            Words4 column[2];
            gather_b(warp, fragment, g, column);
            columns[0][g] = bit_cast<Halves8>(column[0]);
            columns[1][g] = bit_cast<Halves8>(column[1]);
        }
        for (u32 half = 0; half < 2; half++) {
            transpose(columns[half]);
            for (u32 k = 0; k < 8; k++) b[half * 8 + k] = floats_of<T>(columns[half][k]);
        }
    }
};

// Fragments of 8 terms of tf32, which is a float of which the hardware does not see the last 13 bits.
struct Steps8 {
    static constexpr int TERMS = 8;
    static constexpr u32 SEEN = 0xffffe000u;

    static void left(const Warp *warp, u32 fragment, float (&a)[16][8]) {
        for (u32 g = 0; g < 8; g++) {
            Words4 words[4];
            gather_a(warp, fragment, g, words);
            store_vector(&a[g][0], words[0] & SEEN);
            store_vector(&a[g + 8][0], words[1] & SEEN);
            store_vector(&a[g][4], words[2] & SEEN);
            store_vector(&a[g + 8][4], words[3] & SEEN);
        }
    }

    static void right(const Warp *warp, u32 fragment, Floats8 (&b)[8]) {
        for (u32 g = 0; g < 8; g++) {
            Words4 column[2];
            gather_b(warp, fragment, g, column);
            for (u32 k = 0; k < 4; k++) {
                b[k][g] = bit_cast<float>(column[0][k] & SEEN);
                b[k + 4][g] = bit_cast<float>(column[1][k] & SEEN);
            }
        }
    }
};

// What the last lane to come does for all is a function of its own, so that the other lanes need not save the registers that it uses.
template <class Steps> __attribute__((noinline)) void multiply_fragments(const MmaOperand &own) {
    check_whole_warp("mma");
    const Warp *warp = current_thread->warp;
    // Rows of fragments that are made floats once and used for all columns.
    constexpr u32 TOGETHER = 4;
    for (u32 first = 0; first < own.down; first += TOGETHER) {
        const u32 rows = std::min(TOGETHER, own.down - first);
        alignas(32) float a[TOGETHER][16][Steps::TERMS];
        for (u32 i = 0; i < rows; i++) Steps::left(warp, first + i, a[i]);
        for (u32 j = 0; j < own.across; j++) {
            Floats8 b[Steps::TERMS];
            Steps::right(warp, j, b);
            for (u32 i = 0; i < rows; i++) {
                const u32 fragment = (first + i) * own.across + j;
                Floats8 c[16];
                gather_c(warp, fragment, c);
                multiply<Steps::TERMS>(c, a[i], b);
                scatter_c(warp, fragment, c);
            }
        }
    }
    part_all();
}

} // namespace

__attribute__((noinline)) static void load_for_warp(u32 count, bool transposed) {
    check_whole_warp("load_matrix");
    const Warp *warp = current_thread->warp;
    u8 *bytes[WARP];
    find_rows<LoadOperand>(warp, count * 8, bytes, "load_matrix");
    Halves8 rows[4][8];
    for (u32 m = 0; m < 4; m++) {
        for (u32 i = 0; i < 8; i++) rows[m][i] = m < count ? load_vector<Halves8>(bytes[m * 8 + i]) : Halves8{};
        if (transposed && m < count) transpose(rows[m]);
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

__attribute__((noinline)) static void store_for_warp(u32 count, bool transposed) {
    check_whole_warp("store_matrix");
    const Warp *warp = current_thread->warp;
    u8 *bytes[WARP];
    find_rows<StoreOperand>(warp, count * 8, bytes, "store_matrix");
    for (u32 m = 0; m < count; m++) {
        u32 words[8][4];
        for (u32 i = 0; i < WARP; i++) words[i / 4][i % 4] = operand<StoreOperand>(warp, i).registers[m];
        Halves8 rows[8];
        for (u32 i = 0; i < 8; i++) rows[i] = load_vector<Halves8>(words[i]);
        if (transposed) transpose(rows);
        for (u32 i = 0; i < 8; i++) store_vector(bytes[m * 8 + i], rows[i]);
    }
    part_all();
}

void load_matrices(u32 *registers, u32 address, u32 count, bool transposed) {
    const LoadOperand own{registers, address};
    if (meet_all(Collective::LOAD_MATRIX, &own)) load_for_warp(count, transposed);
}

void store_matrices(const u32 *registers, u32 address, u32 count, bool transposed) {
    const StoreOperand own{registers, address};
    if (meet_all(Collective::STORE_MATRIX, &own)) store_for_warp(count, transposed);
}

template <class Steps> static inline void mma(const MmaOperand &own) {
    if (meet_all(Collective::MMA, &own)) multiply_fragments<Steps>(own);
}

void mma_bf16(float *c, const u32 *a, const u32 *b, u32 down, u32 across) { mma<Steps16<bf16>>({c, a, b, down, across}); }
void mma_f16(float *c, const u32 *a, const u32 *b, u32 down, u32 across) { mma<Steps16<f16>>({c, a, b, down, across}); }
void mma_tf32(float *c, const u32 *a, const u32 *b, u32 down, u32 across) { mma<Steps8>({c, a, b, down, across}); }

} // namespace emulator
