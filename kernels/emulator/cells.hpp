// One access to the history of 16 bytes: the rules, for both kinds of memory.
#pragma once

#include "race.hpp"

namespace emulator {

// `History` says how identities are made and compared:
//   Who self(const Actor &);                          the actor's identity
//   bool over(const Actor &, Who, u32 epoch);         whether the actor knows that to be over
//   bool fenced(const Actor &, Who, u32 epoch);       whether that is ordered before the actor's asynchronous access
//   CellStore &store();                               where parts of split cells lie
template <class History, class Who, int READERS> class CellAccess {
  public:
    typedef Cell<Who, READERS> TheCell;

    CellAccess(History &history, const Actor &actor, AccessKind kind) : history(history), actor(actor), kind(kind), self(history.self(actor)) {}

    // The bytes [from, to) of the cell, which stands for `size` bytes.
    Conflict access(TheCell &cell, u32 size, u32 from, u32 to) {
        const bool whole = from == 0 && to == size;
        if (!(cell.flags & TheCell::SPLIT)) {
            if (whole) return leaf(cell);
            split(cell);
        }
        const u32 part = size / 4;
        for (u32 i = from / part; i * part < to; i++) {
            const u32 start = i * part;
            const u32 first = from > start ? from - start : 0, last = to < start + part ? to - start : part;
            const Conflict conflict = access_child(cell.write_epoch, i, part, first, last);
            if (conflict.kind != Conflict::NONE) return conflict;
        }
        if (whole && kind == AccessKind::WRITE) {
            free_tree(cell);
            cell = TheCell();
            note_write(cell);
        }
        return Conflict();
    }

    // The whole of a cell that is not split.
    Conflict leaf(TheCell &cell) {
        if (cell.write_epoch != 0) {
            const bool both_atomic = kind == AccessKind::ATOMIC && cell.flags & TheCell::ATOMIC_WRITE;
            if (!both_atomic && !over(cell.writer, cell.write_epoch)) return Conflict{Conflict::WITH_WRITE, u64(cell.writer)};
            if (actor.asynchronous && !(cell.flags & TheCell::ASYNC_WRITE) && !history.fenced(actor, cell.writer, cell.write_epoch)) {
                return Conflict{Conflict::UNFENCED, u64(cell.writer)};
            }
        }
        if (kind == AccessKind::READ) {
            note_read(cell);
            return Conflict();
        }
        for (u32 i = 0; i < cell.readers; i++) {
            if (!over(cell.reader[i], cell.read_epoch[i])) return Conflict{Conflict::WITH_READ, u64(cell.reader[i])};
        }
        note_write(cell);
        return Conflict();
    }

  private:
    Conflict access_child(u32 child, u32 index, u32 size, u32 from, u32 to) {
        if (from == 0 && to == size && !(history.store().four(child)[index].flags & TheCell::SPLIT)) return leaf(history.store().four(child)[index]);
        // Splitting may move all parts: a copy is worked on.
        TheCell copy = history.store().four(child)[index];
        const Conflict conflict = access(copy, size, from, to);
        history.store().four(child)[index] = copy;
        return conflict;
    }

    void split(TheCell &cell) {
        const u32 child = history.store().make();
        for (u32 i = 0; i < 4; i++) history.store().four(child)[i] = cell;
        cell = TheCell();
        cell.flags = TheCell::SPLIT;
        cell.write_epoch = child;
    }

    void free_tree(const TheCell &cell) {
        for (u32 i = 0; i < 4; i++) {
            const TheCell &child = history.store().four(cell.write_epoch)[i];
            if (child.flags & TheCell::SPLIT) free_tree(child);
        }
        history.store().release(cell.write_epoch);
    }

    void note_write(TheCell &cell) {
        cell.write_epoch = actor.epoch;
        cell.writer = self;
        cell.readers = 0;
        cell.flags = u8((kind == AccessKind::ATOMIC ? TheCell::ATOMIC_WRITE : 0) | (actor.asynchronous ? TheCell::ASYNC_WRITE : 0));
    }

    bool over(Who who, u32 epoch) { return who == self || history.over(actor, who, epoch); }

    void note_read(TheCell &cell) {
        if (cell.readers == 0) {
            cell.reader[0] = self;
            cell.read_epoch[0] = actor.epoch;
            cell.readers = 1;
            return;
        }
        u32 kept = 0;
        for (u32 i = 0; i < cell.readers; i++) {
            // Whoever knows of this read will know of what this reader knows to be over.
            if (over(cell.reader[i], cell.read_epoch[i])) continue;
            cell.reader[kept] = cell.reader[i];
            cell.read_epoch[kept++] = cell.read_epoch[i];
        }
        if (kept == READERS) {
            // The place of another lane of the same warp, or the oldest.
            u32 victim = 0;
            for (u32 i = 0; i < kept; i++) {
                if (cell.reader[i] / WARP == self / WARP) victim = i;
            }
            cell.reader[victim] = self;
            cell.read_epoch[victim] = actor.epoch;
            cell.readers = u8(kept);
            return;
        }
        cell.reader[kept] = self;
        cell.read_epoch[kept] = actor.epoch;
        cell.readers = u8(kept + 1);
    }

    History &history;
    const Actor &actor;
    const AccessKind kind;
    const Who self;
};

} // namespace emulator
