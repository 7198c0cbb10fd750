// Pointers of the device. Every access through them is checked: bounds, alignment, permission, and that what is read was written.
#pragma once

#include "machine.hpp"
#include "race.hpp"

namespace emulator {

// What a byte of shared memory holds.
enum ByteState : u8 {
    NEVER_WRITTEN = 0,
    WRITTEN = 1,
    // An asynchronous copy into it has started and was not waited for.
    IN_FLIGHT = 2,
    // Part of an mbarrier.
    BARRIER = 3,
};

// A barrier that counts arrivals and bytes.
struct MBarrier {
    u32 offset = 0;
    // Arrivals of a phase; those that are still to come; bytes that are still to land.
    u32 arrivals = 0;
    u32 pending = 0;
    i64 bytes = 0;
    // Phases that are complete.
    u64 phase = 0;
    // The thread that made it, and whether its fence has come.
    u32 maker = 0;
    bool fenced = false;
    // What those who came to this phase did, and what those of the last phase did.
    Knowledge current;
    Knowledge completed;
    std::vector<Thread *> waiting;
};

// The dynamic shared memory of a block.
class SharedMemory {
  public:
    // Bytes whose addresses are multiples of 1024 where their offsets are.
    u8 *data = nullptr;
    u8 *state = nullptr;
    u32 size = 0;
    SharedRaces races;
    // For each 16 bytes: how many asynchronous operations may still read them.
    std::vector<u16> async_readers;
    u32 async_reads = 0;
    std::vector<std::unique_ptr<MBarrier>> barriers;
    // By the number of a thread or agent of another block: the epoch of its last access; empty where there was none.
    std::vector<u32> visitors;

    SharedMemory() = default;
    SharedMemory(const SharedMemory &) = delete;
    SharedMemory &operator=(const SharedMemory &) = delete;
    ~SharedMemory();

    // Memory of a new block: nothing is written.
    void reset(u32 bytes, bool watch_races);

    // A thread or agent of another block of the group accesses the memory; the block may not end before it knows that this is over.
    void note_visit(const Group &group, u32 who, u32 epoch);

    MBarrier *find_barrier(u32 offset);
    MBarrier &make_barrier(u32 offset);

    // Notes that asynchronous operations begin (or have ceased) to read bytes.
    void begin_async_read(u32 offset, u32 bytes);
    void end_async_read(u32 offset, u32 bytes);
    bool read_by_async(u32 offset, u32 bytes) const;

  private:
    u32 capacity = 0;
};

// A shared address counts bytes from the start of the block's dynamic shared memory. In the upper bits: 0 for the own block, else 1 + the rank of a
// block of the cluster.
constexpr u32 SHARED_RANK_SHIFT = 24;
constexpr u32 SHARED_OFFSET_MASK = (1u << SHARED_RANK_SHIFT) - 1;

struct SharedPlace {
    SharedMemory *memory;
    Block *block;
    u32 offset;
    u8 *data() const { return memory->data + offset; }
    u8 *state() const { return memory->state + offset; }
};

struct GlobalPlace {
    Buffer *buffer;
    u64 offset;
    u8 *data() const { return reinterpret_cast<u8 *>(uintptr_t(buffer->start + offset)); }
};

// The place of `bytes` bytes, or the end of the launch when they may not be touched together. `what` names the access in the sentence.
GlobalPlace find_global(u64 address, u32 bytes, u32 alignment, bool write, const char *what);
SharedPlace find_shared_slow(u32 address, u32 bytes, u32 alignment, const char *what);

// The running thread accesses the place itself, which may be another block's.
void note_own_visit(SharedPlace place);

inline SharedPlace find_shared(u32 address, u32 bytes, u32 alignment, const char *what) {
    Block *block = current_thread->block;
    SharedMemory *memory = block->shared;
    if (address < memory->size && bytes <= memory->size - address && address % alignment == 0) return SharedPlace{memory, block, address};
    return find_shared_slow(address, bytes, alignment, what);
}

// The accesses of a thread, or of an asynchronous unit: end the launch when nothing orders them after what they conflict with.
// Places are handed over by value: one whose address is taken would be written to memory and read back in every access.
void order_shared_now(SharedPlace place, u32 bytes, AccessKind kind, const Actor &actor, const char *what);
void order_global_now(GlobalPlace place, u32 bytes, AccessKind kind, const Actor &actor, const char *what);

inline void order_shared(SharedPlace place, u32 bytes, AccessKind kind, const Actor &actor, const char *what) {
    if (place.block->group->races) order_shared_now(place, bytes, kind, actor, what);
}
inline void order_global(GlobalPlace place, u32 bytes, AccessKind kind, const Actor &actor, const char *what) {
    if (place.buffer->region != GlobalRaces::UNWATCHED) order_global_now(place, bytes, kind, actor, what);
}

// Whole accesses of one thread: the checks, and then the bytes.
void read_global(void *to, u64 address, u32 bytes, u32 alignment);
void write_global(u64 address, const void *from, u32 bytes, u32 alignment);
void read_shared(void *to, u32 address, u32 bytes, u32 alignment);
void write_shared(u32 address, const void *from, u32 bytes, u32 alignment);

// Whether all of these bytes of state (1, 2, 4, 8, 16 or any number of them) are `WRITTEN`, apart from the bits of IGNORED.
template <u64 IGNORED> inline bool all_written(const u8 *state, u32 bytes) {
    constexpr u64 EIGHT_WRITTEN = 0x0101010101010101ull * WRITTEN;
    u64 low, high;
    switch (bytes) {
    case 2: {
        u16 word;
        std::memcpy(&word, state, 2);
        return (word | u16(IGNORED)) == u16(EIGHT_WRITTEN);
    }
    case 4: {
        u32 word;
        std::memcpy(&word, state, 4);
        return (word | u32(IGNORED)) == u32(EIGHT_WRITTEN);
    }
    case 8: std::memcpy(&low, state, 8); return (low | IGNORED) == EIGHT_WRITTEN;
    case 16:
        std::memcpy(&low, state, 8);
        std::memcpy(&high, state + 8, 8);
        return (low | IGNORED) == EIGHT_WRITTEN && (high | IGNORED) == EIGHT_WRITTEN;
    default:
        for (u32 i = 0; i < bytes; i++) {
            if ((state[i] | u8(IGNORED)) != WRITTEN) return false;
        }
        return true;
    }
}

// Whether there is neither a barrier nor a copy under way: bytes are `WRITTEN` or `NEVER_WRITTEN`, which differ in one bit.
inline bool all_plain(const u8 *state, u32 bytes) { return all_written<0x0101010101010101ull>(state, bytes); }

// Copies 2, 4, 8 or 16 bytes (any number, but these without a call).
inline void copy_bytes(void *to, const void *from, u32 bytes) {
    switch (bytes) {
    case 2: std::memcpy(to, from, 2); break;
    case 4: std::memcpy(to, from, 4); break;
    case 8: std::memcpy(to, from, 8); break;
    case 16: std::memcpy(to, from, 16); break;
    default: std::memcpy(to, from, bytes);
    }
}
inline void fill_bytes(void *to, u8 value, u32 bytes) {
    switch (bytes) {
    case 2: std::memset(to, value, 2); break;
    case 4: std::memset(to, value, 4); break;
    case 8: std::memset(to, value, 8); break;
    case 16: std::memset(to, value, 16); break;
    default: std::memset(to, value, bytes);
    }
}

// The checks of bytes found before.
void look_for_unwritten(GlobalPlace place, u32 bytes, const char *what);
inline void check_global_read(GlobalPlace place, u32 bytes, const char *what) {
    const Buffer &buffer = *place.buffer;
    if (buffer.written == nullptr || buffer.known_written(place.offset, bytes)) return;
    look_for_unwritten(place, bytes, what);
}
void note_global_write(GlobalPlace place, u32 bytes, const char *what);
void refuse_shared_read(SharedPlace place, u32 bytes, const char *what);
inline void check_shared_read(SharedPlace place, u32 bytes, const char *what) {
    if (!all_written<0>(place.state(), bytes)) refuse_shared_read(place, bytes, what);
}
void note_unusual_write(SharedPlace place, u32 bytes, const char *what);
inline void note_shared_write(SharedPlace place, u32 bytes, const char *what) {
    u8 *state = place.state();
    if (place.memory->async_reads != 0 || !all_plain(state, bytes)) return note_unusual_write(place, bytes, what);
    note_progress();
    fill_bytes(state, WRITTEN, bytes);
}

// What `p[i]` is: reads when its value is wanted, writes when it is assigned to.
template <class Pointer> class Element {
  public:
    using Type = typename Pointer::Type;

    explicit Element(Pointer pointer) : pointer(pointer) {}
    Element(const Element &) = default;

    operator Value<Type>() const { return get(); }
    const Element &operator=(const Value<Type> &value) const { return set(value); }
    const Element &operator=(const Element &other) const { return set(other.get()); }
    template <class U> const Element &operator+=(const U &value) const { return set(Value<Type>(get() + value)); }
    template <class U> const Element &operator-=(const U &value) const { return set(Value<Type>(get() - value)); }
    template <class U> const Element &operator*=(const U &value) const { return set(Value<Type>(get() * value)); }
    template <class U> const Element &operator|=(const U &value) const { return set(Value<Type>(get() | value)); }
    template <class U> const Element &operator&=(const U &value) const { return set(Value<Type>(get() & value)); }
    template <class U> const Element &operator^=(const U &value) const { return set(Value<Type>(get() ^ value)); }
    const Element &operator++() const { return set(Value<Type>(get() + 1)); }

    Value<Type> get() const {
        Value<Type> value;
        pointer.read(&value, sizeof value, alignof(Value<Type>));
        return value;
    }

  private:
    const Element &set(const Value<Type> &value) const {
        static_assert(!std::is_const<Type>::value, "a pointer to const is not written through");
        pointer.write(&value, sizeof value, alignof(Value<Type>));
        return *this;
    }

    Pointer pointer;
};

template <class T, class U>
using AddsConst = std::enable_if_t<std::is_same<U, const T>::value && !std::is_same<U, T>::value>;

// A pointer to device memory.
template <class T> struct Global {
    using Type = T;
    u64 address;

    // What is only read is read at once.
    template <class I> auto operator[](I i) const {
        const Element<Global> element(*this + i);
        if constexpr (std::is_const<T>::value) {
            return element.get();
        } else {
            return element;
        }
    }
    template <class I> Global operator+(I n) const { return Global{u64(address + i64(n) * i64(sizeof(T)))}; }
    template <class I> Global operator-(I n) const { return Global{u64(address - i64(n) * i64(sizeof(T)))}; }
    template <class I> Global &operator+=(I n) { return *this = *this + n; }
    explicit operator bool() const { return address != 0; }
    template <class U, class = AddsConst<T, U>> operator Global<U>() const { return Global<U>{address}; }
    template <class U> Global<U> as() const { return Global<U>{address}; }

    void read(void *to, u32 bytes, u32 alignment) const { read_global(to, address, bytes, alignment); }
    void write(const void *from, u32 bytes, u32 alignment) const { write_global(address, from, bytes, alignment); }
};

// A pointer into the dynamic shared memory of the block, or of another block of the cluster.
template <class T> struct Shared {
    using Type = T;
    u32 address;

    // What is only read is read at once.
    template <class I> auto operator[](I i) const {
        const Element<Shared> element(*this + i);
        if constexpr (std::is_const<T>::value) {
            return element.get();
        } else {
            return element;
        }
    }
    template <class I> Shared operator+(I n) const { return Shared{u32(address + i64(n) * i64(sizeof(T)))}; }
    template <class I> Shared operator-(I n) const { return Shared{u32(address - i64(n) * i64(sizeof(T)))}; }
    template <class I> Shared &operator+=(I n) { return *this = *this + n; }
    explicit operator bool() const { return true; }
    template <class U, class = AddsConst<T, U>> operator Shared<U>() const { return Shared<U>{address}; }
    template <class U> Shared<U> as() const { return Shared<U>{address}; }

    void read(void *to, u32 bytes, u32 alignment) const { read_shared(to, address, bytes, alignment); }
    void write(const void *from, u32 bytes, u32 alignment) const { write_shared(address, from, bytes, alignment); }
};

template <class T> inline Shared<T> shared(u32 byte_offset) { return Shared<T>{byte_offset}; }
template <class T> inline u32 shared_address(Shared<T> p) { return p.address; }

// N elements in one access, which must be aligned to its size.
template <int N, template <class> class Pointer, class T> inline Vector<Value<T>, N> load(Pointer<T> p) {
    constexpr u32 BYTES = N * sizeof(T);
    static_assert(BYTES == 2 || BYTES == 4 || BYTES == 8 || BYTES == 16, "one access moves 2, 4, 8 or 16 bytes");
    Vector<Value<T>, N> value;
    p.read(&value, BYTES, BYTES);
    return value;
}
template <template <class> class Pointer, class T, int N> inline void store(Pointer<T> p, const Vector<T, N> &value) {
    constexpr u32 BYTES = N * sizeof(T);
    static_assert(BYTES == 2 || BYTES == 4 || BYTES == 8 || BYTES == 16, "one access moves 2, 4, 8 or 16 bytes");
    p.write(&value, BYTES, BYTES);
}
template <int N, class T> inline Vector<Value<T>, N> load_constant(Global<T> p) { return load<N>(p); }
template <int N, class T> inline Vector<Value<T>, N> load_streaming(Global<T> p) { return load<N>(p); }
template <class T, int N> inline void store_streaming(Global<T> p, const Vector<T, N> &value) { store(p, value); }

} // namespace emulator
