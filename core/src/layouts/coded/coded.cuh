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

// A block's scale is in one of its unit's side words: which, and what that word says.
DEVICE unsigned scale_at(unsigned side, unsigned member) { return side == QUARTERS ? member / 2 : 0; }
DEVICE float scale_in(unsigned word, unsigned side, unsigned member) {
    switch (side) {
        case FLOAT: return __uint_as_float(word);
        case PAIR: return half_value(word >> (16 * member) & 0xffff);
        case ZERO: return half_value(word & 0xffff);
        case EXPONENTS: return __uint_as_float((word >> (8 * member) & 0xff) << 23);
        case QUARTERS: return half_value(word >> (16 * (member % 2)) & 0xffff);
        case HALVES: return half_value(word >> (16 * (member / 2)) & 0xffff);
        default: return 1.0f;
    }
}

// The scale of a lane's row, without the row's multiple; and its zero.
DEVICE float scale_of(const Place& place, unsigned side) {
    if (side == ROW) return 1.0f;
    return scale_in(place.side[scale_at(side, place.member) * LANES + lane()], side, place.member);
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

// Sixteen bytes to choose from, by the halves of a word's bytes: the low ones, the high ones.
DEVICE void choose(const unsigned (&table)[4], unsigned word, unsigned& low, unsigned& high) {
    unsigned below = word & 0x77777777u;
    // Where a half is 8 or more, the second eight bytes count.
    unsigned which = 0x32103210u | (word & 0x88888888u) >> 1;
    unsigned a = __byte_perm(__byte_perm(table[0], table[1], below), __byte_perm(table[2], table[3], below), which);
    below >>= 16, which >>= 16;
    unsigned b = __byte_perm(__byte_perm(table[0], table[1], below), __byte_perm(table[2], table[3], below), which);
    low = __byte_perm(a, b, 0x6420);
    high = __byte_perm(a, b, 0x7531);
}

// What `take_int8` made.
struct Codes {
    const unsigned* words;
    const float* scales;
    const int* sums;
    unsigned of_row, blocks;
};

DEVICE Codes codes_of(const Coding& coding, unsigned inputs, const unsigned* memory) {
    Codes x;
    x.of_row = coding.blocks * (coding.block / 4);
    x.blocks = coding.blocks;
    x.words = memory;
    x.scales = (const float*)(memory + (size_t)inputs * x.of_row);
    x.sums = (const int*)(x.scales + inputs);
    return x;
}
