// Codes times float32, see `float.rs`, and rows of tables. Not the processor's bits: sums are divided among warps.
#include "coded.cuh"

// The value of a lane's code in a column of a block, before scale and zero.
DEVICE float code_value(const Coding& coding, const Place& place, unsigned column) {
    if (coding.trits) {
        // Of 64 columns the last four stand in the word that the unit's blocks share.
        bool is_own = column < 60;
        unsigned word = is_own ? place.codes[column / 20 * LANES + lane()]
                               : place.side[scale_words(coding.side) * LANES + lane()];
        unsigned digits[DIGITS], digit = is_own ? column % 20 / 4 : place.member + 1, found = 0;
        digits_of(word, digits);
        for (unsigned k = 0; k < DIGITS; ++k) found = k == digit ? digits[k] : found;
        return (float)(found >> (8 * (column % 4)) & 0xff) - (float)coding.bias;
    }
    unsigned per_word = 32 / coding.bits, shift = 8 * (column % 4) + coding.bits * (column % per_word / 4);
    unsigned code = place.codes[column / per_word * LANES + lane()] >> shift & ((1u << coding.bits) - 1);
    return coding.table ? coding.values[code] : (float)code - (float)coding.bias;
}

DEVICE Place block_of(const Coding& coding, const unsigned* tile, unsigned block) {
    unsigned words = coding.block * coding.bits / 32 - coding.trits;
    return place_of(tile, coding.side, words, coding.trits, block);
}

// Shared memory: a word for every warp, token and lane.
template <unsigned G>
DEVICE void multiply(const Coding& coding, const Parts& parts, const Routed& routed, unsigned tokens, const float* x) {
    Job job = job_of(parts, routed, tokens, G);
    unsigned columns = job.stack.columns;
    const float* inputs[G];
    float sums[G];
    for (unsigned g = 0; g < G; ++g) {
        inputs[g] = x + input_row(job, routed, job.first + g) * columns;
        sums[g] = 0.0f;
    }
    float multiple = multiple_of(job.stack, job.tile);
    AS_WRITTEN for (unsigned block = warp(); block < coding.blocks; block += WARPS) {
        Place place = block_of(coding, job.tile, block);
        float scale = scale_of(place, coding.side) * multiple, zero = zero_of(place, coding.side);
        unsigned first = block * coding.block;
        AS_WRITTEN for (unsigned j = 0; j < coding.block && first + j < columns; ++j) {
            float weight = (code_value(coding, place, j) - zero) * scale;
            for (unsigned g = 0; g < G; ++g) sums[g] = fmaf(weight, inputs[g][first + j], sums[g]);
        }
    }
    float sum = gather_warps<float, G>(sums, SHARED(float));
    if (warp() < G) emit(job, job.first + warp(), sum);
}

#define PARAMETERS \
    (const __grid_constant__ Coding coding, PARTS, Routed routed, unsigned tokens, const float* x)
#define FLOATS(G) multiply<G>(coding, parts, routed, tokens, x)
FOR_TOKENS(coded_float, PARAMETERS, FLOATS)

// A block has a token of a table; each warp takes blocks of its row, all its lanes the same row's.
KERNEL embed_coded(const __grid_constant__ Coding coding, Stack stack, const unsigned* tokens, float scale,
                   float* out) {
    unsigned token = tokens[blockIdx.x];
    const unsigned* tile = stack.tiles + (size_t)(token / LANES) * stack.tile_words;
    out += (size_t)blockIdx.x * stack.columns;
    AS_WRITTEN for (unsigned block = warp(); block < coding.blocks; block += warps()) {
        Place place = block_of(coding, tile, block);
        float of_block = scale_of(place, coding.side) * multiple_of(stack, tile);
        float zero = zero_of(place, coding.side);
        unsigned first = block * coding.block;
        AS_WRITTEN for (unsigned j = 0; j < coding.block && first + j < stack.columns; ++j) {
            float x = (code_value(coding, place, j) - zero) * of_block;
            if (lane() == token % LANES) out[first + j] = scale != 1.0f ? x * scale : x;
        }
    }
}
EXPORT(embed_coded)
