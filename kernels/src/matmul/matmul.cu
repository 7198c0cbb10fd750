// Matrix products: a block computes a tile of C, or of one of the parts that k is cut into; parts are added by a second kernel.
#include "gemm.cuh"
#include "prelude.cuh"

template <class T, class Out> struct Gemm {
    Global<Out> out;
    Global<const T> a, b, bias;
    Global<const Out> residual;
    // Sums of `parts` parts, each m rows of n (rounded up to 4) columns; null where k is not cut.
    Global<float> partial;
    u64 out_stride, a_stride, b_stride, residual_stride;
    u32 m, n, k, k_of_part, parts;
    u32 activation, accumulate, vectors;
};

// What happens to sums on their way out: C where it is added to, bias, activation, residual.
template <class T, class Out> struct Finish {
    const Gemm<T, Out> &args;

    DEVICE float one(u32 row, u32 column, float x) const {
        if (args.accumulate) x += to_float(Out(args.out[row * args.out_stride + column]));
        if (args.bias) x += to_float(T(args.bias[column]));
        x = activated(x);
        if (args.residual) x += to_float(Out(args.residual[row * args.residual_stride + column]));
        return x;
    }
    DEVICE void write(u32 row, u32 column, float x) const {
        if (row < args.m && column < args.n) args.out[row * args.out_stride + column] = from_float<Out>(one(row, column, x));
    }
    // Four sums of a row; `column` is a multiple of 4.
    DEVICE void write(u32 row, u32 column, Vector<float, 4> x) const {
        if (row >= args.m || column >= args.n) return;
        if (!args.vectors) {
            UNROLL
            for (int i = 0; i < 4; i++) write(row, column + i, x[i]);
            return;
        }
        const Global<Out> out = args.out + (row * args.out_stride + column);
        if (args.accumulate) add(x, to_float(load<4>(out)));
        if (args.bias) add(x, to_float(load<4>(args.bias + column)));
        UNROLL
        for (int i = 0; i < 4; i++) x[i] = activated(x[i]);
        if (args.residual) add(x, to_float(load<4>(args.residual + (row * args.residual_stride + column))));
        store(out, from_float<Out>(x));
    }
    DEVICE static void add(Vector<float, 4> &x, const Vector<float, 4> &y) {
        UNROLL
        for (int i = 0; i < 4; i++) x[i] += y[i];
    }
    DEVICE float activated(float x) const { return args.activation ? x / (1.0f + exp(-x)) : x; }
};

// What one block computes. Blocks that run at the same time share rows and columns of tiles: eight rows of tiles are walked side by side.
struct Place {
    u32 m, n, part, k_begin, k_end;
};
template <int M, int N, class Args> DEVICE Place place_of_block(const Args &args) {
    const u32 down = ceil_div(args.m, M), across = ceil_div(args.n, N), side = 8 * across;
    const u32 top = block_index() / side * 8, within = block_index() % side, height = min(8u, down - top);
    const u32 part = block_index(1), k_begin = part * args.k_of_part;
    return Place{(top + within % height) * M, within / height * N, part, k_begin, min(args.k, k_begin + args.k_of_part)};
}

template <class T, class Out> DEVICE Matrix<T> left(const Gemm<T, Out> &args, bool transposed) {
    return Matrix<T>{args.a, args.a_stride, transposed ? args.k : args.m, transposed ? args.m : args.k};
}
template <class T, class Out> DEVICE Matrix<T> right(const Gemm<T, Out> &args, bool transposed) {
    return Matrix<T>{args.b, args.b_stride, transposed ? args.n : args.k, transposed ? args.k : args.n};
}

// Where the sums of a part of k go.
template <class T, class Out> DEVICE Global<float> partial_row(const Gemm<T, Out> &args, u32 part, u32 row) {
    return args.partial + (u64(part) * args.m + row) * round_up(args.n, 4);
}

// Hands on ROWS x COLUMNS numbers that a warp has put into shared memory, in rows STRIDE apart: each lane takes four neighbours at a time. Row
// r belongs to row `row_of(r)` of C.
template <int ROWS, int COLUMNS, int STRIDE, class RowOf, class Write>
DEVICE void turn_rows(Shared<float> rows, u32 first_column, RowOf row_of, Write write) {
    constexpr u32 LANES = COLUMNS / 4;
    const u32 column = lane() % LANES * 4;
    sync_warp();
    ROLLED
    for (u32 row = lane() / LANES; row < ROWS; row += 32 / LANES) write(row_of(row), first_column + column, load<4>(rows + (row * STRIDE + column)));
    sync_warp();
}

// What is done with four neighbours of a sum's row: to C, or to the part's sums.
template <class T, class Out> DEVICE void write_sums(const Gemm<T, Out> &args, u32 part, u32 m, u32 n, const Vector<float, 4> &sums) {
    if (!args.partial) Finish<T, Out>{args}.write(m, n, sums);
    else if (m < args.m && n < args.n) store(partial_row(args, part, m) + n, sums);
}

// Products by tensor cores: T is bf16, or float, which is rounded to TF32. Two blocks of four warps share a multiprocessor.
template <class T, class Out, int LAYOUT, int M, int N, int K, int WARPS_M, int WARPS_N, int STAGES, bool FAST>
KERNEL(WARPS_M *WARPS_N * 32, 2) void gemm(const Gemm<T, Out> args) {
    begin_grid();
    using Tile = TensorTile<T, LAYOUT, M, N, K, WARPS_M, WARPS_N, STAGES, FAST>;
    const Place place = place_of_block<M, N>(args);
    Tile tile;
    tile.run(left(args, LAYOUT == TN), right(args, LAYOUT == NT), place.m, place.n, place.k_begin, place.k_end);

    // Eight columns more than there are sums, so that what a warp writes at once lies in different banks.
    constexpr int STRIDE = Tile::WARP_N + 8;
    static_assert(WARPS_M * WARPS_N * 16 * STRIDE * 4 <= Tile::SHARED_BYTES, "the rows fit where the tiles were");
    const Shared<float> rows = shared<float>(warp() * 16 * STRIDE * 4);
    UNROLL
    for (int i = 0; i < Tile::ACROSS_M; i++) {
        UNROLL
        for (int j = 0; j < Tile::ACROSS_N; j++) {
            const Shared<float> to = rows + (lane() / 4 * STRIDE + j * 8 + lane() % 4 * 2);
            store(to, Vector<float, 2>{{tile.sums[i][j][0], tile.sums[i][j][1]}});
            store(to + 8 * STRIDE, Vector<float, 2>{{tile.sums[i][j][2], tile.sums[i][j][3]}});
        }
        const u32 first_row = place.m + Tile::warp_m() + i * 16;
        turn_rows<16, Tile::WARP_N, STRIDE>(
            rows, place.n + Tile::warp_n(), [&](u32 row) { return first_row + row; },
            [&](u32 m, u32 n, const Vector<float, 4> &sums) { write_sums(args, place.part, m, n, sums); });
    }
}

// Products of floats, each sum one chain of fused multiply-adds. Registers for 64 sums a thread leave room for one block.
template <int LAYOUT, int M, int N, int K, int WARPS_M, int WARPS_N, int OWN_M, int OWN_N, int STAGES, bool FAST>
KERNEL(WARPS_M *WARPS_N * 32, OWN_M *OWN_N > 32 ? 1 : 2) void gemm_exact(const Gemm<float, float> args) {
    begin_grid();
    using Tile = ExactTile<LAYOUT, M, N, K, WARPS_M, WARPS_N, OWN_M, OWN_N, STAGES, FAST>;
    const Place place = place_of_block<M, N>(args);
    Tile tile;
    tile.run(left(args, LAYOUT == TN), right(args, LAYOUT == NT), place.m, place.n, place.k_begin, place.k_end);

    constexpr int STRIDE = 8 * OWN_N + 8;
    static_assert(WARPS_M * WARPS_N * 4 * STRIDE * 4 <= Tile::SHARED_BYTES, "the rows fit where the tiles were");
    const Shared<float> rows = shared<float>(warp() * 4 * STRIDE * 4);
    UNROLL
    for (int i = 0; i < OWN_M; i++) {
        UNROLL
        for (int j = 0; j < OWN_N; j++) rows[lane() / 8 * STRIDE + Tile::column(lane() % 8, j)] = tile.sums[i][j];
        const u32 first_row = place.m + Tile::warp_m();
        turn_rows<4, 8 * OWN_N, STRIDE>(
            rows, place.n + Tile::warp_n(), [&](u32 row) { return first_row + Tile::row(row, i); },
            [&](u32 m, u32 n, const Vector<float, 4> &sums) { write_sums(args, place.part, m, n, sums); });
    }
}

// A linear layer whose first n outputs are gates and whose last n are what they open: out = silu(gate) * up.
template <class T> struct GemmSwiglu {
    Global<T> out;
    // Both factors as `Gemm` would write them; null where they are not wanted.
    Global<T> gate_up;
    Global<const T> a, b;
    u64 out_stride, gate_up_stride, a_stride, b_stride;
    u32 m, n, k, k_of_part, vectors;
};

// Turns a warp's gates and the factors beside them into rows of `out`, and of `gate_up` where it is wanted. `value(which, column)` puts what
// belongs in shared memory: gates (0), factors (1) or their product (2), each rounded as it is stored.
template <int ROWS, int COLUMNS, int STRIDE, class T, class RowOf, class Put>
DEVICE void write_swiglu(const GemmSwiglu<T> &args, Shared<float> rows, u32 first_column, RowOf row_of, Put put) {
    UNROLL
    for (int which = 0; which < 3; which++) {
        if (which < 2 && !args.gate_up) continue;
        put(which);
        const Global<T> to = which == 2 ? args.out : args.gate_up;
        const u64 stride = which == 2 ? args.out_stride : args.gate_up_stride;
        const u32 beside = which == 1 ? args.n : 0;
        turn_rows<ROWS, COLUMNS, STRIDE>(rows, first_column, row_of, [&](u32 m, u32 n, const Vector<float, 4> &values) {
            if (m >= args.m || n >= args.n) return;
            const Global<T> place = to + (m * stride + beside + n);
            if (args.vectors) {
                store(place, from_float<T>(values));
            } else {
                UNROLL
                for (int i = 0; i < 4; i++)
                    if (n + i < args.n) place[i] = from_float<T>(values[i]);
            }
        });
    }
}

// The arithmetic of swiglu_forward on factors that were stored.
template <class T> DEVICE float gated(int which, float gate, float up) {
    if (which < 2) return which == 0 ? gate : up;
    const float g = to_float(from_float<T>(gate));
    return g * (1.0f / (1.0f + exp(-g))) * to_float(from_float<T>(up));
}

template <class T, int M, int N, int K, int WARPS_M, int WARPS_N, int STAGES, bool FAST>
KERNEL(WARPS_M *WARPS_N * 32, 2) void gemm_swiglu(const GemmSwiglu<T> args) {
    begin_grid();
    using Tile = TensorTile<T, NT, M, N, K, WARPS_M, WARPS_N, STAGES, FAST, true>;
    const Place place = place_of_block<M, N / 2>(args);
    Tile tile;
    tile.run(Matrix<T>{args.a, args.a_stride, args.m, args.k}, Matrix<T>{args.b, args.b_stride, args.n, args.k}, place.m, place.n, 0, args.k);

    constexpr int COLUMNS = Tile::WARP_N / 2, STRIDE = COLUMNS + 8;
    static_assert(WARPS_M * WARPS_N * 16 * STRIDE * 4 <= Tile::SHARED_BYTES, "the rows fit where the tiles were");
    const Shared<float> rows = shared<float>(warp() * 16 * STRIDE * 4);
    UNROLL
    for (int i = 0; i < Tile::ACROSS_M; i++) {
        const u32 first_row = place.m + Tile::warp_m() + i * 16;
        write_swiglu<16, COLUMNS, STRIDE>(
            args, rows, place.n + Tile::warp_n() / 2, [&](u32 row) { return first_row + row; },
            [&](int which) {
                UNROLL
                for (int j = 0; j < Tile::ACROSS_N / 2; j++) {
                    const auto &gate = tile.sums[i][2 * j], &up = tile.sums[i][2 * j + 1];
                    const Shared<float> to = rows + (lane() / 4 * STRIDE + j * 8 + lane() % 4 * 2);
                    store(to, Vector<float, 2>{{gated<T>(which, gate[0], up[0]), gated<T>(which, gate[1], up[1])}});
                    store(to + 8 * STRIDE, Vector<float, 2>{{gated<T>(which, gate[2], up[2]), gated<T>(which, gate[3], up[3])}});
                }
            });
    }
}

template <int M, int N, int K, int WARPS_M, int WARPS_N, int OWN_M, int OWN_N, int STAGES, bool FAST>
KERNEL(WARPS_M *WARPS_N * 32, OWN_M *OWN_N > 32 ? 1 : 2) void gemm_swiglu_exact(const GemmSwiglu<float> args) {
    begin_grid();
    using Tile = ExactTile<NT, M, N, K, WARPS_M, WARPS_N, OWN_M, OWN_N, STAGES, FAST, true>;
    const Place place = place_of_block<M, N / 2>(args);
    Tile tile;
    tile.run(Matrix<float>{args.a, args.a_stride, args.m, args.k}, Matrix<float>{args.b, args.b_stride, args.n, args.k}, place.m, place.n, 0,
             args.k);

    constexpr int COLUMNS = 4 * OWN_N, STRIDE = COLUMNS + 8;
    const Shared<float> rows = shared<float>(warp() * 4 * STRIDE * 4);
    UNROLL
    for (int i = 0; i < OWN_M; i++) {
        const u32 first_row = place.m + Tile::warp_m();
        write_swiglu<4, COLUMNS, STRIDE>(
            args, rows, place.n + Tile::warp_n() / 2, [&](u32 row) { return first_row + Tile::row(row, i); },
            [&](int which) {
                UNROLL
                for (int j = 0; j < OWN_N / 2; j++)
                    rows[lane() / 8 * STRIDE + j * 8 + lane() % 8] = gated<float>(which, tile.sums[i][2 * j], tile.sums[i][2 * j + 1]);
            });
    }
}

// Adds the parts of each sum, the first ones first. A thread takes four columns.
template <class T, class Out> KERNEL(256) void gemm_parts(const Gemm<T, Out> args) {
    begin_grid();
    const u32 across = ceil_div(args.n, 4);
    const u64 at = u64(block_index()) * 256 + thread_index();
    if (at >= u64(args.m) * across) return;
    const u32 row = u32(at / across), column = u32(at % across) * 4;
    Vector<float, 4> sums = load<4>(partial_row(args, 0, row) + column);
    for (u32 part = 1; part < args.parts; part++) Finish<T, Out>::add(sums, load<4>(partial_row(args, part, row) + column));
    Finish<T, Out>{args}.write(row, column, sums);
}

// COUNT sums (a power of two up to 32) over the warp's lanes: lane l receives that of values[l / (32 / COUNT)]. Lanes are joined at distances 16, 8, 4,
// 2, 1, as in warp_sum.
template <int COUNT> DEVICE float warp_sums(float (&values)[COUNT]) {
    // At each distance a lane gives away the half of its values that others keep.
    u32 distance = 16;
    UNROLL
    for (int width = COUNT / 2; width > 0; width /= 2, distance /= 2) {
        const bool upper = (lane() & distance) != 0;
        UNROLL
        for (int i = 0; i < width; i++) {
            const float kept = upper ? values[i + width] : values[i], given = upper ? values[i] : values[i + width];
            values[i] = kept + shuffle_xor(given, distance);
        }
    }
    UNROLL
    for (u32 rest = 16 / COUNT; rest > 0; rest /= 2) values[0] += shuffle_xor(values[0], rest);
    return values[0];
}

// What products of a few rows have in common: a block takes four rows of B, each of whose elements is used for few products, and reads them once, at
// the speed of memory. Its warps share the terms, 256 at a time in turn, and are added in order.
template <int ROWS> struct FewRows {
    static constexpr u32 OWN = 4, WARPS = 8, COUNT = ROWS * OWN, ROUND = WARPS * 256;

    // The product of row own / OWN of A with the block's row own % OWN of B, which begins at `rows[own % OWN]`, for the thread `own`, below COUNT.
    // All threads of the block come here.
    DEVICE static float product(Global<const bf16> a, u64 a_stride, u32 m, u32 terms, const Global<const bf16> (&rows)[OWN]) {
        u32 k = thread_index() * 8;
        const auto fetch = [&](Vector<bf16, 8>(&to)[OWN]) {
            UNROLL
            for (u32 o = 0; o < OWN; o++) to[o] = load_streaming<8>(rows[o] + k);
        };
        float sums[COUNT] = {};
        Vector<bf16, 8> next[OWN];
        if (k < terms) fetch(next);
        while (k < terms) {
            Vector<float, 8> right[OWN];
            UNROLL
            for (u32 o = 0; o < OWN; o++) right[o] = to_float(next[o]);
            const u32 here = k;
            k += ROUND;
            if (k < terms) fetch(next);
            UNROLL
            for (u32 r = 0; r < ROWS; r++) {
                const Vector<float, 8> left = to_float(load_constant<8>(a + (min(r, m - 1) * a_stride + here)));
                UNROLL
                for (u32 o = 0; o < OWN; o++) {
                    UNROLL
                    for (int e = 0; e < 8; e++) sums[r * OWN + o] = fma(left[e], right[o][e], sums[r * OWN + o]);
                }
            }
        }
        const float sum = warp_sums(sums);
        const Shared<float> of_warps = shared<float>(0);
        if (lane() % (32 / COUNT) == 0) of_warps[warp() * COUNT + lane() / (32 / COUNT)] = sum;
        sync_block();
        const u32 own = thread_index() % COUNT;
        float whole = of_warps[own];
        for (u32 w = 1; w < WARPS; w++) whole += of_warps[w * COUNT + own];
        return whole;
    }
};

// Products of at most ROWS rows in layout NT.
template <class Out, int ROWS> KERNEL(256, 2) void gemm_few(const Gemm<bf16, Out> args) {
    begin_grid();
    using Few = FewRows<ROWS>;
    const u32 first = block_index() * Few::OWN, own = thread_index();
    Global<const bf16> rows[Few::OWN];
    UNROLL
    for (u32 o = 0; o < Few::OWN; o++) rows[o] = args.b + min(first + o, args.n - 1) * args.b_stride;
    const float sum = Few::product(args.a, args.a_stride, args.m, args.k, rows);
    if (own < Few::COUNT) Finish<bf16, Out>{args}.write(own / Few::OWN, first + own % Few::OWN, sum);
}

// The same that ends in SwiGLU: two of a block's rows of B are gates, the other two what they open.
template <int ROWS> KERNEL(256, 2) void gemm_few_swiglu(const GemmSwiglu<bf16> args) {
    begin_grid();
    using Few = FewRows<ROWS>;
    const u32 first = block_index() * 2, own = thread_index();
    Global<const bf16> rows[Few::OWN];
    UNROLL
    for (u32 o = 0; o < Few::OWN; o++) rows[o] = args.b + (min(first + o % 2, args.n - 1) + o / 2 * args.n) * args.b_stride;
    const float sum = Few::product(args.a, args.a_stride, args.m, args.k, rows);
    if (own >= 32) return;
    // The first warp's lanes hold all sums, if need be several times.
    const float up = shuffle(sum, (own + 2) % Few::COUNT);
    const u32 row = own / Few::OWN, which = own % Few::OWN / 2, column = first + own % 2;
    if (own >= Few::COUNT || row >= args.m || column >= args.n) return;
    if (args.gate_up) args.gate_up[row * args.gate_up_stride + which * args.n + column] = from_float<bf16>(sum);
    if (which == 0) args.out[row * args.out_stride + column] = from_float<bf16>(gated<bf16>(2, sum, up));
}

INSTANCE(gemm<bf16, bf16, NN, 128, 128, 32, 2, 2, 4, true>)
INSTANCE(gemm<bf16, bf16, NT, 128, 128, 32, 2, 2, 4, true>)
INSTANCE(gemm<bf16, bf16, TN, 128, 128, 32, 2, 2, 4, true>)
INSTANCE(gemm<bf16, bf16, NN, 64, 64, 64, 2, 2, 3, true>)
INSTANCE(gemm<bf16, bf16, NT, 64, 64, 64, 2, 2, 3, true>)
INSTANCE(gemm<bf16, bf16, TN, 64, 64, 64, 2, 2, 3, true>)
INSTANCE(gemm<bf16, bf16, NN, 16, 64, 64, 1, 4, 6, true>)
INSTANCE(gemm<bf16, bf16, NT, 16, 64, 64, 1, 4, 6, true>)
INSTANCE(gemm<bf16, bf16, TN, 16, 64, 64, 1, 4, 6, true>)
INSTANCE(gemm<bf16, bf16, NN, 64, 64, 64, 2, 2, 3, false>)
INSTANCE(gemm<bf16, bf16, NT, 64, 64, 64, 2, 2, 3, false>)
INSTANCE(gemm<bf16, bf16, TN, 64, 64, 64, 2, 2, 3, false>)
INSTANCE(gemm<bf16, float, NN, 128, 128, 32, 2, 2, 4, true>)
INSTANCE(gemm<bf16, float, NT, 128, 128, 32, 2, 2, 4, true>)
INSTANCE(gemm<bf16, float, TN, 128, 128, 32, 2, 2, 4, true>)
INSTANCE(gemm<bf16, float, NN, 64, 64, 64, 2, 2, 3, true>)
INSTANCE(gemm<bf16, float, NT, 64, 64, 64, 2, 2, 3, true>)
INSTANCE(gemm<bf16, float, TN, 64, 64, 64, 2, 2, 3, true>)
INSTANCE(gemm<bf16, float, NN, 16, 64, 64, 1, 4, 6, true>)
INSTANCE(gemm<bf16, float, NT, 16, 64, 64, 1, 4, 6, true>)
INSTANCE(gemm<bf16, float, TN, 16, 64, 64, 1, 4, 6, true>)
INSTANCE(gemm<bf16, float, NN, 64, 64, 64, 2, 2, 3, false>)
INSTANCE(gemm<bf16, float, NT, 64, 64, 64, 2, 2, 3, false>)
INSTANCE(gemm<bf16, float, TN, 64, 64, 64, 2, 2, 3, false>)
INSTANCE(gemm<float, float, NN, 128, 128, 16, 2, 2, 4, true>)
INSTANCE(gemm<float, float, NT, 128, 128, 16, 2, 2, 4, true>)
INSTANCE(gemm<float, float, TN, 128, 128, 16, 2, 2, 4, true>)
INSTANCE(gemm<float, float, NN, 64, 64, 32, 2, 2, 3, true>)
INSTANCE(gemm<float, float, NT, 64, 64, 32, 2, 2, 3, true>)
INSTANCE(gemm<float, float, TN, 64, 64, 32, 2, 2, 3, true>)
INSTANCE(gemm<float, float, NN, 16, 64, 32, 1, 4, 6, true>)
INSTANCE(gemm<float, float, NT, 16, 64, 32, 1, 4, 6, true>)
INSTANCE(gemm<float, float, TN, 16, 64, 32, 1, 4, 6, true>)
INSTANCE(gemm<float, float, NN, 64, 64, 32, 2, 2, 3, false>)
INSTANCE(gemm<float, float, NT, 64, 64, 32, 2, 2, 3, false>)
INSTANCE(gemm<float, float, TN, 64, 64, 32, 2, 2, 3, false>)
INSTANCE(gemm_exact<NN, 128, 128, 16, 4, 2, 8, 8, 4, true>)
INSTANCE(gemm_exact<NT, 128, 128, 16, 4, 2, 8, 8, 4, true>)
INSTANCE(gemm_exact<TN, 128, 128, 16, 4, 2, 8, 8, 4, true>)
INSTANCE(gemm_exact<NN, 64, 64, 16, 4, 2, 4, 4, 4, true>)
INSTANCE(gemm_exact<NT, 64, 64, 16, 4, 2, 4, 4, 4, true>)
INSTANCE(gemm_exact<TN, 64, 64, 16, 4, 2, 4, 4, 4, true>)
INSTANCE(gemm_exact<NN, 16, 64, 32, 1, 2, 4, 4, 5, true>)
INSTANCE(gemm_exact<NT, 16, 64, 32, 1, 2, 4, 4, 5, true>)
INSTANCE(gemm_exact<TN, 16, 64, 32, 1, 2, 4, 4, 5, true>)
INSTANCE(gemm_exact<NN, 64, 64, 16, 4, 2, 4, 4, 4, false>)
INSTANCE(gemm_exact<NT, 64, 64, 16, 4, 2, 4, 4, 4, false>)
INSTANCE(gemm_exact<TN, 64, 64, 16, 4, 2, 4, 4, 4, false>)
INSTANCE(gemm_parts<bf16, bf16>)
INSTANCE(gemm_parts<bf16, float>)
INSTANCE(gemm_parts<float, float>)
INSTANCE(gemm_swiglu<bf16, 128, 128, 32, 2, 2, 4, true>)
INSTANCE(gemm_swiglu<bf16, 64, 64, 64, 2, 2, 3, true>)
INSTANCE(gemm_swiglu<bf16, 16, 64, 64, 1, 4, 6, true>)
INSTANCE(gemm_swiglu<bf16, 64, 64, 64, 2, 2, 3, false>)
INSTANCE(gemm_swiglu<float, 128, 128, 16, 2, 2, 4, true>)
INSTANCE(gemm_swiglu<float, 64, 64, 32, 2, 2, 3, true>)
INSTANCE(gemm_swiglu<float, 16, 64, 32, 1, 4, 6, true>)
INSTANCE(gemm_swiglu<float, 64, 64, 32, 2, 2, 3, false>)
INSTANCE(gemm_swiglu_exact<128, 128, 16, 4, 2, 8, 8, 4, true>)
INSTANCE(gemm_swiglu_exact<64, 64, 16, 4, 2, 4, 4, 4, true>)
INSTANCE(gemm_swiglu_exact<64, 64, 16, 4, 2, 4, 4, 4, false>)
INSTANCE(gemm_few<bf16, 1>)
INSTANCE(gemm_few<bf16, 2>)
INSTANCE(gemm_few<bf16, 4>)
INSTANCE(gemm_few<bf16, 8>)
INSTANCE(gemm_few<float, 1>)
INSTANCE(gemm_few<float, 2>)
INSTANCE(gemm_few<float, 4>)
INSTANCE(gemm_few<float, 8>)
INSTANCE(gemm_few_swiglu<1>)
INSTANCE(gemm_few_swiglu<2>)
INSTANCE(gemm_few_swiglu<4>)
INSTANCE(gemm_few_swiglu<8>)
