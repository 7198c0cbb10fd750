// One instruction a kernel: operands come from memory as the lanes hold them, results go back the same way. `kernels/src/device/instructions.rs` says what they
// must be, on every device.
#include "prelude.cuh"

struct Instruction {
    Global<u32> out;
    Global<const u32> a, b, c;
};

template <class T> KERNEL(32) void instruction_mma(const Instruction args) {
    u32 a[4], b[2];
    float c[4];
    UNROLL
    for (u32 i = 0; i < 4; i++) a[i] = args.a[lane() * 4 + i];
    UNROLL
    for (u32 i = 0; i < 2; i++) b[i] = args.b[lane() * 2 + i];
    UNROLL
    for (u32 i = 0; i < 4; i++) c[i] = bit_cast<float>(u32(args.c[lane() * 4 + i]));
    if constexpr (is_same<T, tf32>) mma_m16n8k8_tf32(c, a, b);
    else mma_m16n8k16<T>(c, a, b);
    UNROLL
    for (u32 i = 0; i < 4; i++) args.out[lane() * 4 + i] = bit_cast<u32>(c[i]);
}
INSTANCE(instruction_mma<bf16>)
INSTANCE(instruction_mma<f16>)
INSTANCE(instruction_mma<tf32>)

// Four matrices lie in shared memory; each lane is given its row's offset in b.
template <int COUNT, bool TRANSPOSED> KERNEL(32) void instruction_load_matrix(const Instruction args) {
    const Shared<u32> words = shared<u32>(0);
    for (u32 i = lane(); i < 128; i += 32) words[i] = args.a[i];
    sync_warp();
    const Shared<u16> row = shared<u16>(args.b[lane()]);
    u32 r[COUNT];
    if constexpr (COUNT == 1) load_matrix_x1(r, row);
    else if constexpr (COUNT == 2 && !TRANSPOSED) load_matrix_x2(r, row);
    else if constexpr (COUNT == 2) load_matrix_x2_transposed(r, row);
    else if constexpr (!TRANSPOSED) load_matrix_x4(r, row);
    else load_matrix_x4_transposed(r, row);
    UNROLL
    for (u32 i = 0; i < COUNT; i++) args.out[lane() * COUNT + i] = r[i];
}
INSTANCE(instruction_load_matrix<1, false>)
INSTANCE(instruction_load_matrix<2, false>)
INSTANCE(instruction_load_matrix<2, true>)
INSTANCE(instruction_load_matrix<4, false>)
INSTANCE(instruction_load_matrix<4, true>)

KERNEL(32) void instruction_shuffle(const Instruction args) {
    const u32 value = args.a[lane()], from = args.b[lane()];
    const u32 results[8] = {shuffle(value, from),    shuffle_xor(value, 13), shuffle_up(value, 3), shuffle_down(value, 9),
                            ballot((value & 1) != 0), any(value == 7),        all(value != 7),      warp_sum(value)};
    UNROLL
    for (u32 i = 0; i < 8; i++) args.out[lane() * 8 + i] = results[i];
}
INSTANCE(instruction_shuffle)

// 4, 8 and 16 bytes a lane; odd lanes ask for zeros.
KERNEL(32) void instruction_copy_async(const Instruction args) {
    const Shared<u32> to = shared<u32>(0);
    const bool valid = lane() % 2 == 0;
    copy_async<16>(to + lane() * 4, args.a + lane() * 4, valid);
    copy_async<8>(to + 128 + lane() * 2, args.a + lane() * 2, valid);
    copy_async_commit();
    copy_async<4>(to + 192 + lane(), args.a + lane(), valid);
    copy_async_commit();
    copy_async_wait<0>();
    sync_warp();
    for (u32 i = lane(); i < 224; i += 32) args.out[i] = to[i];
}
INSTANCE(instruction_copy_async)

// Words 0 to 4 of `out` hold numbers at first; each lane receives what was there before its turn.
KERNEL(32) void instruction_atomics(const Instruction args) {
    const u32 value = args.a[lane()];
    atomic_add(args.out, value);
    atomic_max(args.out + 1, value);
    atomic_min(args.out + 2, value);
    atomic_max((args.out + 3).as<i32>(), static_cast<i32>(value));
    if (lane() == 0) args.out[5] = atomic_compare_swap(args.out + 4, 9u, 11u);
}
INSTANCE(instruction_atomics)
