// Sums over columns in float32 and over everything in float64, each in an order that depends on the shape alone.
#include "prelude.cuh"
#include "rows.cuh"

template <class T> struct ReduceColumns {
    // The block of rows b (the grid's second axis) writes its sums to row b of `out`, or adds them to it.
    Global<float> out;
    Global<const T> x;
    u64 x_stride;
    u32 rows, columns, rows_each, add;
};

template <class T> struct ReduceSum {
    Global<double> partials;
    Global<const T> x;
    u64 rows, columns, x_stride;
};

struct ReducePartials {
    Global<double> out;
    Global<const double> partials;
    u32 count, width;
};

// A block sums 32 N columns: its warps take rows in turn, a lane N columns next to each other, and the warps' sums are added in order.
template <class T, bool ALIGNED> KERNEL(256) void reduce_columns(const ReduceColumns<T> args) {
    constexpr int N = LANES<T>;
    constexpr u32 WARPS = 8, AHEAD = 4;
    const u32 column = (block_index() * 32 + lane()) * N;
    const u32 columns = column < args.columns ? args.columns - column : 0;
    const u32 first = block_index(1) * args.rows_each, last = min(first + args.rows_each, args.rows);
    Vector<float, N> sums = {};
    // Several rows are on their way at once.
    for (u32 row = first + warp(); row < last; row += WARPS * AHEAD) {
        Vector<T, N> values[AHEAD];
        UNROLL
        for (u32 i = 0; i < AHEAD; i++) {
            const u64 at = row + WARPS * i;
            values[i] = load_part_streaming<N, ALIGNED>(args.x + at * args.x_stride + column, at < last ? columns : 0);
        }
        UNROLL
        for (u32 i = 0; i < AHEAD; i++) {
            UNROLL
            for (int j = 0; j < N; j++) {
                if (row + WARPS * i < last) sums[j] += to_float(values[i][j]);
            }
        }
    }
    // One plane for each of a lane's columns, so that lanes write side by side.
    Shared<float> by_warp = shared<float>(0);
    UNROLL
    for (int j = 0; j < N; j++) by_warp[(warp() * N + j) * 32 + lane()] = sums[j];
    sync_block();
    for (u32 i = thread_index(); i < 32 * N; i += 256) {
        const u32 of_lane = i / N, j = i % N, at = block_index() * 32 * N + i;
        if (at >= args.columns) continue;
        float sum = 0.0f;
        for (u32 w = 0; w < WARPS; w++) sum += by_warp[(w * N + j) * 32 + of_lane];
        const u64 place = static_cast<u64>(block_index(1)) * args.columns + at;
        if (args.add) args.out[place] += sum;
        else args.out[place] = sum;
    }
}

// N elements from `start` on. Where rows lie apart they are read one by one, since a group may cross from a row into the next.
template <int N, bool ALIGNED, class T> DEVICE Vector<T, N> load_group(const ReduceSum<T> &args, u64 start, u64 elements) {
    const u64 count = start < elements ? elements - start : 0;
    if (ALIGNED || args.rows == 1) return load_part_streaming<N, ALIGNED>(args.x + start, count);
    Vector<T, N> values = {};
    u64 row = start / args.columns, column = start % args.columns;
    UNROLL
    for (int i = 0; i < N; i++) {
        if (static_cast<u64>(i) < count) values[i] = args.x[row * args.x_stride + column];
        if (++column == args.columns) {
            row++;
            column = 0;
        }
    }
    return values;
}

// Threads take groups of N consecutive elements in turn, however the rows lie.
template <class T, bool ALIGNED, bool SQUARES> KERNEL(256) void reduce_sum(const ReduceSum<T> args) {
    constexpr int N = LANES<T>, AHEAD = 4;
    const u64 elements = args.rows * args.columns, step = static_cast<u64>(block_count()) * 256 * N;
    double sum = 0.0;
    for (u64 start = (static_cast<u64>(block_index()) * 256 + thread_index()) * N; start < elements; start += AHEAD * step) {
        // Several groups are on their way at once; those past the end are zeros.
        Vector<T, N> groups[AHEAD];
        UNROLL
        for (int i = 0; i < AHEAD; i++) groups[i] = load_group<N, ALIGNED>(args, start + i * step, elements);
        UNROLL
        for (int i = 0; i < AHEAD; i++) {
            UNROLL
            for (int j = 0; j < N; j++) {
                const double value = to_float(groups[i][j]);
                sum = SQUARES ? fma(value, value, sum) : sum + value;
            }
        }
    }
    sum = block_sum(sum, shared<double>(0));
    if (thread_index() == 0) args.partials[block_index()] = sum;
}

// The sums of `count` rows of partial sums: one block, a few rows a thread.
KERNEL(256) void reduce_partials(const ReducePartials args) {
    for (u32 column = 0; column < args.width; column++) {
        double sum = 0.0;
        for (u32 row = thread_index(); row < args.count; row += 256) sum += args.partials[static_cast<u64>(row) * args.width + column];
        sum = block_sum(sum, shared<double>(0));
        if (thread_index() == 0) args.out[column] = sum;
    }
}

INSTANCE(reduce_columns<float, false>)
INSTANCE(reduce_columns<float, true>)
INSTANCE(reduce_columns<bf16, false>)
INSTANCE(reduce_columns<bf16, true>)
INSTANCE(reduce_sum<float, false, false>)
INSTANCE(reduce_sum<float, true, false>)
INSTANCE(reduce_sum<bf16, false, false>)
INSTANCE(reduce_sum<bf16, true, false>)
INSTANCE(reduce_sum<float, false, true>)
INSTANCE(reduce_sum<float, true, true>)
INSTANCE(reduce_partials)
