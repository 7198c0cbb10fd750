#include "wgmma.hpp"

#include "async.hpp"
#include "descriptor.hpp"
#include "vectors.hpp"

#include <algorithm>
#include <deque>

namespace emulator {

namespace {

constexpr u32 ROWS = 64;
constexpr u32 WARPS = WARPGROUP / WARP;
constexpr u32 ALL_WARPS = (1u << WARPS) - 1;
// What accumulators hold while a product is under way: not a number.
constexpr u32 POISON = 0xffffffffu;

// What one lane hands over.
struct Operand {
    const WgmmaShape *shape;
    float *d;
    u64 a;
    const u32 *a_registers;
    u64 b;
    bool accumulate;
};

u32 depth_of(const WgmmaShape &shape) { return shape.type == OperandType::TF32 ? 8 : 16; }

// The accumulators of a warpgroup while products on them are under way; found by the place of the first thread's.
struct Tile {
    u32 n = 0;
    u32 products = 0;
    float *d[WARPGROUP] = {};
    std::vector<float> values;
};

struct Product {
    WgmmaShape shape{};
    u64 a = 0, b = 0;
    bool accumulate = false;
    bool a_in_registers = false;
    u32 warps = 0;
    float *d[WARPGROUP] = {};
    u32 a_registers[WARPGROUP][4] = {};
    // Where they were, and must be until the end.
    const u32 *a_places[WARPGROUP] = {};
    std::vector<SharedPlace> pieces;
    std::shared_ptr<Tile> tile;
};

// Products between two commits.
struct ProductGroup : AsyncOperation {
    Warpgroup *owner = nullptr;
    std::vector<std::unique_ptr<Product>> products;
    u32 committed = 0;
    bool waited = false;
    u32 epoch = 0;

    void land() override;
};

} // namespace

struct Warpgroup {
    Block *block = nullptr;
    u32 index = 0;
    // Groups that were not waited for, oldest first; `first` is the number of the oldest.
    std::deque<std::shared_ptr<ProductGroup>> groups;
    u64 first = 0;
    // By warp: the group that it fills, how many of that group's products it has started, and the groups before which it has waited.
    u64 open[WARPS] = {};
    u32 started[WARPS] = {};
    std::vector<std::shared_ptr<Tile>> tiles;
    // The epoch of the newest group that is over.
    u32 over = 0;

    ProductGroup &group(u64 number) {
        while (number >= first + groups.size()) {
            groups.push_back(std::make_shared<ProductGroup>());
            groups.back()->owner = this;
        }
        return *groups[number - first];
    }
};

namespace {

Floats8 eight_floats(const u8 *from, OperandType type) {
    return type == OperandType::BF16 ? floats_of<bf16>(load_vector<Halves8>(from)) : floats_of<f16>(load_vector<Halves8>(from));
}

// Operands as floats: rows of K for A, K rows of N for B.
struct Operands {
    alignas(32) float a[ROWS][16];
    alignas(32) float b[16][256];
};

void read_a(const Product &product, const u8 *data, Operands &to) {
    const WgmmaShape &shape = product.shape;
    if (product.a_in_registers) {
        for (u32 thread = 0; thread < WARPGROUP; thread++) {
            const u32 row = thread / WARP * 16 + thread % WARP / 4, t = thread % 4;
            for (u32 i = 0; i < 4; i++) {
                const u32 word = product.a_registers[thread][i];
                float *place = &to.a[row + i % 2 * 8][0];
                if (shape.type == OperandType::TF32) {
                    place[t + i / 2 * 4] = bit_cast<float>(word & 0xffffe000u);
                } else if (shape.type == OperandType::BF16) {
                    unpack2<bf16>(word, place[t * 2 + i / 2 * 8], place[t * 2 + i / 2 * 8 + 1]);
                } else {
                    unpack2<f16>(word, place[t * 2 + i / 2 * 8], place[t * 2 + i / 2 * 8 + 1]);
                }
            }
        }
        return;
    }
    const MatrixDescriptor a = MatrixDescriptor::decode(product.a);
    if (shape.a_transposed) {
        for (u32 k = 0; k < 16; k++) {
            for (u32 m = 0; m < ROWS; m += 8) {
                const Floats8 values = eight_floats(data + a.piece_along_mn(m, k), shape.type);
                for (u32 i = 0; i < 8; i++) to.a[m + i][k] = values[i];
            }
        }
        return;
    }
    for (u32 m = 0; m < ROWS; m++) {
        for (u32 piece = 0; piece < 2; piece++) {
            const u8 *from = data + a.piece_along_k(m, piece);
            if (shape.type == OperandType::TF32) {
                store_vector(&to.a[m][piece * 4], load_vector<Words4>(from) & 0xffffe000u);
            } else {
                store_vector(&to.a[m][piece * 8], eight_floats(from, shape.type));
            }
        }
    }
}

void read_b(const Product &product, const u8 *data, Operands &to) {
    const WgmmaShape &shape = product.shape;
    const MatrixDescriptor b = MatrixDescriptor::decode(product.b);
    if (shape.b_transposed) {
        for (u32 k = 0; k < 16; k++) {
            for (u32 n = 0; n < shape.n; n += 8) store_vector(&to.b[k][n], eight_floats(data + b.piece_along_mn(n, k), shape.type));
        }
        return;
    }
    for (u32 n = 0; n < shape.n; n++) {
        for (u32 piece = 0; piece < 2; piece++) {
            const u8 *from = data + b.piece_along_k(n, piece);
            if (shape.type == OperandType::TF32) {
                const Words4 words = load_vector<Words4>(from) & 0xffffe000u;
                for (u32 i = 0; i < 4; i++) to.b[piece * 4 + i][n] = bit_cast<float>(words[i]);
            } else {
                const Floats8 values = eight_floats(from, shape.type);
                for (u32 i = 0; i < 8; i++) to.b[piece * 8 + i][n] = values[i];
            }
        }
    }
}

// d = a b or d += a b, with the sums of mma (see matrix.hpp).
template <u32 K> void multiply(const Operands &operands, u32 n, bool accumulate, float *d) {
    for (u32 row = 0; row < ROWS; row += 8) {
        for (u32 column = 0; column < n; column += 8) {
            Floats8 sum[8] = {};
            for (u32 k = 0; k < K; k++) {
                const Floats8 b = load_vector<Floats8>(&operands.b[k][column]);
                for (u32 i = 0; i < 8; i++) sum[i] += operands.a[row + i][k] * b;
            }
            for (u32 i = 0; i < 8; i++) {
                float *place = d + (row + i) * n + column;
                store_vector(place, accumulate ? load_vector<Floats8>(place) + sum[i] : sum[i]);
            }
        }
    }
}

// The place in a tile of register r of a thread.
u32 place_in_tile(u32 thread, u32 r, u32 n) {
    const u32 row = thread / WARP * 16 + thread % WARP / 4 + r % 4 / 2 * 8;
    return row * n + r / 4 * 8 + thread % 4 * 2 + r % 2;
}

// Takes the accumulators out of the threads' registers and leaves poison there.
std::shared_ptr<Tile> take_tile(Warpgroup &warpgroup, const Product &product) {
    for (const auto &tile : warpgroup.tiles) {
        if (tile->d[0] != product.d[0]) continue;
        if (tile->n != product.shape.n) fail("wgmma of %u columns on accumulators on which one of %u columns is under way", product.shape.n, tile->n);
        return tile;
    }
    auto tile = std::make_shared<Tile>();
    tile->n = product.shape.n;
    tile->values.resize(ROWS * tile->n);
    for (u32 thread = 0; thread < WARPGROUP; thread++) {
        float *d = tile->d[thread] = product.d[thread];
        for (u32 r = 0; r < tile->n / 2; r++) {
            tile->values[place_in_tile(thread, r, tile->n)] = d[r];
            d[r] = bit_cast<float>(POISON);
        }
    }
    warpgroup.tiles.push_back(tile);
    return tile;
}

void give_back(Warpgroup &warpgroup, const std::shared_ptr<Tile> &tile) {
    for (u32 thread = 0; thread < WARPGROUP; thread++) {
        float *d = tile->d[thread];
        for (u32 r = 0; r < tile->n / 2; r++) {
            if (bit_cast<u32>(d[r]) != POISON) {
                fail("accumulator %u of thread %u of warpgroup %u was written while wgmma worked on it: wgmma_wait must come first", r, thread,
                     warpgroup.index);
            }
            d[r] = tile->values[place_in_tile(thread, r, tile->n)];
        }
    }
    warpgroup.tiles.erase(std::find(warpgroup.tiles.begin(), warpgroup.tiles.end(), tile));
}

// The 16-byte pieces of shared memory that a product reads.
void list_pieces(Product &product, std::vector<SharedPlace> &pieces) {
    const WgmmaShape &shape = product.shape;
    const auto add = [&](u64 word, u32 rows, bool transposed) {
        const MatrixDescriptor matrix = MatrixDescriptor::decode(word);
        if (!transposed && matrix.span != 0 && matrix.leading > 16) {
            fail("wgmma of rows that hold K, with a leading distance of %u bytes, which counts for nothing there and is to be 0", matrix.leading);
        }
        if (transposed) {
            for (u32 k = 0; k < 16; k++) {
                for (u32 mn = 0; mn < rows; mn += 8) pieces.push_back(find_shared(matrix.piece_along_mn(mn, k), 16, 16, "wgmma"));
            }
        } else {
            for (u32 mn = 0; mn < rows; mn++) {
                for (u32 piece = 0; piece < 2; piece++) pieces.push_back(find_shared(matrix.piece_along_k(mn, piece), 16, 16, "wgmma"));
            }
        }
    };
    if (!product.a_in_registers) add(product.a, ROWS, shape.a_transposed);
    add(product.b, shape.n, shape.b_transposed);
}

// All four warps have come: the operands must be ready now, and are read later.
void begin_product(Warpgroup &warpgroup, ProductGroup &group, Product &product) {
    Block &block = *warpgroup.block;
    Group &all = *block.group;
    product.tile = take_tile(warpgroup, product);
    product.tile->products++;
    list_pieces(product, product.pieces);
    Actor actor{product_agent(block, warpgroup.index), 0, nullptr, nullptr, true};
    Knowledge known;
    if (all.races) {
        ClockPool &pool = *all.clocks;
        for (u32 warp = 0; warp < WARPS; warp++) {
            for (Thread *thread : block.warps[warpgroup.index * WARPS + warp].by_lane) {
                pool.replace(known.clock, pool.join(known.clock, thread->clock));
                pool.replace(known.fenced, pool.join(known.fenced, thread->fenced));
            }
        }
        // What the threads themselves did is known to them.
        Clock *clock = pool.copy(known.clock), *fenced = pool.copy(known.fenced);
        clock->newest = fenced->newest = all.now;
        for (u32 warp = 0; warp < WARPS; warp++) {
            for (Thread *thread : block.warps[warpgroup.index * WARPS + warp].by_lane) {
                clock->times[thread->id] = thread->epoch;
                fenced->times[thread->id] = std::max(fenced->times[thread->id], thread->fence_epoch);
            }
        }
        pool.replace(known.clock, clock);
        pool.replace(known.fenced, fenced);
        group.epoch = actor.epoch = ++all.now;
        actor.clock = known.clock;
        actor.fenced = known.fenced;
    }
    for (const SharedPlace &piece : product.pieces) {
        check_shared_read(piece, 16, "wgmma");
        order_shared(piece, 16, AccessKind::READ, actor, "wgmma");
        piece.memory->begin_async_read(piece.offset, 16);
    }
    forget(all, known);
}

void ProductGroup::land() {
    static thread_local Operands operands;
    for (const auto &product : products) {
        const u8 *data = owner->block->shared->data;
        read_a(*product, data, operands);
        read_b(*product, data, operands);
        float *d = product->tile->values.data();
        if (depth_of(product->shape) == 16) {
            multiply<16>(operands, product->shape.n, product->accumulate, d);
        } else {
            multiply<8>(operands, product->shape.n, product->accumulate, d);
        }
    }
}

void check_a_unchanged(const Product &product, u32 warpgroup) {
    for (u32 thread = 0; thread < WARPGROUP; thread++) {
        if (std::memcmp(product.a_places[thread], product.a_registers[thread], sizeof product.a_registers[0]) == 0) continue;
        fail("A in the registers of thread %u of warpgroup %u was written while wgmma read it: wgmma_wait must come first", thread, warpgroup);
    }
}

// Lands this group's products after those of the groups before it, and gives their operands and accumulators free.
void finish(Warpgroup &warpgroup, u64 number) {
    Group &all = *warpgroup.block->group;
    for (u64 earlier = warpgroup.first; earlier <= number; earlier++) {
        ProductGroup &group = warpgroup.group(earlier);
        if (!group.landed) land_now(all, group);
        if (group.waited) continue;
        group.waited = true;
        group.blocks = 0;
        warpgroup.over = std::max(warpgroup.over, group.epoch);
        for (const auto &product : group.products) {
            if (product->a_in_registers) check_a_unchanged(*product, warpgroup.index);
            for (const SharedPlace &piece : product->pieces) piece.memory->end_async_read(piece.offset, 16);
            if (--product->tile->products == 0) give_back(warpgroup, product->tile);
        }
    }
}

Warpgroup &own_warpgroup(const char *what) {
    Thread *self = current_thread;
    const u32 index = self->index / WARPGROUP;
    if ((index + 1) * WARPGROUP > self->block->threads.size()) fail("%s by a warp that has no warpgroup: four warps, the first a multiple of four", what);
    return *self->block->warpgroups[index];
}

void check_same(const Product &product, const Operand &own, u32 lane) {
    const WgmmaShape &a = product.shape, &b = *own.shape;
    if (a.n != b.n || a.type != b.type || a.a_transposed != b.a_transposed || a.b_transposed != b.b_transposed || product.a != own.a || product.b != own.b ||
        product.accumulate != own.accumulate || product.a_in_registers != (own.a_registers != nullptr)) {
        fail("wgmma with operands in lane %u that differ from those of other threads of the warpgroup: shape, descriptors and accumulation must be one", lane);
    }
}

void drop_waited(Warpgroup &warpgroup) {
    const u64 slowest = *std::min_element(warpgroup.open, warpgroup.open + WARPS);
    while (!warpgroup.groups.empty() && warpgroup.groups.front()->waited && warpgroup.first < slowest) {
        warpgroup.groups.pop_front();
        warpgroup.first++;
    }
}

// The lanes know that the products waited for are over.
void learn_of_products(const Warpgroup &warpgroup, Warp *warp) {
    Group &all = *warpgroup.block->group;
    if (!all.races || warpgroup.over == 0) return;
    ClockPool &pool = *all.clocks;
    const Clock *before = nullptr;
    Clock *after = nullptr;
    for (Thread *thread : warp->by_lane) {
        // Lanes that knew the same know the same.
        if (after == nullptr || thread->clock != before) {
            before = thread->clock;
            pool.drop(after);
            after = pool.with(thread->clock, product_agent(*warpgroup.block, warpgroup.index), warpgroup.over);
        }
        pool.replace(thread->clock, pool.share(after));
    }
    pool.drop(after);
}

} // namespace

void prepare_warpgroups(Block &block) {
    const u32 count = u32(block.threads.size()) / WARPGROUP;
    block.warpgroups.clear();
    for (u32 i = 0; i < count; i++) {
        block.warpgroups.push_back(std::make_shared<Warpgroup>());
        block.warpgroups.back()->block = &block;
        block.warpgroups.back()->index = i;
    }
}

void wgmma_fence() {
    if (!meet_all(Collective::WGMMA, nullptr)) return;
    own_warpgroup("wgmma_fence");
    current_thread->warp->wgmma_fenced = true;
    part_all();
}

void start_wgmma(const WgmmaShape &shape, float *d, u64 a, const u32 *a_registers, u64 b, bool accumulate) {
    const Operand own{&shape, d, a, a_registers, b, accumulate};
    if (!meet_all(Collective::WGMMA, &own)) return;
    Warp *warp = current_thread->warp;
    Warpgroup &warpgroup = own_warpgroup("wgmma");
    const u32 rank = warp->index % WARPS;
    ProductGroup &group = warpgroup.group(warpgroup.open[rank]);
    const u32 number = warpgroup.started[rank]++;
    if (number == group.products.size()) {
        if (group.committed) fail("a warp starts a wgmma that warps of its warpgroup have left out before wgmma_commit");
        group.products.emplace_back(new Product);
        Product &fresh = *group.products.back();
        fresh.shape = shape;
        fresh.a = a;
        fresh.b = b;
        fresh.accumulate = accumulate;
        fresh.a_in_registers = a_registers != nullptr;
    }
    Product &product = *group.products[number];
    for (u32 i = 0; i < WARP; i++) {
        const Operand &other = operand<Operand>(warp, i);
        check_same(product, other, i);
        product.d[rank * WARP + i] = other.d;
        if (!other.a_registers) continue;
        product.a_places[rank * WARP + i] = other.a_registers;
        std::memcpy(product.a_registers[rank * WARP + i], other.a_registers, sizeof product.a_registers[0]);
    }
    const float *first = product.d[rank * WARP];
    const bool under_way = std::any_of(warpgroup.tiles.begin(), warpgroup.tiles.end(), [&](const auto &tile) { return tile->d[rank * WARP] == first; });
    if (!warp->wgmma_fenced && !under_way) fail("wgmma on registers that other code may have touched: wgmma_fence must come between");
    product.warps |= 1u << rank;
    if (product.warps == ALL_WARPS) begin_product(warpgroup, group, product);
    part_all();
}

void wgmma_commit() {
    if (!meet_all(Collective::WGMMA, nullptr)) return;
    Warpgroup &warpgroup = own_warpgroup("wgmma_commit");
    const u32 rank = current_thread->warp->index % WARPS;
    warpgroup.group(warpgroup.open[rank]);
    const size_t place = warpgroup.open[rank] - warpgroup.first;
    const std::shared_ptr<ProductGroup> group = warpgroup.groups[place];
    if (group->committed && warpgroup.started[rank] != group->products.size()) {
        fail("a warp commits %u products of wgmma, and another of its warpgroup %u", warpgroup.started[rank], u32(group->products.size()));
    }
    group->committed |= 1u << rank;
    warpgroup.open[rank]++;
    warpgroup.started[rank] = 0;
    if (group->committed == ALL_WARPS) {
        group->blocks = 1u << warpgroup.block->rank;
        group->issuer = current_thread;
        // Groups land in order: this one may land by itself when none before it is left.
        if (place == 0 || warpgroup.groups[place - 1]->landed) start_async(group);
        note_progress();
    }
    part_all();
    maybe_yield();
}

void wait_wgmma(u32 newest) {
    if (!meet_all(Collective::WGMMA, nullptr)) return;
    Warp *warp = current_thread->warp;
    Warpgroup &warpgroup = own_warpgroup("wgmma_wait");
    const u32 rank = warp->index % WARPS;
    if (warpgroup.open[rank] > newest) {
        const u64 last = warpgroup.open[rank] - newest - 1;
        // Groups that other warps have waited for, and all have passed, are gone from the list: also while this warp waits.
        while (last >= warpgroup.first && warpgroup.group(last).committed != ALL_WARPS) {
            poll_for_warp(Waiting{"in wgmma_wait, for warps of the warpgroup that have not committed the group", 0, 0});
        }
        if (last >= warpgroup.first) finish(warpgroup, last);
        learn_of_products(warpgroup, warp);
        drop_waited(warpgroup);
    }
    warp->wgmma_fenced = false;
    part_all();
    maybe_yield();
}

} // namespace emulator
