#include "clock.hpp"

#include <algorithm>
#include <cstdlib>

namespace emulator {

ClockPool::~ClockPool() {
    for (Clock *clock : all) std::free(clock);
}

void ClockPool::reset(u32 entries) {
    // Room is kept for groups of the same size; a few clocks of another size are not worth keeping.
    if (entries != count) {
        for (Clock *clock : all) std::free(clock);
        all.clear();
        count = entries;
    }
    free_clocks = all;
    foreign.resize(1);
    if (!foreign[0]) foreign[0] = std::make_shared<const Foreign>();
    last_a = last_b = last_result = nullptr;
}

Clock *ClockPool::allocate() {
    Clock *clock;
    if (free_clocks.empty()) {
        clock = static_cast<Clock *>(std::malloc(sizeof(Clock) + count * sizeof(u32)));
        if (clock == nullptr) std::abort();
        all.push_back(clock);
    } else {
        clock = free_clocks.back();
        free_clocks.pop_back();
    }
    clock->references = 1;
    clock->foreign = 0;
    clock->newest = 0;
    return clock;
}

Clock *ClockPool::share(Clock *clock) {
    if (clock) clock->references++;
    return clock;
}

void ClockPool::drop(Clock *&clock) {
    if (clock && --clock->references == 0) {
        if (clock == last_a || clock == last_b || clock == last_result) last_a = last_b = last_result = nullptr;
        free_clocks.push_back(clock);
    }
    clock = nullptr;
}

Clock *ClockPool::copy(const Clock *clock) {
    Clock *result = allocate();
    if (clock) {
        result->foreign = clock->foreign;
        result->newest = clock->newest;
        std::memcpy(result->times, clock->times, count * sizeof(u32));
    } else {
        std::memset(result->times, 0, count * sizeof(u32));
    }
    return result;
}

Clock *ClockPool::join(Clock *a, Clock *b) {
    if (a == b || b == nullptr) return share(a);
    if (a == nullptr) return share(b);
    if (a == last_a && b == last_b) return share(last_result);
    u32 a_behind = 0, b_behind = 0;
    for (u32 i = 0; i < count; i++) {
        a_behind |= u32(a->times[i] < b->times[i]);
        b_behind |= u32(b->times[i] < a->times[i]);
    }
    Clock *result;
    if (!b_behind && (a->foreign == b->foreign || a->foreign == 0)) {
        result = share(b);
    } else if (!a_behind && (a->foreign == b->foreign || b->foreign == 0)) {
        result = share(a);
    } else {
        result = allocate();
        for (u32 i = 0; i < count; i++) result->times[i] = std::max(a->times[i], b->times[i]);
        result->foreign = join_foreign(a->foreign, b->foreign);
        result->newest = std::max(a->newest, b->newest);
    }
    last_a = a;
    last_b = b;
    last_result = result;
    return result;
}

Clock *ClockPool::with(Clock *clock, u32 who, u32 epoch) {
    if (knows(clock, who, epoch)) return share(clock);
    Clock *result = copy(clock);
    result->times[who] = epoch;
    result->newest = std::max(result->newest, epoch);
    return result;
}

u32 ClockPool::join_foreign(u32 a, u32 b) {
    if (a == b || b == 0) return a;
    if (a == 0) return b;
    Foreign joined;
    const Foreign &x = *foreign[a], &y = *foreign[b];
    size_t i = 0, j = 0;
    while (i < x.size() || j < y.size()) {
        if (j == y.size() || (i < x.size() && x[i]->group < y[j]->group)) {
            joined.push_back(x[i++]);
        } else if (i == x.size() || y[j]->group < x[i]->group) {
            joined.push_back(y[j++]);
        } else if (x[i] == y[j]) {
            joined.push_back(x[i]);
            i++, j++;
        } else {
            auto both = std::make_shared<Snapshot>(*x[i]);
            for (size_t t = 0; t < both->times.size(); t++) both->times[t] = std::max(both->times[t], y[j]->times[t]);
            joined.push_back(both);
            i++, j++;
        }
    }
    foreign.push_back(std::make_shared<const Foreign>(std::move(joined)));
    return u32(foreign.size() - 1);
}

Clock *ClockPool::with_foreign(Clock *clock, const Foreign &known) {
    if (known.empty()) return share(clock);
    foreign.push_back(std::make_shared<const Foreign>(known));
    Clock *result = copy(clock);
    result->foreign = join_foreign(result->foreign, u32(foreign.size() - 1));
    return result;
}

bool knows_foreign(const Foreign &known, u64 group, u32 who, u32 epoch) {
    const auto place = std::lower_bound(known.begin(), known.end(), group, [](const std::shared_ptr<const Snapshot> &snapshot, u64 wanted) {
        return snapshot->group < wanted;
    });
    return place != known.end() && (*place)->group == group && epoch <= (*place)->times[who];
}

namespace {

void advance(Group &group, Thread *thread) { thread->epoch = ++group.now; }

} // namespace

void release(Knowledge &to, Thread *thread) {
    Group &group = *thread->block->group;
    if (!group.races) return;
    ClockPool &pool = *group.clocks;
    Clock *own = pool.with(thread->clock, thread->id, thread->epoch);
    pool.replace(to.clock, pool.join(to.clock, own));
    pool.drop(own);
    if (thread->fence_epoch) {
        Clock *fenced = pool.with(thread->fenced, thread->id, thread->fence_epoch);
        pool.replace(to.fenced, pool.join(to.fenced, fenced));
        pool.drop(fenced);
    } else if (thread->fenced) {
        pool.replace(to.fenced, pool.join(to.fenced, thread->fenced));
    }
    advance(group, thread);
}

void release_of_agents(Knowledge &to, Thread *thread) {
    Group &group = *thread->block->group;
    if (!group.races || thread->clock == nullptr) return;
    ClockPool &pool = *group.clocks;
    Clock *agents = pool.copy(thread->clock);
    agents->foreign = 0;
    std::fill(agents->times, agents->times + group.threads, 0u);
    pool.replace(to.clock, pool.join(to.clock, agents));
    pool.drop(agents);
}

void acquire(const Knowledge &from, Thread *thread) {
    Group &group = *thread->block->group;
    if (!group.races) return;
    ClockPool &pool = *group.clocks;
    pool.replace(thread->clock, pool.join(thread->clock, from.clock));
    pool.replace(thread->fenced, pool.join(thread->fenced, from.fenced));
}

void forget(Group &group, Knowledge &knowledge) {
    if (!group.races) return;
    group.clocks->drop(knowledge.clock);
    group.clocks->drop(knowledge.fenced);
}

void join_knowledge(Group &group, Knowledge &to, const Knowledge &from) {
    if (!group.races) return;
    ClockPool &pool = *group.clocks;
    pool.replace(to.clock, pool.join(to.clock, from.clock));
    pool.replace(to.fenced, pool.join(to.fenced, from.fenced));
}

void meet_threads(Group &group, Thread *const *threads, u32 count) {
    if (!group.races || count == 0) return;
    ClockPool &pool = *group.clocks;
    Knowledge all;
    for (u32 i = 0; i < count; i++) {
        pool.replace(all.clock, pool.join(all.clock, threads[i]->clock));
        pool.replace(all.fenced, pool.join(all.fenced, threads[i]->fenced));
    }
    Clock *clock = pool.copy(all.clock);
    clock->newest = group.now;
    bool any_fence = false;
    for (u32 i = 0; i < count; i++) {
        clock->times[threads[i]->id] = threads[i]->epoch;
        any_fence |= threads[i]->fence_epoch != 0;
    }
    pool.replace(all.clock, clock);
    if (any_fence) {
        Clock *fenced = pool.copy(all.fenced);
        fenced->newest = group.now;
        for (u32 i = 0; i < count; i++) fenced->times[threads[i]->id] = std::max(fenced->times[threads[i]->id], threads[i]->fence_epoch);
        pool.replace(all.fenced, fenced);
    }
    group.now++;
    for (u32 i = 0; i < count; i++) {
        pool.replace(threads[i]->clock, pool.share(all.clock));
        pool.replace(threads[i]->fenced, pool.share(all.fenced));
        threads[i]->epoch = group.now;
    }
    pool.drop(all.clock);
    pool.drop(all.fenced);
}

void meet_group(Group &group) {
    if (!group.races) return;
    std::vector<Thread *> &threads = group.everyone;
    threads.clear();
    for (Block &block : group.blocks) {
        for (Thread &thread : block.threads) threads.push_back(&thread);
    }
    meet_threads(group, threads.data(), u32(threads.size()));
    // Whatever has an earlier epoch is over for all.
    group.floor = group.now - 1;
}

void fence_to_async(Thread *thread) {
    Group &group = *thread->block->group;
    if (!group.races) return;
    thread->fence_epoch = thread->epoch;
    advance(group, thread);
}

} // namespace emulator
