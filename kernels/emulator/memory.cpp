#include "memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace emulator {

namespace {

constexpr u32 ASYNC_UNIT = 16;
constexpr u64 ADDRESS_MASK = (1ull << 48) - 1;

const char *describe(const Buffer &buffer, char (&text)[160]) {
    if (buffer.rows <= 1) {
        snprintf(text, sizeof text, "its view of %llu bytes", buffer.row_bytes);
    } else {
        snprintf(text, sizeof text, "its view of %llu rows of %llu bytes, %llu bytes apart", buffer.rows, buffer.row_bytes, buffer.row_stride);
    }
    return text;
}

u32 number_of(const Buffer &buffer) { return u32(&buffer - current_worker->launch->buffers.data()) + 1; }

} // namespace

SharedMemory::~SharedMemory() {
    std::free(data);
    std::free(state);
}

void SharedMemory::reset(u32 bytes, bool watch_races) {
    if (bytes > capacity) {
        std::free(data);
        std::free(state);
        capacity = (bytes + 1023) / 1024 * 1024;
        data = static_cast<u8 *>(std::aligned_alloc(1024, capacity));
        state = static_cast<u8 *>(std::malloc(capacity));
        if (data == nullptr || state == nullptr) std::abort();
    }
    size = bytes;
    if (watch_races) races.reset(bytes);
    async_readers.assign((bytes + ASYNC_UNIT - 1) / ASYNC_UNIT, 0);
    async_reads = 0;
    barriers.clear();
    visitors.clear();
    if (bytes) {
        // What was never written is not a number, should its check be switched off.
        std::memset(data, 0xff, bytes);
        std::memset(state, NEVER_WRITTEN, bytes);
    }
}

void SharedMemory::note_visit(const Group &group, u32 who, u32 epoch) {
    if (!group.races) return;
    if (visitors.empty()) visitors.resize(group.clocks->entries());
    visitors[who] = epoch;
}

MBarrier *SharedMemory::find_barrier(u32 offset) {
    for (const auto &barrier : barriers) {
        if (barrier->offset == offset) return barrier.get();
    }
    return nullptr;
}

MBarrier &SharedMemory::make_barrier(u32 offset) {
    barriers.emplace_back(new MBarrier);
    barriers.back()->offset = offset;
    return *barriers.back();
}

void SharedMemory::begin_async_read(u32 offset, u32 bytes) {
    for (u32 unit = offset / ASYNC_UNIT; unit <= (offset + bytes - 1) / ASYNC_UNIT; unit++) async_readers[unit]++;
    async_reads++;
}

void SharedMemory::end_async_read(u32 offset, u32 bytes) {
    for (u32 unit = offset / ASYNC_UNIT; unit <= (offset + bytes - 1) / ASYNC_UNIT; unit++) async_readers[unit]--;
    async_reads--;
}

bool SharedMemory::read_by_async(u32 offset, u32 bytes) const {
    if (async_reads == 0) return false;
    for (u32 unit = offset / ASYNC_UNIT; unit <= (offset + bytes - 1) / ASYNC_UNIT; unit++) {
        if (async_readers[unit]) return true;
    }
    return false;
}

void note_own_visit(SharedPlace place) {
    const Thread *self = current_thread;
    if (place.block != self->block) place.memory->note_visit(*place.block->group, self->id, self->epoch);
}

void Buffer::look_at_run(u64 offset) {
    std::atomic<u8> &state = runs[offset / RUN];
    if (state.load(std::memory_order_relaxed) != NOT_LOOKED_AT) return;
    const u64 start = offset / RUN * RUN, end = std::min(start + RUN, span);
    u64 at = start;
    while (at + 8 <= end && all_written<0>(written + at, 8)) at += 8;
    while (at < end && written[at] == WRITTEN) at++;
    state.store(at == end ? ALL_WRITTEN : WITH_GAPS, std::memory_order_relaxed);
}

GlobalPlace find_global(u64 address, u32 bytes, u32 alignment, bool write, const char *what) {
    LaunchState &launch = *current_worker->launch;
    if (launch.early && !current_thread->begun) fail("%s of %u bytes of device memory before begin_grid, in a launch that may begin early", what, bytes);
    const u64 number = address >> 48;
    if (number - 1 >= launch.buffers.size()) {
        if (address == 0) fail("%s of %u bytes through a null pointer", what, bytes);
        if (number == 0) fail("%s of %u bytes near a null pointer, at address %llu", what, bytes, address);
        fail("%s of %u bytes through 0x%llx, which is no pointer of this launch", what, bytes, address);
    }
    Buffer &buffer = launch.buffers[number - 1];
    const u64 offset = (address & ADDRESS_MASK) - buffer.start;
    char view[160];
    if (offset >= buffer.span || bytes > buffer.span - offset) {
        fail("%s of %u bytes at byte %lld of pointer %llu lies outside %s", what, bytes, i64(offset), number, describe(buffer, view));
    }
    if (!buffer.contiguous) {
        const u64 row = offset / buffer.row_stride;
        const u64 column = offset - row * buffer.row_stride;
        if (column + bytes > buffer.row_bytes) {
            fail("%s of %u bytes at byte %llu of row %llu of pointer %llu lies outside %s", what, bytes, column, row, number, describe(buffer, view));
        }
    }
    if ((buffer.start + offset) % alignment != 0) {
        fail("%s of %u bytes at byte %llu of pointer %llu is misaligned: the address must be a multiple of %u", what, bytes, offset, number, alignment);
    }
    if (write && !buffer.writable) {
        fail("%s of %u bytes at byte %llu of pointer %llu, which was given to read only", what, bytes, offset, number);
    }
    return GlobalPlace{&buffer, offset};
}

void look_for_unwritten(GlobalPlace place, u32 bytes, const char *what) {
    Buffer &buffer = *place.buffer;
    if (!current_worker->launch->check_uninitialised) return;
    buffer.look_at_run(place.offset);
    const u8 *written = buffer.written + place.offset;
    if (all_written<0>(written, bytes)) return;
    for (u32 i = 0; i < bytes; i++) {
        if (written[i] == 0) {
            fail("%s of %u bytes at byte %llu of pointer %u finds memory that was never written (byte %llu)", what, bytes, place.offset, number_of(buffer),
                 place.offset + i);
        }
    }
}

void note_global_write(GlobalPlace place, u32 bytes, const char *) {
    if (place.buffer->written != nullptr) fill_bytes(place.buffer->written + place.offset, WRITTEN, bytes);
    note_progress();
}

void read_global(void *to, u64 address, u32 bytes, u32 alignment) {
    const GlobalPlace place = find_global(address, bytes, alignment, false, "a read");
    check_global_read(place, bytes, "a read");
    order_global(place, bytes, AccessKind::READ, actor_of(current_thread), "a read");
    copy_bytes(to, place.data(), bytes);
}

void write_global(u64 address, const void *from, u32 bytes, u32 alignment) {
    const GlobalPlace place = find_global(address, bytes, alignment, true, "a write");
    note_global_write(place, bytes, "a write");
    order_global(place, bytes, AccessKind::WRITE, actor_of(current_thread), "a write");
    copy_bytes(place.data(), from, bytes);
}

SharedPlace find_shared_slow(u32 address, u32 bytes, u32 alignment, const char *what) {
    Block *block = current_thread->block;
    const u32 rank = address >> SHARED_RANK_SHIFT;
    const u32 offset = address & SHARED_OFFSET_MASK;
    if (rank != 0) {
        std::vector<Block> &blocks = block->group->blocks;
        if (rank > blocks.size()) fail("%s of %u bytes through 0x%x, which is no address of shared memory of this cluster", what, bytes, address);
        block = &blocks[rank - 1];
        if (block->exited == block->threads.size()) {
            fail("%s of %u bytes in the shared memory of block %u of the cluster, whose threads have all returned", what, bytes, block->rank);
        }
    }
    SharedMemory *memory = block->shared;
    if (offset >= memory->size || bytes > memory->size - offset) {
        const i32 signed_offset = offset >= SHARED_OFFSET_MASK / 2 ? i32(offset) - i32(SHARED_OFFSET_MASK) - 1 : i32(offset);
        fail("%s of %u bytes at byte %d of shared memory lies outside the launch's %u bytes", what, bytes, signed_offset, memory->size);
    }
    if (offset % alignment != 0) {
        fail("%s of %u bytes at byte %u of shared memory is misaligned: the offset must be a multiple of %u", what, bytes, offset, alignment);
    }
    return SharedPlace{memory, block, offset};
}

// Says why bytes may not be read, unless that check is switched off.
void refuse_shared_read(SharedPlace place, u32 bytes, const char *what) {
    const u8 *state = place.state();
    for (u32 i = 0; i < bytes; i++) {
        switch (state[i]) {
        case NEVER_WRITTEN:
            if (!current_worker->launch->check_uninitialised) break;
            fail("%s of %u bytes at byte %u of shared memory finds memory that was never written (byte %u)", what, bytes, place.offset, place.offset + i);
        case IN_FLIGHT:
            fail("%s of %u bytes at byte %u of shared memory comes before the asynchronous copy into byte %u was waited for", what, bytes, place.offset,
                 place.offset + i);
        case BARRIER: fail("%s of %u bytes at byte %u of shared memory touches an mbarrier", what, bytes, place.offset);
        default: break;
        }
    }
}

void note_unusual_write(SharedPlace place, u32 bytes, const char *what) {
    u8 *state = place.state();
    note_progress();
    if (place.memory->read_by_async(place.offset, bytes)) {
        fail("%s of %u bytes at byte %u of shared memory, which wgmma or a bulk store may still read: its end was not waited for", what, bytes, place.offset);
    }
    if (all_plain(state, bytes)) {
        fill_bytes(state, WRITTEN, bytes);
        return;
    }
    for (u32 i = 0; i < bytes; i++) {
        if (state[i] == IN_FLIGHT) {
            fail("%s of %u bytes at byte %u of shared memory comes before the asynchronous copy into byte %u was waited for", what, bytes, place.offset,
                 place.offset + i);
        }
        if (state[i] == BARRIER) fail("%s of %u bytes at byte %u of shared memory touches an mbarrier", what, bytes, place.offset);
    }
    std::memset(state, WRITTEN, bytes);
}

void read_shared(void *to, u32 address, u32 bytes, u32 alignment) {
    const SharedPlace place = find_shared(address, bytes, alignment, "a read");
    note_own_visit(place);
    check_shared_read(place, bytes, "a read");
    order_shared(place, bytes, AccessKind::READ, actor_of(current_thread), "a read");
    copy_bytes(to, place.data(), bytes);
}

void write_shared(u32 address, const void *from, u32 bytes, u32 alignment) {
    const SharedPlace place = find_shared(address, bytes, alignment, "a write");
    note_own_visit(place);
    note_shared_write(place, bytes, "a write");
    order_shared(place, bytes, AccessKind::WRITE, actor_of(current_thread), "a write");
    copy_bytes(place.data(), from, bytes);
}

} // namespace emulator
