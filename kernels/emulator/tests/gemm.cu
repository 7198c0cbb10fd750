// C = A B^T with A of M x K and B of N x K in bf16, on the tensor cores of one warp each: a plain kernel by which the emulated device's speed is measured
// and its copies, matrix loads and products are tested together.
#include "prelude.cuh"

struct TestGemm {
    Global<float> c;
    Global<const bf16> a;
    Global<const bf16> b;
    u32 m;
    u32 n;
    u32 k;
    // A bit for each mistake to make: 1 waits for no copy, 2 leaves out the barrier after the wait, 4 the one before a stage is written again.
    u32 mistakes;
};

constexpr u32 TILE = 128;
constexpr u32 STEP = 32;
constexpr u32 STAGES = 3;
constexpr u32 TILE_BYTES = TILE * STEP * 2;

// Offset of 8 elements of a row: chunks of 16 bytes are exchanged so that the 8 rows of a matrix lie in different banks.
DEVICE u32 place(u32 row, u32 chunk) { return row * STEP + ((chunk ^ (row / 2)) % 4) * 8; }

DEVICE void load_tile(Shared<bf16> to, Global<const bf16> from, u32 stride) {
    for (u32 i = thread_index(); i < TILE * STEP / 8; i += block_threads()) {
        const u32 row = i / 4, chunk = i % 4;
        copy_async<16>(to + place(row, chunk), from + (u64(row) * stride + chunk * 8), true);
    }
}

KERNEL(256) void test_gemm(const TestGemm args) {
    const Shared<bf16> tiles_a = shared<bf16>(0), tiles_b = shared<bf16>(STAGES * TILE_BYTES);
    const Global<const bf16> a = args.a + u64(block_index(1)) * TILE * args.k;
    const Global<const bf16> b = args.b + u64(block_index(0)) * TILE * args.k;
    const u32 steps = args.k / STEP;
    const u32 warp_m = warp() / 4 * 64, warp_n = warp() % 4 * 32;
    float c[4][4][4] = {};

    for (u32 s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            load_tile(tiles_a + s * TILE * STEP, a + s * STEP, args.k);
            load_tile(tiles_b + s * TILE * STEP, b + s * STEP, args.k);
        }
        copy_async_commit();
    }
    for (u32 step = 0; step < steps; step++) {
        if (!(args.mistakes & 1)) copy_async_wait<STAGES - 2>();
        if (!(args.mistakes & 2)) sync_block();
        const u32 next = step + STAGES - 1;
        if (args.mistakes & 4 && next < steps) {
            load_tile(tiles_a + (step % STAGES) * TILE * STEP, a + next * STEP, args.k);
        } else if (next < steps) {
            load_tile(tiles_a + (next % STAGES) * TILE * STEP, a + next * STEP, args.k);
            load_tile(tiles_b + (next % STAGES) * TILE * STEP, b + next * STEP, args.k);
        }
        copy_async_commit();
        const Shared<bf16> tile_a = tiles_a + (step % STAGES) * TILE * STEP, tile_b = tiles_b + (step % STAGES) * TILE * STEP;
        for (u32 k = 0; k < STEP / 16; k++) {
            u32 fragment_a[4][4], fragment_b[4][2];
            for (u32 i = 0; i < 4; i++) {
                load_matrix_x4(fragment_a[i], tile_a + place(warp_m + i * 16 + lane() % 16, k * 2 + lane() / 16));
            }
            for (u32 j = 0; j < 4; j += 2) {
                u32 both[4];
                load_matrix_x4(both, tile_b + place(warp_n + j * 8 + lane() % 8 + lane() / 16 * 8, k * 2 + lane() / 8 % 2));
                fragment_b[j][0] = both[0];
                fragment_b[j][1] = both[1];
                fragment_b[j + 1][0] = both[2];
                fragment_b[j + 1][1] = both[3];
            }
            mma_fragments<bf16>(c, fragment_a, fragment_b);
        }
    }
    const Global<float> out = args.c + (u64(block_index(1)) * TILE + warp_m) * args.n + block_index(0) * TILE + warp_n;
    for (u32 i = 0; i < 4; i++) {
        for (u32 j = 0; j < 4; j++) {
            for (u32 half = 0; half < 2; half++) {
                const u64 at = u64(i * 16 + lane() / 4 + half * 8) * args.n + j * 8 + lane() % 4 * 2;
                store(out + at, Vector<float, 2>{{c[i][j][half * 2], c[i][j][half * 2 + 1]}});
            }
        }
    }
}
INSTANCE(test_gemm)
