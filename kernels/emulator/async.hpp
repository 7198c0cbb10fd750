// Work that the hardware does on its own after a thread has started it: bulk copies and products of warpgroups. It may be done at once, or as late as
// somebody waits for it; the seed decides.
#pragma once

#include "machine.hpp"

#include <memory>

namespace emulator {

class AsyncOperation {
  public:
    virtual ~AsyncOperation() = default;
    // Does the work. The thread that started it is the current one, so that a broken rule is laid at its door.
    virtual void land() = 0;

    Thread *issuer = nullptr;
    // Whose shared memory it reads or writes, a bit for each rank.
    u32 blocks = 0;
    // Not before everything else stands still, or somebody waits for it.
    bool late = false;
    bool landed = false;
};

typedef std::shared_ptr<AsyncOperation> AsyncPointer;

struct AsyncUnit {
    std::vector<AsyncPointer> pending;

    void clear() { pending.clear(); }
};

// Hands over work of the current thread.
void start_async(const AsyncPointer &operation);

// Lands one operation by chance, or one of those left (false when there is none), or this one.
void tick_async(Group &group);
bool land_one(Group &group);
void land_now(Group &group, AsyncOperation &operation);

// A block's last thread returns: nothing may still use its shared memory.
void check_block_done(const Block &block);

} // namespace emulator
