#include "bulk.hpp"

#include "async.hpp"
#include "copy.hpp"
#include "mbarrier.hpp"
#include "tensor_map.hpp"

namespace emulator {

namespace {

constexpr u32 BULK_ALIGNMENT = 16;
constexpr u32 TENSOR_ALIGNMENT = 128;
constexpr u8 POISON = 0xff;

// A run of bytes that is dense on both sides. Runs of a tensor's box that lie outside the tensor have no global side.
struct Run {
    u32 shared;
    u32 bytes;
    GlobalPlace global;
    bool inside;
};

// The identity under which an operation's accesses are noted, and what those learn who wait for it.
struct Identity {
    Actor actor;
    Knowledge knowledge;
    // That its reads are over, which comes before the rest.
    Knowledge read;
};

// The running thread starts an operation: it comes after all that the thread did and knows, and before nothing that does not wait for it.
Identity begin_operation(Group &group) {
    Thread *self = current_thread;
    Identity result{Actor{copy_agent(*self->block), 0, nullptr, nullptr, true}, Knowledge(), Knowledge()};
    if (!group.races) return result;
    ClockPool &pool = *group.clocks;
    Clock *past = pool.with(self->clock, self->id, self->epoch);
    self->epoch = ++group.now;
    result.actor.epoch = ++group.now;
    result.read.clock = pool.with(past, result.actor.id, result.actor.epoch);
    result.knowledge.clock = pool.with(past, result.actor.id, ++group.now);
    // References are kept to the end of the group: an operation is small beside its copy.
    result.actor.clock = past;
    result.actor.fenced = self->fence_epoch ? pool.with(self->fenced, self->id, self->fence_epoch) : pool.share(self->fenced);
    return result;
}

// The 16-byte pieces of a run, each where its swizzle puts it.
template <class Do> void each_piece(const SharedPlace &tile, const Run &run, u32 span, Do work) {
    for (u32 byte = 0; byte < run.bytes;) {
        const u32 bytes = std::min(16 - (run.shared + byte) % 16, run.bytes - byte);
        work(SharedPlace{tile.memory, tile.block, swizzled(tile.offset + run.shared + byte, span)}, byte, bytes);
        byte += bytes;
    }
}

struct Load : AsyncOperation {
    std::vector<SharedPlace> tiles;
    std::vector<SharedPlace> barriers;
    std::vector<Run> runs;
    u32 span = 0;
    u32 bytes = 0;
    Identity identity;

    void land() override {
        for (size_t i = 0; i < tiles.size(); i++) {
            for (const Run &run : runs) {
                each_piece(tiles[i], run, span, [&](const SharedPlace &piece, u32 byte, u32 count) {
                    if (run.inside) {
                        std::memcpy(piece.data(), run.global.data() + byte, count);
                    } else {
                        std::memset(piece.data(), 0, count);
                    }
                    std::memset(piece.state(), WRITTEN, count);
                });
            }
            land_bytes(barriers[i], bytes, identity.knowledge);
        }
    }
};

// Checks the destination in each block of `blocks` and starts the load.
void start_load(const std::shared_ptr<Load> &load, u32 to, u32 barrier, u32 blocks, u32 total, u32 alignment, const char *what) {
    Thread *self = current_thread;
    Group &group = *self->block->group;
    load->bytes = total;
    load->identity = begin_operation(group);
    for (const Run &run : load->runs) {
        if (!run.inside) continue;
        check_global_read(run.global, run.bytes, what);
        order_global(run.global, run.bytes, AccessKind::READ, load->identity.actor, what);
    }
    const u32 size = cluster_size();
    if (blocks >> size) fail("%s into blocks 0x%x of a cluster of %u", what, blocks, size);
    for (u32 rank = 0; rank < (blocks == OWN_BLOCK ? 1 : size); rank++) {
        if (blocks != OWN_BLOCK && !(blocks >> rank & 1)) continue;
        const u32 tile_address = blocks == OWN_BLOCK ? to : map_address(to, rank), barrier_address = blocks == OWN_BLOCK ? barrier : map_address(barrier, rank);
        const SharedPlace tile = find_shared(tile_address, total, alignment, what);
        load->tiles.push_back(tile);
        load->barriers.push_back(find_copy_barrier(barrier_address, what));
        load->blocks |= 1u << tile.block->rank;
        if (tile.block != self->block) tile.memory->note_visit(group, load->identity.actor.id, load->identity.actor.epoch);
        for (const Run &run : load->runs) {
            each_piece(tile, run, load->span, [&](const SharedPlace &piece, u32, u32 count) {
                note_shared_write(piece, count, what);
                order_shared(piece, count, AccessKind::WRITE, load->identity.actor, what);
                std::memset(piece.state(), IN_FLIGHT, count);
                std::memset(piece.data(), POISON, count);
            });
        }
    }
    start_async(load);
    maybe_yield();
}

struct Store : AsyncOperation {
    SharedPlace tile{};
    std::vector<Run> runs;
    u32 span = 0;
    bool add = false;
    ElementType type = ElementType::F32;
    bool read_over = false;
    Identity identity;

    void land() override {
        for (const Run &run : runs) {
            if (!run.inside) continue;
            each_piece(tile, run, span, [&](const SharedPlace &piece, u32 byte, u32 count) {
                if (add) {
                    add_elements(run.global.data() + byte, piece.data(), count / bytes_of(type), type);
                } else {
                    std::memcpy(run.global.data() + byte, piece.data(), count);
                }
            });
            note_global_write(run.global, run.bytes, "a bulk store");
        }
    }

    // The thread that started it has waited until its shared memory has been read.
    void end_read() {
        if (read_over) return;
        read_over = true;
        blocks = 0;
        for (const Run &run : runs) {
            each_piece(tile, run, span, [&](const SharedPlace &piece, u32, u32 count) { tile.memory->end_async_read(piece.offset, count); });
        }
        acquire(identity.read, current_thread);
    }
};

void start_store(const std::shared_ptr<Store> &store, u32 from, u32 total, u32 alignment, const char *what) {
    Thread *self = current_thread;
    store->tile = find_shared(from, total, alignment, what);
    if (store->tile.block != self->block) fail("%s from the shared memory of another block", what);
    Group &group = *self->block->group;
    store->identity = begin_operation(group);
    store->blocks = 1u << self->block->rank;
    for (const Run &run : store->runs) {
        each_piece(store->tile, run, store->span, [&](const SharedPlace &piece, u32, u32 count) {
            check_shared_read(piece, count, what);
            order_shared(piece, count, AccessKind::READ, store->identity.actor, what);
            piece.memory->begin_async_read(piece.offset, count);
        });
    }
    Actor writer = store->identity.actor;
    if (group.races) writer.epoch = store->identity.knowledge.clock->times[writer.id];
    for (const Run &run : store->runs) {
        if (!run.inside) continue;
        if (store->add) check_global_read(run.global, run.bytes, what);
        order_global(run.global, run.bytes, store->add ? AccessKind::ATOMIC : AccessKind::WRITE, writer, what);
    }
    self->copies->bulk.push_back(store);
    start_async(store);
}

void check_bulk_size(u32 bytes, const char *what) {
    if (bytes == 0 || bytes % BULK_ALIGNMENT != 0) fail("%s of %u bytes: the size must be a multiple of %u, and not 0", what, bytes, BULK_ALIGNMENT);
}

EncodedTensorMap decode(const TensorMap &map, u32 rank, const char *what) {
    EncodedTensorMap result;
    std::memcpy(static_cast<void *>(&result), &map, sizeof result);
    if (result.magic != TENSOR_MAP_MAGIC) fail("%s through a TensorMap that no host function has made", what);
    if (rank != 0 && result.rank != rank) fail("%s with %u coordinates through a TensorMap of rank %u", what, rank, u32(result.rank));
    return result;
}

// The box at the coordinates as runs along the first axis, cut where the tensor ends.
std::vector<Run> runs_of_box(const EncodedTensorMap &map, const i32 *coordinates, bool write, u32 &total, const char *what) {
    std::vector<Run> runs;
    const u32 element = bytes_of(ElementType(map.type));
    const u32 row_bytes = map.box[0] * element;
    u32 rows = 1;
    for (u32 axis = 1; axis < map.rank; axis++) rows *= map.box[axis];
    total = rows * row_bytes;
    // The part of a row that lies inside the tensor.
    const i64 left = std::min<i64>(std::max<i64>(0, -i64(coordinates[0])), map.box[0]);
    const i64 right = std::max(left, std::min<i64>(map.box[0], i64(map.dims[0]) - coordinates[0]));
    for (u32 row = 0; row < rows; row++) {
        u64 offset = 0;
        bool inside = right > left;
        u32 rest = row;
        for (u32 axis = 1; axis < map.rank; axis++) {
            const i64 at = i64(coordinates[axis]) + rest % map.box[axis];
            rest /= map.box[axis];
            inside &= at >= 0 && at < i64(map.dims[axis]);
            offset += u64(at) * map.strides[axis - 1];
        }
        const u32 start = row * row_bytes;
        if (!inside) {
            runs.push_back(Run{start, row_bytes, {}, false});
            continue;
        }
        const u32 from = u32(left) * element, to = u32(right) * element;
        const u64 address = map.address + offset + u64(i64(coordinates[0]) * i64(element) + from);
        if (from > 0) runs.push_back(Run{start, from, {}, false});
        runs.push_back(Run{start + from, to - from, find_global(address, to - from, element, write, what), true});
        if (to < row_bytes) runs.push_back(Run{start + to, row_bytes - to, {}, false});
    }
    return runs;
}

u32 tile_alignment(const EncodedTensorMap &map) { return std::max(TENSOR_ALIGNMENT, u32(map.swizzle) * 8); }

} // namespace

void start_bulk_load(u32 to, u64 from, u32 bytes, u32 barrier, u32 blocks) {
    const char *what = blocks == OWN_BLOCK ? "bulk_load" : "bulk_load_multicast";
    check_bulk_size(bytes, what);
    auto load = std::make_shared<Load>();
    load->runs.push_back(Run{0, bytes, find_global(from, bytes, BULK_ALIGNMENT, false, what), true});
    start_load(load, to, barrier, blocks, bytes, BULK_ALIGNMENT, what);
}

void start_bulk_store(u64 to, u32 from, u32 bytes) {
    check_bulk_size(bytes, "bulk_store");
    auto store = std::make_shared<Store>();
    store->runs.push_back(Run{0, bytes, find_global(to, bytes, BULK_ALIGNMENT, true, "bulk_store"), true});
    start_store(store, from, bytes, BULK_ALIGNMENT, "bulk_store");
}

void start_bulk_reduce(u64 to, u32 from, u32 bytes, ElementType type) {
    check_bulk_size(bytes, "bulk_reduce_add");
    auto store = std::make_shared<Store>();
    store->add = true;
    store->type = type;
    store->runs.push_back(Run{0, bytes, find_global(to, bytes, BULK_ALIGNMENT, true, "bulk_reduce_add"), true});
    start_store(store, from, bytes, BULK_ALIGNMENT, "bulk_reduce_add");
}

void bulk_commit() {
    CopyQueue &queue = *current_thread->copies;
    queue.bulk_ends.push_back(queue.bulk.size());
}

void wait_bulk(u32 newest, bool reads_only) {
    Thread *self = current_thread;
    Group &group = *self->block->group;
    CopyQueue &queue = *self->copies;
    if (queue.bulk_ends.size() > newest) {
        const size_t groups = queue.bulk_ends.size() - newest, end = queue.bulk_ends[groups - 1];
        for (size_t i = 0; i < end; i++) {
            Store &store = static_cast<Store &>(*queue.bulk[i]);
            if (!store.landed) land_now(group, store);
            store.end_read();
            if (!reads_only) acquire(store.identity.knowledge, self);
        }
        if (!reads_only) {
            queue.bulk.erase(queue.bulk.begin(), queue.bulk.begin() + i64(end));
            queue.bulk_ends.erase(queue.bulk_ends.begin(), queue.bulk_ends.begin() + i64(groups));
            for (size_t &group_end : queue.bulk_ends) group_end -= end;
        }
    }
    maybe_yield();
}

void check_bulk_done(const Thread *thread) {
    for (const AsyncPointer &operation : thread->copies->bulk) {
        if (!static_cast<const Store &>(*operation).read_over) {
            fail("the thread returns while a bulk store that it started may still read shared memory: bulk_commit and bulk_wait_read<0> must come first");
        }
    }
}

void prefetch_tensor_map(const TensorMap &map) { decode(map, 0, "prefetch_tensor_map"); }

void start_tensor_load(u32 to, const TensorMap &map, u32 barrier, u32 blocks, u32 rank, const i32 *coordinates) {
    const char *what = blocks == OWN_BLOCK ? "tma_load" : "tma_load_multicast";
    const EncodedTensorMap encoded = decode(map, rank, what);
    auto load = std::make_shared<Load>();
    u32 total;
    load->span = encoded.swizzle;
    load->runs = runs_of_box(encoded, coordinates, false, total, what);
    start_load(load, to, barrier, blocks, total, tile_alignment(encoded), what);
}

void start_tensor_store(const TensorMap &map, u32 from, u32 rank, const i32 *coordinates, bool add) {
    const char *what = add ? "tma_reduce_add" : "tma_store";
    const EncodedTensorMap encoded = decode(map, rank, what);
    auto store = std::make_shared<Store>();
    u32 total;
    store->span = encoded.swizzle;
    store->add = add;
    store->type = ElementType(encoded.type);
    store->runs = runs_of_box(encoded, coordinates, true, total, what);
    start_store(store, from, total, tile_alignment(encoded), what);
}

} // namespace emulator
