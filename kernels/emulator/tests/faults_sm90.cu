// As faults.cu, for Hopper's units.
#include "prelude.cuh"

struct HopperFault {
    // 2 rows of 256 floats, 512 apart; the same of values.
    Global<float> out;
    Global<const float> in;
    u32 broken;
};

constexpr u32 ROW = 512;
constexpr u32 BARRIER = 8128;

DEVICE Global<float> own_row(const HopperFault &args) { return args.out + block_index() * ROW; }

// One barrier for one arrival, known to all.
DEVICE Shared<u64> make_barrier(u32 arrivals) {
    const Shared<u64> barrier = shared<u64>(BARRIER);
    if (thread_index() == 0) {
        mbarrier_init(barrier, arrivals);
        fence_barrier_init();
    }
    sync_block();
    return barrier;
}

KERNEL(128) void fault_wrong_phase(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    const Shared<u64> barrier = make_barrier(1);
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, 1024);
        bulk_load(tile, args.in, 1024, barrier);
    }
    mbarrier_wait(barrier, args.broken);
    own_row(args)[thread_index()] = tile[thread_index()];
    if (args.broken) mbarrier_wait(barrier, 0);
}
INSTANCE(fault_wrong_phase)

KERNEL(128) void fault_missing_expect(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    const Shared<u64> barrier = make_barrier(1);
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, args.broken ? 2048 : 1024);
        bulk_load(tile, args.in, 1024, barrier);
    }
    mbarrier_wait(barrier, 0);
}
INSTANCE(fault_missing_expect)

KERNEL(128) void fault_too_many_arrivals(const HopperFault args) {
    const Shared<u64> barrier = make_barrier(128);
    if (thread_index() == 0) mbarrier_expect(barrier, 16);
    sync_block();
    mbarrier_arrive(barrier);
    if (args.broken && thread_index() == 5) mbarrier_arrive(barrier);
    sync_block();
    if (thread_index() == 0) bulk_load(shared<float>(0), args.in, 16, barrier);
    mbarrier_wait(barrier, 0);
}
INSTANCE(fault_too_many_arrivals)

KERNEL(128) void fault_barrier_unfenced(const HopperFault args) {
    const Shared<u64> barrier = shared<u64>(BARRIER);
    if (thread_index() == 0) {
        mbarrier_init(barrier, 1);
        if (!args.broken) fence_barrier_init();
        mbarrier_arrive_expect(barrier, 16);
        bulk_load(shared<float>(0), args.in, 16, barrier);
    }
    sync_block();
    mbarrier_wait(barrier, 0);
}
INSTANCE(fault_barrier_unfenced)

KERNEL(128) void fault_barrier_unknown(const HopperFault args) {
    const Shared<u64> barrier = make_barrier(128);
    mbarrier_arrive(barrier + args.broken);
}
INSTANCE(fault_barrier_unknown)

// Consumers give the stage back before they have read it.
KERNEL(128) void fault_early_release(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    const Shared<u64> full = shared<u64>(BARRIER), empty = full + 1;
    if (thread_index() == 0) {
        mbarrier_init(full, 1);
        mbarrier_init(empty, 96);
        fence_barrier_init();
    }
    sync_block();
    if (warp() == 3) {
        for (u32 i = 0; i < 4 && lane() == 0; i++) {
            mbarrier_wait(empty, (i & 1) ^ 1);
            mbarrier_arrive_expect(full, 512);
            bulk_load(tile, args.in + 64 * (i % 2), 512, full);
        }
        return;
    }
    float sum = 0.0f;
    for (u32 i = 0; i < 4; i++) {
        mbarrier_wait(full, i & 1);
        if (args.broken) mbarrier_arrive(empty);
        sum += tile[thread_index()];
        if (!args.broken) mbarrier_arrive(empty);
    }
    own_row(args)[thread_index()] = sum;
}
INSTANCE(fault_early_release)

KERNEL(128) void fault_proxy_fence(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    if (!args.broken) fence_proxy_async();
    sync_block();
    if (thread_index() == 0) {
        bulk_store(own_row(args), tile, 512);
        bulk_commit();
        bulk_wait<0>();
    }
}
INSTANCE(fault_proxy_fence)

// The fence belongs to whoever has stored, not to whoever starts the copy.
KERNEL(128) void fault_proxy_fence_of_another(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    if (!args.broken) fence_proxy_async();
    sync_block();
    if (thread_index() == 0) {
        if (args.broken) fence_proxy_async();
        bulk_store(own_row(args), tile, 512);
        bulk_commit();
        bulk_wait<0>();
    }
}
INSTANCE(fault_proxy_fence_of_another)

// A copy over what was stored may come before the stores.
KERNEL(128) void fault_proxy_fence_before_copy(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    const Shared<u64> barrier = make_barrier(1);
    tile[thread_index()] = 1.0f;
    if (!args.broken) fence_proxy_async();
    sync_block();
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, 512);
        bulk_load(tile, args.in, 512, barrier);
    }
    mbarrier_wait(barrier, 0);
    own_row(args)[thread_index()] = tile[thread_index()];
}
INSTANCE(fault_proxy_fence_before_copy)

// The elected lane need not be the first: what it started, it waits for itself.
KERNEL(128) void fault_elected_lane(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    fence_proxy_async();
    sync_block();
    if (warp() != 0) return;
    const bool leads = elect_one();
    if (leads) {
        bulk_store(own_row(args), tile, 512);
        bulk_commit();
    }
    sync_warp();
    if (args.broken ? lane() == 0 : leads) bulk_wait<0>();
}
INSTANCE(fault_elected_lane)

KERNEL(128) void fault_store_overwritten(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    fence_proxy_async();
    sync_block();
    if (thread_index() == 0) {
        bulk_store(own_row(args), tile, 512);
        bulk_commit();
        if (!args.broken) bulk_wait_read<0>();
    }
    sync_block();
    tile[thread_index()] = 2.0f;
    if (thread_index() == 0) bulk_wait<0>();
}
INSTANCE(fault_store_overwritten)

KERNEL(128) void fault_store_abandoned(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    fence_proxy_async();
    sync_block();
    if (thread_index() == 0) {
        bulk_store(own_row(args), tile, 512);
        bulk_commit();
        if (!args.broken) bulk_wait_read<0>();
    }
}
INSTANCE(fault_store_abandoned)

// Products: A of 64 x 16 and B of 8 x 16 without a swizzle, K contiguous.
DEVICE void fill_operands() {
    const Shared<bf16> operands = shared<bf16>(0);
    for (u32 i = thread_index(); i < 72 * 16; i += 128) operands[i] = from_float<bf16>(1.0f);
}
DEVICE u64 descriptor_a() { return matrix_descriptor(shared<bf16>(0), 128, 256, Swizzle::None); }
DEVICE u64 descriptor_b() { return matrix_descriptor(shared<bf16>(2048), 128, 256, Swizzle::None); }

KERNEL(128) void fault_wgmma_proxy_fence(const HopperFault args) {
    float d[4];
    fill_operands();
    if (!args.broken) fence_proxy_async();
    sync_block();
    wgmma_fence();
    wgmma_m64<8, bf16>(d, descriptor_a(), descriptor_b(), false);
    wgmma_commit();
    wgmma_wait<0>();
    wgmma_fence_registers(d);
    own_row(args)[thread_index()] = d[0];
}
INSTANCE(fault_wgmma_proxy_fence)

KERNEL(128) void fault_wgmma_operand_overwritten(const HopperFault args) {
    float d[4];
    fill_operands();
    fence_proxy_async();
    sync_block();
    wgmma_fence();
    wgmma_m64<8, bf16>(d, descriptor_a(), descriptor_b(), false);
    wgmma_commit();
    if (!args.broken) wgmma_wait<0>();
    sync_block();
    shared<bf16>(0)[thread_index()] = from_float<bf16>(2.0f);
    wgmma_wait<0>();
    wgmma_fence_registers(d);
    own_row(args)[thread_index()] = d[0];
}
INSTANCE(fault_wgmma_operand_overwritten)

KERNEL(128) void fault_wgmma_accumulator_touched(const HopperFault args) {
    float d[4] = {};
    fill_operands();
    fence_proxy_async();
    sync_block();
    wgmma_fence_registers(d);
    wgmma_fence();
    wgmma_m64<8, bf16>(d, descriptor_a(), descriptor_b(), true);
    wgmma_commit();
    if (!args.broken) wgmma_wait<0>();
    wgmma_fence_registers(d);
    d[1] = 3.0f;
    wgmma_fence_registers(d);
    wgmma_wait<0>();
    wgmma_fence_registers(d);
    own_row(args)[thread_index()] = d[0];
}
INSTANCE(fault_wgmma_accumulator_touched)

KERNEL(128) void fault_wgmma_a_touched(const HopperFault args) {
    float d[4] = {};
    u32 a[4] = {1, 2, 3, 4};
    fill_operands();
    fence_proxy_async();
    sync_block();
    wgmma_fence_registers(a);
    wgmma_fence();
    wgmma_m64<8, bf16>(d, a, descriptor_b(), false);
    wgmma_commit();
    if (!args.broken) wgmma_wait<0>();
    wgmma_fence_registers(a);
    a[2] = 5;
    wgmma_fence_registers(a);
    wgmma_wait<0>();
    wgmma_fence_registers(d);
    own_row(args)[thread_index()] = d[0];
}
INSTANCE(fault_wgmma_a_touched)

KERNEL(128) void fault_wgmma_fence(const HopperFault args) {
    float d[4] = {};
    fill_operands();
    fence_proxy_async();
    sync_block();
    if (!args.broken) wgmma_fence();
    wgmma_m64<8, bf16>(d, descriptor_a(), descriptor_b(), true);
    wgmma_commit();
    wgmma_wait<0>();
}
INSTANCE(fault_wgmma_fence)

KERNEL(128) void fault_wgmma_missing_warp(const HopperFault args) {
    float d[4] = {};
    fill_operands();
    fence_proxy_async();
    sync_block();
    if (args.broken && warp() == 3) return;
    wgmma_fence();
    wgmma_m64<8, bf16>(d, descriptor_a(), descriptor_b(), true);
    wgmma_commit();
    wgmma_wait<0>();
}
INSTANCE(fault_wgmma_missing_warp)

KERNEL(128) void fault_register_pool(const HopperFault args) {
    // 255 a thread at first, of which 32 a thread of half the warps are given back and asked for.
    if (warp() < 2) registers_decrease<128>();
    else registers_decrease<224>();
    sync_block();
    if (warp() >= 2 && args.broken) registers_decrease<232>();
    else if (warp() >= 2) registers_increase<248>();
}
INSTANCE(fault_register_pool)

// Clusters of two blocks.
KERNEL(128) void fault_cluster_sync(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    if (!args.broken) {
        cluster_arrive();
        cluster_wait();
    } else {
        sync_block();
    }
    own_row(args)[thread_index()] = map_shared(tile, cluster_rank() ^ 1)[thread_index()];
    cluster_arrive();
    cluster_wait();
}
INSTANCE(fault_cluster_sync)

KERNEL(128) void fault_cluster_exit(const HopperFault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    cluster_arrive();
    cluster_wait();
    if (cluster_rank() == 0) {
        // Long enough for the other block to have gone.
        for (u32 i = 0; i < 64; i++) sync_block();
        own_row(args)[thread_index()] = map_shared(tile, 1)[thread_index()];
    }
    if (!args.broken) {
        cluster_arrive();
        cluster_wait();
    }
}
INSTANCE(fault_cluster_exit)

// Whose arrival was not waited for may come to a block that has gone.
KERNEL(128) void fault_cluster_arrival_at_exit(const HopperFault args) {
    const Shared<u64> barrier = make_barrier(128);
    cluster_arrive();
    cluster_wait();
    mbarrier_arrive_cluster(barrier, cluster_rank() ^ 1);
    if (!args.broken) mbarrier_wait(barrier, 0);
}
INSTANCE(fault_cluster_arrival_at_exit)

KERNEL(128) void fault_cluster_copy_at_exit(const HopperFault args) {
    const u32 rank = cluster_rank();
    const Shared<u64> barrier = make_barrier(1);
    cluster_arrive();
    cluster_wait();
    if (thread_index() == 0) {
        mbarrier_arrive_expect(barrier, 1024);
        bulk_load_multicast(shared<float>(0) + 128 * rank, args.in + 128 * rank, 512, barrier, 3);
    }
    if (!args.broken) mbarrier_wait(barrier, 0);
}
INSTANCE(fault_cluster_copy_at_exit)

// A relaxed arrival hands nothing over that threads have stored.
KERNEL(128) void fault_cluster_relaxed(const HopperFault args) {
    const u32 other = cluster_rank() ^ 1;
    const Shared<float> tile = shared<float>(0);
    const Shared<u64> barrier = make_barrier(128);
    cluster_arrive();
    cluster_wait();
    tile[thread_index()] = 1.0f;
    if (args.broken) mbarrier_arrive_cluster_relaxed(barrier, other);
    else mbarrier_arrive_cluster(barrier, other);
    mbarrier_wait(barrier, 0);
    own_row(args)[thread_index()] = map_shared(tile, other)[thread_index()];
    cluster_arrive();
    cluster_wait();
}
INSTANCE(fault_cluster_relaxed)

KERNEL(128) void fault_early_grid_access(const HopperFault args) {
    if (!args.broken) begin_grid();
    own_row(args)[thread_index()] = args.in[thread_index()];
    begin_grid();
}
INSTANCE(fault_early_grid_access)

KERNEL(128) void fault_early_grid_return(const HopperFault args) {
    if (args.broken && thread_index() == 5) return;
    begin_grid();
    own_row(args)[thread_index()] = 1.0f;
}
INSTANCE(fault_early_grid_return)
