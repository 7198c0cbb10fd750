#include "cluster.hpp"

#include "clock.hpp"
#include "collective.hpp"

#include <algorithm>

namespace emulator {

namespace {

constexpr u32 REGISTERS_OF_A_MULTIPROCESSOR = 65536;
constexpr u32 MOST_REGISTERS = 255;

void complete_if_due(Group &group) {
    NamedBarrier &barrier = group.cluster_barrier;
    u32 exited = 0;
    for (const Block &block : group.blocks) exited += block.exited;
    if (barrier.arrived == 0 || barrier.arrived + exited < group.threads) return;
    barrier.arrived = 0;
    group.cluster_phase++;
    group.progress++;
    // Those who wait learn what all did before they came.
    forget(group, group.cluster_known);
    group.cluster_known = barrier.knowledge;
    barrier.knowledge = Knowledge();
    for (Thread *thread : barrier.waiting) wake(thread);
    barrier.waiting.clear();
}

} // namespace

u32 cluster_rank() { return current_thread->block->rank % cluster_size(); }

void begin_grid() { current_thread->begun = true; }

u32 cluster_size() { return current_worker->launch->request->cluster; }

void cluster_arrive() {
    Thread *self = current_thread;
    Group &group = *self->block->group;
    if (self->cluster_arrived) fail("cluster_arrive comes twice without cluster_wait between");
    self->cluster_arrived = true;
    self->cluster_phase = group.cluster_phase;
    group.cluster_barrier.arrived++;
    release(group.cluster_barrier.knowledge, self);
    complete_if_due(group);
}

void cluster_wait() {
    Thread *self = current_thread;
    Group &group = *self->block->group;
    if (!self->cluster_arrived) fail("cluster_wait comes without cluster_arrive before it");
    while (group.cluster_phase == self->cluster_phase) {
        self->waiting = Waiting{"at cluster_wait", 0, 0};
        group.cluster_barrier.waiting.push_back(self);
        suspend(self);
    }
    self->cluster_arrived = false;
    acquire(group.cluster_known, self);
}

void cluster_thread_left(Thread *thread) {
    if (thread->block->group->cluster_barrier.arrived) complete_if_due(*thread->block->group);
}

u32 map_address(u32 address, u32 rank) {
    const u32 size = cluster_size();
    if (rank >= size) fail("a place in the shared memory of block %u of the cluster, which has %u", rank, size);
    // Ranks count within the group, which holds all clusters of a cooperative launch.
    const u32 first = current_thread->block->rank / size * size;
    return (address & SHARED_OFFSET_MASK) | (first + rank + 1) << SHARED_RANK_SHIFT;
}

bool elect_one() {
    ballot(true);
    // The ISA says that it is the same lane each time, and not which.
    const Warp &warp = *current_thread->warp;
    Random random(current_worker->launch->request->seed + warp.id);
    return lane() == random.below(WARP);
}

u32 registers_at_start(u32 threads) { return std::min(REGISTERS_OF_A_MULTIPROCESSOR / threads / 8 * 8, MOST_REGISTERS); }

void change_registers(u32 count, bool increase) {
    const char *what = increase ? "registers_increase" : "registers_decrease";
    if (!meet_all(Collective::REGISTERS, &count)) return;
    Thread *self = current_thread;
    Warp *warp = self->warp;
    Block &block = *self->block;
    if (increase ? count < warp->registers : count > warp->registers) {
        fail("%s to %u registers by threads that have %u", what, count, warp->registers);
    }
    if (increase) {
        const u32 more = (count - warp->registers) * WARP;
        while (block.free_registers < more) {
            poll_for_warp(Waiting{"in registers_increase to %llu registers, of which the block's pool has %llu left for each thread of a warp", count,
                                  block.free_registers / WARP});
        }
        block.free_registers -= more;
    } else {
        block.free_registers += (warp->registers - count) * WARP;
        note_progress();
    }
    warp->registers = count;
    part_all();
}

} // namespace emulator
