// Coroutines with stacks of their own: one for each thread of a block.
#pragma once

#include <cstddef>

namespace emulator {

// Keeps the running coroutine's registers on its stack, notes that stack in `*save`, and continues the coroutine whose stack is `load`.
extern "C" void prime_emulator_switch(void **save, void *load);

// Stacks, reused from launch to launch. Below each lies a page that may not be touched, so that an overflow ends the process instead of
// changing another thread's variables.
class StackPool {
  public:
    StackPool() = default;
    StackPool(const StackPool &) = delete;
    StackPool &operator=(const StackPool &) = delete;
    ~StackPool();

    // Makes sure that there are `count` stacks. False when the system lends no more memory.
    bool reserve(size_t count);

    // A fresh coroutine on stack `index`: the stack pointer to hand to prime_emulator_switch, which will start `entry`. `entry` may not return.
    void *start(size_t index, void (*entry)()) const;

  private:
    struct Slab {
        char *memory;
        size_t stacks;
    };
    static constexpr size_t STACKS_OF_A_SLAB = 256;
    static constexpr size_t MOST_SLABS = 128;
    Slab slabs[MOST_SLABS] = {};
    size_t slab_count = 0;
};

} // namespace emulator
