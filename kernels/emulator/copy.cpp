#include "copy.hpp"

namespace emulator {

namespace {

void land(CopyQueue::Copy &copy) {
    if (copy.landed) return;
    copy.landed = true;
    if (copy.from) {
        copy_bytes(copy.to.data(), copy.from, copy.bytes);
    } else {
        fill_bytes(copy.to.data(), 0, copy.bytes);
    }
}

} // namespace

void start_copy(u32 to, u64 from, u32 bytes, bool valid) {
    Thread *self = current_thread;
    CopyQueue::Copy copy{find_shared(to, bytes, bytes, "copy_async"), nullptr, bytes, false};
    if (valid) {
        const GlobalPlace source = find_global(from, bytes, bytes, false, "copy_async");
        check_global_read(source, bytes, "copy_async");
        order_global(source, bytes, AccessKind::READ, actor_of(self), "copy_async");
        copy.from = source.data();
    }
    note_shared_write(copy.to, bytes, "copy_async");
    order_shared(copy.to, bytes, AccessKind::WRITE, actor_of(self), "copy_async");
    fill_bytes(copy.to.state(), IN_FLIGHT, bytes);
    // At once, when the next group is made, or only when it is waited for.
    if (self->block->group->random.below(2) == 0) {
        land(copy);
    } else {
        fill_bytes(copy.to.data(), 0xff, bytes);
    }
    self->copies->copies.push_back(copy);
}

void copy_async_commit() {
    Thread *self = current_thread;
    CopyQueue &queue = *self->copies;
    queue.group_ends.push_back(u32(queue.copies.size()));
    if (!queue.copies.empty()) land(queue.copies[self->block->group->random.below(u32(queue.copies.size()))]);
}

void wait_copies(u32 newest) {
    CopyQueue &queue = *current_thread->copies;
    if (queue.group_ends.size() <= newest) return;
    const size_t groups = queue.group_ends.size() - newest;
    const u32 end = queue.group_ends[groups - 1];
    for (u32 i = 0; i < end; i++) {
        CopyQueue::Copy &copy = queue.copies[i];
        land(copy);
        fill_bytes(copy.to.state(), WRITTEN, copy.bytes);
        // Only now may others be told that the bytes have come.
        order_shared(copy.to, copy.bytes, AccessKind::WRITE, actor_of(current_thread), "copy_async");
    }
    queue.copies.erase(queue.copies.begin(), queue.copies.begin() + end);
    queue.group_ends.erase(queue.group_ends.begin(), queue.group_ends.begin() + i64(groups));
    for (u32 &group_end : queue.group_ends) group_end -= end;
}

} // namespace emulator
