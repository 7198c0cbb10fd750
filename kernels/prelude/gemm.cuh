// Tiles of matrix products: what a block computes of C = op(A) op(B), up to its sums in registers.
//
// Tiles of A and B pass through shared memory in STAGES slots: while a slot is multiplied, copies of the next ones are under way. A slot
// holds a tile as its matrix lies in memory, rows of 16-byte chunks; a chunk's place in its row is exclusive-or'ed with bits of the row's
// number, so that what a warp reads together lies in different banks.
//
// Terms of a sum are added in the order of k, in steps that depend on the element type alone: tiles of all sizes give the same bits.
#pragma once

#include "copy_async.cuh"
#include "matrix.cuh"
#include "pointers.cuh"
#include "threads.cuh"
#include "types.cuh"

/// Which operands are transposed: NN: A m x k, B k x n. NT: B n x k. TN: A k x m.
enum Layout { NN, NT, TN };

/// An operand in memory. `stride` is the distance of its rows, in elements.
template <class T> struct Matrix {
    Global<const T> start;
    u64 stride;
    u32 rows, columns;
};

/// What is read together from a tile: chunks of eight rows, words at eight columns of four rows, or chunks of one row.
enum class Reads { CHUNKS, WORDS, ROW };

/// ROWS x COLUMNS elements in shared memory.
template <class T, int ROWS, int COLUMNS, Reads READS> struct SharedTile {
    static constexpr int LANES = 16 / int(sizeof(T));
    static constexpr int CHUNKS = COLUMNS / LANES;
    static constexpr int ROW_BYTES = CHUNKS * 16;
    static constexpr int BYTES = ROWS * ROW_BYTES;
    static_assert(CHUNKS >= 2 && (CHUNKS & (CHUNKS - 1)) == 0, "places are exclusive-or'ed within a power of two of chunks");
    /// Rows whose numbers differ by a multiple of this place their chunks alike.
    static constexpr int PERIOD = READS == Reads::CHUNKS ? 8 : READS == Reads::WORDS ? 4 : 1;

    /// Byte offset of a chunk.
    DEVICE static u32 offset(u32 row, u32 chunk) {
        // Chunks in the 128 bytes that cover all banks once, and what the row's number turns them by.
        constexpr u32 SPAN = CHUNKS < 8 ? CHUNKS : 8;
        const u32 turn = row / (8 / SPAN) % SPAN;
        if constexpr (READS == Reads::CHUNKS) chunk ^= turn;
        if constexpr (READS == Reads::WORDS) chunk ^= turn % (SPAN / 2) * 2;
        return row * ROW_BYTES + chunk * 16;
    }
};

/// One thread's part in copying tiles of a matrix, one after the other down its rows (`DOWN`) or along them.
///
/// FAST: address and row distance are multiples of 16 bytes, and so are the rows' lengths; else elements are copied one by one.
/// PAIRED: there are two matrices, `rows` rows each, the second below the first; the tile's rows come from them by turns, eight from each.
template <class T, class Tile, int ROWS, bool DOWN, int THREADS, bool FAST, bool PAIRED = false> struct TileCopy {
    static constexpr int PASS = THREADS / Tile::CHUNKS;
    static constexpr int PASSES = ROWS / PASS;
    /// Rows of a matrix that a pass goes on by.
    static constexpr int FURTHER = PAIRED ? PASS / 2 : PASS;
    static_assert(!PAIRED || (!DOWN && PASS % 16 == 0), "each pass begins with the first matrix");
    static_assert(PASS * PASSES == ROWS && (PASSES == 1 || PASS % Tile::PERIOD == 0), "each pass copies whole rows, at the same places");

    Global<const T> from;
    u64 stride;
    u32 to, row, column, rows, columns;

    /// `matrix` as far as it counts, and the first tile's place in it.
    DEVICE TileCopy(const Matrix<T> &matrix, u32 first_row, u32 first_column) {
        const u32 own_row = thread_index() / Tile::CHUNKS, chunk = thread_index() % Tile::CHUNKS;
        to = Tile::offset(own_row, chunk);
        row = first_row + (PAIRED ? own_row / 16 * 8 + own_row % 8 : own_row);
        column = first_column + chunk * Tile::LANES;
        rows = matrix.rows;
        columns = matrix.columns;
        stride = matrix.stride;
        const u32 below = PAIRED && own_row % 16 >= 8 ? rows : 0;
        from = matrix.start + ((row + u64(below)) * stride + column);
    }

    /// Starts to copy the tile to `slot`, zeros where the matrix has ended, and goes on to the next tile, `STEP` further.
    template <int STEP> DEVICE void next(u32 slot) {
        UNROLL
        for (int pass = 0; pass < PASSES; pass++) {
            const Global<const T> chunk = from + pass * FURTHER * stride;
            const Shared<T> place = shared<T>(slot + to + pass * PASS * Tile::ROW_BYTES);
            const bool inside = row + pass * FURTHER < rows;
            if constexpr (FAST) {
                copy_async<16>(place, chunk, inside && column < columns);
            } else {
                Vector<T, Tile::LANES> values;
                UNROLL
                for (int i = 0; i < Tile::LANES; i++) values[i] = inside && column + i < columns ? T(chunk[i]) : T{};
                store(place, values);
            }
        }
        if constexpr (DOWN) {
            row += STEP;
            from += STEP * stride;
        } else {
            column += STEP;
            from += STEP;
        }
    }
};

/// What tiles of tensor cores and of plain arithmetic have in common: the slots and the copies into them.
template <class T, int LAYOUT, int M, int N, int K, int WARPS, int STAGES, bool FAST, bool TENSOR, bool PAIRED> struct TileSlots {
    static constexpr int THREADS = WARPS * 32;
    /// Whether the rows of A and B run along k.
    static constexpr bool A_ALONG = LAYOUT != TN, B_ALONG = LAYOUT == NT;
    /// Rows across k: ldmatrix transposes elements of two bytes, plain arithmetic reads one row at a time.
    static constexpr Reads ACROSS = !TENSOR ? Reads::ROW : sizeof(T) == 4 ? Reads::WORDS : Reads::CHUNKS;

    using TileA = SharedTile<T, A_ALONG ? M : K, A_ALONG ? K : M, A_ALONG ? Reads::CHUNKS : ACROSS>;
    using TileB = SharedTile<T, B_ALONG ? N : K, B_ALONG ? K : N, B_ALONG ? Reads::CHUNKS : ACROSS>;
    using CopyA = TileCopy<T, TileA, A_ALONG ? M : K, !A_ALONG, THREADS, FAST>;
    using CopyB = TileCopy<T, TileB, B_ALONG ? N : K, !B_ALONG, THREADS, FAST, PAIRED>;

    /// A slot holds a tile of A, then one of B.
    static constexpr int SLOT = TileA::BYTES + TileB::BYTES;
    static constexpr int SHARED_BYTES = STAGES * SLOT;

    CopyA copy_a;
    CopyB copy_b;
    u32 left, write;

    /// Sums over k from `k_begin` (a multiple of K) to `k_end`, for C from (`first_m`, `first_n`) on.
    DEVICE TileSlots(const Matrix<T> &a, const Matrix<T> &b, u32 first_m, u32 first_n, u32 k_begin, u32 k_end)
        : copy_a(cut(a, !A_ALONG, k_end), A_ALONG ? first_m : k_begin, A_ALONG ? k_begin : first_m),
          copy_b(cut(b, !B_ALONG, k_end), B_ALONG ? first_n : k_begin, B_ALONG ? k_begin : first_n), left(ceil_div(k_end - k_begin, K)),
          write(0) {}

    /// The matrix without what lies behind `k_end`.
    DEVICE static Matrix<T> cut(Matrix<T> matrix, bool down, u32 k_end) {
        (down ? matrix.rows : matrix.columns) = k_end;
        return matrix;
    }

    /// Starts the copies of the next tiles, if any are left. Each call makes one group of copies.
    DEVICE void start() {
        if (left > 0) {
            copy_a.template next<K>(write);
            copy_b.template next<K>(write + TileA::BYTES);
            write = following(write);
            left--;
        }
        copy_async_commit();
    }

    /// Starts as many copies as may be under way at once, and waits for the first.
    DEVICE void fill() {
        UNROLL
        for (int stage = 0; stage < STAGES - 1; stage++) start();
        wait();
    }

    /// Waits for the oldest copies that were not waited for; whoever reads the slot before theirs must have done so.
    DEVICE void wait() {
        copy_async_wait<STAGES - 2>();
        sync_block();
    }

    DEVICE static u32 following(u32 slot) { return slot + SLOT == SHARED_BYTES ? 0 : slot + SLOT; }
};

/// M x N sums by tensor cores, WARPS_M x WARPS_N warps: of bfloat16, or of floats rounded to TF32. PAIRED: columns by turns of two matrices,
/// eight of each, as `TileCopy` says.
template <class T, int LAYOUT, int M, int N, int K, int WARPS_M, int WARPS_N, int STAGES, bool FAST, bool PAIRED = false> struct TensorTile {
    using Slots = TileSlots<T, LAYOUT, M, N, K, WARPS_M * WARPS_N, STAGES, FAST, true, PAIRED>;
    using TileA = typename Slots::TileA;
    using TileB = typename Slots::TileB;
    static constexpr bool WORDS = sizeof(T) == 4;
    static constexpr int THREADS = Slots::THREADS, SHARED_BYTES = Slots::SHARED_BYTES;
    /// A warp's part, and the terms of one instruction.
    static constexpr int WARP_M = M / WARPS_M, WARP_N = N / WARPS_N, STEP = 32 / int(sizeof(T)), STEPS = K / STEP;
    /// Instructions side by side.
    static constexpr int ACROSS_M = WARP_M / 16, ACROSS_N = WARP_N / 8;
    static_assert(WARP_M % 16 == 0 && WARP_N % 16 == 0, "fragments of A cover 16 rows, and those of B are loaded in pairs of 8 columns");
    static_assert(WORDS || STEPS % 2 == 0, "two sets of fragments take turns, and each tile begins with the first");
    static_assert(!WORDS || STEP * sizeof(T) == 32, "a step is two chunks");

    struct Fragments {
        u32 a[ACROSS_M][4], b[ACROSS_N][2];
    };

    /// sums[i][j]: the 16 x 8 part at (16 i, 8 j) of the warp's part, as m16n8 instructions lay it out.
    float sums[ACROSS_M][ACROSS_N][4];

    /// Where the warp's part begins within the tile.
    DEVICE static u32 warp_m() { return warp() / WARPS_N * WARP_M; }
    DEVICE static u32 warp_n() { return warp() % WARPS_N * WARP_N; }

    /// Computes the sums. All threads of the block come here; afterwards nobody uses shared memory any more.
    DEVICE void run(const Matrix<T> &a, const Matrix<T> &b, u32 first_m, u32 first_n, u32 k_begin, u32 k_end) {
        UNROLL
        for (int i = 0; i < ACROSS_M; i++)
            UNROLL
            for (int j = 0; j < ACROSS_N; j++)
                UNROLL
                for (int e = 0; e < 4; e++) sums[i][j][e] = 0.0f;

        Slots slots(a, b, first_m, first_n, k_begin, k_end);
        const u32 tiles = slots.left, lane_a = offset_a(), lane_b = offset_b();
        slots.fill();
        u32 read = 0;
        if constexpr (WORDS) {
            // Rounding needs registers of its own: there are none left for a second set of fragments.
            Fragments set;
            for (u32 tile = 0; tile < tiles; tile++) {
                UNROLL
                for (int step = 0; step < STEPS; step++) {
                    load(set, read, lane_a, lane_b, step);
                    if (step == 0) slots.start();
                    multiply(set);
                }
                slots.wait();
                read = Slots::following(read);
            }
        } else {
            Fragments sets[2];
            if (tiles > 0) load(sets[0], read, lane_a, lane_b, 0);
            for (u32 tile = 0; tile < tiles; tile++) {
                UNROLL
                for (int step = 0; step < STEPS; step++) {
                    Fragments &next = sets[(step + 1) % 2];
                    if (step + 1 < STEPS) {
                        load(next, read, lane_a, lane_b, step + 1);
                    } else {
                        slots.wait();
                        read = Slots::following(read);
                        if (tile + 1 < tiles) load(next, read, lane_a, lane_b, 0);
                    }
                    // Into the slot that was read last in the round before, which all warps have left.
                    if (step == 0) slots.start();
                    multiply(sets[step % 2]);
                }
            }
        }
        copy_async_wait<0>();
        sync_block();
    }

    DEVICE void multiply(Fragments &f) {
        if constexpr (WORDS) {
            round(f.a);
            round(f.b);
            mma_fragments<tf32>(sums, f.a, f.b);
        } else {
            mma_fragments<T>(sums, f.a, f.b);
        }
    }

    template <int ROWS, int WORDS_OF_ONE> DEVICE static void round(u32 (&fragments)[ROWS][WORDS_OF_ONE]) {
        UNROLL
        for (int i = 0; i < ROWS; i++)
            UNROLL
            for (int e = 0; e < WORDS_OF_ONE; e++) fragments[i][e] = to_tf32(bit_cast<float>(fragments[i][e]));
    }

    /// Where the lane's first fragments lie in a tile: the chunk whose address it gives to ldmatrix, or its first word. Further ones are an
    /// exclusive-or along a row and a sum down the rows away.
    DEVICE static u32 offset_a() {
        const u32 l = lane(), m = warp_m();
        if constexpr (Slots::A_ALONG) return TileA::offset(m + l % 16, l / 16);
        else if constexpr (WORDS) return TileA::offset(l % 4, (m + l / 4) / 4) + l / 4 % 4 * 4;
        else return TileA::offset(l % 8 + l / 16 * 8, m / 8 + l / 8 % 2);
    }
    DEVICE static u32 offset_b() {
        const u32 l = lane(), n = warp_n();
        if constexpr (Slots::B_ALONG) return TileB::offset(n + l % 8 + l / 16 * 8, l / 8 % 2);
        else if constexpr (WORDS) return TileB::offset(l % 4, (n + l / 4) / 4) + l / 4 % 4 * 4;
        else return TileB::offset(l % 8 + l / 8 % 2 * 8, n / 8 + l / 16);
    }

    /// Loads the fragments of one step of a slot.
    DEVICE static void load(Fragments &f, u32 slot, u32 lane_a, u32 lane_b, int step) {
        const u32 slot_b = slot + TileA::BYTES;
        UNROLL
        for (int i = 0; i < ACROSS_M; i++) {
            if constexpr (Slots::A_ALONG) {
                load_matrix_x4(f.a[i], shared<T>(slot + (lane_a ^ step * 32) + i * 16 * TileA::ROW_BYTES));
            } else if constexpr (WORDS) {
                UNROLL
                for (int e = 0; e < 4; e++)
                    f.a[i][e] = shared<u32>(slot + (lane_a ^ (i * 64 + e % 2 * 32)) + (step * 8 + e / 2 * 4) * TileA::ROW_BYTES)[0];
            } else {
                load_matrix_x4_transposed(f.a[i], shared<T>(slot + (lane_a ^ i * 32) + step * 16 * TileA::ROW_BYTES));
            }
        }
        UNROLL
        for (int j = 0; j < ACROSS_N; j += 2) {
            u32 words[4];
            if constexpr (Slots::B_ALONG) {
                load_matrix_x4(words, shared<T>(slot_b + (lane_b ^ step * 32) + j * 8 * TileB::ROW_BYTES));
            } else if constexpr (WORDS) {
                UNROLL
                for (int e = 0; e < 4; e++)
                    words[e] = shared<u32>(slot_b + (lane_b ^ (j + e / 2) * 32) + (step * 8 + e % 2 * 4) * TileB::ROW_BYTES)[0];
            } else {
                load_matrix_x4_transposed(words, shared<T>(slot_b + (lane_b ^ j * 16) + step * 16 * TileB::ROW_BYTES));
            }
            UNROLL
            for (int e = 0; e < 4; e++) f.b[j + e / 2][e % 2] = words[e];
        }
    }
};

/// M x N sums of floats, each one chain of fused multiply-adds in the order of k. A thread computes OWN_M x OWN_N of them, a warp of 4 x 8
/// threads 4 OWN_M x 8 OWN_N.
template <int LAYOUT, int M, int N, int K, int WARPS_M, int WARPS_N, int OWN_M, int OWN_N, int STAGES, bool FAST, bool PAIRED = false>
struct ExactTile {
    using Slots = TileSlots<float, LAYOUT, M, N, K, WARPS_M * WARPS_N, STAGES, FAST, false, PAIRED>;
    using TileA = typename Slots::TileA;
    using TileB = typename Slots::TileB;
    static constexpr int THREADS = Slots::THREADS, SHARED_BYTES = Slots::SHARED_BYTES;
    static_assert(M == WARPS_M * 4 * OWN_M && N == WARPS_N * 8 * OWN_N, "the warps cover the tile");
    static_assert(OWN_M % 4 == 0 && OWN_N % 4 == 0, "operands are read in vectors of 4");

    float sums[OWN_M][OWN_N];

    /// Row and column of sums[i][j] within the warp's part, for the thread in row `own` of 4, or in column `own` of 8. What the threads
    /// read together lies in neighbouring rows where rows run along k, and in one row where they do not.
    DEVICE static u32 row(u32 own, int i) { return Slots::A_ALONG ? own + 4 * i : own * 4 + i / 4 * 16 + i % 4; }
    DEVICE static u32 column(u32 own, int j) { return Slots::B_ALONG ? own + 8 * j : own * 4 + j / 4 * 32 + j % 4; }

    /// Where the warp's part begins within the tile.
    DEVICE static u32 warp_m() { return warp() / WARPS_N * 4 * OWN_M; }
    DEVICE static u32 warp_n() { return warp() % WARPS_N * 8 * OWN_N; }

    /// Computes the sums. All threads of the block come here; afterwards nobody uses shared memory any more.
    DEVICE void run(const Matrix<float> &a, const Matrix<float> &b, u32 first_m, u32 first_n, u32 k_begin, u32 k_end) {
        UNROLL
        for (int i = 0; i < OWN_M; i++)
            UNROLL
            for (int j = 0; j < OWN_N; j++) sums[i][j] = 0.0f;

        Slots slots(a, b, first_m, first_n, k_begin, k_end);
        const u32 tiles = slots.left;
        slots.fill();
        u32 read = 0;
        for (u32 tile = 0; tile < tiles; tile++) {
            slots.start();
            UNROLL
            for (int k = 0; k < K; k += 4) four_terms(read, k);
            slots.wait();
            read = Slots::following(read);
        }
        copy_async_wait<0>();
        sync_block();
    }

    DEVICE static Vector<float, 4> chunk_a(u32 slot, u32 row, u32 column) {
        return load<4>(shared<float>(slot + TileA::offset(row, column / 4)));
    }
    DEVICE static Vector<float, 4> chunk_b(u32 slot, u32 row, u32 column) {
        return load<4>(shared<float>(slot + TileA::BYTES + TileB::offset(row, column / 4)));
    }

    /// Adds the terms k to k + 3 of a slot.
    DEVICE void four_terms(u32 slot, int k) {
        const auto row = [](int i) { return warp_m() + ExactTile::row(lane() / 8, i); };
        const auto column = [](int j) { return warp_n() + ExactTile::column(lane() % 8, j); };
        Vector<float, 4> along[Slots::A_ALONG ? OWN_M : 1];
        if constexpr (Slots::A_ALONG) {
            UNROLL
            for (int i = 0; i < OWN_M; i++) along[i] = chunk_a(slot, row(i), k);
        }
        if constexpr (Slots::B_ALONG) {
            static_assert(!Slots::B_ALONG || Slots::A_ALONG, "no layout transposes both");
            UNROLL
            for (int j = 0; j < OWN_N; j++) {
                const Vector<float, 4> right = chunk_b(slot, column(j), k);
                UNROLL
                for (int i = 0; i < OWN_M; i++)
                    UNROLL
                    for (int e = 0; e < 4; e++) sums[i][j] = fma(along[i][e], right[e], sums[i][j]);
            }
        } else {
            UNROLL
            for (int e = 0; e < 4; e++) {
                float left[OWN_M], right[OWN_N];
                if constexpr (Slots::A_ALONG) {
                    UNROLL
                    for (int i = 0; i < OWN_M; i++) left[i] = along[i][e];
                } else {
                    UNROLL
                    for (int i = 0; i < OWN_M; i += 4) {
                        const Vector<float, 4> across = chunk_a(slot, k + e, row(i));
                        UNROLL
                        for (int q = 0; q < 4; q++) left[i + q] = across[q];
                    }
                }
                UNROLL
                for (int j = 0; j < OWN_N; j += 4) {
                    const Vector<float, 4> across = chunk_b(slot, k + e, column(j));
                    UNROLL
                    for (int q = 0; q < 4; q++) right[j + q] = across[q];
                }
                UNROLL
                for (int i = 0; i < OWN_M; i++)
                    UNROLL
                    for (int j = 0; j < OWN_N; j++) sums[i][j] = fma(left[i], right[j], sums[i][j]);
            }
        }
    }
};
