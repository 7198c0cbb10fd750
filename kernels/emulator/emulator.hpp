// The emulated device as the prelude sees it: every function that device code may call.
#pragma once

#include "atomic.hpp"
#include "bulk.hpp"
#include "cluster.hpp"
#include "collective.hpp"
#include "copy.hpp"
#include "machine.hpp"
#include "matrix.hpp"
#include "mbarrier.hpp"
#include "memory.hpp"
#include "wgmma.hpp"

#define EMULATOR_JOIN_(a, b) a##b
#define EMULATOR_JOIN(a, b) EMULATOR_JOIN_(a, b)

// Makes an instance of a kernel known under its text.
#define EMULATOR_INSTANCE(...) static const ::emulator::Registration EMULATOR_JOIN(emulator_instance_, __COUNTER__)(#__VA_ARGS__, &__VA_ARGS__);

// Each file of device code has a symbol of its own, so that the linker keeps its instances.
#ifdef EMULATOR_UNIT
extern "C" {
extern const char EMULATOR_UNIT;
const char EMULATOR_UNIT = 0;
}
#endif
