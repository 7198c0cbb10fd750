// Calls every function of the prelude, so that the offline compiler shows that each assembles for every chip that has it.
// It is compiled only, never launched.
#include "prelude.cuh"

struct Pointers {
    Global<float> out;
    Global<const float> in;
    Global<bf16> out_bf16;
    Global<const bf16> in_bf16;
    Global<u32> words;
    Global<i32> integers;
    Global<u64> longs;
    Global<double> doubles;
};

template <class T> struct VectorCopy { Global<T> out; Global<const T> in; u32 count; };

template <class T, int N> KERNEL(256) void vector_copy(const VectorCopy<T> args) {
    for (u32 i = (block_index() * block_threads() + thread_index()) * N; i < args.count; i += block_count() * block_threads() * N) {
        auto values = to_float(load<N>(args.in + i));
        UNROLL
        for (int k = 0; k < N; k++) values[k] *= 2.0f;
        store(args.out + i, from_float<T>(values));
    }
}
INSTANCE(vector_copy<float, 1>)
INSTANCE(vector_copy<float, 2>)
INSTANCE(vector_copy<float, 4>)
INSTANCE(vector_copy<bf16, 1>)
INSTANCE(vector_copy<bf16, 2>)
INSTANCE(vector_copy<bf16, 4>)
INSTANCE(vector_copy<bf16, 8>)
INSTANCE(vector_copy<f16, 8>)

template <class T> KERNEL(256, 4) void streaming_copy(const VectorCopy<T> args) {
    constexpr int N = 16 / sizeof(T);
    begin_grid();
    const u32 i = (block_index() * block_threads() + thread_index()) * N;
    if (i < args.count) {
        store_streaming(args.out + i, load_streaming<N>(args.in + i));
        store_streaming(args.out + args.count + i, load_constant<N>(args.in + i));
    }
}
INSTANCE(streaming_copy<float>)
INSTANCE(streaming_copy<bf16>)

KERNEL(256) void threads(const Pointers args) {
    const Shared<float> scratch = shared<float>(0);
    const u32 i = block_index(1) * block_count(2) + block_index(2) * block_count(1) + thread_index();
    float x = args.in[i];
    x = warp_sum(x) + warp_max(x) + shuffle(x, 3) + shuffle_up(x, 1) + shuffle_down(x, 2) + shuffle_xor(x, 5);
    sync_warp();
    sync_warp(0xffffu);
    x += block_sum(x, scratch) - block_max(x, scratch + 32);
    if (any(x > 0.0f) && !all(x > 1.0f)) x += static_cast<float>(popcount(ballot(x > 0.5f)) + leading_zeros(lane()));
    barrier_sync(1, block_threads());
    if (warp_uniform() == 0) barrier_arrive(2, 64);
    else if (warp() == 1) barrier_sync(2, 64);
    sync_block();
    const double y = args.doubles[i];
    const u32 word = args.words[i];
    const i32 integer = args.integers[i];
    args.doubles[i] = block_sum(y, shared<double>(256)) + shuffle(y, 1) + shuffle_up(y, 1) + warp_max(y);
    args.words[i] = warp_sum(word) + warp_max(word);
    args.integers[i] = warp_sum(integer) + warp_max(integer);
    args.out[i] = x;
}
INSTANCE(threads)

KERNEL(256) void numbers(const Pointers args) {
    const u32 i = thread_index();
    const float x = args.in[i], y = to_float(args.in_bf16[i]);
    float sum = exp(x) + exp2(x) + log(x) + log2(x) + rsqrt(x) + sqrt(x) + tanh(x) + fma(x, y, x) + abs(x) + exp_fast(x) + exp2_fast(x);
    sum += max(x, y) * min(x, 2.0f);
    float low, high;
    unpack2<bf16>(pack2<bf16>(x, y), low, high);
    sum += low - high;
    unpack2<f16>(pack2<f16>(x, y), low, high);
    sum += low - high + to_float(from_float<f16>(x)) + bit_cast<float>(to_tf32(x));
    const auto random = random_block(args.longs[0], 2, args.longs[1], i);
    args.out[i] = sum + uniform(random[0]) + uniform(random[3]) + (sum < infinity ? 1.0f : 0.0f);
    args.out_bf16[i] = from_float<bf16>(sum);
    const double z = args.doubles[i];
    args.doubles[i] = exp(z) + log(z) + sqrt(z) + rsqrt(z);
    args.words[i] = ceil_div(i, 32u) + round_up(i, 8);
    args.longs[i] = ceil_div(u64{i}, 32);
}
INSTANCE(numbers)

KERNEL(256) void shared_counters(const Pointers args) {
    const u32 i = thread_index();
    const Shared<u32> counters = shared<u32>(0);
    const Shared<i32> integers = counters.as<i32>() + 256;
    counters[i] = 0;
    integers[i] = 0;
    sync_block();
    atomic_add(counters + (args.words[i] & 255u), 1u);
    atomic_max(counters + 7, i);
    atomic_min(counters + 8, i);
    atomic_add(integers, 1);
    atomic_max(integers + 1, static_cast<i32>(i));
    sync_block();
    u32 old = atomic_add(args.words, counters[i]) + atomic_max(args.words + 1, i) + atomic_min(args.words + 2, i);
    old += static_cast<u32>(atomic_add(args.integers, 2) + atomic_max(args.integers + 1, 3) + atomic_min(args.integers + 2, 3));
    old += atomic_compare_swap(args.words + 3, 0u, i);
    old += static_cast<u32>(atomic_add(args.longs, u64{1}) + atomic_max(args.longs + 1, u64{5}));
    old += static_cast<u32>(atomic_compare_swap(args.longs + 2, u64{0}, u64{1}));
    fence_device();
    store_release(args.words + 4, old);
    args.words[5 + i] = load_acquire(args.words + 4) + old;
}
INSTANCE(shared_counters)

/// A tile of 16 x 16 by 16 x 8 a warp, through shared memory.
template <class T> KERNEL(32) void matrix(const Pointers args) {
    const Shared<T> tile = shared<T>(0);
    copy_async<16>(tile + lane() * 8, args.in.as<const T>() + lane() * 8);
    copy_async<16>(tile + 256 + lane() * 8, args.in.as<const T>() + 256 + lane() * 8, lane() < 16);
    copy_async<8>(tile + 512 + lane() * 4, args.in.as<const T>() + 512 + lane() * 4, lane() < 16);
    copy_async<4>(tile + 640 + lane() * 2, args.in.as<const T>() + 640 + lane() * 2, lane() < 16);
    copy_async_commit();
    copy_async_wait<1>();
    copy_async_wait<0>();
    sync_block();
    const Shared<T> row = tile + (lane() % 16) * 16 + (lane() / 16) * 8;
    u32 a[4], b[2], more[4], one[1];
    float c[4] = {};
    load_matrix_x4(a, row);
    load_matrix_x2(b, row + 256);
    mma_m16n8k16<T>(c, a, b);
    load_matrix_x4_transposed(more, row);
    load_matrix_x2_transposed(b, row + 256);
    mma_m16n8k16<T>(c, more, b);
    load_matrix_x1(one, row);
    b[0] ^= one[0];
    mma_m16n8k16<T>(c, more, b);
    UNROLL
    for (int k = 0; k < 4; k++) a[k] = to_tf32(c[k]);
    mma_m16n8k8_tf32(c, a, b);
    UNROLL
    for (int k = 0; k < 4; k++) args.out[lane() * 4 + k] = c[k];
}
INSTANCE(matrix<bf16>)
INSTANCE(matrix<f16>)
