// Functions of floats. Those without `fast` in their names are as accurate as the device's default precision offers (exp, log, exp2, log2, tanh:
// within 2 units in the last place; sqrt: correctly rounded).
#pragma once
#include "types.cuh"

#ifdef PRIME_EMULATED
#include <cmath>
#include <cstdlib>
#endif

#ifdef PRIME_EMULATED

using std::abs;
using std::exp;
using std::exp2;
using std::fma;
using std::log;
using std::log2;
using std::sqrt;
using std::tanh;

inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

/// The larger and the smaller of two values of one type. A NaN beside a number is ignored, as on the device (PTX ISA: max.f32).
template <class T> inline T max(T a, T b) { return a > b || b != b ? a : b; }
template <class T> inline T min(T a, T b) { return a < b || b != b ? a : b; }

#endif

/// a * b, rounded: never joined with an addition into one fma, as the compiler may do with `a * b + c`.
DEVICE float multiply(float a, float b) {
#ifdef PRIME_DEVICE
    return __fmul_rn(a, b);
#else
    volatile float product = a * b;
    return product;
#endif
}

/// 2^x, one instruction: absolute error below 2^-22 of the result for x in its range, results below the normal range are 0
/// (PTX ISA: ex2.approx.ftz.f32).
DEVICE float exp2_fast(float x) {
#ifdef PRIME_DEVICE
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#else
    const float result = std::exp2(x);
    return result < 1.17549435e-38f ? 0.0f : result;
#endif
}

/// e^x through `exp2_fast`: the error grows with |x|, as x * log2(e) is rounded first.
DEVICE float exp_fast(float x) { return exp2_fast(x * 1.44269504088896341f); }

/// The number of bits that are set; the number of zeros above the highest one (32 of 0).
DEVICE u32 popcount(u32 x) {
#ifdef PRIME_DEVICE
    return static_cast<u32>(__popc(static_cast<int>(x)));
#else
    return static_cast<u32>(__builtin_popcount(x));
#endif
}
DEVICE u32 leading_zeros(u32 x) {
#ifdef PRIME_DEVICE
    return static_cast<u32>(__clz(static_cast<int>(x)));
#else
    return x == 0 ? 32u : static_cast<u32>(__builtin_clz(x));
#endif
}

constexpr float infinity = bit_cast<float>(0x7f800000u);
