#include "fiber.hpp"

#include <cstdint>
#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
// Only registers that a called function must keep are saved; the caller's compiler has saved the rest. The return address is the same code
// for every thread of a warp that waits in the same place, so the processor predicts the jump.
asm(R"(
    .text
    .p2align 4
    .globl prime_emulator_switch
    .type prime_emulator_switch, @function
prime_emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size prime_emulator_switch, .-prime_emulator_switch
)");
#elif defined(__aarch64__)
asm(R"(
    .text
    .p2align 4
    .globl prime_emulator_switch
    .type prime_emulator_switch, %function
prime_emulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size prime_emulator_switch, .-prime_emulator_switch
)");
#else
#error "the emulated device switches coroutines on x86-64 and aarch64 only"
#endif

namespace emulator {

namespace {

// An odd number of pages from stack to stack: the entries of their pages then spread over all sets of the processor's translation buffers.
constexpr size_t LEAST_STACK_BYTES = 96 * 1024;

size_t page_bytes() {
    static const size_t bytes = size_t(sysconf(_SC_PAGESIZE));
    return bytes;
}

size_t stack_bytes() {
    static const size_t bytes = ((LEAST_STACK_BYTES / page_bytes() + 1) | 1) * page_bytes();
    return bytes;
}

// Stacks that begin at the same place of a page compete for the same lines of the caches: each begins somewhere else.
constexpr size_t COLOURS = 32;
constexpr size_t COLOUR_BYTES = 1088;

} // namespace

StackPool::~StackPool() {
    for (size_t i = 0; i < slab_count; i++) munmap(slabs[i].memory, slabs[i].stacks * stack_bytes());
}

bool StackPool::reserve(size_t count) {
    while (slab_count * STACKS_OF_A_SLAB < count) {
        if (slab_count == MOST_SLABS) return false;
        const size_t bytes = STACKS_OF_A_SLAB * stack_bytes();
        void *memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return false;
        for (size_t i = 0; i < STACKS_OF_A_SLAB; i++) {
            if (mprotect(static_cast<char *>(memory) + i * stack_bytes(), page_bytes(), PROT_NONE) != 0) {
                munmap(memory, bytes);
                return false;
            }
        }
        slabs[slab_count++] = Slab{static_cast<char *>(memory), STACKS_OF_A_SLAB};
    }
    return true;
}

void *StackPool::start(size_t index, void (*entry)()) const {
    const Slab &slab = slabs[index / STACKS_OF_A_SLAB];
    char *end = slab.memory + (index % STACKS_OF_A_SLAB + 1) * stack_bytes();
    uintptr_t top = reinterpret_cast<uintptr_t>(end) - (index % COLOURS) * COLOUR_BYTES;
    top &= ~uintptr_t(63);
#if defined(__x86_64__)
    // As after a call: the stack is 8 bytes short of a multiple of 16 when `entry` begins.
    void **stack = reinterpret_cast<void **>(top);
    *--stack = nullptr;
    *--stack = reinterpret_cast<void *>(entry);
    for (int i = 0; i < 6; i++) *--stack = nullptr;
    return stack;
#else
    void **stack = reinterpret_cast<void **>(top) - 20;
    for (int i = 0; i < 20; i++) stack[i] = nullptr;
    stack[11] = reinterpret_cast<void *>(entry);
    return stack;
#endif
}

} // namespace emulator
