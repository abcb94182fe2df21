// Unquantized weights, see `wide.rs`, times float32. Not the processor's bits: sums are divided among warps.
#include "tile.cuh"

#define F32 0u
#define BF16 1u
#define F16 2u
// Words that a warp takes at once.
#define RUN 8u

template <unsigned KIND> DEVICE float part(unsigned word, unsigned j) {
    if (KIND == F32) return __uint_as_float(word);
    if (KIND == BF16) return __uint_as_float(j ? word & 0xffff0000u : word << 16);
    return half_value(j ? word >> 16 : word & 0xffff);
}

// Shared memory: a word for every warp, token and lane.
template <unsigned KIND, unsigned G>
DEVICE void multiply(const Parts& parts, const Routed& routed, unsigned tokens, const float* x) {
    const unsigned PER_WORD = KIND == F32 ? 1 : 2;
    Job job = job_of(parts, routed, tokens, G);
    unsigned columns = job.stack.columns;
    const float* inputs[G];
    float sums[G];
    for (unsigned g = 0; g < G; ++g) {
        inputs[g] = x + input_row(job, routed, job.first + g) * columns;
        sums[g] = 0.0f;
    }
    unsigned words = (columns + PER_WORD - 1) / PER_WORD;
    AS_WRITTEN for (unsigned first = warp() * RUN; first < words; first += WARPS * RUN) {
        unsigned end = first + RUN < words ? first + RUN : words;
        AS_WRITTEN for (unsigned w = first; w < end; ++w) {
            unsigned word = job.tile[(size_t)w * LANES + lane()];
            for (unsigned j = 0; j < PER_WORD; ++j) {
                unsigned column = w * PER_WORD + j;
                // The last word may hold fewer columns than it could.
                if (column >= columns) break;
                float weight = part<KIND>(word, j);
                for (unsigned g = 0; g < G; ++g) sums[g] = fmaf(weight, inputs[g][column], sums[g]);
            }
        }
    }
    float sum = gather_warps<float, G>(sums, SHARED(float));
    if (warp() < G) emit(job, job.first + warp(), sum);
}

#define PARAMETERS (PARTS, Routed routed, unsigned tokens, const float* x)
#define OF_F32(G) multiply<F32, G>(parts, routed, tokens, x)
#define OF_BF16(G) multiply<BF16, G>(parts, routed, tokens, x)
#define OF_F16(G) multiply<F16, G>(parts, routed, tokens, x)
FOR_TOKENS(wide_f32, PARAMETERS, OF_F32)
FOR_TOKENS(wide_bf16, PARAMETERS, OF_BF16)
FOR_TOKENS(wide_f16, PARAMETERS, OF_F16)

// A block has a token of a table.
KERNEL embed_wide(Stack stack, unsigned kind, const unsigned* tokens, float scale, float* out) {
    unsigned token = tokens[blockIdx.x], per_word = kind == F32 ? 1 : 2;
    const unsigned* tile = stack.tiles + (size_t)(token / LANES) * stack.tile_words + token % LANES;
    out += (size_t)blockIdx.x * stack.columns;
    AS_WRITTEN for (unsigned i = threadIdx.x; i < stack.columns; i += blockDim.x) {
        unsigned word = tile[(size_t)(i / per_word) * LANES], j = i % per_word;
        float x = kind == F32 ? part<F32>(word, j) : kind == BF16 ? part<BF16>(word, j) : part<F16>(word, j);
        out[i] = scale != 1.0f ? x * scale : x;
    }
}
EXPORT(embed_wide)
