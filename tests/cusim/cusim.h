// CUDA's words for a kernel that is compiled as plain C++: a thread of a block is a fiber, a block runs at a time.
//
// Kernels are compiled with -fsanitize=thread, whose calls `fibers.cpp` answers itself: so every load and store of a
// kernel is seen, those beyond their memory are refused, and so are those to shared memory that no barrier orders.
// What this cannot show: fences, coalescing, speed, and what the device's own approximations round to.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

namespace cusim {
struct Index { unsigned x, y, z; };
extern Index thread, block, block_size, grid_size;
void* shared();
void barrier();
void warp_barrier(unsigned mask);
unsigned exchange(unsigned mask, unsigned value, unsigned source);
void multiply_bytes(int (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
void multiply_bfloats(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

// A kernel by its name, with the sizes of its parameters, so that a launch can keep them until it is run.
struct Entry {
    const char* name;
    unsigned count;
    const size_t* sizes;
    void (*run)(void** parameters);
    Entry* next;
    Entry(const char* name, unsigned count, const size_t* sizes, void (*run)(void**));
};

template <auto kernel> struct Call;
template <class... A, void (*kernel)(A...)> struct Call<kernel> {
    static constexpr unsigned count = sizeof...(A);
    static constexpr size_t sizes[] = {sizeof(A)...};
    static void run(void** parameters) { with(parameters, std::index_sequence_for<A...>{}); }
    template <size_t... I> static void with(void** parameters, std::index_sequence<I...>) {
        kernel(*static_cast<std::remove_cv_t<A>*>(parameters[I])...);
    }
};
}  // namespace cusim

#define EXPORT(name) \
    static cusim::Entry entry_##name(#name, cusim::Call<name>::count, cusim::Call<name>::sizes, cusim::Call<name>::run);

#define threadIdx cusim::thread
#define blockIdx cusim::block
#define blockDim cusim::block_size
#define gridDim cusim::grid_size
#define SHARED(T) static_cast<T*>(cusim::shared())

static inline void __syncthreads() { cusim::barrier(); }
static inline void __syncwarp(unsigned mask = ~0u) { cusim::warp_barrier(mask); }

static inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
static inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }

template <class T> static inline T __shfl_xor_sync(unsigned mask, T value, unsigned by) {
    static_assert(sizeof(T) == 4, "words are exchanged");
    unsigned source = (threadIdx.x & 31) ^ by;
    return __builtin_bit_cast(T, cusim::exchange(mask, __builtin_bit_cast(unsigned, value), source));
}

// The bytes of `a` (0 to 3) and `b` (4 to 7) that the low three bits of the selector's nibbles name.
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long both = a | (unsigned long long)b << 32;
    unsigned out = 0;
    for (unsigned i = 0; i < 4; ++i) {
        unsigned from = selector >> (4 * i) & 7;
        out |= (unsigned)(both >> (8 * from) & 0xff) << (8 * i);
    }
    return out;
}

#define HAS_BFLOATS 1
using cusim::multiply_bfloats;
using cusim::multiply_bytes;

// The dot product of four unsigned bytes with four signed ones, added to a sum.
static inline int dot4(unsigned bytes, unsigned x, int sum) {
    for (unsigned i = 0; i < 4; ++i) {
        sum += (int)(bytes >> (8 * i) & 0xff) * (int)(int8_t)(x >> (8 * i) & 0xff);
    }
    return sum;
}

static inline float half_value(unsigned bits) {
    return (float)__builtin_bit_cast(_Float16, (uint16_t)bits);
}
static inline uint16_t half_bits(float x) { return __builtin_bit_cast(uint16_t, (_Float16)x); }
