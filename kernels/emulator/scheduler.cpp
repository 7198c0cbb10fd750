#include "scheduler.hpp"

#include "async.hpp"
#include "bulk.hpp"
#include "clock.hpp"
#include "collective.hpp"
#include "cluster.hpp"
#include "copy.hpp"
#include "race.hpp"
#include "wgmma.hpp"

#include <cstdarg>
#include <cstdio>
#include <unistd.h>

namespace emulator {

EMULATOR_TLS Thread *current_thread = nullptr;
EMULATOR_TLS Worker *current_worker = nullptr;

namespace {

// Rounds in which every thread of every running group looked at a value in vain before the launch is called stuck. While other groups run, a round
// sleeps a little.
constexpr u64 MOST_IDLE_ROUNDS = 2000;
constexpr unsigned MICROSECONDS_OF_A_ROUND = 50;

[[noreturn]] void leave_group() {
    Worker *worker = current_worker;
    void *abandoned;
    prime_emulator_switch(&abandoned, worker->main_stack);
    __builtin_unreachable();
}

// Notes a broken rule, with its place, as the launch's message.
void note_failure(const char *text) {
    const Thread &thread = *current_thread;
    LaunchState &launch = *thread.block->group->launch;
    const u32 *index = thread.block->index;
    char place[256];
    snprintf(place, sizeof place, ", block (%u, %u, %u), thread %u (warp %u, lane %u), seed %llu: ", index[0], index[1], index[2], thread.index,
             thread.index / WARP, unsigned(thread.lane), (unsigned long long)(launch.request->seed));
    launch.fail("kernel `" + launch.instance + "`" + place + text);
}

[[noreturn]] void fail_stuck(const Group &group, const char *why) {
    note_failure((std::string("the launch is stuck: ") + why + "; " + describe_waiting(group)).c_str());
    leave_group();
}

// The next warp with a lane ready, from a random one on.
Warp *choose_warp(Group &group) {
    const u32 words = u32(group.ready.size());
    const u32 start = group.random.below(u32(group.warps.size()));
    const u64 from = ~0ull << (start % 64);
    for (u32 step = 0; step <= words; step++) {
        u32 word = start / 64 + step;
        if (word >= words) word -= words;
        u64 bits = group.ready[word];
        if (step == 0) bits &= from;
        if (step == words) bits &= ~from;
        while (bits) {
            const u32 bit = u32(__builtin_ctzll(bits));
            bits &= bits - 1;
            Warp *warp = group.warps[word * 64 + bit];
            if (warp->ready) return warp;
            group.ready[word] &= ~(1ull << bit);
        }
    }
    return nullptr;
}

void set_idle(Group &group, bool idle) {
    if (group.idle == idle) return;
    group.idle = idle;
    if (idle) {
        group.launch->idle_groups++;
    } else {
        group.launch->idle_groups--;
    }
}

// Readies the threads that look at a value until it changes. Fails when that has been in vain for long.
void resume_polling(Group &group) {
    LaunchState &launch = *group.launch;
    const bool idle = group.progress == group.progress_when_idle;
    group.progress_when_idle = group.progress;
    set_idle(group, idle);
    const u32 running = launch.running_groups.load();
    if (running > 1) usleep(MICROSECONDS_OF_A_ROUND);
    if (!idle || launch.idle_groups.load() < running) group.idle_rounds = 0;
    if (++group.idle_rounds > MOST_IDLE_ROUNDS) {
        current_thread = group.polling.front();
        fail_stuck(group, "threads look at a value again and again, and no thread of the blocks that run together changes it");
    }
    for (Thread *thread : group.polling) wake(thread);
    group.polling.clear();
}

void thread_main() {
    Thread *self = current_thread;
    LaunchState *launch = self->block->group->launch;
    launch->kernel->run(launch->request->arguments, launch->kernel->function);

    Warp *warp = self->warp;
    Group *group = self->block->group;
    if (warp->meeting.arrived != 0) {
        fail("the thread returns while lanes 0x%08x of its warp wait for it in %s", warp->meeting.arrived, name_of(warp->meeting.kind));
    }
    for (const Meeting &meeting : warp->partial) {
        if (meeting.mask >> self->lane & 1) {
            fail("the thread returns while lanes 0x%08x of its warp wait for it in %s", meeting.arrived, name_of(meeting.kind));
        }
    }
    check_bulk_done(self);
    if (launch->early && !self->begun) fail("the thread returns without begin_grid, in a launch that may begin early");
    self->finished = true;
    warp->exited |= 1u << self->lane;
    warp->ready &= ~(1u << self->position);
    self->block->exited++;
    leave_with_knowledge(self);
    if (self->block->exited == self->block->threads.size()) {
        check_block_done(*self->block);
        check_visitors_gone(*self->block);
    }
    group->running--;
    group->progress++;
    thread_left(self);
    cluster_thread_left(self);
    if (group->running == 0) leave_group();
    run_another(self);
    __builtin_unreachable();
}

void prepare_block(Worker &worker, Group &group, Block &block, u32 rank, CopyQueue *copies) {
    LaunchState &launch = *group.launch;
    const prime_launch &request = *launch.request;
    const u32 first_thread = rank * request.block;
    u64 number = group.number * launch.blocks_of_a_group + rank;
    block.group = &group;
    block.rank = rank;
    block.index[0] = u32(number % request.grid[0]);
    number /= request.grid[0];
    block.index[1] = u32(number % request.grid[1]);
    block.index[2] = u32(number / request.grid[1]);
    block.exited = 0;
    block.free_registers = 0;
    block.left = nullptr;
    block.threads.assign(request.block, Thread());
    block.warps.assign((request.block + WARP - 1) / WARP, Warp());
    for (NamedBarrier &barrier : block.barriers) barrier = NamedBarrier();
    prepare_warpgroups(block);
    for (u32 w = 0; w < block.warps.size(); w++) {
        Warp &warp = block.warps[w];
        const u32 lanes = std::min(WARP, request.block - w * WARP);
        warp.block = &block;
        warp.index = w;
        warp.id = u32(group.warps.size());
        warp.lanes = lanes == WARP ? 0xffffffffu : (1u << lanes) - 1;
        warp.ready = warp.lanes;
        warp.registers = registers_at_start(request.block);
        warp.turns = &block.threads[w * WARP];
        u8 order[WARP];
        for (u32 i = 0; i < lanes; i++) order[i] = u8(i);
        for (u32 i = lanes; i > 1; i--) std::swap(order[i - 1], order[group.random.below(i)]);
        for (u32 turn = 0; turn < lanes; turn++) {
            const u32 lane = order[turn];
            Thread &thread = block.threads[w * WARP + turn];
            thread.warp = &warp;
            thread.block = &block;
            thread.index = w * WARP + lane;
            thread.id = first_thread + thread.index;
            thread.lane = u8(lane);
            thread.position = u8(turn);
            thread.copies = &copies[thread.id];
            thread.stack = worker.stacks.start(thread.id, thread_main);
            warp.by_lane[lane] = &thread;
        }
        group.warps.push_back(&warp);
    }
}

} // namespace

const char *name_of(Collective kind) {
    switch (kind) {
    case Collective::SYNC_WARP: return "sync_warp";
    case Collective::SHUFFLE: return "a shuffle";
    case Collective::VOTE: return "a vote";
    case Collective::LOAD_MATRIX: return "load_matrix";
    case Collective::STORE_MATRIX: return "store_matrix";
    case Collective::MMA: return "mma";
    case Collective::WGMMA: return "an operation of wgmma";
    case Collective::REGISTERS: return "registers_increase or registers_decrease";
    }
    return "an operation of the warp";
}

void Warp::make_ready(u32 lane_mask) {
    for (u32 rest = lane_mask & ~exited; rest; rest &= rest - 1) ready |= 1u << by_lane[__builtin_ctz(rest)]->position;
    block->group->set_ready(this);
}

void LaunchState::fail(std::string text) {
    std::lock_guard<std::mutex> guard(message_lock);
    if (!failed.load()) {
        message = std::move(text);
        failed.store(true);
    }
}

void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    char text[3072];
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    note_failure(text);
    leave_group();
}

void run_another(Thread *self) {
    Group &group = *self->block->group;
    if (group.launch->failed.load(std::memory_order_relaxed)) leave_group();
    tick_async(group);
    for (;;) {
        if (Warp *warp = choose_warp(group)) {
            Thread *next = next_turn(warp, warp->ready);
            if (next == self) {
                current_thread = self;
            } else {
                continue_thread(self, next);
            }
            return;
        }
        if (land_one(group)) continue;
        if (!group.polling.empty()) {
            resume_polling(group);
            if (group.launch->failed.load(std::memory_order_relaxed)) leave_group();
            continue;
        }
        for (Block &block : group.blocks) {
            for (Thread &thread : block.threads) {
                if (thread.finished) continue;
                current_thread = &thread;
                fail_stuck(group, "no thread can go on");
            }
        }
    }
}

void poll() {
    Thread *self = current_thread;
    Group *group = self->block->group;
    group->polling.push_back(self);
    self->waiting = Waiting{"looks at a value until it changes", 0, 0};
    suspend(self);
}

void poll_for_warp(const Waiting &waiting) {
    Thread *self = current_thread;
    for (Thread *thread : self->warp->by_lane) {
        if (thread) thread->waiting = waiting;
    }
    self->block->group->polling.push_back(self);
    suspend(self);
}

void maybe_yield() {
    Thread *self = current_thread;
    Group *group = self->block->group;
    if (group->random.below(16) == 0) {
        group->set_ready(self->warp);
        run_another(self);
    }
}

namespace {

const Thread &thread_of(const Block &block, u32 index) { return *block.warps[index / WARP].by_lane[index % WARP]; }

Waiting waiting_of(const Thread &thread) {
    const Warp &warp = *thread.warp;
    const u32 bit = 1u << thread.lane;
    if (thread.finished) return Waiting{"returned", 0, 0};
    if (warp.ready >> thread.position & 1) return Waiting{"can run", 0, 0};
    if (warp.meeting.arrived & bit) return Waiting{name_of(warp.meeting.kind), 0, 0};
    for (const Meeting &meeting : warp.partial) {
        if (meeting.arrived & bit) return Waiting{"in an operation of lanes 0x%08llx of the warp", meeting.mask, 0};
    }
    return thread.waiting;
}

bool operator==(const Waiting &a, const Waiting &b) { return a.what == b.what && a.first == b.first && a.second == b.second; }

} // namespace

std::string describe_waiting(const Group &group) {
    std::string text;
    u32 parts = 0;
    for (const Block &block : group.blocks) {
        for (u32 first = 0; first < block.threads.size();) {
            const Waiting waiting = waiting_of(thread_of(block, first));
            u32 last = first;
            while (last + 1 < block.threads.size() && waiting_of(thread_of(block, last + 1)) == waiting) last++;
            char what[256];
            snprintf(what, sizeof what, waiting.what, waiting.first, waiting.second);
            char line[512];
            if (group.blocks.size() > 1) {
                snprintf(line, sizeof line, "%sblock %u of the group, threads %u to %u: %s", parts ? "; " : "", block.rank, first, last, what);
            } else {
                snprintf(line, sizeof line, "%sthreads %u to %u: %s", parts ? "; " : "", first, last, what);
            }
            text += line;
            if (++parts == 24) return text + "; and more";
            first = last + 1;
        }
    }
    return text;
}

void run_group(Worker &worker, Group &group, CopyQueue *copies) {
    LaunchState &launch = *group.launch;
    group.random = Random(launch.request->seed * 0x9e3779b97f4a7c15ull + group.number + 1);
    group.warps.clear();
    group.polling.clear();
    group.idle_rounds = group.progress = group.progress_when_idle = 0;
    group.idle = false;
    group.now = 1;
    group.floor = 0;
    group.fences.clear();
    group.races = launch.races != nullptr;
    group.cluster_barrier = NamedBarrier();
    group.cluster_known = Knowledge();
    group.running = group.threads = u32(group.blocks.size()) * launch.request->block;
    group.cluster_phase = 0;
    for (u32 rank = 0; rank < group.blocks.size(); rank++) {
        prepare_block(worker, group, group.blocks[rank], rank, copies);
    }
    group.ready.assign((group.warps.size() + 63) / 64, 0);
    for (Warp *warp : group.warps) group.set_ready(warp);
    Thread *first = choose_warp(group)->turns;
    current_thread = first;
    prime_emulator_switch(&worker.main_stack, first->stack);
    set_idle(group, false);
    current_thread = nullptr;
}

} // namespace emulator
