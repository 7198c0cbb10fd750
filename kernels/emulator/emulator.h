// The door between Rust and the emulated device. `kernels/src/device/emulator.rs` mirrors these structs.
#ifndef PRIME_EMULATOR_H
#define PRIME_EMULATOR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// What a kernel may touch through one of its pointers: `rows` runs of `row_bytes` bytes, `row_stride` bytes apart.
typedef struct prime_buffer {
    uint64_t start;
    uint64_t rows;
    uint64_t row_bytes;
    uint64_t row_stride;
    // One byte for each byte of memory from `start` on: not 0 where something was written. NULL when nothing is known.
    uint8_t *written;
    // 1 when the kernel may write here.
    uint32_t writable;
    uint32_t reserved;
} prime_buffer;

// Switches of a launch.
enum {
    PRIME_CHECK_RACES = 1,
    PRIME_CHECK_UNINITIALISED = 2,
    // All blocks are resident together, so that they may wait for each other.
    PRIME_COOPERATIVE = 4,
    // The launch may begin before the one ahead of it has ended: threads wait for that in begin_grid.
    PRIME_EARLY = 8,
};

typedef struct prime_launch {
    // The instance as `INSTANCE(...)` spells it; not terminated by zero.
    const char *instance;
    size_t instance_length;
    // The argument struct. Pointers in it carry 1 + the index of their buffer in their top 16 bits.
    const void *arguments;
    size_t argument_bytes;
    const prime_buffer *buffers;
    size_t buffer_count;
    uint32_t grid[3];
    uint32_t block;
    // Blocks of a cluster, along the first axis of the grid.
    uint32_t cluster;
    uint32_t shared_bytes;
    // Shared memory that the imagined chip lends a block; 0 for 227 KiB.
    uint32_t shared_limit;
    // Threads that KERNEL(...) promises at most; 0 when unknown.
    uint32_t max_threads;
    // Decides every order that the rules leave open.
    uint64_t seed;
    // Threads of the host that run blocks; 0 for one a core.
    uint32_t workers;
    uint32_t flags;
} prime_launch;

// Runs a kernel to its end. Returns 0, or 1 after writing one message, terminated by zero, that says which rule was broken and where. No rule
// broken by a kernel ends the process or leaves it unusable.
int prime_emulator_launch(const prime_launch *launch, char *message, size_t message_size);

// The text of the instance of that index in the order of registration, or NULL beyond the last.
const char *prime_emulator_instance(size_t index);

// Bytes of the argument struct of the instance of that index.
size_t prime_emulator_argument_bytes(size_t index);

#ifdef __cplusplus
}
#endif

#endif
