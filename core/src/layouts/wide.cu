// Unquantized weights, see `wide.rs`, times float32. Not the processor's bits: sums are divided among warps.
#include "tensor.cuh"

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

#if HAS_BFLOATS
// bfloat16 for many tokens, see `tensor.cuh`: a float32 is the sum of three bfloat16, of eight bits of it each, whose
// products with a weight float32 holds. Tensor cores drop the bits below their sums, so these are of a stage alone.
struct StageOfFloats {
    uint2 weights[SLICES][TILES * LANES * SLICE_WORDS / 2];
    uint2 x[SLICES][3][AT_ONCE * SLICE_WORDS / 2];
};

struct FreshFloats {
    unsigned words[SLICE_WORDS];
    float x[SLICE_WORDS];
};

struct Floats : Meeting {
    typedef StageOfFloats Stage;
    typedef FreshFloats Fresh;

    const float* x;
    unsigned columns;
    float sums[2][4][4];

    DEVICE unsigned slices() const { return (columns + 2 * SLICE_WORDS - 1) / (2 * SLICE_WORDS); }

    DEVICE Fresh load(unsigned first, size_t row) const {
        Fresh fresh = {};
        unsigned from = (first + warp() % SLICES) * SLICE_WORDS, words = part ? (columns + 1) / 2 : 0;
        UNROLLED for (unsigned w = 0; w < SLICE_WORDS; ++w) {
            if (from + w < words) fresh.words[w] = tile[(size_t)(from + w) * LANES + lane()];
        }
        from = (2 * (first + threadIdx.x / (2 * AT_ONCE)) + threadIdx.x % 2) * SLICE_WORDS;
        const float* of_row = x + row * columns + from;
        UNROLLED for (unsigned k = 0; k < SLICE_WORDS; ++k) {
            if (from + k < columns) fresh.x[k] = of_row[k];
        }
        return fresh;
    }

    DEVICE void lay(Stage& stage, Fresh& fresh, unsigned) const {
        unsigned s = warp() % SLICES, row = warp() / 2 * LANES + lane();
        const unsigned(&words)[SLICE_WORDS] = fresh.words;
        half_of(stage.weights[s], row, 0) = {words[0], words[1], words[2], words[3]};
        half_of(stage.weights[s], row, 1) = {words[4], words[5], words[6], words[7]};
        s = threadIdx.x / (2 * AT_ONCE);
        unsigned token = threadIdx.x % (2 * AT_ONCE) / 2;
        AS_WRITTEN for (unsigned of_three = 0; of_three < 3; ++of_three) {
            unsigned pairs[4] = {};
            UNROLLED for (unsigned k = 0; k < SLICE_WORDS; ++k) {
                unsigned bits = __float_as_uint(fresh.x[k]) & 0xffff0000u;
                float value = __uint_as_float(bits);
                pairs[k / 2] |= k % 2 ? bits : bits >> 16;
                // Of infinity nothing is left.
                fresh.x[k] = fresh.x[k] == value ? 0.0f : fresh.x[k] - value;
            }
            half_of(stage.x[s][of_three], token, threadIdx.x % 2) = {pairs[0], pairs[1], pairs[2], pairs[3]};
        }
    }

    DEVICE void multiply(const Stage& stage, unsigned first) {
        float dots[2][4][4] = {};
        AS_WRITTEN for (unsigned s = 0; s < SLICES && first + s < slices(); ++s) {
            const uint2* rows = stage.weights[s] + warp() / 2 * LANES * SLICE_WORDS / 2;
            uint2 a[2][2];
            UNROLLED for (unsigned i = 0; i < 4; ++i) a[i / 2][i % 2] = rows[two_words(8 * i + lane() / 4)];
            AS_WRITTEN for (unsigned of_three = 0; of_three < 3; ++of_three) {
                const uint2* tokens = stage.x[s][of_three] + first_token() * SLICE_WORDS / 2;
                UNROLLED for (unsigned j = 0; j < 4; ++j) {
                    uint2 b = tokens[two_words(8 * j + lane() / 4)];
                    UNROLLED for (unsigned i = 0; i < 2; ++i) {
                        unsigned of_rows[4] = {a[i][0].x, a[i][1].x, a[i][0].y, a[i][1].y}, of_tokens[2] = {b.x, b.y};
                        multiply_bfloats(dots[i][j], of_rows, of_tokens);
                    }
                }
            }
        }
        UNROLLED for (unsigned n = 0; n < 32; ++n) sums[n / 16][n / 4 % 4][n % 4] += dots[n / 16][n / 4 % 4][n % 4];
    }

    DEVICE void emit_all(float* room) const {
        UNROLLED for (unsigned n = 0; n < 32; ++n) {
            sum_at(room, n / 16, n / 4 % 4, n % 4) = sums[n / 16][n / 4 % 4][n % 4];
        }
        __syncwarp();
        unsigned first = span.first + first_token();
        AS_WRITTEN for (unsigned i = 0; i < LANES && first + i < span.end; ++i) {
            emit_row(*part, of_part, span.matrix, first + i, sum_of(room, i));
        }
    }
};
#endif

KERNEL __launch_bounds__(THREADS, 2) wide_bf16_64 PARAMETERS {
#if HAS_BFLOATS
    Span span = span_of(routed, tokens);
    if (span.first == span.end) return;
    Floats many = {{parts, routed, span}, x, parts.list[0].stack.columns};
    run(many);
#else
    // Older cards have `wide_bf16_8`; whoever starts this by mistake shall know.
    asm volatile("trap;");
#endif
}
EXPORT(wide_bf16_64)

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
