// C = A B^T put together from the pieces of hopper_gemm.cuh, with the mistakes that whoever puts them together can make.
#include "hopper_gemm.cuh"
#include "prelude.cuh"

struct HopperPieces {
    // A (m x k) and B (n x k) in bf16, C (m x n x 1) in float.
    TensorMap a, b, c;
    u32 m, n, k;
    // A bit for each mistake: 1 puts results into a slot that is still being stored, 2 forgets that the other consumer's tile went through the ring, 4
    // leaves before the last stores have read, 8 multiplies a step too many, 16 stores without having told the accelerator of what lies in the slot.
    u32 mistakes;
};

KERNEL(384) void test_hopper_gemm(const GRID_CONSTANT HopperPieces args) {
    using C = hopper::Config<NT, 64, 128, 2, true, SHARE_B>;
    hopper::prepare<C>();
    hopper::Walk<C> walk(args.m, args.n, C::N, 1);
    const u32 steps = ceil_div(args.k, hopper::TERMS);
    if (hopper::is_producer()) {
        registers_decrease<hopper::PRODUCER_REGISTERS>();
        if (warp_uniform() == 0 && elect_one()) {
            hopper::Producer<C> producer;
            for (; walk.more(); walk.next()) {
                u32 m, n;
                walk.place(C::N, m, n);
                producer.load(args.a, args.b, m, n, n + C::N / 2, 0, steps);
            }
        }
    } else {
        registers_increase<hopper::CONSUMER_REGISTERS>();
        hopper::Consumer<C> consumer;
        hopper::Outlet outlet(C::SLOTS_AT, consumer.index);
        float sums[1][C::N / 2];
        for (u32 turn = 0; walk.more(); walk.next(), turn++) {
            if (turn % 2 != consumer.index) {
                if (!(args.mistakes & 2)) consumer.skip(steps);
                continue;
            }
            consumer.await_turn(turn == 0);
            consumer.multiply(sums, args.mistakes & 8 ? steps + 1 : steps);
            consumer.pass_turn(!walk.last());
            consumer.complete(sums);
            u32 m, n;
            walk.place(C::N, m, n);
            for (u32 s = 0; s < 4; s++) {
                float x[16];
                for (u32 e = 0; e < 16; e++) x[e] = sums[0][16 * s + e];
                if (!(args.mistakes & 1)) outlet.open();
                hopper::put<float>(outlet.slot(), x);
                const auto start = [&](u32 slot) { tma_store_3d(args.c, shared<float>(slot), i32(n + 32 * s), i32(m), 0); };
                if (args.mistakes & 16) {
                    barrier_sync(outlet.barrier, 128);
                    if (hopper::Outlet::leads()) {
                        start(outlet.slot());
                        bulk_commit();
                    }
                    outlet.count++;
                } else {
                    outlet.close(start);
                }
            }
        }
        if (!(args.mistakes & 4)) outlet.drain();
    }
    hopper::finish<C>();
}
INSTANCE(test_hopper_gemm)
