// Root-mean-square normalisation. A warp normalises a short row and a block a long one; each thread keeps its first parts of a row in registers,
// so that an aligned row of up to MOST_KEPT * threads parts is read once.
//
// Backward, a block goes through consecutive rows and adds each thread's products for the weight's gradient in shared memory, where no other
// thread touches them. Each block leaves its sums in a row of `partials`, and those are added in order (reduce_columns). Of a row too long for that
// memory a launch gives the gradients of some columns only.
#include "prelude.cuh"
#include "rows.cuh"

template <class T> struct RmsNormForward {
    // `sum` and `delta` are null where nothing is added to `x`.
    Global<T> out, sum;
    Global<float> rstd;
    Global<const T> x, delta, weight;
    u64 out_stride, sum_stride, rstd_stride, x_stride, delta_stride;
    u32 tokens, heads, width;
    float epsilon;
};

template <class T> struct RmsNormBackward {
    Global<T> d_x;
    Global<float> partials;
    // `d_residual` is null where nothing is added to `d_x`.
    Global<const T> d_out, x, weight, d_residual;
    Global<const float> rstd;
    u64 d_x_stride, d_out_stride, x_stride, d_residual_stride, rstd_stride;
    u32 tokens, heads, width, rows_each;
    // The columns whose gradients are given: from a multiple of a part's elements up to another one, or to the end.
    u32 from, to;
};

constexpr int MOST_KEPT = 4;

// Elements that are read one by one take a register each.
template <bool ALIGNED> constexpr int KEPT_PARTS = ALIGNED ? MOST_KEPT : 1;

// Where a normalised row begins: the elements of a token follow each other, head by head.
template <class T> DEVICE Global<T> row_of(Global<T> p, u64 stride, u64 token, u32 head, u32 width) {
    return p + token * stride + static_cast<u64>(head) * width;
}

template <class T, bool ALIGNED, bool BLOCK> KERNEL(BLOCK ? 512 : 256) void rms_norm_forward(const RmsNormForward<T> args) {
    begin_grid();
    constexpr int N = LANES<T>, KEPT = KEPT_PARTS<ALIGNED>;
    const u64 row = BLOCK ? block_index() : static_cast<u64>(block_index()) * (block_threads() / 32) + warp();
    if (row >= static_cast<u64>(args.tokens) * args.heads) return;
    const u64 token = row / args.heads;
    const u32 head = static_cast<u32>(row % args.heads), width = args.width;
    Global<const T> x = row_of(args.x, args.x_stride, token, head, width);
    Global<const T> delta = row_of(args.delta, args.delta_stride, token, head, width);
    Global<T> sum = row_of(args.sum, args.sum_stride, token, head, width);
    Global<T> out = row_of(args.out, args.out_stride, token, head, width);
    const u32 rank = team_rank<BLOCK>() * N, step = team_size<BLOCK>() * N;

    // The elements that are normalised; also writes them where they are a sum.
    const auto take = [&](u32 column) {
        const u32 count = width - column;
        Vector<T, N> values = load_part_streaming<N, ALIGNED>(x + column, count);
        if (args.delta) {
            const Vector<T, N> added = load_part_streaming<N, ALIGNED>(delta + column, count);
            UNROLL
            for (int i = 0; i < N; i++) values[i] = from_float<T>(to_float(values[i]) + to_float(added[i]));
            store_part<ALIGNED>(sum + column, values, count);
        }
        return values;
    };
    float squares = 0.0f;
    const auto add_squares = [&](const Vector<T, N> &values) {
        UNROLL
        for (int i = 0; i < N; i++) squares = fma(to_float(values[i]), to_float(values[i]), squares);
    };
    Vector<T, N> kept[KEPT];
    UNROLL
    for (int i = 0; i < KEPT; i++) {
        const u32 column = rank + i * step;
        if (column < width) kept[i] = take(column);
        else kept[i] = Vector<T, N>{};
    }
    UNROLL
    for (int i = 0; i < KEPT; i++) add_squares(kept[i]);
    for (u32 column = rank + KEPT * step; column < width; column += step) add_squares(take(column));

    const float mean = team_sum<BLOCK>(squares) / static_cast<float>(width);
    const float rstd = 1.0f / sqrt(mean + args.epsilon);
    if (rank == 0) args.rstd[token * args.rstd_stride + head] = rstd;

    const auto normalise = [&](const Vector<T, N> &values, u32 column) {
        const u32 count = width - column;
        const Vector<T, N> weight = load_part<N, ALIGNED>(args.weight + column, count);
        Vector<T, N> result;
        UNROLL
        for (int i = 0; i < N; i++) {
            const T normal = from_float<T>(to_float(values[i]) * rstd);
            result[i] = from_float<T>(to_float(weight[i]) * to_float(normal));
        }
        store_part<ALIGNED>(out + column, result, count);
    };
    UNROLL
    for (int i = 0; i < KEPT; i++) {
        const u32 column = rank + i * step;
        if (column < width) normalise(kept[i], column);
    }
    const Global<const T> normalised = args.delta ? Global<const T>(sum) : x;
    for (u32 column = rank + KEPT * step; column < width; column += step) {
        normalise(load_part<N, ALIGNED>(normalised + column, width - column), column);
    }
}

// Where a team's sums for the weight's gradient lie in shared memory: a plane for each four of a part's elements, so that threads that hold
// neighbouring parts write side by side.
DEVICE u32 sums_at(u32 part, u32 parts, int i) { return (i / 4 * parts + part) * 4 + i % 4; }

template <class T, bool ALIGNED, bool BLOCK> KERNEL(BLOCK ? 512 : 256) void rms_norm_backward(const RmsNormBackward<T> args) {
    constexpr int N = LANES<T>, KEPT = KEPT_PARTS<ALIGNED>;
    // Rows of warps are short, and given whole.
    const u32 width = args.width, from = BLOCK ? args.from : 0, to = BLOCK ? args.to : width, parts = ceil_div(to - from, N);
    const auto given = [&](u32 column) {
        if constexpr (BLOCK) return column >= from && column < to;
        else return column < width;
    };
    const u32 teams = BLOCK ? 1 : block_threads() / 32;
    const u32 team = BLOCK ? 0 : warp(), rank = team_rank<BLOCK>(), size = team_size<BLOCK>();
    // The first 128 bytes are the block sum's.
    Shared<float> all_sums = shared<float>(128), sums = all_sums + team * parts * N;
    for (u32 part = rank; part < parts; part += size) {
        UNROLL
        for (int i = 0; i < N; i += 4) store(sums + sums_at(part, parts, i), Vector<float, 4>{});
    }

    const u64 rows = static_cast<u64>(args.tokens) * args.heads, first = static_cast<u64>(block_index()) * args.rows_each;
    const u64 last = min(first + args.rows_each, rows);
    for (u64 row = first + team; row < last; row += teams) {
        const u64 token = row / args.heads;
        const u32 head = static_cast<u32>(row % args.heads);
        Global<const T> d_out = row_of(args.d_out, args.d_out_stride, token, head, width);
        Global<const T> x = row_of(args.x, args.x_stride, token, head, width);
        Global<const T> d_residual = row_of(args.d_residual, args.d_residual_stride, token, head, width);
        Global<T> d_x = row_of(args.d_x, args.d_x_stride, token, head, width);
        const float rstd = args.rstd[token * args.rstd_stride + head];

        float product = 0.0f;
        const auto add_product = [&](const Vector<T, N> &d, const Vector<T, N> &values, u32 column) {
            const Vector<T, N> weight = load_part<N, ALIGNED>(args.weight + column, width - column);
            UNROLL
            for (int i = 0; i < N; i++) {
                product = fma(to_float(d[i]) * to_float(weight[i]), to_float(values[i]) * rstd, product);
            }
        };
        Vector<T, N> kept_d[KEPT], kept_x[KEPT];
        UNROLL
        for (int i = 0; i < KEPT; i++) {
            const u32 column = (rank + i * size) * N, count = column < width ? width - column : 0;
            kept_d[i] = load_part_streaming<N, ALIGNED>(d_out + column, count);
            kept_x[i] = load_part_streaming<N, ALIGNED>(x + column, count);
        }
        UNROLL
        for (int i = 0; i < KEPT; i++) {
            const u32 column = (rank + i * size) * N;
            if (column < width) add_product(kept_d[i], kept_x[i], column);
        }
        for (u32 column = (rank + KEPT * size) * N; column < width; column += size * N) {
            const u32 count = width - column;
            add_product(load_part<N, ALIGNED>(d_out + column, count), load_part<N, ALIGNED>(x + column, count), column);
        }
        const float mean = team_sum<BLOCK>(product) / static_cast<float>(width);

        const auto finish = [&](const Vector<T, N> &d, const Vector<T, N> &values, u32 column) {
            const u32 count = width - column;
            const Vector<T, N> weight = load_part<N, ALIGNED>(args.weight + column, count);
            Vector<T, N> residual = {}, result;
            if (args.d_residual) residual = load_part_streaming<N, ALIGNED>(d_residual + column, count);
            UNROLL
            for (int i = 0; i < N; i += 4) {
                const Shared<float> place = sums + sums_at((column - from) / N, parts, i);
                Vector<float, 4> sum = load<4>(place);
                UNROLL
                for (int j = 0; j < 4; j++) {
                    const float of_out = to_float(d[i + j]), normal = to_float(values[i + j]) * rstd;
                    const float through = fma(normal, -mean, of_out * to_float(weight[i + j]));
                    result[i + j] = from_float<T>(fma(rstd, through, to_float(residual[i + j])));
                    sum[j] = fma(of_out, to_float(from_float<T>(normal)), sum[j]);
                }
                store(place, sum);
            }
            store_part<ALIGNED>(d_x + column, result, count);
        };
        UNROLL
        for (int i = 0; i < KEPT; i++) {
            const u32 column = (rank + i * size) * N;
            if (given(column)) finish(kept_d[i], kept_x[i], column);
        }
        for (u32 column = (rank + KEPT * size) * N; column < to; column += size * N) {
            if (!given(column)) continue;
            const u32 count = width - column;
            finish(load_part<N, ALIGNED>(d_out + column, count), load_part<N, ALIGNED>(x + column, count), column);
        }
    }

    sync_block();
    for (u32 column = from + thread_index(); column < to; column += block_threads()) {
        float sum = 0.0f;
        for (u32 i = 0; i < teams; i++) sum += all_sums[i * parts * N + sums_at((column - from) / N, parts, column % N)];
        args.partials[static_cast<u64>(block_index()) * width + column] = sum;
    }
}

INSTANCE(rms_norm_forward<float, false, false>)
INSTANCE(rms_norm_forward<float, true, false>)
INSTANCE(rms_norm_forward<float, false, true>)
INSTANCE(rms_norm_forward<float, true, true>)
INSTANCE(rms_norm_forward<bf16, false, false>)
INSTANCE(rms_norm_forward<bf16, true, false>)
INSTANCE(rms_norm_forward<bf16, false, true>)
INSTANCE(rms_norm_forward<bf16, true, true>)
INSTANCE(rms_norm_backward<float, false, false>)
INSTANCE(rms_norm_backward<float, true, false>)
INSTANCE(rms_norm_backward<float, false, true>)
INSTANCE(rms_norm_backward<float, true, true>)
INSTANCE(rms_norm_backward<bf16, false, false>)
INSTANCE(rms_norm_backward<bf16, true, false>)
INSTANCE(rms_norm_backward<bf16, false, true>)
INSTANCE(rms_norm_backward<bf16, true, true>)
