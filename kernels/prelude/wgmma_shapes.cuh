// The instruction wgmma.mma_async for each width N of its result: 8, 16, ... 256. Used by wgmma.cuh alone.
//
// An instruction names all its registers, so each width has its own text; the tables below build each from the width before.
#pragma once
#include "types.cuh"

#ifdef PRIME_DEVICE

namespace prelude {

/// What follows the shape in the instruction's name, for each type of operand, and the depth of one step.
template <class T> struct WgmmaType;
template <> struct WgmmaType<bf16> { static constexpr char name[] = "k16.f32.bf16.bf16"; };
template <> struct WgmmaType<f16> { static constexpr char name[] = "k16.f32.f16.f16"; };
template <> struct WgmmaType<tf32> { static constexpr char name[] = "k8.f32.tf32.tf32"; };

template <int N> struct Wgmma;

// PRELUDE_R64 is "%0, ... %31", the accumulators' names; PRELUDE_D64 lists them as operands.
#define PRELUDE_R8 "%0, %1, %2, %3"
#define PRELUDE_R16 PRELUDE_R8 ", %4, %5, %6, %7"
#define PRELUDE_R24 PRELUDE_R16 ", %8, %9, %10, %11"
#define PRELUDE_R32 PRELUDE_R24 ", %12, %13, %14, %15"
#define PRELUDE_R40 PRELUDE_R32 ", %16, %17, %18, %19"
#define PRELUDE_R48 PRELUDE_R40 ", %20, %21, %22, %23"
#define PRELUDE_R56 PRELUDE_R48 ", %24, %25, %26, %27"
#define PRELUDE_R64 PRELUDE_R56 ", %28, %29, %30, %31"
#define PRELUDE_R72 PRELUDE_R64 ", %32, %33, %34, %35"
#define PRELUDE_R80 PRELUDE_R72 ", %36, %37, %38, %39"
#define PRELUDE_R88 PRELUDE_R80 ", %40, %41, %42, %43"
#define PRELUDE_R96 PRELUDE_R88 ", %44, %45, %46, %47"
#define PRELUDE_R104 PRELUDE_R96 ", %48, %49, %50, %51"
#define PRELUDE_R112 PRELUDE_R104 ", %52, %53, %54, %55"
#define PRELUDE_R120 PRELUDE_R112 ", %56, %57, %58, %59"
#define PRELUDE_R128 PRELUDE_R120 ", %60, %61, %62, %63"
#define PRELUDE_R136 PRELUDE_R128 ", %64, %65, %66, %67"
#define PRELUDE_R144 PRELUDE_R136 ", %68, %69, %70, %71"
#define PRELUDE_R152 PRELUDE_R144 ", %72, %73, %74, %75"
#define PRELUDE_R160 PRELUDE_R152 ", %76, %77, %78, %79"
#define PRELUDE_R168 PRELUDE_R160 ", %80, %81, %82, %83"
#define PRELUDE_R176 PRELUDE_R168 ", %84, %85, %86, %87"
#define PRELUDE_R184 PRELUDE_R176 ", %88, %89, %90, %91"
#define PRELUDE_R192 PRELUDE_R184 ", %92, %93, %94, %95"
#define PRELUDE_R200 PRELUDE_R192 ", %96, %97, %98, %99"
#define PRELUDE_R208 PRELUDE_R200 ", %100, %101, %102, %103"
#define PRELUDE_R216 PRELUDE_R208 ", %104, %105, %106, %107"
#define PRELUDE_R224 PRELUDE_R216 ", %108, %109, %110, %111"
#define PRELUDE_R232 PRELUDE_R224 ", %112, %113, %114, %115"
#define PRELUDE_R240 PRELUDE_R232 ", %116, %117, %118, %119"
#define PRELUDE_R248 PRELUDE_R240 ", %120, %121, %122, %123"
#define PRELUDE_R256 PRELUDE_R248 ", %124, %125, %126, %127"

#define PRELUDE_D8 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define PRELUDE_D16 PRELUDE_D8, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define PRELUDE_D24 PRELUDE_D16, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11])
#define PRELUDE_D32 PRELUDE_D24, "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define PRELUDE_D40 PRELUDE_D32, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
#define PRELUDE_D48 PRELUDE_D40, "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
#define PRELUDE_D56 PRELUDE_D48, "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
#define PRELUDE_D64 PRELUDE_D56, "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define PRELUDE_D72 PRELUDE_D64, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
#define PRELUDE_D80 PRELUDE_D72, "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
#define PRELUDE_D88 PRELUDE_D80, "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43])
#define PRELUDE_D96 PRELUDE_D88, "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define PRELUDE_D104 PRELUDE_D96, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51])
#define PRELUDE_D112 PRELUDE_D104, "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55])
#define PRELUDE_D120 PRELUDE_D112, "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59])
#define PRELUDE_D128 PRELUDE_D120, "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define PRELUDE_D136 PRELUDE_D128, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
#define PRELUDE_D144 PRELUDE_D136, "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71])
#define PRELUDE_D152 PRELUDE_D144, "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75])
#define PRELUDE_D160 PRELUDE_D152, "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79])
#define PRELUDE_D168 PRELUDE_D160, "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83])
#define PRELUDE_D176 PRELUDE_D168, "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87])
#define PRELUDE_D184 PRELUDE_D176, "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91])
#define PRELUDE_D192 PRELUDE_D184, "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define PRELUDE_D200 PRELUDE_D192, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99])
#define PRELUDE_D208 PRELUDE_D200, "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103])
#define PRELUDE_D216 PRELUDE_D208, "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107])
#define PRELUDE_D224 PRELUDE_D216, "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111])
#define PRELUDE_D232 PRELUDE_D224, "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115])
#define PRELUDE_D240 PRELUDE_D232, "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119])
#define PRELUDE_D248 PRELUDE_D240, "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123])
#define PRELUDE_D256 PRELUDE_D248, "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])

// The numbers are those of the operands after the N / 2 accumulators.
#define PRELUDE_WGMMA(N, P0, P1, P2, P3, P4, P5, P6, P7, P8)                                                                                  \
    template <> struct Wgmma<N> {                                                                                                             \
        template <class T, int TRANSPOSE_A, int TRANSPOSE_B> static DEVICE void multiply(float (&d)[N / 2], u64 a, u64 b, u32 accumulate) {   \
            if constexpr (is_same<T, tf32>)                                                                                                   \
                asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "%" #P3                    \
                             " {" PRELUDE_R##N "}, %" #P0 ", %" #P1 ", p, 1, 1;\n}"                                                           \
                             : PRELUDE_D##N                                                                                                   \
                             : "l"(a), "l"(b), "r"(accumulate), "C"(WgmmaType<T>::name));                                                     \
            else                                                                                                                              \
                asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P2 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "%" #P3                    \
                             " {" PRELUDE_R##N "}, %" #P0 ", %" #P1 ", p, 1, 1, %" #P4 ", %" #P5 ";\n}"                                       \
                             : PRELUDE_D##N                                                                                                   \
                             : "l"(a), "l"(b), "r"(accumulate), "C"(WgmmaType<T>::name), "n"(TRANSPOSE_A), "n"(TRANSPOSE_B));                 \
        }                                                                                                                                     \
        template <class T, int TRANSPOSE_B>                                                                                                   \
        static DEVICE void multiply(float (&d)[N / 2], const u32 (&a)[4], u64 b, u32 accumulate) {                                            \
            if constexpr (is_same<T, tf32>)                                                                                                   \
                asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "%" #P6                    \
                             " {" PRELUDE_R##N "}, {%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, %" #P4 ", p, 1, 1;\n}"                           \
                             : PRELUDE_D##N                                                                                                   \
                             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "C"(WgmmaType<T>::name));                 \
            else                                                                                                                              \
                asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #P5 ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "%" #P6                    \
                             " {" PRELUDE_R##N "}, {%" #P0 ", %" #P1 ", %" #P2 ", %" #P3 "}, %" #P4 ", p, 1, 1, %" #P7 ";\n}"                 \
                             : PRELUDE_D##N                                                                                                   \
                             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "C"(WgmmaType<T>::name),                  \
                               "n"(TRANSPOSE_B));                                                                                             \
        }                                                                                                                                     \
    };

PRELUDE_WGMMA(8, 4, 5, 6, 7, 8, 9, 10, 11, 12)
PRELUDE_WGMMA(16, 8, 9, 10, 11, 12, 13, 14, 15, 16)
PRELUDE_WGMMA(24, 12, 13, 14, 15, 16, 17, 18, 19, 20)
PRELUDE_WGMMA(32, 16, 17, 18, 19, 20, 21, 22, 23, 24)
PRELUDE_WGMMA(40, 20, 21, 22, 23, 24, 25, 26, 27, 28)
PRELUDE_WGMMA(48, 24, 25, 26, 27, 28, 29, 30, 31, 32)
PRELUDE_WGMMA(56, 28, 29, 30, 31, 32, 33, 34, 35, 36)
PRELUDE_WGMMA(64, 32, 33, 34, 35, 36, 37, 38, 39, 40)
PRELUDE_WGMMA(72, 36, 37, 38, 39, 40, 41, 42, 43, 44)
PRELUDE_WGMMA(80, 40, 41, 42, 43, 44, 45, 46, 47, 48)
PRELUDE_WGMMA(88, 44, 45, 46, 47, 48, 49, 50, 51, 52)
PRELUDE_WGMMA(96, 48, 49, 50, 51, 52, 53, 54, 55, 56)
PRELUDE_WGMMA(104, 52, 53, 54, 55, 56, 57, 58, 59, 60)
PRELUDE_WGMMA(112, 56, 57, 58, 59, 60, 61, 62, 63, 64)
PRELUDE_WGMMA(120, 60, 61, 62, 63, 64, 65, 66, 67, 68)
PRELUDE_WGMMA(128, 64, 65, 66, 67, 68, 69, 70, 71, 72)
PRELUDE_WGMMA(136, 68, 69, 70, 71, 72, 73, 74, 75, 76)
PRELUDE_WGMMA(144, 72, 73, 74, 75, 76, 77, 78, 79, 80)
PRELUDE_WGMMA(152, 76, 77, 78, 79, 80, 81, 82, 83, 84)
PRELUDE_WGMMA(160, 80, 81, 82, 83, 84, 85, 86, 87, 88)
PRELUDE_WGMMA(168, 84, 85, 86, 87, 88, 89, 90, 91, 92)
PRELUDE_WGMMA(176, 88, 89, 90, 91, 92, 93, 94, 95, 96)
PRELUDE_WGMMA(184, 92, 93, 94, 95, 96, 97, 98, 99, 100)
PRELUDE_WGMMA(192, 96, 97, 98, 99, 100, 101, 102, 103, 104)
PRELUDE_WGMMA(200, 100, 101, 102, 103, 104, 105, 106, 107, 108)
PRELUDE_WGMMA(208, 104, 105, 106, 107, 108, 109, 110, 111, 112)
PRELUDE_WGMMA(216, 108, 109, 110, 111, 112, 113, 114, 115, 116)
PRELUDE_WGMMA(224, 112, 113, 114, 115, 116, 117, 118, 119, 120)
PRELUDE_WGMMA(232, 116, 117, 118, 119, 120, 121, 122, 123, 124)
PRELUDE_WGMMA(240, 120, 121, 122, 123, 124, 125, 126, 127, 128)
PRELUDE_WGMMA(248, 124, 125, 126, 127, 128, 129, 130, 131, 132)
PRELUDE_WGMMA(256, 128, 129, 130, 131, 132, 133, 134, 135, 136)

#undef PRELUDE_WGMMA

}  // namespace prelude

#endif
