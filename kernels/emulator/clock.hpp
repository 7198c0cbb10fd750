// What a thread knows to have happened before its next step: vector clocks, shared by all that know the same.
//
// A thread numbers its steps by epochs, drawn from a counter of the group: whenever others may learn of what it did (a release), its next steps get a
// new epoch. A clock holds, for each thread of the group, the last epoch known to be over. Clocks never change once made; joining two makes a third,
// and threads that learn the same thing share it.
#pragma once

#include "machine.hpp"

#include <memory>

namespace emulator {

// What is known of threads of another group, which never changes again: the last epochs known to be over.
struct Snapshot {
    u64 group;
    std::vector<u32> times;
};

// What is known of other groups, in rising order of their numbers.
typedef std::vector<std::shared_ptr<const Snapshot>> Foreign;

struct Clock {
    u32 references;
    // Of other groups; an index into ClockPool::foreign, 0 for nothing.
    u32 foreign;
    // No time is later: most questions are answered without a look at the times.
    u32 newest;
    u32 times[];
};

// Makes and reuses the clocks of one group.
class ClockPool {
  public:
    ClockPool() = default;
    ClockPool(const ClockPool &) = delete;
    ClockPool &operator=(const ClockPool &) = delete;
    ~ClockPool();

    // Forgets all clocks: for a group of that many threads and agents.
    void reset(u32 entries);

    // A clock that knows what both know; either may be NULL, which knows nothing. The caller owns one reference to the result.
    Clock *join(Clock *a, Clock *b);
    // A clock that knows what `clock` knows and that `who` is over with `epoch`.
    Clock *with(Clock *clock, u32 who, u32 epoch);
    // A copy to be filled in by the caller before anybody else sees it.
    Clock *copy(const Clock *clock);
    Clock *share(Clock *clock);
    void drop(Clock *&clock);
    void replace(Clock *&place, Clock *by) {
        Clock *old = place;
        place = by;
        drop(old);
    }

    // Adds knowledge of other groups to a clock.
    Clock *with_foreign(Clock *clock, const Foreign &known);
    const Foreign &foreign_of(const Clock *clock) const { return *foreign[clock ? clock->foreign : 0]; }
    u32 entries() const { return count; }

  private:
    Clock *allocate();
    u32 join_foreign(u32 a, u32 b);

    u32 count = 0;
    std::vector<Clock *> all;
    std::vector<Clock *> free_clocks;
    std::vector<std::shared_ptr<const Foreign>> foreign;
    // The last join, which the lanes of a warp ask for one after another.
    Clock *last_a = nullptr, *last_b = nullptr, *last_result = nullptr;
};

// Whether what `who` did in `epoch` is known to be over.
inline bool knows(const Clock *clock, u32 who, u32 epoch) { return clock != nullptr && epoch <= clock->newest && epoch <= clock->times[who]; }
bool knows_foreign(const Foreign &known, u64 group, u32 who, u32 epoch);

// Operations that order threads call these.
//
// The thread's past is added to what the meeting point holds; its next steps are not part of it.
void release(Knowledge &to, Thread *thread);
// What the thread knows of copies and of products is added, and nothing of what threads did.
void release_of_agents(Knowledge &to, Thread *thread);
// The thread learns what the meeting point holds.
void acquire(const Knowledge &from, Thread *thread);
void forget(Group &group, Knowledge &knowledge);
void join_knowledge(Group &group, Knowledge &to, const Knowledge &from);
// All threads learn each other's past.
void meet_threads(Group &group, Thread *const *threads, u32 count);
// As `meet_threads` for all threads of the group, those that returned included.
void meet_group(Group &group);
// What the thread itself did, and nobody else, is ordered before the later accesses of asynchronous units that learn of it.
void fence_to_async(Thread *thread);

} // namespace emulator
