// Eight-bit weights with a scale per row, see `code8.rs`. Times int8 the same bits as on the processor.
#include "tensor.cuh"

DEVICE const float* scales_of(const Stack& stack, const unsigned* tile) {
    return (const float*)(tile + (size_t)(stack.columns + 3) / 4 * LANES);
}

// `memory` is what `take_int8` made of `inputs` rows. Shared memory: a word for every warp, token and lane.
template <unsigned G>
DEVICE void multiply(const Parts& parts, const Routed& routed, unsigned tokens, unsigned inputs,
                     const unsigned* memory) {
    Job job = job_of(parts, routed, tokens, G);
    unsigned words = (job.stack.columns + 3) / 4;
    const float* scales = (const float*)(memory + (size_t)inputs * words);
    const int* block_sums = (const int*)(scales + inputs);
    size_t rows[G];
    int dots[G];
    for (unsigned g = 0; g < G; ++g) {
        rows[g] = input_row(job, routed, job.first + g);
        dots[g] = 0;
    }
    AS_WRITTEN for (unsigned w = warp(); w < words; w += WARPS) {
        unsigned word = job.tile[(size_t)w * LANES + lane()];
        for (unsigned g = 0; g < G; ++g) dots[g] = dot4(word, memory[rows[g] * words + w], dots[g]);
    }
    int dot = gather_warps<int, G>(dots, SHARED(int));
    if (warp() >= G) return;
    size_t row = input_row(job, routed, job.first + warp());
    float y = (float)(dot - 128 * block_sums[row]) * scales_of(job.stack, job.tile)[lane()];
    emit(job, job.first + warp(), y * scales[row]);
}

#define PARAMETERS (PARTS, Routed routed, unsigned tokens, unsigned inputs, const unsigned* memory)
#define INTEGERS(G) multiply<G>(parts, routed, tokens, inputs, memory)
FOR_TOKENS(rows8, PARAMETERS, INTEGERS)

// The same for many tokens, see `tensor.cuh`: all of a row is one block.
struct SlicesOfRows {
    const unsigned* x;
    const float* scales;
    const int* sums;
    unsigned words, slices, together;
    int bias;
    bool is_one;

    DEVICE bool has_zeros() const { return false; }
    DEVICE bool is_first(unsigned slice) const { return slice == 0; }
    DEVICE void load(FreshIntegers& fresh, const unsigned* tile, unsigned slice) const {
        UNROLLED for (unsigned i = 0; i < SLICE_WORDS; ++i) {
            unsigned w = slice * SLICE_WORDS + i;
            if (w < words) fresh.words[i] = tile[(size_t)w * LANES + lane()];
        }
    }
    DEVICE unsigned word_of_x(size_t row, unsigned w) const { return w < words ? x[row * words + w] : 0; }
    DEVICE void load_x(FreshIntegers& fresh, size_t row, unsigned slice, unsigned half) const {
        unsigned w = slice * SLICE_WORDS + half * 4;
        fresh.x = {word_of_x(row, w), word_of_x(row, w + 1), word_of_x(row, w + 2), word_of_x(row, w + 3)};
        if (slice == 0 && !half) fresh.sum = sums[row];
    }
    DEVICE void open(const FreshIntegers& fresh, unsigned, unsigned (&bytes)[SLICE_WORDS], float&, float&) const {
        UNROLLED for (unsigned i = 0; i < SLICE_WORDS; ++i) bytes[i] = fresh.words[i];
    }
    DEVICE float multiple(const Stack& stack, const unsigned* tile) const { return scales_of(stack, tile)[lane()]; }
    DEVICE float scale_of_x(size_t row) const { return scales[row]; }
};

KERNEL __launch_bounds__(THREADS, 2) rows8_64 PARAMETERS {
    unsigned words = (parts.list[0].stack.columns + 3) / 4, slices = (words + SLICE_WORDS - 1) / SLICE_WORDS;
    const float* scales = (const float*)(memory + (size_t)inputs * words);
    SlicesOfRows weights = {memory, scales, (const int*)(scales + inputs), words, slices, slices, 128, true};
    multiply_many(weights, parts, routed, tokens);
}
EXPORT(rows8_64)

DEVICE float value(unsigned word, unsigned j) { return (float)(word >> (8 * j) & 0xff) - 128.0f; }

// The same in float32.
template <unsigned G>
DEVICE void multiply_float(const Parts& parts, const Routed& routed, unsigned tokens, const float* x) {
    Job job = job_of(parts, routed, tokens, G);
    unsigned columns = job.stack.columns;
    const float* inputs[G];
    float sums[G];
    for (unsigned g = 0; g < G; ++g) {
        inputs[g] = x + input_row(job, routed, job.first + g) * columns;
        sums[g] = 0.0f;
    }
    float scale = scales_of(job.stack, job.tile)[lane()];
    AS_WRITTEN for (unsigned w = warp(); w < (columns + 3) / 4; w += WARPS) {
        unsigned word = job.tile[(size_t)w * LANES + lane()];
        AS_WRITTEN for (unsigned j = 0; j < 4 && 4 * w + j < columns; ++j) {
            float weight = value(word, j) * scale;
            for (unsigned g = 0; g < G; ++g) sums[g] = fmaf(weight, inputs[g][4 * w + j], sums[g]);
        }
    }
    float sum = gather_warps<float, G>(sums, SHARED(float));
    if (warp() < G) emit(job, job.first + warp(), sum);
}

#define FLOAT_PARAMETERS (PARTS, Routed routed, unsigned tokens, const float* x)
#define FLOATS(G) multiply_float<G>(parts, routed, tokens, x)
FOR_TOKENS(rows8_float, FLOAT_PARAMETERS, FLOATS)

// A block has a token of a table.
KERNEL embed_rows8(Stack stack, const unsigned* tokens, float scale, float* out) {
    unsigned token = tokens[blockIdx.x];
    const unsigned* tile = stack.tiles + (size_t)(token / LANES) * stack.tile_words;
    float of_row = scales_of(stack, tile)[token % LANES];
    out += (size_t)blockIdx.x * stack.columns;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < stack.columns; i += blockDim.x) {
        float x = value(tile[(size_t)(i / 4) * LANES + token % LANES], i % 4) * of_row;
        out[i] = scale != 1.0f ? x * scale : x;
    }
}
EXPORT(embed_rows8)
