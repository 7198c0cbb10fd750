// What kernels are written with: one name for each feature of the hardware, with a body for the device (PTX or a CUDA built-in) and one for
// the host, where the emulated device of kernels/emulator gives the same name.
//
// A kernel is a function, or a template of one, that takes one struct by value:
//
//     #include "prelude.cuh"
//     template <class T> struct Scale { Global<T> out; Global<const T> in; float factor; u32 count; };
//     template <class T> KERNEL(256) void scale(const Scale<T> args) {
//         const u32 i = block_index() * block_threads() + thread_index();
//         if (i < args.count) args.out[i] = from_float<T>(args.factor * to_float(args.in[i]));
//     }
//     INSTANCE(scale<float>)
//     INSTANCE(scale<bf16>)
//
// The parts: types (conversions), pointers (Global, Shared, vectors), threads (barriers, shuffles, sums), math, philox, atomics, copy_async
// (cp.async), matrix (ldmatrix, mma.sync); for Hopper alone barrier (mbarrier), bulk and tma (asynchronous copies), cluster, wgmma.
//
// Device code includes nothing else and holds no `asm`, so that NVRTC needs no header of the toolkit and the host can run all of it. All
// shared memory is dynamic and laid out by byte offsets (`shared<T>(offset)`).
#pragma once

#include "atomics.cuh"
#include "barrier.cuh"
#include "bulk.cuh"
#include "cluster.cuh"
#include "copy_async.cuh"
#include "math.cuh"
#include "matrix.cuh"
#include "philox.cuh"
#include "pointers.cuh"
#include "threads.cuh"
#include "tma.cuh"
#include "types.cuh"
#include "wgmma.cuh"

#ifdef PRIME_DEVICE

/// Before `void`: the most threads a block may have, and how many blocks should fit on a multiprocessor at least.
#define KERNEL(...) __global__ __launch_bounds__(__VA_ARGS__)

/// Before the argument's type: the struct keeps its address in constant memory (needed where it holds a TensorMap).
#define GRID_CONSTANT __grid_constant__

/// An instance that launchers may ask for, by exactly this text, in a line of its own. NVRTC is given the text as a name expression.
#define INSTANCE(...)

#else

#define KERNEL(...) static
#define GRID_CONSTANT
#define INSTANCE(...) EMULATOR_INSTANCE(__VA_ARGS__)

#endif
