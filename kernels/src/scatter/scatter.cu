// Rows into the places that an index names: one thread a vector of elements.
#include "prelude.cuh"

template <class T> struct ScatterForward {
    Global<T> out;
    Global<const T> x;
    Global<const u32> places;
    u32 count, columns;
    u64 out_stride, x_stride;
};

// N elements a thread; N is 1 where rows are not aligned to vectors.
template <class T, int N> KERNEL(256) void scatter_forward(const ScatterForward<T> args) {
    begin_grid();
    u32 vectors = args.columns / N;
    u64 at = u64(block_index()) * 256 + thread_index();
    if (at >= u64(args.count) * vectors) return;
    u64 row = at / vectors;
    u32 column = u32(at % vectors) * N;
    u64 place = args.places[row];
    store(args.out + place * args.out_stride + column, load<N>(args.x + row * args.x_stride + column));
}

INSTANCE(scatter_forward<float, 1>)
INSTANCE(scatter_forward<float, 4>)
INSTANCE(scatter_forward<bf16, 1>)
INSTANCE(scatter_forward<bf16, 8>)
