#include "tensor_map.hpp"

#include <mutex>

namespace emulator {

u32 bytes_of(ElementType type) {
    switch (type) {
    case ElementType::U8: return 1;
    case ElementType::U16:
    case ElementType::F16:
    case ElementType::BF16: return 2;
    case ElementType::U64:
    case ElementType::I64:
    case ElementType::F64: return 8;
    default: return 4;
    }
}

namespace {

template <class T, class Add> void add_each(u8 *to, const u8 *values, u32 count, Add add) {
    for (u32 i = 0; i < count; i++) {
        T a, b;
        std::memcpy(&a, to + i * sizeof(T), sizeof(T));
        std::memcpy(&b, values + i * sizeof(T), sizeof(T));
        a = add(a, b);
        std::memcpy(to + i * sizeof(T), &a, sizeof(T));
    }
}

template <class T> T add_rounded(T a, T b) { return from_float<T>(to_float(a) + to_float(b)); }

template <class T> T plus(T a, T b) { return T(a + b); }

} // namespace

void add_elements(u8 *to, const u8 *values, u32 count, ElementType type) {
    // Additions of a whole run of elements follow each other; the hardware promises no more than one element at a time.
    static std::mutex lock;
    std::lock_guard<std::mutex> guard(lock);
    switch (type) {
    case ElementType::U8: return add_each<u8>(to, values, count, plus<u8>);
    case ElementType::U16: return add_each<u16>(to, values, count, plus<u16>);
    case ElementType::U32:
    case ElementType::I32: return add_each<u32>(to, values, count, plus<u32>);
    case ElementType::U64:
    case ElementType::I64: return add_each<u64>(to, values, count, plus<u64>);
    case ElementType::F16: return add_each<f16>(to, values, count, add_rounded<f16>);
    case ElementType::BF16: return add_each<bf16>(to, values, count, add_rounded<bf16>);
    case ElementType::F64: return add_each<double>(to, values, count, plus<double>);
    default: return add_each<float>(to, values, count, plus<float>);
    }
}

} // namespace emulator
