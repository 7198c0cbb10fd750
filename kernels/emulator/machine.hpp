// The emulated machine: threads in warps, warps in blocks, blocks in groups that run together, and the launch they belong to.
//
// A group is a cluster (or all blocks of a cooperative launch) and stays on one thread of the host, so nothing inside a group needs locks. One thread of
// the group runs until it must wait; it then hands over to another one of its warp where that can run, so that an operation of a whole warp costs
// one switch a lane.
#pragma once

#include "emulator.h"
#include "fiber.hpp"
#include "types.cuh"

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <type_traits>
#include <vector>

namespace emulator {

constexpr u32 WARP = 32;
constexpr u32 NAMED_BARRIERS = 16;
constexpr u32 MOST_THREADS = 1024;
constexpr u32 MOST_CLUSTER = 16;
constexpr u32 DEFAULT_SHARED_LIMIT = 227 * 1024;

struct Thread;
struct Warp;
struct Block;
struct Group;
struct LaunchState;
struct Clock;
struct CopyQueue;
struct Fences;
class ClockPool;
class Channels;
struct Warpgroup;
struct AsyncUnit;
class SharedMemory;

// A small generator: the same draws for the same seed everywhere.
class Random {
  public:
    explicit Random(u64 seed = 0) : state(seed) {}
    u64 next() {
        u64 z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    // Below `bound`, which is not 0.
    u32 below(u32 bound) { return u32((next() >> 32) * bound >> 32); }

  private:
    u64 state;
};

// The operations that a warp's lanes execute together.
enum class Collective : u8 {
    SYNC_WARP,
    SHUFFLE,
    VOTE,
    LOAD_MATRIX,
    STORE_MATRIX,
    MMA,
    WGMMA,
    REGISTERS,
};

const char *name_of(Collective kind);

// Lanes that have arrived at an operation of their warp and wait for the rest of `mask`.
struct Meeting {
    Collective kind;
    u32 mask = 0;
    u32 arrived = 0;
};

// What a waiting thread says in a report of a deadlock: a format of printf for the two numbers.
struct Waiting {
    const char *what = nullptr;
    u64 first = 0;
    u64 second = 0;
};

// What every switch touches comes first and fits one line of the cache.
struct alignas(64) Thread {
    // Where it goes on, while it does not run.
    void *stack = nullptr;
    Warp *warp = nullptr;
    Block *block = nullptr;
    // Index in the block, and in the group.
    u32 index = 0;
    u32 id = 0;
    u8 lane = 0;
    // Place in the order in which the lanes of the warp take turns; threads lie side by side in that order.
    u8 position = 0;
    bool finished = false;
    Waiting waiting;

    // What happened before this thread's next step, what of it is ordered before accesses of asynchronous units, the number of its steps now, and
    // that of its own last steps before a fence to those units (0 before the first): see clock.hpp.
    Clock *clock = nullptr;
    Clock *fenced = nullptr;
    u32 epoch = 1;
    u32 fence_epoch = 0;
    Fences *fences = nullptr;

    // Asynchronous copies of its own.
    CopyQueue *copies = nullptr;
    // Which phase of the cluster's barrier it has come to, and whether it has yet to wait for it.
    u32 cluster_phase = 0;
    bool cluster_arrived = false;
    // Whether it has waited for the grid ahead.
    bool begun = false;
};

struct Warp {
    // One bit for each place in the order of turns.
    u32 ready = 0;
    // Whether turns are taken from the last place to the first: the direction changes with every meeting, so that the lanes whose stacks were used
    // last, and are in the cache, come first.
    bool backwards = false;
    // One bit for each lane that exists, and for each that has returned.
    u32 lanes = 0;
    u32 exited = 0;
    Block *block = nullptr;
    u32 index = 0;
    u32 id = 0;
    // The threads in the order of turns, and by lane.
    Thread *turns = nullptr;
    Thread *by_lane[WARP] = {};

    // The operation of all lanes that is being gathered, and those of some lanes only.
    Meeting meeting;
    std::vector<Meeting> partial;
    const void *operands[WARP] = {};
    // Registers of a thread, as setmaxnreg counts them.
    u32 registers = 0;
    // Whether wgmma_fence has come since registers may last have been touched.
    bool wgmma_fenced = false;

    void make_ready(u32 lane_mask);
};

// What a meeting point of threads holds for those who come later: see clock.hpp.
struct Knowledge {
    Clock *clock = nullptr;
    Clock *fenced = nullptr;
};

struct NamedBarrier {
    // Threads that end a phase; 0 while nobody has come.
    u32 expected = 0;
    u32 arrived = 0;
    std::vector<Thread *> waiting;
    // Of those who came without waiting.
    Knowledge knowledge;
};

struct Block {
    Group *group = nullptr;
    u32 index[3] = {};
    u32 rank = 0;
    u32 exited = 0;
    // In the order of turns within each warp.
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    NamedBarrier barriers[NAMED_BARRIERS];
    SharedMemory *shared = nullptr;
    std::vector<std::shared_ptr<Warpgroup>> warpgroups;
    u32 free_registers = 0;
    // What its threads that have returned knew.
    Clock *left = nullptr;
};

// The number under which clocks keep what the tensor memory accelerator has done for a block, and what a warpgroup's products have.
u32 copy_agent(const Block &block);
u32 product_agent(const Block &block, u32 warpgroup);
constexpr u32 WARPGROUP = 128;
inline u32 warpgroups_of(u32 threads) { return (threads + WARPGROUP - 1) / WARPGROUP; }
// Entries of a clock: the threads of all blocks, their copies, their warpgroups' products.
inline u32 clock_entries(u32 blocks, u32 threads) { return blocks * (threads + 1 + warpgroups_of(threads)); }

struct Group {
    LaunchState *launch = nullptr;
    u64 number = 0;
    std::vector<Block> blocks;
    std::vector<Warp *> warps;
    // One bit for each warp of `warps` that has a lane ready.
    std::vector<u64> ready;
    u32 running = 0;
    Random random;
    // Threads that look at a value again and again, and how often they did in vain.
    std::vector<Thread *> polling;
    u64 idle_rounds = 0;
    bool idle = false;
    u64 progress = 0;
    u64 progress_when_idle = 0;
    // The last epoch given out, and the last that is over for all: see clock.hpp.
    u32 now = 1;
    u32 floor = 0;
    ClockPool *clocks = nullptr;
    std::vector<Thread *> everyone;
    std::vector<std::unique_ptr<Fences>> fences;
    bool races = false;
    // Copies and products under way.
    AsyncUnit *async = nullptr;
    // The barrier of all threads of the group, and what those know who came to its last phase.
    NamedBarrier cluster_barrier;
    Knowledge cluster_known;
    u32 cluster_phase = 0;
    u32 threads = 0;

    void set_ready(Warp *warp) { ready[warp->id / 64] |= 1ull << (warp->id % 64); }
};

// A pointer's buffer as the checks want it.
struct Buffer {
    u64 start = 0;
    u64 span = 0;
    u64 rows = 0;
    u64 row_bytes = 0;
    u64 row_stride = 0;
    u8 *written = nullptr;
    bool writable = false;
    bool contiguous = false;
    u32 region = 0;

    // What is known of whole runs of bytes. Nothing becomes unwritten during a launch, so that a run once found written throughout needs no second
    // look, and most reads none at the shadow, which lies far from everything else.
    static constexpr u64 RUN = 1024;
    enum : u8 { NOT_LOOKED_AT = 0, WITH_GAPS = 1, ALL_WRITTEN = 2 };
    std::unique_ptr<std::atomic<u8>[]> runs;

    bool known_written(u64 offset, u32 bytes) const {
        if (runs[offset / RUN].load(std::memory_order_relaxed) != ALL_WRITTEN) return false;
        const u64 last = (offset + bytes - 1) / RUN;
        return last == offset / RUN || (bytes <= RUN && runs[last].load(std::memory_order_relaxed) == ALL_WRITTEN);
    }
    void look_at_run(u64 offset);
};

class GlobalRaces;

struct LaunchState {
    const prime_launch *request = nullptr;
    std::string instance;
    const struct Instance *kernel = nullptr;
    std::vector<Buffer> buffers;
    // NULL when accesses that nothing orders are not looked for.
    GlobalRaces *races = nullptr;
    Channels *channels = nullptr;
    bool check_uninitialised = true;
    bool early = false;
    u32 blocks_of_a_group = 1;
    u64 groups = 0;
    std::atomic<u64> next_group{0};
    std::atomic<u32> running_groups{0};
    // Of the running groups, those whose threads all look at values that nobody changes.
    std::atomic<u32> idle_groups{0};
    std::atomic<bool> failed{false};
    std::mutex message_lock;
    std::string message;

    void fail(std::string text);
};

// What one thread of the host runs.
struct Worker {
    void *main_stack = nullptr;
    LaunchState *launch = nullptr;
    StackPool stacks;
};

#if defined(__GNUC__) && !defined(__APPLE__)
#define EMULATOR_TLS __thread __attribute__((tls_model("initial-exec")))
#else
#define EMULATOR_TLS thread_local
#endif

// The thread of the device that runs now on this thread of the host.
extern EMULATOR_TLS Thread *current_thread;
extern EMULATOR_TLS Worker *current_worker;

// Ends the launch with a sentence that names the kernel, block, thread and seed. The kernel's stacks are left as they are and used again later: what
// objects on them own is lost, which a failed test can bear.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Continues another thread of the group, chosen among those that can run. Returns when this one is continued.
void run_another(Thread *self);

inline void continue_thread(Thread *self, Thread *next) {
    current_thread = next;
    prime_emulator_switch(&self->stack, next->stack);
}

// The one whose turn it is among the threads of `ready`, which is not 0.
inline Thread *next_turn(const Warp *warp, u32 ready) {
    return warp->turns + (warp->backwards ? 31u - u32(__builtin_clz(ready)) : u32(__builtin_ctz(ready)));
}

// Waits until somebody makes this thread ready: the thread has been noted where it will be found.
//
// Almost always the neighbour is next. It is found by adding to the thread's own address and confirmed by a branch that is guessed right; were it
// computed from `ready`, every switch would have to wait for the one before.
inline void suspend(Thread *self) {
    Warp *warp = self->warp;
    const u32 position = self->position;
    const u32 ready = warp->ready & ~(1u << position);
    warp->ready = ready;
    Thread *next;
    if (warp->backwards) {
        asm volatile("");
        next = self - 1;
        if (__builtin_expect(ready >> position != 0 || (u64(ready) << 1 >> position & 1) == 0, 0)) next = nullptr;
    } else {
        asm volatile("");
        next = self + 1;
        if (__builtin_expect((ready & ((2u << position) - 1)) != 0 || (u64(ready) >> position >> 1 & 1) == 0, 0)) next = nullptr;
    }
    if (__builtin_expect(next == nullptr, 0)) {
        if (ready == 0) return run_another(self);
        next = next_turn(warp, ready);
    }
    current_thread = next;
    prime_emulator_switch(&self->stack, next->stack);
}

inline void wake(Thread *thread) {
    thread->warp->ready |= 1u << thread->position;
    thread->block->group->set_ready(thread->warp);
}

// The same for a whole warp, of which this thread does the work: its lanes wait until something changes.
void poll_for_warp(const Waiting &waiting);

// Lets others run and comes back: for threads that look at a value until it changes.
void poll();

// Lets another warp run first now and then, as the seed decides.
void maybe_yield();

inline void note_progress() { current_thread->block->group->progress++; }

// Meets the other lanes of `mask`. The last to come gets true, does the work for all with what they left in `operands`, and calls `part`;
// the others return when it has.
bool meet(Collective kind, const void *operands, u32 mask);
void part(u32 mask);

inline bool meet_all(Collective kind, const void *operands) {
    Thread *self = current_thread;
    Warp *warp = self->warp;
    Meeting &meeting = warp->meeting;
    if (meeting.arrived == 0 ? (warp->exited != 0 || !warp->partial.empty()) : meeting.kind != kind) {
        return meet(kind, operands, warp->lanes);
    }
    warp->operands[self->lane] = operands;
    meeting.kind = kind;
    meeting.arrived |= 1u << self->lane;
    if (meeting.arrived == warp->lanes) {
        meeting.arrived = 0;
        return true;
    }
    suspend(self);
    return false;
}

inline void part_all() {
    Warp *warp = current_thread->warp;
    warp->backwards = !warp->backwards;
    if (warp->lanes == 0xffffffffu) {
        warp->ready = 0xffffffffu;
    } else {
        warp->make_ready(warp->lanes);
    }
}

// The `index`th operand that a lane left at the meeting.
template <class T> inline const T &operand(const Warp *warp, u32 lane) { return *static_cast<const T *>(warp->operands[lane]); }

// Who is where: what kernels ask for.
inline u32 thread_index() { return current_thread->index; }
inline u32 lane() { return current_thread->lane; }
inline u32 warp() { return current_thread->index / WARP; }
inline u32 block_threads() { return u32(current_thread->block->threads.size()); }
inline u32 block_index(u32 axis = 0) { return current_thread->block->index[axis]; }
inline u32 block_count(u32 axis = 0) { return current_worker->launch->request->grid[axis]; }

// Instances of kernels, by their text.
struct Instance {
    std::string text;
    void (*run)(const void *arguments, const void *function);
    const void *function;
    size_t argument_bytes;
};

class Registration {
  public:
    template <class Arguments> Registration(const char *text, void (*function)(Arguments)) {
        static_assert(std::is_trivially_copyable<Arguments>::value, "a kernel takes one struct of plain data");
        add(text, [](const void *arguments, const void *kernel) {
            Arguments copy;
            std::memcpy(static_cast<void *>(&copy), arguments, sizeof copy);
            reinterpret_cast<void (*)(Arguments)>(reinterpret_cast<uintptr_t>(kernel))(copy);
        }, reinterpret_cast<const void *>(reinterpret_cast<uintptr_t>(function)), sizeof(Arguments));
    }

  private:
    static void add(const char *text, void (*run)(const void *, const void *), const void *function, size_t argument_bytes);
};

} // namespace emulator
