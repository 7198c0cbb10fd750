// Calls every function of the prelude that needs Hopper, as check.cu does for the others.
#include "prelude.cuh"

template <class T> struct Tensors {
    TensorMap map;
    Global<T> out;
    Global<const T> in;
    u32 count;
};

/// Barriers, bulk copies, tensor copies of each rank, clusters.
template <class T> KERNEL(128) void copies(const GRID_CONSTANT Tensors<T> args) {
    const Shared<T> tile = shared<T>(0);
    const Shared<u64> barrier = shared<u64>(32768);
    if (warp_uniform() == 0 && elect_one()) {
        prefetch_tensor_map(args.map);
        mbarrier_init(barrier, 1);
        mbarrier_init(barrier + 1, 2);
        fence_barrier_init();
    }
    cluster_arrive();
    cluster_wait();
    const u32 rank = cluster_rank(), next = (rank + 1) % cluster_size();
    if (thread_index() == 0) {
        mbarrier_expect(barrier, 4096);
        mbarrier_arrive_expect(barrier, 4096);
        bulk_prefetch(args.in, 4096);
        bulk_load(tile, args.in, 4096, barrier);
        bulk_load(tile, args.in, 4096, barrier, cache_evict_last);
        bulk_load_multicast(tile, args.in, 4096, barrier, 3);
        tma_load_1d(tile, args.map, barrier, 1);
        tma_load_2d(tile, args.map, barrier, 1, 2, cache_evict_first);
        tma_load_3d(tile, args.map, barrier, 1, 2, 3);
        tma_load_4d(tile, args.map, barrier, 1, 2, 3, 4);
        tma_load_5d(tile, args.map, barrier, 1, 2, 3, 4, 5);
        tma_load_1d_multicast(tile, args.map, barrier, 3, 1);
        tma_load_2d_multicast(tile, args.map, barrier, 3, 1, 2);
        tma_load_3d_multicast(tile, args.map, barrier, 3, 1, 2, 3);
        tma_load_4d_multicast(tile, args.map, barrier, 3, 1, 2, 3, 4);
        tma_load_5d_multicast(tile, args.map, barrier, 3, 1, 2, 3, 4, 5);
    }
    mbarrier_wait(barrier, 0);
    mbarrier_arrive(barrier + 1);
    mbarrier_arrive_cluster(barrier + 1, next);
    mbarrier_arrive_cluster_relaxed(barrier + 1, next);
    while (!mbarrier_try_wait(barrier + 1, 1)) {
    }
    const Shared<T> remote = map_shared(tile, next);
    tile[thread_index()] = remote[thread_index()];
    store(remote + 8 * thread_index(), load<8>(tile + 8 * thread_index()));
    const u32 words[4] = {thread_index(), 1, 2, 3}, pair[2] = {4, 5};
    store_matrix_x4(tile + 8 * lane(), words);
    store_matrix_x4_transposed(tile + 256 + 8 * lane(), words);
    store_matrix_x2(tile + 512 + 8 * lane(), pair);
    store_matrix_x2_transposed(tile + 640 + 8 * lane(), pair);
    fence_proxy_async();
    fence_proxy_async_global();
    sync_block();
    if (thread_index() == 0) {
        bulk_store(args.out, tile, 4096);
        bulk_reduce_add(args.out, tile, 4096);
        bulk_reduce_add(args.out.template as<float>(), tile.template as<float>(), 4096);
        bulk_reduce_add(args.out.template as<u32>(), tile.template as<u32>(), 4096);
        bulk_reduce_add(args.out.template as<i32>(), tile.template as<i32>(), 4096);
        bulk_reduce_add(args.out.template as<u64>(), tile.template as<u64>(), 4096);
        bulk_commit();
        tma_store_1d(args.map, tile, 1);
        tma_store_2d(args.map, tile, 1, 2);
        tma_store_3d(args.map, tile, 1, 2, 3);
        tma_store_4d(args.map, tile, 1, 2, 3, 4);
        tma_store_5d(args.map, tile, 1, 2, 3, 4, 5);
        tma_reduce_add_1d(args.map, tile, 1);
        tma_reduce_add_2d(args.map, tile, 1, 2);
        tma_reduce_add_3d(args.map, tile, 1, 2, 3);
        tma_reduce_add_4d(args.map, tile, 1, 2, 3, 4);
        tma_reduce_add_5d(args.map, tile, 1, 2, 3, 4, 5);
        bulk_commit();
        bulk_wait_read<1>();
        bulk_wait<0>();
    }
    cluster_arrive();
    cluster_wait();
}
INSTANCE(copies<bf16>)
INSTANCE(copies<f16>)

struct Product {
    Global<float> out;
    u32 steps;
};

/// One accumulator of 64 x N: a producer's registers are given to the warpgroup that multiplies.
template <class T, int N, bool A_TRANSPOSED, bool B_TRANSPOSED> KERNEL(256, 1) void product(const Product args) {
    constexpr u32 STEP = A_TRANSPOSED ? 2048 : 32;
    if (warp_uniform() >= 4) {
        registers_decrease<24>();
        return;
    }
    registers_increase<232>();
    float d[N / 2];
    UNROLL
    for (int i = 0; i < N / 2; i++) d[i] = 0.0f;
    const u64 a = matrix_descriptor(shared<T>(0), 8192, 1024, Swizzle::Bytes128);
    const u64 b = matrix_descriptor(shared<T>(16384), 8192, 1024, Swizzle::Bytes128);
    for (u32 step = 0; step < args.steps; step++) {
        wgmma_fence_registers(d);
        wgmma_fence();
        UNROLL
        for (u32 k = 0; k < 4; k++) {
            const u64 a_step = advance_descriptor(a, k * STEP), b_step = advance_descriptor(b, k * STEP);
            wgmma_m64<N, T, A_TRANSPOSED, B_TRANSPOSED>(d, a_step, b_step, true);
        }
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_fence_registers(d);
    }
    UNROLL
    for (int i = 0; i < N / 2; i++) args.out[i * 128 + thread_index()] = d[i];
}
INSTANCE(product<bf16, 256, false, false>)
INSTANCE(product<bf16, 256, true, false>)
INSTANCE(product<bf16, 128, false, true>)
INSTANCE(product<f16, 64, true, true>)
INSTANCE(product<tf32, 32, false, false>)

/// Each width, for each type, with A in shared memory and in registers.
template <int N> KERNEL(128) void width(const Product args) {
    u32 a[4];
    UNROLL
    for (u32 i = 0; i < 4; i++) a[i] = args.out.as<u32>()[thread_index() * 4 + i];
    const u64 descriptor = matrix_descriptor(shared<bf16>(0), 128, 256, Swizzle::None);
    float d[N / 2];
    wgmma_fence_registers(a);
    wgmma_fence();
    wgmma_m64<N, bf16>(d, descriptor, descriptor, false);
    wgmma_m64<N, bf16>(d, a, descriptor, true);
    wgmma_m64<N, f16>(d, descriptor, descriptor, true);
    wgmma_m64<N, f16, true>(d, a, descriptor, true);
    wgmma_m64<N, tf32>(d, descriptor, descriptor, true);
    wgmma_m64<N, tf32>(d, a, descriptor, true);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_registers(d);
    UNROLL
    for (int i = 0; i < N / 2; i++) args.out[i * 128 + thread_index()] = d[i];
}
INSTANCE(width<8>)
INSTANCE(width<16>)
INSTANCE(width<24>)
INSTANCE(width<32>)
INSTANCE(width<40>)
INSTANCE(width<48>)
INSTANCE(width<56>)
INSTANCE(width<64>)
INSTANCE(width<72>)
INSTANCE(width<80>)
INSTANCE(width<88>)
INSTANCE(width<96>)
INSTANCE(width<104>)
INSTANCE(width<112>)
INSTANCE(width<120>)
INSTANCE(width<128>)
INSTANCE(width<136>)
INSTANCE(width<144>)
INSTANCE(width<152>)
INSTANCE(width<160>)
INSTANCE(width<168>)
INSTANCE(width<176>)
INSTANCE(width<184>)
INSTANCE(width<192>)
INSTANCE(width<200>)
INSTANCE(width<208>)
INSTANCE(width<216>)
INSTANCE(width<224>)
INSTANCE(width<232>)
INSTANCE(width<240>)
INSTANCE(width<248>)
INSTANCE(width<256>)
