// The parts of the prelude that are written once for the device and for the host, to be compared with Rust's numbers.
#include "prelude.cuh"

struct PreludeNumbers {
    Global<u32> out;
    Global<const u32> from;
    u32 count;
};

constexpr u32 NUMBERS = 9;

// Conversions of a float, given by its bits: NUMBERS words each.
KERNEL(128) void prelude_numbers(const PreludeNumbers args) {
    const u32 i = block_index() * block_threads() + thread_index();
    if (i >= args.count) return;
    const u32 bits = args.from[i];
    const float x = bit_cast<float>(bits);
    const Global<u32> out = args.out + i * NUMBERS;
    out[0] = from_float<bf16>(x).bits;
    out[1] = from_float<f16>(x).bits;
    out[2] = pack2<bf16>(x, 1.5f);
    out[3] = pack2<f16>(-2.0f, x);
    out[4] = to_tf32(x);
    out[5] = bit_cast<u32>(to_float(f16{static_cast<u16>(bits)}));
    float low, high;
    unpack2<bf16>(bits, low, high);
    out[6] = bit_cast<u32>(low);
    out[7] = bit_cast<u32>(high);
    const auto pair = from_float<f16>(to_float(bit_cast<Vector<f16, 2>>(bits)));
    out[8] = bit_cast<u32>(pair);
}
INSTANCE(prelude_numbers)

struct PreludeRandom {
    Global<u32> out;
    u64 seed;
    u64 sequence;
    u32 stream;
    u32 count;
};

// Random words of `count` positions, four each, then their uniform floats.
KERNEL(128) void prelude_random(const PreludeRandom args) {
    const u32 i = block_index() * block_threads() + thread_index();
    if (i >= args.count) return;
    const Vector<u32, 4> words = random_block(args.seed, args.stream, args.sequence, i);
    store(args.out + i * 8, words);
    Vector<float, 4> uniforms;
    for (int k = 0; k < 4; k++) uniforms[k] = uniform(words[k]);
    store((args.out + i * 8 + 4).as<float>(), uniforms);
}
INSTANCE(prelude_random)

struct PreludeSums {
    Global<float> out;
    Global<const float> from;
};

// Of each thread: the sum and the greatest of its warp, then of its block, the last two through the same scratch at once.
KERNEL(1024) void prelude_sums(const PreludeSums args) {
    const u32 i = thread_index();
    const float x = args.from[i];
    const Shared<float> scratch = shared<float>(0);
    const Global<float> out = args.out + i * 4;
    out[0] = warp_sum(x);
    out[1] = warp_max(x);
    out[2] = block_sum(x, scratch);
    out[3] = block_max(x, scratch);
}
INSTANCE(prelude_sums)
