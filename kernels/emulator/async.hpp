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
    // Not before everything else stands still.
    bool late = false;
};

struct AsyncUnit {
    std::vector<std::unique_ptr<AsyncOperation>> pending;
    // The one that lands now.
    std::unique_ptr<AsyncOperation> landing;

    void clear() {
        pending.clear();
        landing.reset();
    }
};

// Hands over work of the current thread.
void start_async(std::unique_ptr<AsyncOperation> operation);

// Lands one operation by chance, or (`land_one`) one of those left. False when there is none.
void tick_async(Group &group);
bool land_one(Group &group);

} // namespace emulator
