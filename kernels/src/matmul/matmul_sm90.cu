// Matrix products on Hopper: bfloat16 by wgmma, tiles loaded and stored by the tensor memory accelerator. See hopper_gemm.cuh for how a block works.
#include "hopper_gemm.cuh"
#include "prelude.cuh"

template <class Out> struct GemmHopper {
    // A and B in pieces of 64 x 64, C in slots of 64 rows of 128 bytes, all in the 128-byte swizzle. C has three axes, the last one for parts of k.
    TensorMap a, b, out;
    Global<const bf16> bias;
    Global<const Out> residual;
    u64 residual_stride;
    u32 m, n, k, k_of_part, parts;
    // Whether sums go through SiLU, whether they are added to C (without any other end), and whether B is read once only.
    u32 activation, accumulate, stream;
};

// A consumer's 64 rows from row `m` on and one slot's columns from column `n` on: bias, activation, residual.
template <class Out, int COUNT>
DEVICE void finish_sums(const GemmHopper<Out> &args, u32 m, u32 n, float (&x)[COUNT]) {
    const u32 row = m + warp() % 4 * 16 + lane() / 4, column = n + lane() % 4 * 2;
    if (args.bias) {
        UNROLL
        for (int j = 0; j < COUNT / 4; j++) {
            float low = 0.0f, high = 0.0f;
            const u32 at = column + 8 * j;
            if (at < args.n) low = to_float(bf16(args.bias[at]));
            if (at + 1 < args.n) high = to_float(bf16(args.bias[at + 1]));
            x[4 * j] += low;
            x[4 * j + 1] += high;
            x[4 * j + 2] += low;
            x[4 * j + 3] += high;
        }
    }
    if (args.activation) {
        UNROLL
        for (int i = 0; i < COUNT; i++) x[i] = x[i] / (1.0f + exp(-x[i]));
    }
    if (args.residual) {
        UNROLL
        for (int h = 0; h < 2; h++) {
            if (row + 8 * h >= args.m) continue;
            const Global<const Out> from = args.residual + ((row + 8 * h) * args.residual_stride + column);
            UNROLL
            for (int j = 0; j < COUNT / 4; j++) {
                if (column + 8 * j + 1 < args.n) {
                    const Vector<float, 2> pair = to_float(load<2>(from + 8 * j));
                    x[4 * j + 2 * h] += pair[0];
                    x[4 * j + 2 * h + 1] += pair[1];
                } else if (column + 8 * j < args.n) {
                    x[4 * j + 2 * h] += to_float(Out(from[8 * j]));
                }
            }
        }
    }
}

template <class Out, int LAYOUT, int M, int N, int STAGES, bool TURNS, int SHARING>
KERNEL(384, 1) void gemm_hopper(const GRID_CONSTANT GemmHopper<Out> args) {
    using C = hopper::Config<LAYOUT, M, N, STAGES, TURNS, SHARING>;
    hopper::prepare<C>();
    begin_grid();
    hopper::Walk<C> walk(args.m, args.n, N, args.parts);
    const auto steps_of = [&](u32 part) { return ceil_div(min(args.k, (part + 1) * args.k_of_part) - part * args.k_of_part, hopper::TERMS); };
    if (hopper::is_producer()) {
        registers_decrease<hopper::PRODUCER_REGISTERS>();
        if (warp_uniform() == 0 && elect_one()) {
            prefetch_tensor_map(args.a);
            prefetch_tensor_map(args.b);
            prefetch_tensor_map(args.out);
            hopper::Producer<C> producer;
            if (args.stream) producer.policy_b = cache_evict_first;
            ROLLED
            for (; walk.more(); walk.next()) {
                u32 m, n;
                walk.place(N, m, n);
                producer.load(args.a, args.b, m, n, n + N / 2, walk.part() * args.k_of_part, steps_of(walk.part()));
            }
        }
    } else {
        registers_increase<hopper::CONSUMER_REGISTERS>();
        hopper::Consumer<C> consumer;
        hopper::Outlet outlet(C::SLOTS_AT, consumer.index);
        float sums[C::DEEP][N / 2];
        ROLLED
        for (u32 turn = 0; walk.more(); walk.next(), turn++) {
            const u32 part = walk.part(), steps = steps_of(part);
            if (TURNS && turn % 2 != consumer.index) {
                consumer.skip(steps);
                continue;
            }
            if (TURNS) consumer.await_turn(turn == 0);
            consumer.multiply(sums, steps);
            if (TURNS) consumer.pass_turn(!walk.last());
            consumer.complete(sums);
            u32 m, n;
            walk.place(N, m, n);
            m += consumer.first_row();
            constexpr int COLUMNS = hopper::SLOT_COLUMNS<Out>;
            UNROLL
            for (int i = 0; i < C::DEEP; i++) {
                UNROLL
                for (int s = 0; s < N / COLUMNS; s++) {
                    float x[COLUMNS / 2];
                    UNROLL
                    for (int e = 0; e < COLUMNS / 2; e++) x[e] = sums[i][s * (COLUMNS / 2) + e];
                    finish_sums(args, m + 64 * i, n + s * COLUMNS, x);
                    outlet.open();
                    hopper::put<Out>(outlet.slot(), x);
                    outlet.close([&](u32 slot) {
                        const i32 column = i32(n + s * COLUMNS), row = i32(m + 64 * i);
                        if (args.accumulate) tma_reduce_add_3d(args.out, shared<Out>(slot), column, row, i32(part));
                        else tma_store_3d(args.out, shared<Out>(slot), column, row, i32(part));
                    });
                }
            }
        }
        outlet.drain();
    }
    hopper::finish<C>();
}

// A linear layer whose first n outputs are gates and whose last n are what they open: out = silu(gate) * up.
struct GemmSwigluHopper {
    // B has 2 n rows. Both factors, where they are kept, as one tensor of m x 2 x n.
    TensorMap a, b, out, gate_up;
    u32 m, n, k, keep;
};

// Half of a tile's columns are gates, the other half what they open: a thread has both.
template <int M, int N, int STAGES, bool TURNS, int SHARING> KERNEL(384, 1) void gemm_swiglu_hopper(const GRID_CONSTANT GemmSwigluHopper args) {
    using C = hopper::Config<NT, M, N, STAGES, TURNS, SHARING>;
    hopper::prepare<C>();
    begin_grid();
    hopper::Walk<C> walk(args.m, args.n, N / 2, 1);
    const u32 steps = ceil_div(args.k, hopper::TERMS);
    if (hopper::is_producer()) {
        registers_decrease<hopper::PRODUCER_REGISTERS>();
        if (warp_uniform() == 0 && elect_one()) {
            prefetch_tensor_map(args.a);
            prefetch_tensor_map(args.b);
            prefetch_tensor_map(args.out);
            hopper::Producer<C> producer;
            ROLLED
            for (; walk.more(); walk.next()) {
                u32 m, n;
                walk.place(N / 2, m, n);
                producer.load(args.a, args.b, m, n, args.n + n, 0, steps);
            }
        }
    } else {
        registers_increase<hopper::CONSUMER_REGISTERS>();
        hopper::Consumer<C> consumer;
        hopper::Outlet outlet(C::SLOTS_AT, consumer.index);
        float sums[C::DEEP][N / 2];
        ROLLED
        for (u32 turn = 0; walk.more(); walk.next(), turn++) {
            if (TURNS && turn % 2 != consumer.index) {
                consumer.skip(steps);
                continue;
            }
            if (TURNS) consumer.await_turn(turn == 0);
            consumer.multiply(sums, steps);
            if (TURNS) consumer.pass_turn(!walk.last());
            consumer.complete(sums);
            u32 m, n;
            walk.place(N / 2, m, n);
            m += consumer.first_row();
            UNROLL
            for (int i = 0; i < C::DEEP; i++) {
                UNROLL
                for (int s = 0; s < N / 128; s++) {
                    const i32 column = i32(n + s * 64), row = i32(m + 64 * i);
                    float x[32];
                    UNROLL
                    for (int which = 0; which < 3; which++) {
                        if (which < 2 && !args.keep) continue;
                        UNROLL
                        for (int e = 0; e < 32; e++) {
                            const float gate = sums[i][s * 32 + e], up = sums[i][N / 4 + s * 32 + e];
                            // The arithmetic of swiglu_forward on factors that were stored.
                            const float g = to_float(from_float<bf16>(gate));
                            if (which == 0) x[e] = gate;
                            else if (which == 1) x[e] = up;
                            else x[e] = g * (1.0f / (1.0f + exp(-g))) * to_float(from_float<bf16>(up));
                        }
                        outlet.open();
                        hopper::put<bf16>(outlet.slot(), x);
                        outlet.close([&](u32 slot) {
                            if (which == 2) tma_store_3d(args.out, shared<bf16>(slot), column, row, 0);
                            else tma_store_3d(args.gate_up, shared<bf16>(slot), column, which, row);
                        });
                    }
                }
            }
        }
        outlet.drain();
    }
    hopper::finish<C>();
}

INSTANCE(gemm_hopper<bf16, NN, 128, 256, 4, false, SHARE_B>)
INSTANCE(gemm_hopper<bf16, NT, 128, 256, 4, false, SHARE_B>)
INSTANCE(gemm_hopper<bf16, TN, 128, 256, 4, false, SHARE_B>)
INSTANCE(gemm_hopper<float, NN, 128, 256, 4, false, SHARE_B>)
INSTANCE(gemm_hopper<float, NT, 128, 256, 4, false, SHARE_B>)
INSTANCE(gemm_hopper<float, TN, 128, 256, 4, false, SHARE_B>)
INSTANCE(gemm_hopper<bf16, NN, 256, 128, 4, false, SHARE_A>)
INSTANCE(gemm_hopper<bf16, NT, 256, 128, 4, false, SHARE_A>)
INSTANCE(gemm_hopper<bf16, TN, 256, 128, 4, false, SHARE_A>)
INSTANCE(gemm_hopper<float, NN, 256, 128, 4, false, SHARE_A>)
INSTANCE(gemm_hopper<float, NT, 256, 128, 4, false, SHARE_A>)
INSTANCE(gemm_hopper<float, TN, 256, 128, 4, false, SHARE_A>)
INSTANCE(gemm_hopper<bf16, NN, 128, 128, 6, true, SHARE_B>)
INSTANCE(gemm_hopper<bf16, NT, 128, 128, 6, true, SHARE_B>)
INSTANCE(gemm_hopper<bf16, TN, 128, 128, 6, true, SHARE_B>)
INSTANCE(gemm_hopper<float, NN, 128, 128, 6, true, SHARE_B>)
INSTANCE(gemm_hopper<float, NT, 128, 128, 6, true, SHARE_B>)
INSTANCE(gemm_hopper<float, TN, 128, 128, 6, true, SHARE_B>)
INSTANCE(gemm_hopper<bf16, NN, 128, 128, 6, true, SHARE_NONE>)
INSTANCE(gemm_hopper<bf16, NT, 128, 128, 6, true, SHARE_NONE>)
INSTANCE(gemm_hopper<bf16, TN, 128, 128, 6, true, SHARE_NONE>)
INSTANCE(gemm_hopper<float, NN, 128, 128, 6, true, SHARE_NONE>)
INSTANCE(gemm_hopper<float, NT, 128, 128, 6, true, SHARE_NONE>)
INSTANCE(gemm_hopper<float, TN, 128, 128, 6, true, SHARE_NONE>)
INSTANCE(gemm_hopper<bf16, NN, 64, 256, 4, true, SHARE_NONE>)
INSTANCE(gemm_hopper<bf16, NT, 64, 256, 4, true, SHARE_NONE>)
INSTANCE(gemm_hopper<bf16, TN, 64, 256, 4, true, SHARE_NONE>)
INSTANCE(gemm_hopper<float, NN, 64, 256, 4, true, SHARE_NONE>)
INSTANCE(gemm_hopper<float, NT, 64, 256, 4, true, SHARE_NONE>)
INSTANCE(gemm_hopper<float, TN, 64, 256, 4, true, SHARE_NONE>)
INSTANCE(gemm_swiglu_hopper<128, 256, 4, false, SHARE_B>)
INSTANCE(gemm_swiglu_hopper<128, 128, 6, true, SHARE_B>)
INSTANCE(gemm_swiglu_hopper<128, 128, 6, true, SHARE_NONE>)
INSTANCE(gemm_swiglu_hopper<64, 256, 4, true, SHARE_NONE>)
