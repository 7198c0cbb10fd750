#include "async.hpp"

namespace emulator {

namespace {

void land(AsyncUnit &unit, size_t index) {
    unit.landing = std::move(unit.pending[index]);
    unit.pending.erase(unit.pending.begin() + i64(index));
    Thread *self = current_thread;
    current_thread = unit.landing->issuer;
    unit.landing->land();
    current_thread = self;
    unit.landing.reset();
}

} // namespace

void start_async(std::unique_ptr<AsyncOperation> operation) {
    Thread *self = current_thread;
    Group &group = *self->block->group;
    operation->issuer = self;
    const u32 draw = group.random.below(4);
    operation->late = draw == 1;
    group.async->pending.push_back(std::move(operation));
    if (draw == 0) land(*group.async, group.async->pending.size() - 1);
}

void tick_async(Group &group) {
    AsyncUnit &unit = *group.async;
    if (unit.pending.empty() || group.random.below(4) != 0) return;
    const size_t index = group.random.below(u32(unit.pending.size()));
    if (!unit.pending[index]->late) land(unit, index);
}

bool land_one(Group &group) {
    AsyncUnit &unit = *group.async;
    if (unit.pending.empty()) return false;
    land(unit, group.random.below(u32(unit.pending.size())));
    return true;
}

} // namespace emulator
