#include "race.hpp"

#include "cells.hpp"
#include "memory.hpp"

#include <algorithm>
#include <cstdio>

namespace emulator {

u32 copy_agent(const Block &block) {
    const Group &group = *block.group;
    return group.threads + block.rank;
}

u32 product_agent(const Block &block, u32 warpgroup) {
    const Group &group = *block.group;
    const u32 blocks = u32(group.blocks.size());
    return group.threads + blocks + block.rank * warpgroups_of(group.threads / blocks) + warpgroup;
}

namespace {

constexpr u32 CELL_BYTES = 16;
constexpr u32 PAGE_CELLS = 256;
constexpr u64 PAGE_BYTES = u64(CELL_BYTES) * PAGE_CELLS;
constexpr u32 GROUP_SHIFT = 16;
constexpr u64 THREAD_MASK = (1ull << GROUP_SHIFT) - 1;

// Identities within a group.
struct SharedHistory {
    typedef SharedRaces::SharedCell TheCell;
    const Group &group;
    CellStore<TheCell> &parts;

    u16 self(const Actor &actor) const { return u16(actor.id); }
    bool over(const Actor &actor, u16 who, u32 epoch) const { return (epoch <= group.floor && who < group.threads) || knows(actor.clock, who, epoch); }
    bool fenced(const Actor &actor, u16 who, u32 epoch) const { return knows(actor.fenced, who, epoch); }
    CellStore<TheCell> &store() { return parts; }
};

typedef Cell<u64, 2> GlobalCell;

// Identities of all threads of a launch: the number of their group, then their number in it.
struct GlobalHistory {
    typedef GlobalCell TheCell;
    const Group &group;
    CellStore<TheCell> &parts;

    u64 self(const Actor &actor) const { return group.number << GROUP_SHIFT | actor.id; }
    bool over(const Actor &actor, u64 who, u32 epoch) const {
        const u32 thread = u32(who & THREAD_MASK);
        if (who >> GROUP_SHIFT == group.number) return (epoch <= group.floor && thread < group.threads) || knows(actor.clock, thread, epoch);
        return actor.clock != nullptr && actor.clock->foreign != 0 && knows_foreign(group.clocks->foreign_of(actor.clock), who >> GROUP_SHIFT, thread, epoch);
    }
    bool fenced(const Actor &actor, u64 who, u32 epoch) const {
        // What another group wrote has passed a fence of its own on the way.
        return who >> GROUP_SHIFT != group.number || knows(actor.fenced, u32(who & THREAD_MASK), epoch);
    }
    CellStore<TheCell> &store() { return parts; }
};

// "thread 5 of block (1, 0, 0)", of a thread's number in a group.
std::string name_of(const Group &group, u64 group_number, u32 id) {
    const prime_launch &request = *group.launch->request;
    const u32 threads = request.block, blocks = group.launch->blocks_of_a_group;
    const char *who = "thread";
    u32 rank = id / threads, index = id % threads;
    if (id >= blocks * (threads + 1)) {
        who = "wgmma of warpgroup";
        rank = (id - blocks * (threads + 1)) / warpgroups_of(threads);
        index = (id - blocks * (threads + 1)) % warpgroups_of(threads);
    } else if (id >= blocks * threads) {
        who = "an asynchronous copy, engine";
        rank = id - blocks * threads;
        index = 0;
    }
    char text[128];
    const u64 block = group_number * blocks + rank;
    const u64 x = block % request.grid[0], rest = block / request.grid[0];
    snprintf(text, sizeof text, "%s %u of block (%llu, %llu, %llu)", who, index, x, u64(rest % request.grid[1]), u64(rest / request.grid[1]));
    return text;
}

struct Text {
    char text[512];
};

// A sentence on a conflict, without memory of its own so that the caller may end the launch.
Text describe(const Conflict &conflict, const Group &group, u64 group_number, u32 id) {
    const std::string other = name_of(group, group_number, id);
    Text result;
    switch (conflict.kind) {
    case Conflict::UNFENCED:
        snprintf(result.text, sizeof result.text, "is not ordered after what %s stored there: fence_proxy_async must come between, by who stored it, and then a barrier", other.c_str());
        break;
    case Conflict::WITH_READ: snprintf(result.text, sizeof result.text, "races with a read by %s: nothing orders one after the other", other.c_str()); break;
    default: snprintf(result.text, sizeof result.text, "races with a write by %s: nothing orders one after the other", other.c_str());
    }
    return result;
}

} // namespace

struct GlobalRaces::Page {
    std::atomic_flag busy = ATOMIC_FLAG_INIT;
    GlobalCell cells[PAGE_CELLS] = {};
    CellStore<GlobalCell> parts;
};

namespace {

// Pages of launches that have ended, for those to come: the system takes long to hand out fresh memory.
class PagePool {
  public:
    static PagePool &the() {
        static PagePool *pool = new PagePool;
        return *pool;
    }
    GlobalRaces::Page *take() {
        std::unique_lock<std::mutex> guard(lock);
        if (pages.empty()) {
            guard.unlock();
            return new GlobalRaces::Page();
        }
        GlobalRaces::Page *page = pages.back();
        pages.pop_back();
        guard.unlock();
        for (GlobalCell &cell : page->cells) cell = GlobalCell();
        page->parts.clear();
        return page;
    }
    void give_back(GlobalRaces::Page *page) {
        std::lock_guard<std::mutex> guard(lock);
        if (pages.size() == MOST_PAGES) {
            delete page;
        } else {
            pages.push_back(page);
        }
    }

  private:
    static constexpr size_t MOST_PAGES = 1024;
    std::mutex lock;
    std::vector<GlobalRaces::Page *> pages;
};

} // namespace

void SharedRaces::reset(u32 bytes) {
    cells.assign((bytes + CELL_BYTES - 1) / CELL_BYTES, SharedCell());
    children.clear();
}

inline Conflict SharedRaces::access(const Group &group, const Actor &actor, AccessKind kind, u32 offset, u32 bytes) {
    SharedHistory history{group, children};
    CellAccess<SharedHistory, u16, 4> rules(history, actor, kind);
    if (bytes == CELL_BYTES && offset % CELL_BYTES == 0) {
        SharedCell &cell = cells[offset / CELL_BYTES];
        if (!(cell.flags & SharedCell::SPLIT)) return rules.leaf(cell);
    }
    const u32 end = offset + bytes;
    while (offset < end) {
        const u32 from = offset % CELL_BYTES, to = std::min(end - offset + from, CELL_BYTES);
        const Conflict conflict = rules.access(cells[offset / CELL_BYTES], CELL_BYTES, from, to);
        if (conflict.kind != Conflict::NONE) return conflict;
        offset += to - from;
    }
    return Conflict();
}

GlobalRaces::GlobalRaces(std::vector<Buffer> &buffers) {
    std::vector<Buffer *> order;
    for (Buffer &buffer : buffers) {
        buffer.region = UNWATCHED;
        if (buffer.span != 0) order.push_back(&buffer);
    }
    std::sort(order.begin(), order.end(), [](const Buffer *a, const Buffer *b) { return a->start < b->start; });
    u64 total = 0;
    for (size_t i = 0; i < order.size();) {
        // Buffers that overlap are watched as one.
        u64 end = order[i]->start + order[i]->span;
        bool writable = order[i]->writable;
        size_t next = i + 1;
        for (; next < order.size() && order[next]->start < end; next++) {
            end = std::max(end, order[next]->start + order[next]->span);
            writable |= order[next]->writable;
        }
        if (writable) {
            const u64 first_page = order[i]->start / PAGE_BYTES;
            total += end - order[i]->start;
            for (size_t k = i; k < next; k++) order[k]->region = u32(regions.size());
            regions.push_back(Region{first_page, end, {}});
        }
        i = next;
    }
    if (total > MOST_BYTES) {
        for (Buffer &buffer : buffers) buffer.region = UNWATCHED;
        return;
    }
    for (Region &region : regions) region.pages = std::vector<std::atomic<Page *>>((region.end - 1) / PAGE_BYTES - region.first_page + 1);
}

GlobalRaces::~GlobalRaces() {
    for (Region &region : regions) {
        for (std::atomic<Page *> &place : region.pages) {
            if (Page *page = place.load()) PagePool::the().give_back(page);
        }
    }
}

Conflict GlobalRaces::access(const Group &group, const Actor &actor, AccessKind kind, u64 address, u32 bytes, u32 number) {
    Region &region = regions[number];
    const u64 end = address + bytes;
    while (address < end) {
        std::atomic<Page *> &place = region.pages[address / PAGE_BYTES - region.first_page];
        Page *page = place.load(std::memory_order_acquire);
        if (page == nullptr) {
            Page *fresh = PagePool::the().take();
            if (place.compare_exchange_strong(page, fresh)) {
                page = fresh;
            } else {
                PagePool::the().give_back(fresh);
            }
        }
        const u32 from = u32(address % CELL_BYTES), to = u32(std::min<u64>(end - address + from, CELL_BYTES));
        GlobalHistory history{group, page->parts};
        while (page->busy.test_and_set(std::memory_order_acquire)) {
        }
        CellAccess<GlobalHistory, u64, 2> rules(history, actor, kind);
        const Conflict conflict = rules.access(page->cells[address % PAGE_BYTES / CELL_BYTES], CELL_BYTES, from, to);
        page->busy.clear(std::memory_order_release);
        if (conflict.kind != Conflict::NONE) return conflict;
        address += to - from;
    }
    return Conflict();
}

void order_shared_now(SharedPlace place, u32 bytes, AccessKind kind, const Actor &actor, const char *what) {
    const Group &group = *place.block->group;
    const Conflict conflict = place.memory->races.access(group, actor, kind, place.offset, bytes);
    if (conflict.kind == Conflict::NONE) return;
    const Text text = describe(conflict, group, group.number, u32(conflict.who));
    fail("%s of %u bytes at byte %u of shared memory %s", what, bytes, place.offset, text.text);
}

void order_global_now(GlobalPlace place, u32 bytes, AccessKind kind, const Actor &actor, const char *what) {
    const Group &group = *current_thread->block->group;
    const Buffer &buffer = *place.buffer;
    LaunchState &launch = *group.launch;
    const Conflict conflict = launch.races->access(group, actor, kind, buffer.start + place.offset, bytes, buffer.region);
    if (conflict.kind == Conflict::NONE) return;
    const Text text = describe(conflict, group, conflict.who >> GROUP_SHIFT, u32(conflict.who & THREAD_MASK));
    fail("%s of %u bytes at byte %llu of pointer %u %s", what, bytes, place.offset, u32(&buffer - launch.buffers.data()) + 1, text.text);
}

void leave_with_knowledge(Thread *thread) {
    const Group &group = *thread->block->group;
    if (!group.races || group.blocks.size() == 1) return;
    ClockPool &pool = *group.clocks;
    pool.replace(thread->block->left, pool.join(thread->block->left, thread->clock));
}

void check_visitors_gone(const Block &block) {
    const Group &group = *block.group;
    const std::vector<u32> &visitors = block.shared->visitors;
    for (u32 who = 0; who < visitors.size(); who++) {
        const u32 epoch = visitors[who];
        if (epoch == 0 || (epoch <= group.floor && who < group.threads) || knows(block.left, who, epoch)) continue;
        fail("the block's last thread returns, and nothing says that %s is done with the block's shared memory: cluster_arrive and cluster_wait must come "
             "between",
             name_of(group, group.number, who).c_str());
    }
}

namespace {

Fences &fences_of(Thread *thread) {
    if (thread->fences == nullptr) {
        std::vector<std::unique_ptr<Fences>> &all = thread->block->group->fences;
        all.emplace_back(new Fences);
        thread->fences = all.back().get();
        thread->fences->thread = thread;
    }
    return *thread->fences;
}

// Joins what two lists know, each in rising order of groups.
Foreign united(const Foreign &a, const Foreign &b) {
    Foreign result;
    size_t i = 0, j = 0;
    while (i < a.size() || j < b.size()) {
        if (j == b.size() || (i < a.size() && a[i]->group < b[j]->group)) {
            result.push_back(a[i++]);
        } else if (i == a.size() || b[j]->group < a[i]->group) {
            result.push_back(b[j++]);
        } else {
            auto both = std::make_shared<Snapshot>(*a[i]);
            for (size_t t = 0; t < both->times.size(); t++) both->times[t] = std::max(both->times[t], b[j]->times[t]);
            result.push_back(std::move(both));
            i++, j++;
        }
    }
    return result;
}

// What `known` says of the thread's own group goes into its clock, the rest beside it.
void learn(Thread *thread, const Foreign &known) {
    Group &group = *thread->block->group;
    ClockPool &pool = *group.clocks;
    Foreign others;
    for (const auto &snapshot : known) {
        if (snapshot->group != group.number) {
            others.push_back(snapshot);
            continue;
        }
        Clock *own = pool.copy(thread->clock);
        own->newest = group.now;
        for (u32 i = 0; i < pool.entries(); i++) own->times[i] = std::max(own->times[i], snapshot->times[i]);
        pool.replace(thread->clock, own);
    }
    pool.replace(thread->clock, pool.with_foreign(thread->clock, others));
}

} // namespace

// Whether a step of another thread of the group is over for this one.
static bool is_over(const Thread *thread, const Thread *other, u32 epoch) {
    if (epoch == 0) return false;
    return thread == other || epoch <= thread->block->group->floor || knows(thread->clock, other->id, epoch);
}

void fence_for_channels(Thread *thread) {
    Group &group = *thread->block->group;
    if (!group.races) return;
    Fences &own = fences_of(thread);
    Foreign seen;
    for (const auto &fences : group.fences) {
        if (is_over(thread, fences->thread, fences->observed_epoch)) seen = seen.empty() ? fences->observed : united(seen, fences->observed);
    }
    if (!seen.empty()) learn(thread, seen);
    group.clocks->replace(own.released, group.clocks->share(thread->clock));
    own.released_epoch = thread->epoch;
    thread->epoch = ++group.now;
}

void Channels::publish(u64 address, Thread *thread, bool release) {
    Group &group = *thread->block->group;
    if (!group.races) return;
    if (release) fence_for_channels(thread);
    auto snapshot = std::make_shared<Snapshot>();
    snapshot->group = group.number;
    Foreign handed;
    for (const auto &fences : group.fences) {
        if (!is_over(thread, fences->thread, fences->released_epoch)) continue;
        std::vector<u32> &times = snapshot->times;
        times.resize(group.clocks->entries());
        if (fences->released) {
            for (u32 i = 0; i < times.size(); i++) times[i] = std::max(times[i], fences->released->times[i]);
            handed = united(handed, group.clocks->foreign_of(fences->released));
        }
        times[fences->thread->id] = std::max(times[fences->thread->id], fences->released_epoch);
    }
    if (snapshot->times.empty()) return;
    handed = united(handed, Foreign{snapshot});
    std::lock_guard<std::mutex> guard(lock);
    Foreign &place = known[address];
    place = united(place, handed);
}

void Channels::observe(u64 address, Thread *thread, bool acquire) {
    Group &group = *thread->block->group;
    if (!group.races) return;
    Foreign seen;
    {
        std::lock_guard<std::mutex> guard(lock);
        const auto place = known.find(address);
        if (place == known.end()) return;
        seen = place->second;
    }
    if (acquire) {
        learn(thread, seen);
    } else {
        Fences &own = fences_of(thread);
        own.observed = united(own.observed, seen);
        own.observed_epoch = thread->epoch;
        thread->epoch = ++group.now;
    }
}

} // namespace emulator
