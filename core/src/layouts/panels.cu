// A product's input as its kernels want it, see `panels.rs`. Here tokens follow one another, without groups: first the
// words of all, then their scales, then the sums of their blocks.
#include "../cuda/kernel.cuh"

// How a matrix takes its input, see `Taken`; orders and factors of a stack follow one another.
struct Taking {
    const unsigned* order;
    const float* factors;
    unsigned columns, times;
};

// Instead of the first column of an order: columns are as they are.
#define IN_ORDER 0xffffffffu

// What one token takes.
struct Input {
    const float* x;
    const unsigned* order;
    const float* factors;
};

DEVICE Input input_of(const Taking& taking, const Routed& routed, const float* x, unsigned token) {
    size_t row = token, matrix = 0;
    if (routed.memory) {
        matrix = expert_of(routed, token);
        if (routed.by_token) row = row_of(routed, token);
    }
    Input input = {x + row * taking.columns, 0, 0};
    if (taking.order && taking.order[matrix * taking.columns] != IN_ORDER) {
        input.order = taking.order + matrix * taking.columns;
    }
    if (taking.factors) input.factors = taking.factors + matrix * taking.columns;
    return input;
}

DEVICE float value_of(const Input& input, unsigned column) {
    unsigned i = input.order ? input.order[column] : column;
    return input.factors ? input.x[i] * input.factors[i] : input.x[i];
}

// To the nearest integer, ties to even, for magnitudes up to 127: a step in the last place of 1.5 * 2^23 is one.
DEVICE unsigned round_even(float x) { return __float_as_uint(x + 12582912.0f) & 0xff; }

// A block has a token. `words` are those of a token, `blocks` its blocks of `block_words`. Shared memory: a float for
// each warp.
KERNEL take_int8(Taking taking, Routed routed, const float* x, unsigned words, unsigned block_words, unsigned blocks,
                 unsigned* memory) {
    unsigned token = blockIdx.x, tokens = gridDim.x, all = taking.columns * taking.times;
    unsigned* codes = memory + (size_t)token * words;
    float* scales = (float*)(memory + (size_t)tokens * words);
    int* sums = (int*)(scales + tokens) + (size_t)token * blocks;
    Input input = input_of(taking, routed, x, token);
    float peak = 0.0f;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < taking.columns; i += blockDim.x) {
        peak = fmaxf(peak, fabsf(input.factors ? input.x[i] * input.factors[i] : input.x[i]));
    }
    float scale = block_largest(peak, SHARED(float)) / 127.0f;
    float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    if (threadIdx.x == 0) scales[token] = scale;
    for (unsigned b = warp(); b < blocks; b += warps()) {
        unsigned end = (b + 1) * block_words < words ? (b + 1) * block_words : words;
        int sum = 0;
        AS_WRITTEN for (unsigned w = b * block_words + lane(); w < end; w += LANES) {
            unsigned word = 0;
            AS_WRITTEN for (unsigned j = 0; j < 4; ++j) {
                unsigned column = 4 * w + j;
                // Beyond the row there is nothing, up to the block's end.
                if (column < all) word |= round_even(value_of(input, column % taking.columns) * inverse) << (8 * j);
            }
            codes[w] = word;
            sum = dot4(0x01010101u, word, sum);
        }
        sum = warp_sum(sum);
        if (lane() == 0) sums[b] = sum;
    }
}
EXPORT(take_int8)

// The same as they are: for matrices that have an order or factors, or take their input more than once.
KERNEL take_float(Taking taking, Routed routed, const float* x, float* memory) {
    unsigned all = taking.columns * taking.times;
    Input input = input_of(taking, routed, x, blockIdx.x);
    memory += (size_t)blockIdx.x * all;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < all; i += blockDim.x) memory[i] = value_of(input, i % taking.columns);
}
EXPORT(take_float)
