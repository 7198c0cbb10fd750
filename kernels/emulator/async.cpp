#include "async.hpp"

namespace emulator {

void land_now(Group &group, AsyncOperation &operation) {
    std::vector<AsyncPointer> &pending = group.async->pending;
    operation.landed = true;
    for (size_t i = 0; i < pending.size(); i++) {
        if (pending[i].get() != &operation) continue;
        // Kept alive by the list until it has landed: a broken rule leaves this function for good.
        std::swap(pending[i], pending.back());
        break;
    }
    Thread *self = current_thread;
    current_thread = operation.issuer;
    operation.land();
    current_thread = self;
    for (size_t i = 0; i < pending.size(); i++) {
        if (pending[i].get() != &operation) continue;
        pending.erase(pending.begin() + i64(i));
        break;
    }
    group.progress++;
}

void start_async(const AsyncPointer &operation) {
    Thread *self = current_thread;
    Group &group = *self->block->group;
    operation->issuer = self;
    const u32 draw = group.random.below(4);
    operation->late = draw == 1;
    group.async->pending.push_back(operation);
    if (draw == 0) land_now(group, *operation);
}

void tick_async(Group &group) {
    const std::vector<AsyncPointer> &pending = group.async->pending;
    if (pending.empty() || group.random.below(4) != 0) return;
    AsyncOperation &operation = *pending[group.random.below(u32(pending.size()))];
    if (!operation.late && !operation.landed) land_now(group, operation);
}

bool land_one(Group &group) {
    const std::vector<AsyncPointer> &pending = group.async->pending;
    if (pending.empty()) return false;
    land_now(group, *pending[group.random.below(u32(pending.size()))]);
    return true;
}

void check_block_done(const Block &block) {
    for (const AsyncPointer &operation : block.group->async->pending) {
        if (operation->blocks >> block.rank & 1) {
            fail("the block's last thread returns while an asynchronous operation still uses the block's shared memory");
        }
    }
}

} // namespace emulator
