/* encode_portable.c - the encoder's inner loops in plain C, for every machine. */
#include "encode.h"

static bool always(void) { return true; }

static void split2(const uint8_t *elems, size_t count, uint8_t *plane, uint8_t *symbols)
{
    for (size_t i = 0; i < count; i++) {
        uint16_t v;
        memcpy(&v, elems + 2 * i, 2);
        plane[i] = (uint8_t)(v << 1 | v >> 15);
        symbols[i] = (uint8_t)(v >> 7);
    }
}

/* Four tables, so that a run of one symbol does not wait for its own counter. */
static void count2(const uint8_t *elems, size_t count, uint64_t histogram[256])
{
    uint32_t table[4][256] = {{0}};
    size_t i = 0;
    for (; i + 4 <= count; i += 4) {
        uint64_t v;
        memcpy(&v, elems + 2 * i, 8);
        table[0][v >> 7 & 0xff]++;
        table[1][v >> 23 & 0xff]++;
        table[2][v >> 39 & 0xff]++;
        table[3][v >> 55 & 0xff]++;
    }
    for (; i < count; i++) {
        uint16_t v;
        memcpy(&v, elems + 2 * i, 2);
        table[0][v >> 7 & 0xff]++;
    }
    for (unsigned s = 0; s < 256; s++)
        histogram[s] += (uint64_t)table[0][s] + table[1][s] + table[2][s] + table[3][s];
}

#define PROBE 512      /* elements that tell which they are */
#define COVER_MIN 0.97 /* below, vectors do not pay */

int cws_common_base(const uint8_t *elems, size_t count)
{
    uint32_t probe[256] = {0}, sum = 0, most = 0;
    size_t n = count < PROBE ? count : PROBE;
    int base = 0;
    for (size_t i = 0; i < n; i++) {
        uint16_t v;
        memcpy(&v, elems + 2 * i, 2);
        probe[v >> 7 & 0xff]++;
    }
    for (int s = 0; s < 256; s++) {
        sum += probe[s] - (s >= CWS_COMMON ? probe[s - CWS_COMMON] : 0);
        if (sum > most) {
            most = sum;
            base = s - CWS_COMMON + 1;
        }
    }
    return most < COVER_MIN * (double)n ? -1 : base < 0 ? 0 : base;
}

/* Without its sign, an element's order is that of its symbol. One less, modulo 256, puts symbol 0 last. */
static void range2(const uint8_t *elems, size_t count, uint8_t *out_least, uint8_t *out_most)
{
    uint16_t least = 0xffff, most = 0;
    for (size_t i = 0; i < count; i++) {
        uint16_t v;
        memcpy(&v, elems + 2 * i, 2);
        uint16_t u = (uint16_t)(v << 1), less = (uint16_t)(u - 256);
        least = less < least ? less : least;
        most = u > most ? u : most;
    }
    *out_least = least >> 8 == 255 ? 255 : (uint8_t)((least >> 8) + 1);
    *out_most = (uint8_t)(most >> 8);
}

/* Appends the lane's symbols, four at a time: at most 48 bits. Returns its length; ORs the entries into *seen. */
static uint32_t encode_lane(const uint32_t code[256], const uint8_t *symbols, unsigned lane, unsigned elems,
                            struct cws_bits *b, uint32_t *seen)
{
    uint32_t total = 0;
    for (unsigned r = 8 * lane; r < elems; r += CWS_TILE_ROW) {
        unsigned n = elems - r < 8 ? elems - r : 8;
        for (unsigned i = 0; i < n; i += 4) {
            uint64_t word = 0;
            unsigned bits = 0, stop = n - i < 4 ? n - i : 4;
            for (unsigned k = 0; k < stop; k++) {
                uint32_t e = code[symbols[r + i + k]];
                *seen |= e;
                word |= (uint64_t)(e & 0xffff) << bits;
                bits += e >> 16 & 15;
            }
            cws_bits_append(b, word, bits);
            total += bits;
        }
    }
    return total;
}

static uint8_t *tile(const struct cws_encode_table *table, const uint8_t *symbols, unsigned elems, uint8_t *to,
                     uint32_t lane_bits[CWS_TILE_LANES])
{
    struct cws_bits b = {to, 0, 0};
    uint32_t seen = 0;
    for (unsigned l = 0; l < CWS_TILE_LANES; l++)
        lane_bits[l] = encode_lane(table->code, symbols, l, elems, &b, &seen);
    return seen & CWS_CODE_ABSENT ? NULL : cws_bits_end(&b, to);
}

const struct cws_encoder_ops cws_encoder_portable = {
    .variant = {"portable", always},
    .split2 = split2,
    .count2 = count2,
    .range2 = range2,
    .tile = tile,
};
