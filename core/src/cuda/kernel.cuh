// What every kernel begins with: the words that CUDA and the tests' plain C++ (`tests/cusim`) write differently, and
// structures that `cuda/src/` passes by value.
//
// Kernels use no static shared memory: `SHARED(T)` is all that the launch gives. Products and sums are never fused
// by the compiler (`--fmad=false`, `-ffp-contract=off`); where one rounding is meant, `fmaf` says so.
#pragma once

#ifdef BANTAM_SIM
#include "cusim.h"
#define AS_WRITTEN
#define UNROLLED
#else
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
extern __shared__ uint4 shared_memory[];
#define SHARED(T) ((T*)shared_memory)
#define EXPORT(name)
// A loop that is not unrolled: texts are committed, and unrolled ones are four times as long.
#define AS_WRITTEN _Pragma("unroll 1")
// One that has to be: what it counts are registers.
#define UNROLLED _Pragma("unroll")

// The dot product of four unsigned bytes with four signed ones, added to a sum.
__device__ __forceinline__ int dot4(unsigned bytes, unsigned x, int sum) {
    int out;
    asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(bytes), "r"(x), "r"(sum));
    return out;
}

// By the tensor cores of a warp, all of whose lanes come here: 16 rows of 32 unsigned bytes times 8 columns of signed
// ones, added to sums; registers are in the order of mma.m16n8k32.
__device__ __forceinline__ void multiply_bytes(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    // Half the rows and half the bytes at a time.
    UNROLLED for (unsigned i = 0; i < 4; ++i) {
        asm volatile("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0,%1}, {%2}, {%3}, {%0,%1};"
                     : "+r"(sums[i % 2 * 2]), "+r"(sums[i % 2 * 2 + 1])
                     : "r"(a[i]), "r"(b[i / 2]));
    }
#endif
}

// The same of 16 columns of bfloat16 with float32 sums, as mma.m16n8k16 has it: cards of 8.0 and later.
#define HAS_BFLOATS (__CUDA_ARCH__ >= 800)
#if HAS_BFLOATS
__device__ __forceinline__ void multiply_bfloats(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

__device__ __forceinline__ float half_value(unsigned bits) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"((uint16_t)bits));
    return out;
}
__device__ __forceinline__ uint16_t half_bits(float x) {
    uint16_t out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}
#endif

#define KERNEL extern "C" __global__ void
#define DEVICE __device__ __forceinline__

// Rows of a tile, and lanes of a warp: a lane computes a row.
#define LANES 32u
#define EVERY_LANE 0xffffffffu
#define MINUS_INFINITY __uint_as_float(0xff800000u)

DEVICE unsigned lane() { return threadIdx.x % LANES; }
DEVICE unsigned warp() { return threadIdx.x / LANES; }
DEVICE unsigned warps() { return blockDim.x / LANES; }

// The sum of all lanes, the same in each, in one order.
template <class T> DEVICE T warp_sum(T x) {
    for (unsigned by = 16; by > 0; by /= 2) x += __shfl_xor_sync(EVERY_LANE, x, by);
    return x;
}

DEVICE float warp_largest(float x) {
    for (unsigned by = 16; by > 0; by /= 2) x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, by));
    return x;
}

// The same for all threads of a block; `room` holds a float for each warp and is free again afterwards.
DEVICE float block_sum(float x, float* room) {
    x = warp_sum(x);
    if (lane() == 0) room[warp()] = x;
    __syncthreads();
    float total = 0.0f;
    for (unsigned i = 0; i < warps(); ++i) total += room[i];
    __syncthreads();
    return total;
}

DEVICE float block_largest(float x, float* room) {
    x = warp_largest(x);
    if (lane() == 0) room[warp()] = x;
    __syncthreads();
    float most = room[0];
    for (unsigned i = 1; i < warps(); ++i) most = fmaxf(most, room[i]);
    __syncthreads();
    return most;
}

// Of every row: its position, where its sequence's page table begins, how long its sequence will be.
struct Row {
    unsigned position, table, length, none;
};

// Which rows meet which matrix of a stack: see `ops/experts.rs` for what lies at `memory`, which is null for a
// matrix alone.
struct Routed {
    const unsigned* memory;
    unsigned experts;
    unsigned places;
    // Whether the input has rows for tokens, and not for places.
    unsigned by_token;
};

DEVICE unsigned expert_of(const Routed& routed, unsigned place) {
    const unsigned* segment = routed.memory + 1 + routed.experts;
    for (unsigned left = routed.memory[0]; left > 1; --left, segment += 3) {
        if (place < segment[1] + segment[2]) break;
    }
    return segment[0];
}

DEVICE unsigned row_of(const Routed& routed, unsigned place) {
    return routed.memory[1 + 4 * routed.experts + place];
}
