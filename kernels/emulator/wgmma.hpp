// Products of a warpgroup: 128 threads multiply matrices that lie in shared memory, asynchronously.
#pragma once

#include "memory.hpp"

namespace emulator {

enum class OperandType : u8 { BF16, F16, TF32 };

// One wgmma as the instruction names it. A is in shared memory, described by `a`, or (`a_registers` is not NULL) in registers.
struct WgmmaShape {
    u32 n;
    OperandType type;
    bool a_transposed;
    bool b_transposed;
};

// Empties the state of a new block's warpgroups.
void prepare_warpgroups(Block &block);

void wgmma_fence();
void wgmma_commit();
void wait_wgmma(u32 newest);
void start_wgmma(const WgmmaShape &shape, float *d, u64 a, const u32 *a_registers, u64 b, bool accumulate);

template <int N> inline void wgmma_wait() { wait_wgmma(N); }

template <class T> constexpr OperandType operand_type() {
    static_assert(std::is_same<T, bf16>::value || std::is_same<T, f16>::value || std::is_same<T, tf32>::value, "wgmma multiplies bf16, f16 or tf32");
    return std::is_same<T, bf16>::value ? OperandType::BF16 : std::is_same<T, f16>::value ? OperandType::F16 : OperandType::TF32;
}

// The compiler may keep no copy of the registers across this point: the emulator changes them behind its back.
template <int COUNT> inline void wgmma_fence_registers(float (&d)[COUNT]) { asm volatile("" : : "r"(d) : "memory"); }
template <int COUNT> inline void wgmma_fence_registers(u32 (&a)[COUNT]) { asm volatile("" : : "r"(a) : "memory"); }

template <int N, class T, bool A_TRANSPOSED = false, bool B_TRANSPOSED = false>
inline void wgmma_m64(float (&d)[N / 2], u64 a, u64 b, bool accumulate) {
    static_assert(N >= 8 && N <= 256 && N % 8 == 0, "a result of wgmma has 8 to 256 columns, a multiple of 8");
    static_assert(!std::is_same<T, tf32>::value || (!A_TRANSPOSED && !B_TRANSPOSED), "tf32 operands have K contiguous");
    start_wgmma(WgmmaShape{N, operand_type<T>(), A_TRANSPOSED, B_TRANSPOSED}, d, a, nullptr, b, accumulate);
}
template <int N, class T, bool B_TRANSPOSED = false> inline void wgmma_m64(float (&d)[N / 2], const u32 (&a)[4], u64 b, bool accumulate) {
    static_assert(N >= 8 && N <= 256 && N % 8 == 0, "a result of wgmma has 8 to 256 columns, a multiple of 8");
    static_assert(!std::is_same<T, tf32>::value || !B_TRANSPOSED, "tf32 operands have K contiguous");
    start_wgmma(WgmmaShape{N, operand_type<T>(), false, B_TRANSPOSED}, d, 0, a, b, accumulate);
}

} // namespace emulator
