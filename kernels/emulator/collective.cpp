#include "collective.hpp"

#include "clock.hpp"

namespace emulator {

namespace {

// Stands for the number of threads of the block that have not returned.
constexpr u32 WHOLE_BLOCK = ~0u;

u32 expected_threads(const Block &block, const NamedBarrier &barrier) {
    return barrier.expected == WHOLE_BLOCK ? u32(block.threads.size()) - block.exited : barrier.expected;
}

// Everybody whom the barrier waits for has come; those of `waiting` are to go on.
void complete(Group &group, NamedBarrier &barrier) {
    std::vector<Thread *> &waiting = barrier.waiting;
    if (barrier.expected == WHOLE_BLOCK && group.blocks.size() == 1) {
        meet_group(group);
    } else {
        meet_threads(group, waiting.data(), u32(waiting.size()));
        if (barrier.knowledge.clock) {
            for (Thread *thread : waiting) acquire(barrier.knowledge, thread);
        }
        forget(group, barrier.knowledge);
    }
    for (Thread *thread : waiting) wake(thread);
    waiting.clear();
    barrier.arrived = 0;
    barrier.expected = 0;
    group.progress++;
}

void come(u32 id, u32 threads, bool wait) {
    Thread *self = current_thread;
    Block &block = *self->block;
    NamedBarrier &barrier = block.barriers[id];
    if (barrier.arrived == 0) {
        barrier.expected = threads;
    } else if (barrier.expected != threads) {
        fail("the thread comes to barrier %u for %d threads, while others wait there for %d (-1: the whole block)", id, i32(threads), i32(barrier.expected));
    }
    barrier.arrived++;
    const u32 expected = expected_threads(block, barrier);
    if (barrier.arrived > expected) fail("%u threads came to barrier %u, which is for %u", barrier.arrived, id, expected);
    if (wait) {
        barrier.waiting.push_back(self);
    } else {
        release(barrier.knowledge, self);
    }
    if (barrier.arrived == expected) {
        complete(*block.group, barrier);
        maybe_yield();
    } else if (wait) {
        self->waiting = threads == WHOLE_BLOCK ? Waiting{"at sync_block", 0, 0} : Waiting{"at barrier %llu for %llu threads", id, threads};
        suspend(self);
    }
}

void check_barrier(u32 id, u32 threads) {
    if (id == 0 || id >= NAMED_BARRIERS) fail("barrier %u: a block has the barriers 1 to %u besides that of sync_block", id, NAMED_BARRIERS - 1);
    if (threads == 0 || threads % WARP != 0 || threads > block_threads()) {
        fail("barrier %u for %u threads: it takes whole warps, and the block has %u threads", id, threads, block_threads());
    }
}

struct Word {
    u32 value;
    u32 from;
    u32 *result;
};

struct Vote {
    bool condition;
    u32 *result;
};

} // namespace

bool meet(Collective kind, const void *operands, u32 mask) {
    Thread *self = current_thread;
    Warp *warp = self->warp;
    const u32 bit = 1u << self->lane;
    if ((mask & bit) == 0) fail("lane %u executes %s for lanes 0x%08x, without itself", u32(self->lane), name_of(kind), mask);
    if (mask & ~warp->lanes) fail("%s for lanes 0x%08x of a warp that has lanes 0x%08x only", name_of(kind), mask, warp->lanes);
    if (mask & warp->exited) {
        fail("%s for lanes 0x%08x, of which 0x%08x have returned", name_of(kind), mask, mask & warp->exited);
    }
    Meeting *found = nullptr;
    const auto consider = [&](Meeting &meeting) {
        if (meeting.arrived == 0 || (meeting.mask & mask) == 0) return;
        if (meeting.mask != mask || meeting.kind != kind) {
            fail("lane %u executes %s for lanes 0x%08x, while lanes 0x%08x of its warp wait in %s for lanes 0x%08x", u32(self->lane), name_of(kind), mask,
                 meeting.arrived, name_of(meeting.kind), meeting.mask);
        }
        found = &meeting;
    };
    if (warp->meeting.arrived) {
        warp->meeting.mask = warp->lanes;
        consider(warp->meeting);
    }
    for (Meeting &meeting : warp->partial) consider(meeting);
    if (found == nullptr) {
        if (mask == warp->lanes) {
            found = &warp->meeting;
        } else {
            warp->partial.emplace_back();
            found = &warp->partial.back();
        }
        found->kind = kind;
        found->mask = mask;
        found->arrived = 0;
    }
    warp->operands[self->lane] = operands;
    found->arrived |= bit;
    if (found->arrived == mask) {
        if (found == &warp->meeting) {
            found->arrived = 0;
        } else {
            warp->partial.erase(warp->partial.begin() + (found - warp->partial.data()));
        }
        return true;
    }
    suspend(self);
    return false;
}

void part(u32 mask) { current_thread->warp->make_ready(mask); }

void sync_warp(u32 mask) {
    Warp *warp = current_thread->warp;
    mask &= warp->lanes;
    if (mask == warp->lanes) {
        if (!meet_all(Collective::SYNC_WARP, nullptr)) return;
    } else if (!meet(Collective::SYNC_WARP, nullptr, mask)) {
        return;
    }
    Thread *lanes[WARP];
    u32 count = 0;
    for (u32 rest = mask; rest; rest &= rest - 1) lanes[count++] = warp->by_lane[__builtin_ctz(rest)];
    meet_threads(*warp->block->group, lanes, count);
    part(mask);
    maybe_yield();
}

void sync_block() { come(0, WHOLE_BLOCK, true); }

void barrier_sync(u32 id, u32 threads) {
    check_barrier(id, threads);
    come(id, threads, true);
}

void barrier_arrive(u32 id, u32 threads) {
    check_barrier(id, threads);
    come(id, threads, false);
}

void thread_left(Thread *thread) {
    Block &block = *thread->block;
    for (NamedBarrier &barrier : block.barriers) {
        if (barrier.arrived != 0 && barrier.expected == WHOLE_BLOCK && barrier.arrived == expected_threads(block, barrier)) {
            complete(*block.group, barrier);
        }
    }
}

u32 shuffle_word(u32 value, u32 from) {
    u32 result = value;
    const Word word{value, from, &result};
    if (!meet_all(Collective::SHUFFLE, &word)) return result;
    const Warp *warp = current_thread->warp;
    for (u32 i = 0; i < WARP; i++) {
        if (!(warp->lanes >> i & 1)) break;
        const Word &own = operand<Word>(warp, i);
        if (!(warp->lanes >> own.from & 1)) fail("lane %u shuffles from lane %u, which does not exist", i, own.from);
        *own.result = operand<Word>(warp, own.from).value;
    }
    part_all();
    return result;
}

u32 ballot(bool condition) {
    u32 result = 0;
    const Vote vote{condition, &result};
    if (!meet_all(Collective::VOTE, &vote)) return result;
    const Warp *warp = current_thread->warp;
    u32 votes = 0;
    for (u32 i = 0; i < WARP && (warp->lanes >> i & 1); i++) votes |= u32(operand<Vote>(warp, i).condition) << i;
    for (u32 i = 0; i < WARP && (warp->lanes >> i & 1); i++) *operand<Vote>(warp, i).result = votes;
    part_all();
    return result;
}

} // namespace emulator
