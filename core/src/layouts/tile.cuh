// What the products of all layouts share, see `mod.rs` and `tile.rs`: a block multiplies a tile by some tokens, a lane
// of each warp has a row of it, and warps divide the columns among themselves.
#pragma once
#include "../cuda/kernel.cuh"

// Warps of a block, and tokens that it meets at most.
#define WARPS 8u
#define THREADS (WARPS * LANES)
#define MANY 8u

// A matrix, or a stack of them.
struct Stack {
    const unsigned* tiles;
    // Words of a tile, tiles of a matrix, rows and stored columns of one.
    unsigned tile_words, count, rows, columns;
};

// Where a product goes, see `Sink`.
struct Sink {
    float* out;
    const float* bias;
    unsigned add;
};

// A product of a launch; those of one launch share input and layout, and the tiles of each follow those before it.
struct Part {
    Stack stack;
    Sink sink;
};
// Of such a parameter (`PARTS`) fields are read where they are needed, and take no registers meanwhile.
struct Parts {
    Part list[3];
};
#define PARTS const __grid_constant__ Parts parts

// A part, and which of its tiles a block has.
struct Spot {
    const Part& part;
    unsigned tile;
};
DEVICE Spot spot_of(const Parts& parts) {
    unsigned part = 0, tile = blockIdx.y;
    while (tile >= parts.list[part].stack.count) tile -= parts.list[part++].stack.count;
    return {parts.list[part], tile};
}

// What a block computes.
struct Job {
    const Parts& parts;
    // The first part's: tiles of all have as many words and columns.
    const Stack& stack;
    const unsigned* tile;
    unsigned matrix;
    // The first of its tokens, and how many there are in all.
    unsigned first, tokens;
};

// Blocks of one tile follow one another, so that what the first of them read is still near for the others.
DEVICE Job job_of(const Parts& parts, const Routed& routed, unsigned tokens, unsigned at_once) {
    Spot spot = spot_of(parts);
    const Stack& stack = spot.part.stack;
    unsigned matrix = routed.memory ? expert_of(routed, blockIdx.x) : 0;
    const unsigned* tile = stack.tiles + ((size_t)matrix * stack.count + spot.tile) * stack.tile_words;
    return {parts, parts.list[0].stack, tile, matrix, blockIdx.x * at_once, tokens};
}

// The row of the prepared input that a token takes; past the last token it is the last, whose result is dropped.
DEVICE size_t input_row(const Job& job, const Routed& routed, unsigned token) {
    if (routed.memory && routed.by_token) return row_of(routed, token);
    return token < job.tokens ? token : job.tokens - 1;
}

// A lane's row of a tile, of one token.
DEVICE void emit_row(const Part& part, unsigned tile, unsigned matrix, unsigned token, float y) {
    unsigned row = tile * LANES + lane(), rows = part.stack.rows;
    if (row >= rows) return;
    float* out = part.sink.out + (size_t)token * rows + row;
    if (part.sink.bias) y += part.sink.bias[(size_t)matrix * rows + row];
    *out = part.sink.add ? *out + y : y;
}

DEVICE void emit(const Job& job, unsigned token, float y) {
    Spot spot = spot_of(job.parts);
    if (token < job.tokens) emit_row(spot.part, spot.tile, job.matrix, token, y);
}

// The sums of all warps in their order; warp `g` gets those of the block's token `g`. `room` holds a word for every
// warp, token and lane.
template <class T, unsigned G> DEVICE T gather_warps(const T (&sums)[G], T* room) {
    for (unsigned g = 0; g < G; ++g) room[(warp() * G + g) * LANES + lane()] = sums[g];
    __syncthreads();
    T total = 0;
    if (warp() < G) {
        for (unsigned w = 0; w < WARPS; ++w) total += room[(w * G + warp()) * LANES + lane()];
    }
    return total;
}

// A kernel for one token and one for many, of a function with `G` as its last template parameter. Two blocks to a
// processor are asked for: left alone, the assembler spills to fit in six.
#define FOR_TOKENS(name, parameters, ...)                                       \
    KERNEL __launch_bounds__(THREADS, 2) name##_1 parameters { __VA_ARGS__(1); }    \
    EXPORT(name##_1)                                                            \
    KERNEL __launch_bounds__(THREADS, 2) name##_8 parameters { __VA_ARGS__(MANY); } \
    EXPORT(name##_8)
