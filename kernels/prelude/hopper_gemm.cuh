// Products of bfloat16 on Hopper (sm_90a): what kernels are put together from that keep their blocks and give them one tile after another.
//
// A block is three warpgroups. One thread of the first is the producer: it has the tensor memory accelerator fill a ring of stages with pieces of
// A and B. The other two warpgroups are the consumers: they multiply what lies in the stages with wgmma, one group of instructions always under way,
// and carry the sums out. The producer runs ahead, over the borders of tiles, as far as the ring reaches. Consumers share a tile, or take tiles by
// turns (`TURNS`): then one multiplies while the other carries out.
//
// A piece is 64 terms of 64 rows or columns of C: 8 KiB in the 128-byte swizzle, whether K is contiguous in memory or not. wgmma reads both, so no
// layout is transposed. Two blocks of a cluster may share an operand: each loads half of its pieces, for both.
//
// Barriers: a stage is full when its bytes have landed, and empty when every consumer that reads it has, in both blocks where they share.
//
//     hopper::prepare<C>();
//     if (hopper::is_producer()) {
//         registers_decrease<hopper::PRODUCER_REGISTERS>();
//         if (warp_uniform() == 0 && elect_one()) { hopper::Producer<C> producer; for each tile: producer.load(...); }
//     } else {
//         registers_increase<hopper::CONSUMER_REGISTERS>();
//         hopper::Consumer<C> consumer; float sums[C::DEEP][C::N / 2];
//         for each tile that is its own: consumer.multiply(sums, steps); consumer.complete(sums); ...   (else consumer.skip(steps))
//     }
//     hopper::finish<C>();
#pragma once

#include "barrier.cuh"
#include "bulk.cuh"
#include "cluster.cuh"
#include "gemm.cuh"
#include "matrix.cuh"
#include "threads.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

/// Which operand the two blocks of a cluster share: none (there is no cluster), A (their tiles lie side by side), B (one below the other).
enum Sharing { SHARE_NONE, SHARE_A, SHARE_B };

namespace hopper {

constexpr u32 THREADS = 384;
/// Terms of a stage.
constexpr u32 TERMS = 64;
/// Bytes and elements of a piece.
constexpr u32 PIECE = 8192, PIECE_ELEMENTS = PIECE / 2;
/// Bytes of a slot that results leave through: 64 rows of 128 bytes. Each consumer has two.
constexpr u32 SLOT = 8192, SLOTS = 4 * SLOT;
/// 128 threads of 40 and 256 of 232 are the 384 of 168 that the block starts with.
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;

/// The block's barriers of threads: consumers give each other turns, and wait for their own four warps.
constexpr u32 TURN_BARRIER = 1, OWN_BARRIER = 3;

/// M x N sums a block, or a consumer where they take turns, by a ring of STAGES stages.
template <int LAYOUT, int TILE_M, int TILE_N, int RING, bool BY_TURNS, int SHARING> struct Config {
    static constexpr int M = TILE_M, N = TILE_N, STAGES = RING;
    static constexpr bool TURNS = BY_TURNS;
    static constexpr int SHARES = SHARING;
    /// Whether K is contiguous in A and in B.
    static constexpr bool A_ALONG = LAYOUT != TN, B_ALONG = LAYOUT == NT;
    static constexpr u32 CLUSTER = SHARING == SHARE_NONE ? 1 : 2;
    /// Blocks of 64 rows of a consumer.
    static constexpr int DEEP = M / 64 / (TURNS ? 1 : 2);
    static constexpr int PIECES_A = M / 64, PIECES_B = N / 64;
    static constexpr u32 STAGE_BYTES = (PIECES_A + PIECES_B) * PIECE;
    static constexpr u32 SLOTS_AT = STAGES * STAGE_BYTES, FULL_AT = SLOTS_AT + SLOTS, EMPTY_AT = FULL_AT + 8 * STAGES;
    static constexpr u32 SHARED_BYTES = EMPTY_AT + 8 * STAGES;
    static_assert(M % 64 == 0 && N % 64 == 0 && DEEP > 0 && DEEP * N <= 256, "sums fit the registers");
    static_assert(SHARED_BYTES <= 227 * 1024, "the stages fit a multiprocessor");
    static_assert((SHARING != SHARE_A || PIECES_A % 2 == 0) && (SHARING != SHARE_B || PIECES_B % 2 == 0), "blocks load half of the pieces each");
};

/// A place in the ring. A barrier's phase alternates each time around.
template <int STAGES> struct Ring {
    u32 stage = 0, phase = 0;

    DEVICE void next() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
    DEVICE void skip(u32 count) {
        const u32 to = stage + count;
        phase ^= to / STAGES & 1;
        stage = to % STAGES;
    }
};

template <class C> DEVICE Shared<u64> full(u32 stage) { return shared<u64>(C::FULL_AT) + stage; }
template <class C> DEVICE Shared<u64> empty(u32 stage) { return shared<u64>(C::EMPTY_AT) + stage; }

template <class C> DEVICE void everybody() {
    if constexpr (C::CLUSTER > 1) {
        cluster_arrive();
        cluster_wait();
    } else {
        sync_block();
    }
}

/// Makes the barriers. All threads of the block come here first.
template <class C> DEVICE void prepare() {
    if (thread_index() == 0) {
        for (u32 stage = 0; stage < C::STAGES; stage++) {
            mbarrier_init(full<C>(stage), 1);
            // Each warp of each consumer that reads the stage arrives.
            mbarrier_init(empty<C>(stage), (C::TURNS ? 4 : 8) * C::CLUSTER);
        }
        fence_barrier_init();
    }
    everybody<C>();
}

/// All threads of the block come here last: nobody leaves while another block may still write to its memory.
template <class C> DEVICE void finish() {
    sync_warp();
    if constexpr (C::CLUSTER > 1) everybody<C>();
}

DEVICE bool is_producer() { return warp_uniform() < 4; }

/// Starts to load a piece: the one at `first` of M or N, and `k`.
template <bool ALONG, bool FOR_BOTH>
DEVICE void load_piece(Shared<bf16> to, const TensorMap &map, Shared<u64> barrier, u32 first, u32 k, u64 policy) {
    const i32 x = i32(ALONG ? k : first), y = i32(ALONG ? first : k);
    if constexpr (FOR_BOTH) tma_load_2d_multicast(to, map, barrier, u16(3), x, y, policy);
    else tma_load_2d(to, map, barrier, x, y, policy);
}

/// One thread that keeps the ring full.
template <class C> struct Producer {
    Ring<C::STAGES> ring;
    /// How long what is loaded stays in the cache.
    u64 policy_a = cache_normal, policy_b = cache_normal;

    /// Loads `steps` stages from `first_k` on. Half of the tile's columns begin at `first_n`, the others at `other_n`.
    DEVICE void load(const TensorMap &a, const TensorMap &b, u32 first_m, u32 first_n, u32 other_n, u32 first_k, u32 steps) {
        const u32 rank = C::CLUSTER > 1 ? cluster_rank() : 0;
        ROLLED
        for (u32 step = 0; step < steps; step++) {
            const u32 k = first_k + step * TERMS;
            const Shared<u64> barrier = full<C>(ring.stage);
            const Shared<bf16> to_a = shared<bf16>(ring.stage * C::STAGE_BYTES), to_b = to_a + C::PIECES_A * PIECE_ELEMENTS;
            mbarrier_wait(empty<C>(ring.stage), ring.phase ^ 1);
            mbarrier_arrive_expect(barrier, C::STAGE_BYTES);
            UNROLL
            for (u32 i = 0; i < u32(C::PIECES_A); i++) {
                const u32 m = first_m + 64 * i;
                if constexpr (C::SHARES != SHARE_A) load_piece<C::A_ALONG, false>(to_a + i * PIECE_ELEMENTS, a, barrier, m, k, policy_a);
                else if (i / (C::PIECES_A / 2) == rank) load_piece<C::A_ALONG, true>(to_a + i * PIECE_ELEMENTS, a, barrier, m, k, policy_a);
            }
            UNROLL
            for (u32 j = 0; j < u32(C::PIECES_B); j++) {
                const u32 n = C::PIECES_B > 1 && j >= u32(C::PIECES_B / 2) ? other_n + 64 * (j - C::PIECES_B / 2) : first_n + 64 * j;
                if constexpr (C::SHARES != SHARE_B) load_piece<C::B_ALONG, false>(to_b + j * PIECE_ELEMENTS, b, barrier, n, k, policy_b);
                else if (j / (C::PIECES_B / 2) == rank) load_piece<C::B_ALONG, true>(to_b + j * PIECE_ELEMENTS, b, barrier, n, k, policy_b);
            }
            ring.next();
        }
    }
};

/// A warpgroup that multiplies.
template <class C> struct Consumer {
    Ring<C::STAGES> ring;
    /// 0 or 1, and the stage that the group under way reads.
    u32 index, last;

    DEVICE Consumer() : index(warp_uniform() / 4 - 1), last(0) {}

    /// Where the consumer's rows begin in its tile.
    DEVICE u32 first_row() const { return C::TURNS ? 0 : index * (C::M / 2); }

    /// The stages of a tile of the other consumer.
    DEVICE void skip(u32 steps) { ring.skip(steps); }

    /// Tells that the warp reads the stage no more: to the producers of both blocks where they share.
    DEVICE static void release(u32 stage) {
        if constexpr (C::CLUSTER == 1) {
            if (lane() == 0) mbarrier_arrive(empty<C>(stage));
        } else {
            if (lane() < C::CLUSTER) mbarrier_arrive_cluster_relaxed(empty<C>(stage), lane());
        }
    }

    DEVICE static void fence(float (&sums)[C::DEEP][C::N / 2]) {
        UNROLL
        for (int i = 0; i < C::DEEP; i++) wgmma_fence_registers(sums[i]);
    }

    /// Starts to compute the sums over `steps` stages, at least one. The last stage's products are still under way afterwards. Element e of sums[i] is
    /// in row 64 i + 16 (warp % 4) + lane / 4 + (e % 4 < 2 ? 0 : 8) from `first_row` on, and column e / 4 * 8 + lane % 4 * 2 + e % 2.
    DEVICE void multiply(float (&sums)[C::DEEP][C::N / 2], u32 steps) {
        const u32 piece = C::TURNS ? 0 : index * C::DEEP;
        ROLLED
        for (u32 step = 0; step < steps; step++) {
            const Shared<bf16> stage = shared<bf16>(ring.stage * C::STAGE_BYTES);
            // Along K, rows of 128 bytes follow each other; across, pieces of 64 rows or columns do.
            constexpr u32 ACROSS_A = C::A_ALONG ? 0 : PIECE, ACROSS_B = C::B_ALONG ? 0 : PIECE;
            const u64 a = matrix_descriptor(stage + piece * PIECE_ELEMENTS, ACROSS_A, 1024, Swizzle::Bytes128);
            const u64 b = matrix_descriptor(stage + C::PIECES_A * PIECE_ELEMENTS, ACROSS_B, 1024, Swizzle::Bytes128);
            mbarrier_wait(full<C>(ring.stage), ring.phase);
            fence(sums);
            wgmma_fence();
            UNROLL
            for (u32 k = 0; k < TERMS / 16; k++) {
                UNROLL
                for (u32 i = 0; i < u32(C::DEEP); i++) {
                    const u64 a_step = advance_descriptor(a, i * PIECE + k * (C::A_ALONG ? 32 : 2048));
                    const u64 b_step = advance_descriptor(b, k * (C::B_ALONG ? 32 : 2048));
                    wgmma_m64<C::N, bf16, !C::A_ALONG, !C::B_ALONG>(sums[i], a_step, b_step, (step | k) != 0);
                }
            }
            wgmma_commit();
            fence(sums);
            // All but the group just made is done: the stage before is read.
            wgmma_wait<1>();
            if (step != 0) release(last);
            last = ring.stage;
            ring.next();
        }
    }

    /// Waits for the sums.
    DEVICE void complete(float (&sums)[C::DEEP][C::N / 2]) {
        wgmma_wait<0>();
        fence(sums);
        release(last);
    }

    /// Waits until the other consumer has started all of its tile. The first tile of all needs no waiting for.
    DEVICE void await_turn(bool first) const {
        if (!first) barrier_sync(TURN_BARRIER + index, 256);
    }
    /// Lets the other consumer start its tile, if there is one.
    DEVICE void pass_turn(bool another) const {
        if (another) barrier_arrive(TURN_BARRIER + (index ^ 1), 256);
    }
};

/// A consumer's way out: results lie for a while in one of two slots, from which the tensor memory accelerator stores them.
struct Outlet {
    u32 at, barrier, count;

    DEVICE Outlet(u32 slots_at, u32 consumer) : at(slots_at + consumer * 2 * SLOT), barrier(OWN_BARRIER + consumer), count(0) {}

    DEVICE static bool leads() { return thread_index() % 128 == 0; }
    DEVICE u32 slot() const { return at + count % 2 * SLOT; }

    /// Waits until the slot may be written.
    DEVICE void open() const {
        if (leads()) bulk_wait_read<1>();
        barrier_sync(barrier, 128);
    }
    /// Has `store(slot)` start to store what the warpgroup has put into the slot.
    template <class Store> DEVICE void close(Store store) {
        fence_proxy_async();
        barrier_sync(barrier, 128);
        if (leads()) {
            store(slot());
            bulk_commit();
        }
        count++;
    }
    /// Waits for the last stores, which read shared memory.
    DEVICE static void drain() {
        if (leads()) bulk_wait<0>();
    }
};

/// Columns of a slot.
template <class Out> constexpr int SLOT_COLUMNS = 128 / int(sizeof(Out));

/// Puts a warpgroup's 64 rows of a slot's columns, as wgmma leaves them, into the slot in the 128-byte swizzle.
template <class Out> DEVICE void put(u32 slot, const float (&values)[SLOT_COLUMNS<Out> / 2]) {
    const u32 l = lane(), first_row = warp() % 4 * 16;
    if constexpr (sizeof(Out) == 2) {
        const u32 row = first_row + l % 16, half = l / 16;
        UNROLL
        for (u32 j = 0; j < 8; j += 2) {
            u32 words[4];
            UNROLL
            for (u32 i = 0; i < 4; i++) words[i] = pack2<Out>(values[4 * j + 2 * i], values[4 * j + 2 * i + 1]);
            store_matrix_x4(shared<Out>(slot + row * 128 + ((j + half) ^ row % 8) * 16), words);
        }
    } else {
        UNROLL
        for (u32 j = 0; j < 4; j++) {
            UNROLL
            for (u32 h = 0; h < 2; h++) {
                const u32 row = first_row + l / 4 + 8 * h, chunk = 2 * j + l % 4 / 2;
                const Shared<float> place = shared<float>(slot + row * 128 + (chunk ^ row % 8) * 16 + l % 2 * 8);
                store(place, Vector<float, 2>{{values[4 * j + 2 * h], values[4 * j + 2 * h + 1]}});
            }
        }
    }
}

/// The tiles that a cluster takes, one after the other. Tiles are walked in bands of eight rows of tiles, so that those which run at the same time
/// share rows and columns.
template <class C> struct Walk {
    u32 down, across, index, count, step;

    /// For m x n sums, `columns` of them a tile and block, in `parts` parts.
    DEVICE Walk(u32 m, u32 n, u32 columns, u32 parts)
        : down(ceil_div(m, u32(C::M) * (C::SHARES == SHARE_B ? 2 : 1))), across(ceil_div(n, columns * (C::SHARES == SHARE_A ? 2 : 1))),
          index(block_index() / C::CLUSTER), count(down * across * parts), step(block_count() / C::CLUSTER) {}

    DEVICE bool more() const { return index < count; }
    DEVICE bool last() const { return index + step >= count; }
    DEVICE void next() { index += step; }

    DEVICE u32 part() const { return index / (down * across); }
    /// The block's first row and column; tiles have `columns` columns.
    DEVICE void place(u32 columns, u32 &m, u32 &n) const {
        const u32 tile = index % (down * across), side = 8 * across, top = tile / side * 8, within = tile % side, height = min(8u, down - top);
        const u32 rank = C::CLUSTER > 1 ? cluster_rank() : 0, row = top + within % height, column = within / height;
        m = (C::SHARES == SHARE_B ? 2 * row + rank : row) * C::M;
        n = (C::SHARES == SHARE_A ? 2 * column + rank : column) * columns;
    }
};

}  // namespace hopper
