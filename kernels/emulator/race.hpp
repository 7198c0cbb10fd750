// Accesses that nothing orders. For each run of memory the last write, and the reads since, are kept with the epochs in which they were done; an access
// must know (see clock.hpp) that what it conflicts with is over.
//
// A cell stands for 16 bytes. The first narrower access splits it into cells of 4 bytes, an access below 4 bytes splits those into bytes; a write of the
// whole joins them again. A cell has room for a few readers that nothing orders among each other; of more, some are forgotten, so that a crowd of readers
// may hide a race but never makes one up.
#pragma once

#include "clock.hpp"

#include <atomic>
#include <unordered_map>

namespace emulator {

struct SharedPlace;
struct GlobalPlace;
class SharedMemory;

enum class AccessKind : u8 {
    READ,
    WRITE,
    // Reads and writes in one step: two of them need no order.
    ATOMIC,
};

// Who accesses, when, and what it knows.
struct Actor {
    u32 id;
    u32 epoch;
    const Clock *clock;
    // What is ordered before accesses of asynchronous units; those only.
    const Clock *fenced;
    bool asynchronous;
};

// A thread returns; and when the last one of a block has: whether some thread or copy of another block may still come to the block's shared memory.
void leave_with_knowledge(Thread *thread);
void check_visitors_gone(const Block &block);

inline Actor actor_of(const Thread *thread) { return Actor{thread->id, thread->epoch, thread->clock, nullptr, false}; }

template <class Who, int READERS> struct Cell {
    enum Flag : u8 { SPLIT = 1, ATOMIC_WRITE = 2, ASYNC_WRITE = 4 };
    // Of the last write; 0 before the first. Of a split cell: where its four cells are.
    u32 write_epoch;
    u8 readers;
    u8 flags;
    Who writer;
    u32 read_epoch[READERS];
    Who reader[READERS];
};

struct Conflict {
    enum Kind : u8 { NONE, WITH_READ, WITH_WRITE, UNFENCED } kind = NONE;
    u64 who = 0;
};

// Four cells each, handed out by number.
template <class TheCell> class CellStore {
  public:
    u32 make() {
        if (free_numbers.empty()) {
            if (cells.empty()) cells.reserve(FIRST);
            cells.resize(cells.size() + 4);
            return u32(cells.size() / 4 - 1);
        }
        const u32 number = free_numbers.back();
        free_numbers.pop_back();
        return number;
    }
    void release(u32 number) { free_numbers.push_back(number); }
    TheCell *four(u32 number) { return &cells[number * 4]; }
    void clear() {
        cells.clear();
        free_numbers.clear();
    }

  private:
    static constexpr size_t FIRST = 256;
    std::vector<TheCell> cells;
    std::vector<u32> free_numbers;
};

// Cells for the shared memory of a block.
class SharedRaces {
  public:
    typedef Cell<u16, 4> SharedCell;

    void reset(u32 bytes);
    inline Conflict access(const Group &group, const Actor &actor, AccessKind kind, u32 offset, u32 bytes);

  private:
    std::vector<SharedCell> cells;
    CellStore<SharedCell> children;
};

// Cells for the global memory that a launch may write.
class GlobalRaces {
  public:
    explicit GlobalRaces(std::vector<Buffer> &buffers);
    ~GlobalRaces();
    GlobalRaces(const GlobalRaces &) = delete;
    GlobalRaces &operator=(const GlobalRaces &) = delete;

    Conflict access(const Group &group, const Actor &actor, AccessKind kind, u64 address, u32 bytes, u32 region);

    // Memory that more than these bytes may be written of is not watched: the cells would not fit.
    static constexpr u64 MOST_BYTES = 32ull << 20;
    static constexpr u32 UNWATCHED = ~0u;

    struct Page;

  private:
    struct Region {
        u64 first_page;
        u64 end;
        std::vector<std::atomic<Page *>> pages;
    };
    std::vector<Region> regions;
};

// Words of global memory through which threads of different blocks order each other. A release, or an atomic operation after `fence_device`, hands on
// what is over at the fence; who reads the word knows that at once (an acquire) or after a `fence_device`. The fence may be that of another thread of
// the group which the block's barriers put on the right side of the operation: kernels commonly let all threads fence and one count.
class Channels {
  public:
    void publish(u64 address, Thread *thread, bool release);
    void observe(u64 address, Thread *thread, bool acquire);

  private:
    std::mutex lock;
    std::unordered_map<u64, Foreign> known;
};
void fence_for_channels(Thread *thread);

// What a thread's last fence has caught, and what it has seen in channels: see `Channels`.
struct Fences {
    Thread *thread = nullptr;
    Clock *released = nullptr;
    u32 released_epoch = 0;
    Foreign observed;
    u32 observed_epoch = 0;
};

} // namespace emulator
