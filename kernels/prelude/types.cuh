// Names for the machine's types, and conversions between the storage types and float.
#pragma once

// DEVICE stands before functions that kernels call; UNROLL before loops that must be unrolled (their arrays are to lie in registers), ROLLED before
// loops that must not be. The host needs none of it.
#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define PRIME_DEVICE 1
#define DEVICE __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1")
#else
#ifndef PRIME_EMULATED
#define PRIME_EMULATED 1
#endif
#define DEVICE inline
#define UNROLL
#define ROLLED
#endif

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

static_assert(sizeof(u16) == 2 && sizeof(u32) == 4 && sizeof(u64) == 8, "the fixed sizes that arguments are passed in");

/// The upper half of a float: 8 bits of exponent, 7 of fraction. It holds bits only; arithmetic is done in float.
struct bf16 {
    u16 bits;
};

/// IEEE binary16. It holds bits only; arithmetic is done in float.
struct f16 {
    u16 bits;
};

/// Names the operand type of tensor core instructions that read floats as TF32 (8 bits of exponent, 10 of fraction).
struct tf32 {
    u32 bits;
};

namespace prelude {
template <class T> struct without_const { using type = T; };
template <class T> struct without_const<const T> { using type = T; };
template <bool condition, class A, class B> struct choose { using type = A; };
template <class A, class B> struct choose<false, A, B> { using type = B; };
template <class A, class B> struct same { static constexpr bool value = false; };
template <class A> struct same<A, A> { static constexpr bool value = true; };
}  // namespace prelude

/// T without const: the type of the value that a pointer to const T reads.
template <class T> using Value = typename prelude::without_const<T>::type;

/// Whether two types are one.
template <class A, class B> constexpr bool is_same = prelude::same<A, B>::value;

/// N values side by side in registers, aligned as one memory access of their size (16 bytes at most).
template <class T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Vector {
    static_assert(N > 0 && (N & (N - 1)) == 0, "a vector has a power of two of elements");
    T elements[N];

    DEVICE T &operator[](int i) { return elements[i]; }
    DEVICE const T &operator[](int i) const { return elements[i]; }
};

/// What the tensor memory accelerator needs to know of a tensor: written by the host (cuTensorMapEncodeTiled), opaque here. A kernel
/// that holds one in its arguments declares them `const GRID_CONSTANT Arguments arguments`, because the hardware reads it by address.
struct alignas(64) TensorMap {
    u64 words[16];
};

/// The bits of a value as a value of another type of the same size.
template <class To, class From> DEVICE constexpr To bit_cast(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "bits are reinterpreted between types of one size");
    return __builtin_bit_cast(To, from);
}

template <class A, class B> DEVICE constexpr A ceil_div(A a, B b) { return (a + static_cast<A>(b) - 1) / static_cast<A>(b); }

/// The smallest multiple of `multiple` that is not below `a`.
template <class A, class B> DEVICE constexpr A round_up(A a, B multiple) { return ceil_div(a, multiple) * static_cast<A>(multiple); }

#ifdef PRIME_EMULATED
namespace prelude {
/// Rounds to bfloat16, to nearest and ties to even. NaN becomes 0x7fff as on the device (PTX ISA, cvt: canonical NaN).
inline u16 float_to_bf16(float value) {
    const u32 bits = bit_cast<u32>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// Rounds to binary16, to nearest and ties to even; what is too large becomes an infinity.
inline u16 float_to_f16(float value) {
    const u32 bits = bit_cast<u32>(value);
    const u32 sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    // 65520 lies midway between the largest finite value and what would be the next: ties go to even, which is infinity.
    if (magnitude >= 0x477ff000u) return static_cast<u16>(sign | 0x7c00u);
    if (magnitude < 0x38800000u) {
        // Below the normal range: adding 0.5 places the last kept bit (2^-24) at the last bit of the sum's fraction, and rounds.
        const u32 rounded = bit_cast<u32>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
        return static_cast<u16>(sign | rounded);
    }
    return static_cast<u16>(sign | ((magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13));
}

inline float f16_to_float(u16 bits) {
    const u32 sign = static_cast<u32>(bits & 0x8000u) << 16, exponent = (bits >> 10) & 31u, fraction = bits & 0x3ffu;
    if (exponent == 31) return bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
    if (exponent == 0) {
        const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
        return sign ? -magnitude : magnitude;
    }
    return bit_cast<float>(sign | ((exponent + 112u) << 23) | (fraction << 13));
}
}  // namespace prelude
#endif

DEVICE float to_float(float value) { return value; }
DEVICE float to_float(bf16 value) { return bit_cast<float>(static_cast<u32>(value.bits) << 16); }

/// PTX ISA: cvt. Every binary16 value is a float, so nothing is rounded.
DEVICE float to_float(f16 value) {
#ifdef PRIME_DEVICE
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
    return result;
#else
    return prelude::f16_to_float(value.bits);
#endif
}

/// Rounds a float to T, to nearest and ties to even (PTX ISA: cvt.rn).
template <class T> DEVICE T from_float(float value);

template <> DEVICE float from_float<float>(float value) { return value; }

template <> DEVICE bf16 from_float<bf16>(float value) {
#ifdef PRIME_DEVICE
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    return bf16{prelude::float_to_bf16(value)};
#endif
}

template <> DEVICE f16 from_float<f16>(float value) {
#ifdef PRIME_DEVICE
    f16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
#else
    return f16{prelude::float_to_f16(value)};
#endif
}

/// Two floats rounded to T (bf16 or f16) in one word, the first in the lower half: the order of memory, and that of the
/// tensor cores' fragments (PTX ISA: cvt.rn.bf16x2.f32, cvt.rn.f16x2.f32).
template <class T> DEVICE u32 pack2(float low, float high) {
    static_assert(is_same<T, bf16> || is_same<T, f16>, "two values fit a word as bf16 or f16");
#ifdef PRIME_DEVICE
    u32 result;
    if constexpr (is_same<T, bf16>) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
#else
    return from_float<T>(low).bits | static_cast<u32>(from_float<T>(high).bits) << 16;
#endif
}

/// The two values of a word: the inverse of `pack2`, without rounding.
template <class T> DEVICE void unpack2(u32 pair, float &low, float &high) {
    static_assert(is_same<T, bf16> || is_same<T, f16>, "two values fit a word as bf16 or f16");
    if constexpr (is_same<T, bf16>) {
        low = bit_cast<float>(pair << 16);
        high = bit_cast<float>(pair & 0xffff0000u);
    } else {
        low = to_float(f16{static_cast<u16>(pair)});
        high = to_float(f16{static_cast<u16>(pair >> 16)});
    }
}

/// The elements of a vector as floats, and floats rounded to T: two at a time where T has two bytes.
template <class T, int N> DEVICE Vector<float, N> to_float(const Vector<T, N> &values) {
    Vector<float, N> result;
    if constexpr (sizeof(T) == 2 && N > 1) {
        const auto words = bit_cast<Vector<u32, N / 2>>(values);
        UNROLL
        for (int i = 0; i < N / 2; i++) unpack2<T>(words[i], result[2 * i], result[2 * i + 1]);
    } else {
        UNROLL
        for (int i = 0; i < N; i++) result[i] = to_float(values[i]);
    }
    return result;
}
template <class T, int N> DEVICE Vector<T, N> from_float(const Vector<float, N> &values) {
    if constexpr (sizeof(T) == 2 && N > 1) {
        Vector<u32, N / 2> words;
        UNROLL
        for (int i = 0; i < N / 2; i++) words[i] = pack2<T>(values[2 * i], values[2 * i + 1]);
        return bit_cast<Vector<T, N>>(words);
    } else {
        Vector<T, N> result;
        UNROLL
        for (int i = 0; i < N; i++) result[i] = from_float<T>(values[i]);
        return result;
    }
}

/// A float rounded to TF32, to nearest and ties away from zero, as the word that mma and wgmma of tf32 read
/// (PTX ISA: cvt.rna.tf32.f32). The lower 13 bits are 0.
DEVICE u32 to_tf32(float value) {
#ifdef PRIME_DEVICE
    u32 result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return result;
#else
    const u32 bits = bit_cast<u32>(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
    if ((bits & 0x7fffffffu) == 0x7f800000u) return bits;
    return (bits + 0x1000u) & 0xffffe000u;
#endif
}
