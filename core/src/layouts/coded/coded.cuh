// How codes lie in a tile, for the kernels: see `mod.rs` and `trits.rs`, which have it drawn.
#pragma once
#include "../tile.cuh"

// Side words, numbered as in `mod.rs`.
#define FLOAT 0u
#define PAIR 1u
#define ZERO 2u
#define EXPONENTS 3u
#define QUARTERS 4u
#define HALVES 5u
#define ROW 6u
// One of the last three, told apart while it runs.
#define FOURS 7u

#define DIGITS 5u

// A layout of codes, and the blocks of a row of the matrix at hand.
struct Coding {
    unsigned bits, block, side, trits, blocks;
    // The byte that stands for zero, whether codes are chosen from the book, and its step.
    unsigned bias, table;
    float unit;
    unsigned bytes[4];
    float values[16];
};

DEVICE unsigned unit_blocks(unsigned side) {
    return side == FLOAT || side == ZERO ? 1 : side == PAIR ? 2 : 4;
}
DEVICE unsigned scale_words(unsigned side) { return side == FLOAT || side == QUARTERS ? 2 : side == ROW ? 0 : 1; }

// Where a block lies, in words from the tile's start.
struct Place {
    const unsigned *side, *codes;
    unsigned member;
};

DEVICE Place place_of(const unsigned* tile, unsigned side, unsigned block_words, bool trits, unsigned block) {
    unsigned of_unit = unit_blocks(side), side_words = scale_words(side) + (trits ? 1 : 0);
    Place place;
    place.member = block % of_unit;
    place.side = tile + (size_t)(block / of_unit) * (side_words + of_unit * block_words) * LANES;
    place.codes = place.side + (size_t)(side_words + place.member * block_words) * LANES;
    return place;
}

// The scale of a lane's row, without the row's multiple; and its zero.
DEVICE float scale_of(const Place& place, unsigned side) {
    const unsigned* words = place.side + lane();
    switch (side) {
        case FLOAT: return __uint_as_float(words[0]);
        case PAIR: return half_value(words[0] >> (16 * place.member) & 0xffff);
        case ZERO: return half_value(words[0] & 0xffff);
        case EXPONENTS: return __uint_as_float((words[0] >> (8 * place.member) & 0xff) << 23);
        case QUARTERS: return half_value(words[place.member / 2 * LANES] >> (16 * (place.member % 2)) & 0xffff);
        case HALVES: return half_value(words[0] >> (16 * (place.member / 2)) & 0xffff);
        default: return 1.0f;
    }
}

DEVICE float zero_of(const Place& place, unsigned side) {
    const unsigned* words = place.side + lane();
    return side == FLOAT ? __uint_as_float(words[LANES]) : side == ZERO ? half_value(words[0] >> 16) : 0.0f;
}

// What the scales of a lane's row are multiples of: the last words of a tile.
DEVICE float multiple_of(const Stack& stack, const unsigned* tile) {
    return __uint_as_float(tile[stack.tile_words - LANES + lane()]);
}

// The digits of four bytes, the first of each in `digits[0]`: what a tripled fraction has before the point.
DEVICE void digits_of(unsigned word, unsigned (&digits)[DIGITS]) {
    word ^= 0x80808080u;
    unsigned even = word & 0x00ff00ffu, odd = word >> 8 & 0x00ff00ffu;
    for (unsigned k = 0; k < DIGITS; ++k) {
        even *= 3, odd *= 3;
        digits[k] = (even >> 8 & 0x00ff00ffu) | (odd & 0xff00ff00u);
        even &= 0x00ff00ffu, odd &= 0x00ff00ffu;
    }
}
