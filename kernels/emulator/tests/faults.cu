// Kernels that each break one rule when `args.broken` is 1 and keep it when it is 0: the emulated device must tell the two apart. A block has 128 threads and
// 8192 bytes of shared memory, and there are two blocks.
#include "prelude.cuh"

struct Fault {
    // 2 rows of 256 floats, 512 apart; the same of values; 256 words that nobody has written; 256 zeros.
    Global<float> out;
    Global<const float> in;
    Global<float> blank;
    Global<u32> words;
    u32 broken;
};

constexpr u32 THREADS = 128;
constexpr u32 ROW = 512;

DEVICE Global<float> own_row(const Fault &args) { return args.out + block_index() * ROW; }

// Shared memory between threads.

KERNEL(128) void fault_missing_sync(const Fault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    if (!args.broken) sync_block();
    own_row(args)[thread_index()] = tile[thread_index() ^ 32];
}
INSTANCE(fault_missing_sync)

KERNEL(128) void fault_missing_sync_warp(const Fault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    if (!args.broken) sync_warp();
    own_row(args)[thread_index()] = tile[thread_index() ^ 1];
}
INSTANCE(fault_missing_sync_warp)

// A second write while others may still read.
KERNEL(128) void fault_early_overwrite(const Fault args) {
    const Shared<float> tile = shared<float>(0);
    tile[thread_index()] = 1.0f;
    sync_block();
    const float seen = tile[(thread_index() + 40) % THREADS];
    if (!args.broken) sync_block();
    tile[thread_index()] = seen;
}
INSTANCE(fault_early_overwrite)

// Two bytes each, side by side in one word: no conflict, unless two threads take the same place.
KERNEL(128) void fault_same_half_word(const Fault args) {
    const Shared<bf16> tile = shared<bf16>(0);
    tile[args.broken ? thread_index() / 2 : thread_index()] = from_float<bf16>(1.0f);
}
INSTANCE(fault_same_half_word)

KERNEL(128) void fault_uninitialised_shared(const Fault args) {
    const Shared<float> tile = shared<float>(0);
    if (!args.broken || thread_index() != 77) tile[thread_index()] = 1.0f;
    own_row(args)[thread_index()] = tile[thread_index()];
}
INSTANCE(fault_uninitialised_shared)

KERNEL(128) void fault_shared_bounds(const Fault args) {
    const Shared<float> tile = shared<float>(0);
    tile[2048 - THREADS + thread_index() + args.broken] = 1.0f;
}
INSTANCE(fault_shared_bounds)

KERNEL(128) void fault_shared_misaligned(const Fault args) {
    store(shared<float>(0) + 4 * thread_index() + args.broken, Vector<float, 4>{{1.0f, 2.0f, 3.0f, 4.0f}});
}
INSTANCE(fault_shared_misaligned)

// Global memory.

KERNEL(128) void fault_global_bounds(const Fault args) {
    // Row 0 ends at 256; what follows belongs to nobody until row 1 begins at 512.
    own_row(args)[128 + thread_index() + args.broken] = 1.0f;
}
INSTANCE(fault_global_bounds)

KERNEL(128) void fault_global_end(const Fault args) {
    const float value = args.in[(1 + args.broken) * ROW + thread_index()];
    if (block_index() == 0) args.out[thread_index()] = value;
}
INSTANCE(fault_global_end)

KERNEL(128) void fault_null(const Fault args) {
    const Global<const float> from = args.broken ? Global<const float>{} : args.in;
    own_row(args)[thread_index()] = from[thread_index()];
}
INSTANCE(fault_null)

KERNEL(128) void fault_global_misaligned(const Fault args) {
    const auto values = load<4>(args.in + 4 * (thread_index() % 32) + 2 * args.broken);
    own_row(args)[thread_index()] = values[0];
}
INSTANCE(fault_global_misaligned)

KERNEL(128) void fault_write_through_read(const Fault args) {
    const Global<float> to = args.broken ? args.in.as<float>() : args.out;
    to[block_index() * ROW + thread_index()] = 1.0f;
}
INSTANCE(fault_write_through_read)

KERNEL(128) void fault_uninitialised_global(const Fault args) {
    const u32 i = block_index() * THREADS + thread_index();
    if (!args.broken) args.blank[i] = 1.0f;
    own_row(args)[thread_index()] = args.blank[i];
}
INSTANCE(fault_uninitialised_global)

KERNEL(128) void fault_global_race(const Fault args) {
    // Both blocks, or each its own row.
    (args.broken ? args.out : own_row(args))[thread_index()] = 1.0f;
}
INSTANCE(fault_global_race)

KERNEL(128) void fault_global_race_in_block(const Fault args) {
    const Global<float> out = own_row(args);
    out[thread_index()] = 1.0f;
    if (!args.broken) sync_block();
    out[128 + thread_index()] = out[thread_index() ^ 64];
}
INSTANCE(fault_global_race_in_block)

// The last block to come adds what both have written.
KERNEL(128) void fault_missing_fence(const Fault args) {
    own_row(args)[thread_index()] = 1.0f;
    sync_block();
    const Shared<u32> ticket = shared<u32>(0);
    if (thread_index() == 0) {
        // After the barrier: what the thread hands on is what it knows of at its fence.
        if (!args.broken) fence_device();
        ticket[0] = atomic_add(args.words, 1u);
    }
    sync_block();
    if (ticket[0] != block_count() - 1) return;
    if (!args.broken) fence_device();
    args.out[128 + thread_index()] = args.out[thread_index()] + args.out[ROW + thread_index()];
}
INSTANCE(fault_missing_fence)

// One block hands a value to the other.
KERNEL(128) void fault_missing_release(const Fault args) {
    if (thread_index() != 0) return;
    if (block_index() == 0) {
        args.out[0] = 5.0f;
        if (args.broken) atomic_add(args.words, 1u);
        else store_release(args.words, 1u);
    } else {
        while (load_acquire(args.words) == 0) {
        }
        args.out[ROW] = args.out[0];
    }
}
INSTANCE(fault_missing_release)

// Operations of a warp.

KERNEL(128) void fault_divergent(const Fault args) {
    float x = 1.0f;
    if (args.broken && lane() < 16) x += ballot(true) ? 1.0f : 0.0f;
    else x = shuffle_xor(x, 1);
    own_row(args)[thread_index()] = x;
}
INSTANCE(fault_divergent)

KERNEL(128) void fault_missing_lane(const Fault args) {
    if (args.broken && lane() == 31) return;
    own_row(args)[thread_index()] = warp_sum(1.0f);
}
INSTANCE(fault_missing_lane)

KERNEL(128) void fault_sync_warp_mask(const Fault args) {
    if (lane() < 16) sync_warp(args.broken ? 0x1ffffu : 0xffffu);
    else sync_warp(0xffff0000u);
}
INSTANCE(fault_sync_warp_mask)

// Barriers.

KERNEL(128) void fault_deadlock(const Fault args) {
    if (warp() < (args.broken ? 1u : 2u)) barrier_sync(1, 64);
}
INSTANCE(fault_deadlock)

KERNEL(128) void fault_barrier_count(const Fault args) {
    barrier_sync(3, args.broken && warp() == 2 ? 96 : 128);
}
INSTANCE(fault_barrier_count)

KERNEL(128) void fault_endless_poll(const Fault args) {
    if (!args.broken && block_index() == 0 && thread_index() == 0) store_release(args.words + 1, 1u);
    while (load_acquire(args.words + 1) == 0) {
    }
}
INSTANCE(fault_endless_poll)

// A producer arrives without waiting; consumers wait.
KERNEL(128) void fault_arrive_order(const Fault args) {
    const Shared<float> tile = shared<float>(0);
    if (warp() < 2) {
        if (args.broken) barrier_arrive(1, 128);
        tile[thread_index()] = 1.0f;
        if (!args.broken) barrier_arrive(1, 128);
    } else {
        barrier_sync(1, 128);
        own_row(args)[thread_index()] = tile[thread_index() - 64];
    }
}
INSTANCE(fault_arrive_order)

// Copies of a thread.

KERNEL(128) void fault_missing_copy_wait(const Fault args) {
    const Shared<float> tile = shared<float>(0);
    copy_async<16>(tile + 4 * thread_index(), args.in + 4 * (thread_index() % 64), true);
    copy_async_commit();
    if (!args.broken) copy_async_wait<0>();
    sync_block();
    own_row(args)[thread_index()] = tile[thread_index()];
}
INSTANCE(fault_missing_copy_wait)

KERNEL(128) void fault_missing_sync_after_copy(const Fault args) {
    const Shared<float> tile = shared<float>(0);
    copy_async<4>(tile + thread_index(), args.in + thread_index(), true);
    copy_async_commit();
    copy_async_wait<0>();
    if (!args.broken) sync_block();
    own_row(args)[thread_index()] = tile[thread_index() ^ 1];
}
INSTANCE(fault_missing_sync_after_copy)

KERNEL(128) void fault_uncommitted_copy(const Fault args) {
    const Shared<float> tile = shared<float>(0);
    copy_async<8>(tile + 2 * thread_index(), args.in + 2 * thread_index(), true);
    if (!args.broken) copy_async_commit();
    copy_async_wait<0>();
    own_row(args)[thread_index()] = tile[2 * thread_index()];
}
INSTANCE(fault_uncommitted_copy)
