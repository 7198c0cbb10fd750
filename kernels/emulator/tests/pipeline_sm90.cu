// C = A B^T as Hopper's kernels do it: a warp loads tiles by TMA into a ring of stages, a warpgroup multiplies them with wgmma, the result leaves by TMA.
// Its mistakes are those that only show in pipelines.
#include "prelude.cuh"

struct Pipeline {
    // Boxes of 64 x 64 of A (M x K) and of B (N x K) in bf16 with the 128-byte swizzle, of 32 x 64 of C (M x N) in float without.
    TensorMap a, b, c;
    u32 steps;
    // A bit for each mistake: 1 gives a stage back while wgmma may read it, 2 stores without the fence, 4 expects too few bytes, 8 waits for the wrong
    // phase, 16 lets the ring's barriers be one phase apart.
    u32 mistakes;
};

constexpr u32 STAGES = 3;
constexpr u32 TILE_BYTES = 64 * 64 * 2;
constexpr u32 STAGE_BYTES = 2 * TILE_BYTES;
constexpr u32 RESULT = STAGES * STAGE_BYTES;
constexpr u32 BARRIERS = RESULT + 64 * 64 * 4;

KERNEL(160) void test_pipeline(const GRID_CONSTANT Pipeline args) {
    const Shared<u64> full = shared<u64>(BARRIERS), empty = full + STAGES;
    if (thread_index() == 0) {
        for (u32 s = 0; s < STAGES; s++) {
            mbarrier_init(full + s, 1);
            mbarrier_init(empty + s, 1);
        }
        fence_barrier_init();
    }
    sync_block();
    const i32 m = block_index(1) * 64, n = block_index(0) * 64;
    if (warp() == 4) {
        if (lane() != 0) return;
        for (u32 step = 0; step < args.steps; step++) {
            const u32 stage = step % STAGES, phase = step / STAGES & 1;
            mbarrier_wait(empty + stage, phase ^ (args.mistakes & 16 ? 0 : 1));
            mbarrier_arrive_expect(full + stage, args.mistakes & 4 ? STAGE_BYTES - 16 : STAGE_BYTES);
            tma_load_2d(shared<bf16>(stage * STAGE_BYTES), args.a, full + stage, step * 64, m);
            tma_load_2d(shared<bf16>(stage * STAGE_BYTES + TILE_BYTES), args.b, full + stage, step * 64, n);
        }
        return;
    }
    float d[32];
    for (u32 step = 0; step < args.steps; step++) {
        const u32 stage = step % STAGES, phase = step / STAGES & 1;
        mbarrier_wait(full + stage, args.mistakes & 8 ? phase ^ 1 : phase);
        const u64 a = matrix_descriptor(shared<bf16>(stage * STAGE_BYTES), 0, 1024, Swizzle::Bytes128);
        const u64 b = matrix_descriptor(shared<bf16>(stage * STAGE_BYTES + TILE_BYTES), 0, 1024, Swizzle::Bytes128);
        wgmma_fence_registers(d);
        wgmma_fence();
        for (u32 k = 0; k < 4; k++) wgmma_m64<64, bf16>(d, advance_descriptor(a, 32 * k), advance_descriptor(b, 32 * k), step + k != 0);
        wgmma_commit();
        if (args.mistakes & 1) {
            if (thread_index() == 0) mbarrier_arrive(empty + stage);
            continue;
        }
        // One group stays under way; the stage of the one before is free.
        wgmma_wait<1>();
        if (step != 0 && thread_index() == 0) mbarrier_arrive(empty + (step - 1) % STAGES);
    }
    wgmma_wait<0>();
    wgmma_fence_registers(d);
    const Shared<float> result = shared<float>(RESULT);
    for (u32 i = 0; i < 32; i++) {
        const u32 row = warp() * 16 + lane() / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane() % 4 * 2 + i % 2;
        result[column / 32 * 2048 + row * 32 + column % 32] = d[i];
    }
    if (!(args.mistakes & 2)) fence_proxy_async();
    barrier_sync(1, 128);
    if (thread_index() == 0) {
        tma_store_2d(args.c, result, n, m);
        tma_store_2d(args.c, result + 2048, n + 32, m);
        bulk_commit();
        bulk_wait<0>();
    }
}
INSTANCE(test_pipeline)
