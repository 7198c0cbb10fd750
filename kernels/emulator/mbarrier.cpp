#include "mbarrier.hpp"

#include "async.hpp"

namespace emulator {

namespace {

constexpr u32 MOST_ARRIVALS = (1u << 20) - 1;
constexpr i64 MOST_BYTES = (1 << 20) - 1;
constexpr u32 BARRIER_BYTES = 8;

// The address of the barrier as the running thread may use it, and the barrier made there.
MBarrier &find_barrier(u32 address, const char *what) {
    const SharedPlace place = find_shared(address, BARRIER_BYTES, BARRIER_BYTES, what);
    MBarrier *barrier = place.memory->find_barrier(place.offset);
    if (barrier == nullptr) fail("%s at byte %u of shared memory, where no mbarrier was initialised", what, place.offset);
    order_shared(place, BARRIER_BYTES, AccessKind::ATOMIC, actor_of(current_thread), what);
    if (place.block != current_thread->block && !barrier->fenced) {
        fail("%s at byte %u of another block's shared memory: fence_barrier_init must follow mbarrier_init", what, place.offset);
    }
    return *barrier;
}

void complete_if_due(Group &group, MBarrier &barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.phase++;
    barrier.pending = barrier.arrivals;
    forget(group, barrier.completed);
    barrier.completed = barrier.current;
    barrier.current = Knowledge();
    for (Thread *thread : barrier.waiting) wake(thread);
    barrier.waiting.clear();
    group.progress++;
}

void expect(MBarrier &barrier, u32 bytes) {
    barrier.bytes += bytes;
    if (barrier.bytes > MOST_BYTES) fail("an mbarrier expects %lld bytes: a phase counts at most %lld", barrier.bytes, MOST_BYTES);
}

// `relaxed`: what the thread itself did is not told.
void arrive(MBarrier &barrier, bool relaxed = false) {
    Thread *self = current_thread;
    if (barrier.pending == 0) fail("more arrivals come to the mbarrier at byte %u of shared memory in one phase than its %u", barrier.offset, barrier.arrivals);
    barrier.pending--;
    if (relaxed) release_of_agents(barrier.current, self);
    else release(barrier.current, self);
    complete_if_due(*self->block->group, barrier);
}

bool is_complete(const MBarrier &barrier, u32 phase) { return (barrier.phase & 1) != phase; }

bool wait_once(MBarrier &barrier, u32 phase) {
    if (!is_complete(barrier, phase)) return false;
    acquire(barrier.completed, current_thread);
    return true;
}

void check_phase(u32 phase) {
    if (phase > 1) fail("an mbarrier is waited for with the phase %u: its parity, 0 or 1, is wanted", phase);
}

} // namespace

void mbarrier_init(Shared<u64> address, u32 arrivals) {
    const SharedPlace place = find_shared(address.address, BARRIER_BYTES, BARRIER_BYTES, "mbarrier_init");
    if (place.block != current_thread->block) fail("mbarrier_init in the shared memory of another block");
    if (arrivals == 0 || arrivals > MOST_ARRIVALS) fail("mbarrier_init for %u arrivals: 1 to %u can be counted", arrivals, MOST_ARRIVALS);
    if (place.memory->find_barrier(place.offset)) fail("mbarrier_init at byte %u of shared memory, where there is an mbarrier already", place.offset);
    note_shared_write(place, BARRIER_BYTES, "mbarrier_init");
    order_shared(place, BARRIER_BYTES, AccessKind::WRITE, actor_of(current_thread), "mbarrier_init");
    std::memset(place.state(), BARRIER, BARRIER_BYTES);
    MBarrier &barrier = place.memory->make_barrier(place.offset);
    barrier.arrivals = barrier.pending = arrivals;
    barrier.maker = current_thread->index;
}

void fence_barrier_init() {
    for (auto &barrier : current_thread->block->shared->barriers) {
        if (barrier->maker == current_thread->index) barrier->fenced = true;
    }
}

void mbarrier_arrive(Shared<u64> barrier) { arrive(find_barrier(barrier.address, "mbarrier_arrive")); }

namespace {

void arrive_cluster(Shared<u64> barrier, u32 rank, bool relaxed, const char *what) {
    const u32 address = map_address(barrier.address, rank);
    MBarrier &found = find_barrier(address, what);
    const SharedPlace place = find_shared(address, BARRIER_BYTES, BARRIER_BYTES, what);
    note_own_visit(place);
    // Within the own block it orders as any other.
    arrive(found, relaxed && place.block != current_thread->block);
    maybe_yield();
}

} // namespace

void mbarrier_arrive_cluster(Shared<u64> barrier, u32 rank) { arrive_cluster(barrier, rank, false, "mbarrier_arrive_cluster"); }

void mbarrier_arrive_cluster_relaxed(Shared<u64> barrier, u32 rank) { arrive_cluster(barrier, rank, true, "mbarrier_arrive_cluster_relaxed"); }

void mbarrier_expect(Shared<u64> barrier, u32 bytes) { expect(find_barrier(barrier.address, "mbarrier_expect"), bytes); }

void mbarrier_arrive_expect(Shared<u64> address, u32 bytes) {
    MBarrier &barrier = find_barrier(address.address, "mbarrier_arrive_expect");
    expect(barrier, bytes);
    arrive(barrier);
}

bool mbarrier_try_wait(Shared<u64> address, u32 phase) {
    check_phase(phase);
    MBarrier &barrier = find_barrier(address.address, "mbarrier_try_wait");
    if (wait_once(barrier, phase)) return true;
    poll();
    return wait_once(barrier, phase);
}

void mbarrier_wait(Shared<u64> address, u32 phase) {
    check_phase(phase);
    Thread *self = current_thread;
    MBarrier &barrier = find_barrier(address.address, "mbarrier_wait");
    while (!wait_once(barrier, phase)) {
        self->waiting = Waiting{"at the mbarrier at byte %llu of shared memory for the phase of parity %llu", barrier.offset, phase};
        barrier.waiting.push_back(self);
        suspend(self);
    }
    maybe_yield();
}

void land_bytes(const SharedPlace &place, u32 bytes, const Knowledge &knowledge) {
    MBarrier &barrier = *place.memory->find_barrier(place.offset);
    Group &group = *place.block->group;
    barrier.bytes -= bytes;
    if (barrier.bytes < -MOST_BYTES) fail("more than %lld bytes land that the mbarrier at byte %u of shared memory does not expect", MOST_BYTES, barrier.offset);
    join_knowledge(group, barrier.current, knowledge);
    complete_if_due(group, barrier);
}

SharedPlace find_copy_barrier(u32 address, const char *what) {
    const MBarrier &barrier = find_barrier(address, what);
    if (!barrier.fenced) fail("%s names the mbarrier at byte %u of shared memory: fence_barrier_init must follow mbarrier_init", what, barrier.offset);
    return find_shared(address, BARRIER_BYTES, BARRIER_BYTES, what);
}

void fence_proxy_async() {
    fence_to_async(current_thread);
    fence_barrier_init();
}

void fence_proxy_async_global() { fence_to_async(current_thread); }

} // namespace emulator
