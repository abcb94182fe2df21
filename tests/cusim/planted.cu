// Kernels with faults that the tests must see caught, and their twins without. `planted.ptx` is their text as far as
// the stand-in reads one.
#include "../../core/src/cuda/kernel.cuh"

// Turns 64 values round, with and without the barrier that it takes.
template <bool BARRIER> DEVICE void turn(float* x) {
    float* room = SHARED(float);
    room[threadIdx.x] = x[threadIdx.x];
    if (BARRIER) __syncthreads();
    x[threadIdx.x] = room[blockDim.x - 1 - threadIdx.x];
}
KERNEL planted_sound(float* x) { turn<true>(x); }
EXPORT(planted_sound)
KERNEL planted_no_barrier(float* x) { turn<false>(x); }
EXPORT(planted_no_barrier)

// A thread that leaves while others wait for it.
KERNEL planted_early_end(float* x) {
    if (threadIdx.x == 3) return;
    __syncthreads();
    x[threadIdx.x] = 0.0f;
}
EXPORT(planted_early_end)

// One value further than there is.
KERNEL planted_beyond(float* x) { x[threadIdx.x + 1] = 0.0f; }
EXPORT(planted_beyond)
