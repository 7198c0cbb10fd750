// As instructions.cu, for the instructions of Hopper.
#include "prelude.cuh"

struct HopperInstruction {
    Global<u32> out;
    Global<const u32> a, b, c;
    // Words of `a` that go to shared memory.
    u32 words;
    u32 accumulate;
    // Matrix descriptors whose start counts from the start of the dynamic shared memory.
    u64 a_descriptor, b_descriptor;
};

// Rows go to the offsets that b gives.
template <int COUNT, bool TRANSPOSED> KERNEL(32) void instruction_store_matrix(const HopperInstruction args) {
    const Shared<u16> row = shared<u16>(args.b[lane()]);
    u32 r[COUNT];
    UNROLL
    for (u32 i = 0; i < COUNT; i++) r[i] = args.a[lane() * COUNT + i];
    if constexpr (COUNT == 2 && !TRANSPOSED) store_matrix_x2(row, r);
    else if constexpr (COUNT == 2) store_matrix_x2_transposed(row, r);
    else if constexpr (!TRANSPOSED) store_matrix_x4(row, r);
    else store_matrix_x4_transposed(row, r);
    sync_warp();
    for (u32 i = lane(); i < COUNT * 32; i += 32) args.out[i] = shared<u32>(0)[i];
}
INSTANCE(instruction_store_matrix<2, false>)
INSTANCE(instruction_store_matrix<2, true>)
INSTANCE(instruction_store_matrix<4, false>)
INSTANCE(instruction_store_matrix<4, true>)

DEVICE void fill_shared(const HopperInstruction &args) {
    for (u32 i = thread_index(); i < args.words; i += block_threads()) shared<u32>(0)[i] = args.a[i];
    fence_proxy_async();
    sync_block();
}

DEVICE u64 in_shared(u64 descriptor) { return descriptor + (shared_address(shared<u8>(0)) >> 4); }

template <class T, int N, bool A_TRANSPOSED, bool B_TRANSPOSED> KERNEL(128) void instruction_wgmma(const HopperInstruction args) {
    fill_shared(args);
    float d[N / 2];
    for (u32 i = 0; i < N / 2; i++) d[i] = bit_cast<float>(u32(args.c[thread_index() * (N / 2) + i]));
    wgmma_fence_registers(d);
    wgmma_fence();
    wgmma_m64<N, T, A_TRANSPOSED, B_TRANSPOSED>(d, in_shared(args.a_descriptor), in_shared(args.b_descriptor), args.accumulate != 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_registers(d);
    for (u32 i = 0; i < N / 2; i++) args.out[thread_index() * (N / 2) + i] = bit_cast<u32>(d[i]);
}
INSTANCE(instruction_wgmma<bf16, 64, false, false>)
INSTANCE(instruction_wgmma<bf16, 128, false, true>)
INSTANCE(instruction_wgmma<bf16, 64, true, true>)
INSTANCE(instruction_wgmma<bf16, 256, true, false>)
INSTANCE(instruction_wgmma<f16, 32, false, false>)
INSTANCE(instruction_wgmma<f16, 8, true, true>)
INSTANCE(instruction_wgmma<tf32, 32, false, false>)

// A in registers, four words a thread, from b.
template <class T, int N, bool B_TRANSPOSED> KERNEL(128) void instruction_wgmma_registers(const HopperInstruction args) {
    fill_shared(args);
    float d[N / 2];
    u32 a[4];
    for (u32 i = 0; i < N / 2; i++) d[i] = bit_cast<float>(u32(args.c[thread_index() * (N / 2) + i]));
    for (u32 i = 0; i < 4; i++) a[i] = args.b[thread_index() * 4 + i];
    wgmma_fence_registers(d);
    wgmma_fence_registers(a);
    wgmma_fence();
    wgmma_m64<N, T, B_TRANSPOSED>(d, a, in_shared(args.b_descriptor), args.accumulate != 0);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_registers(d);
    for (u32 i = 0; i < N / 2; i++) args.out[thread_index() * (N / 2) + i] = bit_cast<u32>(d[i]);
}
INSTANCE(instruction_wgmma_registers<bf16, 64, true>)
INSTANCE(instruction_wgmma_registers<tf32, 16, false>)

// `words` words of a to shared memory and on to out, as two copies and two phases of one barrier.
KERNEL(128) void instruction_bulk_copy(const HopperInstruction args) {
    const u32 half = args.words / 2;
    const Shared<u32> tile = shared<u32>(0);
    const Shared<u64> barrier = shared<u64>(args.words * 4);
    if (thread_index() == 0) {
        mbarrier_init(barrier, 1);
        fence_barrier_init();
    }
    sync_block();
    for (u32 phase = 0; phase < 2; phase++) {
        if (thread_index() == 0) {
            mbarrier_arrive_expect(barrier, half * 4);
            bulk_load(tile + phase * half, args.a + phase * half, half * 4, barrier);
        }
        mbarrier_wait(barrier, phase);
        // Who has not seen this phase end must not find the next one ended too.
        sync_block();
    }
    if (thread_index() == 0) {
        bulk_store(args.out, tile, half * 4);
        bulk_store(args.out + half, tile + half, half * 4);
        bulk_commit();
        bulk_wait<0>();
    }
}
INSTANCE(instruction_bulk_copy)

template <class T> KERNEL(128) void instruction_bulk_reduce(const HopperInstruction args) {
    fill_shared(args);
    if (thread_index() == 0) {
        bulk_reduce_add(args.out.as<T>(), shared<T>(0), args.words * 4);
        bulk_commit();
        bulk_wait<0>();
    }
}
INSTANCE(instruction_bulk_reduce<float>)
INSTANCE(instruction_bulk_reduce<bf16>)
INSTANCE(instruction_bulk_reduce<f16>)
INSTANCE(instruction_bulk_reduce<u32>)
INSTANCE(instruction_bulk_reduce<u64>)

struct TensorInstruction {
    TensorMap map;
    Global<u32> out;
    Global<const u32> a;
    // Words of a box, and where it begins in the tensor.
    u32 words;
    i32 x, y, z;
};

DEVICE void dump_shared(const TensorInstruction &args) {
    for (u32 i = thread_index(); i < args.words; i += block_threads()) args.out[i] = shared<u32>(0)[i];
}

template <int RANK> KERNEL(128) void instruction_tensor_load(const GRID_CONSTANT TensorInstruction args) {
    const Shared<u64> barrier = shared<u64>(args.words * 4);
    if (thread_index() == 0) {
        prefetch_tensor_map(args.map);
        mbarrier_init(barrier, 1);
        fence_barrier_init();
        mbarrier_arrive_expect(barrier, args.words * 4);
        if constexpr (RANK == 1) tma_load_1d(shared<u8>(0), args.map, barrier, args.x);
        else if constexpr (RANK == 2) tma_load_2d(shared<u8>(0), args.map, barrier, args.x, args.y);
        else tma_load_3d(shared<u8>(0), args.map, barrier, args.x, args.y, args.z);
    }
    sync_block();
    mbarrier_wait(barrier, 0);
    dump_shared(args);
}
INSTANCE(instruction_tensor_load<1>)
INSTANCE(instruction_tensor_load<2>)
INSTANCE(instruction_tensor_load<3>)

template <bool ADD> KERNEL(128) void instruction_tensor_store(const GRID_CONSTANT TensorInstruction args) {
    for (u32 i = thread_index(); i < args.words; i += block_threads()) shared<u32>(0)[i] = args.a[i];
    fence_proxy_async();
    sync_block();
    if (thread_index() == 0) {
        if constexpr (ADD) tma_reduce_add_2d(args.map, shared<u8>(0), args.x, args.y);
        else tma_store_2d(args.map, shared<u8>(0), args.x, args.y);
        bulk_commit();
        bulk_wait<0>();
    }
}
INSTANCE(instruction_tensor_store<false>)
INSTANCE(instruction_tensor_store<true>)

// Each block of a cluster of two loads half of a and gives it to both; each then hands its rank to the other.
KERNEL(128) void instruction_multicast(const HopperInstruction args) {
    const u32 half = args.words / 2, rank = cluster_rank();
    const Shared<u32> tile = shared<u32>(0);
    const Shared<u64> barrier = shared<u64>(args.words * 4);
    const Shared<u32> mailbox = shared<u32>(args.words * 4 + 64);
    if (thread_index() == 0) {
        mbarrier_init(barrier, 1);
        mbarrier_init(barrier + 1, 1);
        fence_barrier_init();
    }
    cluster_arrive();
    cluster_wait();
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, args.words * 4);
        bulk_load_multicast(tile + rank * half, args.a + rank * half, half * 4, barrier, 3);
        map_shared(mailbox, rank ^ 1)[0] = 100 + rank;
        mbarrier_arrive_cluster(barrier + 1, rank ^ 1);
    }
    mbarrier_wait(barrier, 0);
    mbarrier_wait(barrier + 1, 0);
    const Global<u32> out = args.out + rank * (args.words + 1);
    for (u32 i = thread_index(); i < args.words; i += block_threads()) out[i] = tile[i];
    if (thread_index() == 0) out[args.words] = mailbox[0];
    cluster_arrive();
    cluster_wait();
}
INSTANCE(instruction_multicast)
