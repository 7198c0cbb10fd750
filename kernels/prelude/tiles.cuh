// Tiles: rows of a few elements in shared memory, moves between them and device memory, and products of a warp's rows with them.
//
// A warp's sums are fragments of 16 rows and 8 columns (matrix.cuh): `c[m][n]` is that of rows 16 m and columns 8 n, and element e of it is
// row 16 m + lane / 4 + 8 (e / 2), column 8 n + 2 (lane % 4) + e % 2. In bf16 the tensor cores multiply, rounding nothing but their sums; in
// float every sum is a chain of fused multiply-adds in order.
#pragma once
#include "prelude.cuh"

/// Rows of D elements at a byte offset of shared memory, a multiple of 128.
///
/// A row is chunks of 16 bytes. Eight rows at one chunk are what a warp reads at once, and what must lie in different banks: chunk c of row r
/// lies at place c ^ swizzle(r), which for every D moves eight neighbouring rows over the eight places of 128 bytes.
template <class T, int D> struct Tile {
    static constexpr u32 LANES = 16 / sizeof(T), CHUNKS = D / LANES;
    /// How many neighbouring chunks trade places: the largest power of two, at most 8, that divides a row.
    static constexpr u32 PLACES = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;
    static_assert(CHUNKS % 2 == 0, "a row is whole pairs of chunks");

    u32 offset;

    static DEVICE u32 swizzle(u32 row) { return row / (8 / PLACES) % PLACES; }

    DEVICE Shared<T> chunk(u32 row, u32 chunk) const {
        const u32 place = chunk / PLACES * PLACES + (chunk % PLACES ^ swizzle(row));
        return shared<T>(offset + (row * CHUNKS + place) * 16);
    }
    DEVICE Shared<T> element(u32 row, u32 column) const { return chunk(row, column / LANES) + column % LANES; }
};

/// Where a lane reads pairs of chunks: chunk 2 pair + half of row `row` + 8 i. Of the places that chunks trade, each pair is found once, and all else
/// is a constant, which instructions take beside the address.
template <class T, int D> struct PairReader {
    using Shape = Tile<T, D>;
    static constexpr u32 PAIRS = Shape::PLACES / 2;
    Shared<T> pairs[PAIRS];

    DEVICE PairReader(Tile<T, D> tile, u32 row, u32 half) {
        UNROLL
        for (u32 pair = 0; pair < PAIRS; pair++) pairs[pair] = tile.chunk(row, 2 * pair + half);
    }
    DEVICE Shared<T> operator()(u32 rows, u32 pair) const { return pairs[pair % PAIRS] + (rows * D + pair / PAIRS * PAIRS * 2 * Shape::LANES); }
};

/// Rows of device memory at one distance, in elements.
template <class T> struct Strided {
    Global<T> first;
    u64 stride;

    DEVICE Global<T> operator()(u32 row) const { return first + row * stride; }
};

/// Starts to copy rows of device memory into the first ROWS rows of a tile: row r from `source(r)` where r < rows, and zeros below; of each row
/// `width` elements, and zeros beside. THREADS threads share the work. The copies belong to the thread's open group of `copy_async`; where
/// rows are not `aligned` to 16 bytes they are done at once.
template <u32 ROWS, u32 THREADS, class T, int D, class Source>
DEVICE void load_tile(Tile<T, D> tile, u32 thread, const Source &source, u32 rows, u32 width, bool aligned) {
    using Shape = Tile<T, D>;
    if (aligned) {
        if constexpr (is_same<Source, Strided<const T>> && (THREADS % Shape::CHUNKS == 0 || Shape::CHUNKS % THREADS == 0)) {
            // A thread keeps its columns, so that its addresses differ by the same number.
            constexpr u32 APART = THREADS < Shape::CHUNKS ? 1 : THREADS / Shape::CHUNKS, ACROSS = THREADS < Shape::CHUNKS ? Shape::CHUNKS / THREADS : 1;
            static_assert(ROWS % APART == 0, "all threads copy as many rows");
            const u32 row = thread / Shape::CHUNKS, chunk = thread % Shape::CHUNKS;
            Global<const T> from = source(row) + chunk * Shape::LANES;
            const u64 stride = APART * source.stride;
            UNROLL
            for (u32 i = 0; i < ROWS / APART; i++) {
                const u32 at = row + i * APART;
                UNROLL
                for (u32 j = 0; j < ACROSS; j++) {
                    const u32 to = chunk + j * THREADS;
                    copy_async<16>(tile.chunk(at, to), from + j * THREADS * Shape::LANES, at < rows && to * Shape::LANES < width);
                }
                from += stride;
            }
        } else {
            for (u32 i = thread; i < ROWS * Shape::CHUNKS; i += THREADS) {
                const u32 row = i / Shape::CHUNKS, chunk = i % Shape::CHUNKS;
                const bool valid = row < rows && chunk * Shape::LANES < width;
                copy_async<16>(tile.chunk(row, chunk), source(row) + chunk * Shape::LANES, valid);
            }
        }
        return;
    }
    for (u32 i = thread; i < ROWS * Shape::CHUNKS; i += THREADS) {
        const u32 row = i / Shape::CHUNKS, chunk = i % Shape::CHUNKS;
        Vector<T, Shape::LANES> values;
        for (u32 e = 0; e < Shape::LANES; e++) {
            const u32 column = chunk * Shape::LANES + e;
            values[e] = from_float<T>(0.0f);
            if (row < rows && column < width) values[e] = source(row)[column];
        }
        store(tile.chunk(row, chunk), values);
    }
}

/// Copies ROWS rows of a tile from row `first` to device memory: row r to `destination(r)` where r < rows, `width` elements each.
template <u32 ROWS, u32 THREADS, class T, int D, class Destination>
DEVICE void store_tile(const Destination &destination, Tile<T, D> tile, u32 first, u32 thread, u32 rows, u32 width, bool aligned) {
    using Shape = Tile<T, D>;
    for (u32 i = thread; i < ROWS * Shape::CHUNKS; i += THREADS) {
        const u32 row = i / Shape::CHUNKS, column = i % Shape::CHUNKS * Shape::LANES;
        if (row >= rows || column >= width) continue;
        const auto values = load<Shape::LANES>(tile.chunk(first + row, i % Shape::CHUNKS));
        if (aligned) {
            store(destination(row) + column, values);
        } else {
            for (u32 e = 0; e < Shape::LANES; e++) {
                if (column + e < width) destination(row)[column + e] = values[e];
            }
        }
    }
}

/// Rounds a warp's sums, times a factor a row, into rows of a tile from row `first`: `factor[m][h]` is that of row 16 m + lane / 4 + 8 h.
template <class T, int D, int MT>
DEVICE void store_sums(Tile<T, D> tile, u32 first, const float (&sums)[MT][D / 8][4], const float (&factor)[MT][2]) {
    UNROLL
    for (int m = 0; m < MT; m++) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            const u32 row = first + 16 * m + lane() / 4 + 8 * h;
            UNROLL
            for (int n = 0; n < D / 8; n++) {
                const Vector<float, 2> pair{{sums[m][n][2 * h] * factor[m][h], sums[m][n][2 * h + 1] * factor[m][h]}};
                store(tile.element(row, 8 * n + 2 * (lane() % 4)), from_float<T>(pair));
            }
        }
    }
}

template <int M, int N> DEVICE void set_zero(float (&c)[M][N][4]) {
    UNROLL
    for (int m = 0; m < M; m++) {
        UNROLL
        for (int n = 0; n < N; n++) {
            UNROLL
            for (int e = 0; e < 4; e++) c[m][n][e] = 0.0f;
        }
    }
}

/// c = products of rows of `a` (from row `first`) with rows 0 to 8 NT of `b`, over all D elements.
template <class T, int D, int MT, int NT> DEVICE void multiply_rows(float (&c)[MT][NT][4], Tile<T, D> a, u32 first, Tile<T, D> b) {
    set_zero(c);
    if constexpr (sizeof(T) == 2) {
        static_assert(NT % 2 == 0, "two fragments of b are loaded at once");
        const u32 row = lane() % 16, half = lane() / 16, b_row = lane() / 16 * 8 + lane() % 8, b_half = lane() / 8 % 2;
        const PairReader<T, D> a_reader(a, first + row, half), b_reader(b, b_row, b_half);
        UNROLL
        for (int k = 0; k < D / 16; k++) {
            u32 left[MT][4];
            UNROLL
            for (int m = 0; m < MT; m++) load_matrix_x4(left[m], a_reader(16 * m, k));
            UNROLL
            for (int n = 0; n < NT / 2; n++) {
                u32 right[4];
                load_matrix_x4(right, b_reader(16 * n, k));
                const u32 even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
                UNROLL
                for (int m = 0; m < MT; m++) {
                    mma_m16n8k16<T>(c[m][2 * n], left[m], even);
                    mma_m16n8k16<T>(c[m][2 * n + 1], left[m], odd);
                }
            }
        }
    } else {
        const u32 g = lane() / 4, t = lane() % 4;
        const auto add_products = [&](u32 k) {
            Vector<float, 4> left[MT][2];
            UNROLL
            for (int m = 0; m < MT; m++) {
                left[m][0] = load<4>(a.chunk(first + 16 * m + g, k));
                left[m][1] = load<4>(a.chunk(first + 16 * m + g + 8, k));
            }
            UNROLL
            for (int n = 0; n < NT; n++) {
                const Vector<float, 4> right[2] = {load<4>(b.chunk(8 * n + 2 * t, k)), load<4>(b.chunk(8 * n + 2 * t + 1, k))};
                UNROLL
                for (int m = 0; m < MT; m++) {
                    UNROLL
                    for (int e = 0; e < 4; e++) {
                        UNROLL
                        for (int i = 0; i < 4; i++) c[m][n][e] = fma(left[m][e / 2][i], right[e % 2][i], c[m][n][e]);
                    }
                }
            }
        };
        if constexpr (D > 128) {
            // Sums over so many columns leave no registers for what a second step would load ahead.
            ROLLED
            for (u32 k = 0; k < D / 4; k++) add_products(k);
        } else {
            for (u32 k = 0; k < D / 4; k++) add_products(k);
        }
    }
}

/// sums += weights b: the warp's rows of weights, rounded to T, with rows 0 to 8 NT of `b`.
template <class T, int D, int MT, int NT> DEVICE void add_weighted_rows(float (&sums)[MT][D / 8][4], const float (&weights)[MT][NT][4], Tile<T, D> b) {
    if constexpr (sizeof(T) == 2) {
        static_assert(NT % 2 == 0 && D % 16 == 0, "two fragments of b are loaded at once");
        const PairReader<T, D> reader(b, lane() % 16, lane() / 16);
        UNROLL
        for (int k = 0; k < NT / 2; k++) {
            // The fragment of sums of two columns of 8 is the fragment of a left factor of 16.
            u32 left[MT][4];
            UNROLL
            for (int m = 0; m < MT; m++) {
                UNROLL
                for (int i = 0; i < 4; i++)
                    left[m][i] = pack2<T>(weights[m][2 * k + i / 2][i % 2 * 2], weights[m][2 * k + i / 2][i % 2 * 2 + 1]);
            }
            UNROLL
            for (int n = 0; n < D / 16; n++) {
                u32 right[4];
                load_matrix_x4_transposed(right, reader(16 * k, n));
                const u32 even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
                UNROLL
                for (int m = 0; m < MT; m++) {
                    mma_m16n8k16<T>(sums[m][2 * n], left[m], even);
                    mma_m16n8k16<T>(sums[m][2 * n + 1], left[m], odd);
                }
            }
        }
    } else {
        const u32 t = lane() % 4;
        UNROLL
        for (int k = 0; k < 8 * NT; k++) {
            // The weight of column k is held by one of the four lanes of its row.
            const u32 holder = (lane() & 28u) + k % 8 / 2;
            float left[MT][2];
            UNROLL
            for (int m = 0; m < MT; m++) {
                left[m][0] = shuffle(weights[m][k / 8][k % 2], holder);
                left[m][1] = shuffle(weights[m][k / 8][2 + k % 2], holder);
            }
            UNROLL
            for (int n = 0; n < D / 8; n++) {
                const Vector<float, 2> right = load<2>(b.element(k, 8 * n + 2 * t));
                UNROLL
                for (int m = 0; m < MT; m++) {
                    UNROLL
                    for (int e = 0; e < 4; e++) sums[m][n][e] = fma(left[m][e / 2], right[e % 2], sums[m][n][e]);
                }
            }
        }
    }
}
