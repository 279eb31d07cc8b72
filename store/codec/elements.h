/* elements.h - from symbols to elements, compiled once per instruction set: the including file is built with that
 * set's flags. Everything is static. */
#ifndef CWS_CODEC_ELEMENTS_H
#define CWS_CODEC_ELEMENTS_H
#include "fast.h"

#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed" /* an unroll that did not happen is only slower */
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Of a row of `rest` elements. */
ALWAYS_INLINE unsigned partial_symbols(unsigned rest, unsigned lane)
{
    unsigned before = 8 * lane;
    return rest > before ? (rest - before < 8 ? rest - before : 8) : 0;
}

ALWAYS_INLINE unsigned lane_symbols_of(unsigned elems, unsigned lane)
{
    return elems / CWS_TILE_ROW * 8 + partial_symbols(elems % CWS_TILE_ROW, lane);
}

/* Element order: row r of 256 takes 8 symbols of each lane. Up to 255 bytes of the last row are of no meaning. */
static inline const uint8_t *tile_linear(const struct cws_tile *tile)
{
    for (unsigned r = 0; r * CWS_TILE_ROW < tile->elems; r++) {
        const uint8_t *from = tile->lanes + 8 * r;
        uint8_t *to = tile->linear + r * CWS_TILE_ROW;
        UNROLL for (unsigned l = 0; l < CWS_TILE_LANES; l++) memcpy(to + 8 * l, from + l * tile->stride, 8);
    }
    return tile->linear;
}

ALWAYS_INLINE uint16_t unrotate(unsigned symbol, unsigned below)
{
    unsigned v = symbol << 8 | below;
    return (uint16_t)(v >> 1 | v << 15);
}

ALWAYS_INLINE void split2(const uint8_t *symbol, const uint8_t *p0, unsigned from, unsigned n, uint8_t *dst)
{
    for (unsigned i = from; i < n; i++) {
        uint16_t v = unrotate(symbol[i], p0[i]);
        memcpy(dst + 2 * (size_t)i, &v, 2);
    }
}

static void split4(const uint8_t *symbol, const uint8_t *p0, const uint8_t *p1, const uint8_t *p2, unsigned n,
                   uint8_t *dst)
{
    for (unsigned i = 0; i < n; i++) {
        uint32_t v = (uint32_t)unrotate(symbol[i], p2[i]) << 16 | (uint32_t)p1[i] << 8 | p0[i];
        memcpy(dst + 4 * (size_t)i, &v, 4);
    }
}

static void split8(const uint8_t *symbol, const uint8_t *const *p, unsigned n, uint8_t *dst)
{
    for (unsigned i = 0; i < n; i++) {
        uint64_t v = (uint64_t)unrotate(symbol[i], p[6][i]) << 48;
        UNROLL for (unsigned b = 0; b < 6; b++) v |= (uint64_t)p[b][i] << (8 * b);
        memcpy(dst + 8 * (size_t)i, &v, 8);
    }
}

static void split_linear(const uint8_t *symbols, const struct cws_tile *tile, unsigned elem_bytes, uint8_t *dst)
{
    if (elem_bytes == 1)
        memcpy(dst, symbols, tile->elems);
    else if (elem_bytes == 2)
        split2(symbols, tile->plane[0], 0, tile->elems, dst);
    else if (elem_bytes == 4)
        split4(symbols, tile->plane[0], tile->plane[1], tile->plane[2], tile->elems, dst);
    else
        split8(symbols, tile->plane, tile->elems, dst);
}

static inline void tile_split(const struct cws_tile *tile, unsigned elem_bytes, uint8_t *dst)
{
    split_linear(tile_linear(tile), tile, elem_bytes, dst);
}

/* The next tile's lines are fetched while this one is merged and the next one's lanes are decoded; without, a buffer
 * that is not in the cache costs an eighth. A prefetch past the buffer's end does not fault. */
#define SPLIT_AHEAD (2u * 256u * CWS_TILE_LANES)

/* As tile_split(), with elements of 2 bytes straight from the lanes: pair() makes 16 of eight symbols of each of two
 * lanes and 16 plane bytes. */
ALWAYS_INLINE void tile_split_pairs(const struct cws_tile *tile, unsigned elem_bytes, uint8_t *dst,
                                    void (*pair)(const uint8_t *lane0, const uint8_t *lane1, const uint8_t *plane,
                                                 uint8_t *dst))
{
    if (elem_bytes != 2) {
        tile_split(tile, elem_bytes, dst);
        return;
    }
    unsigned rows = tile->elems / CWS_TILE_ROW;
    for (unsigned r = 0; r < rows; r++) {
        const uint8_t *lane = tile->lanes + 8 * r, *plane = tile->plane[0] + r * CWS_TILE_ROW;
        uint8_t *to = dst + 2 * (size_t)r * CWS_TILE_ROW;
        UNROLL for (unsigned i = 0; i < 2 * CWS_TILE_ROW; i += 64) __builtin_prefetch(to + SPLIT_AHEAD + i, 0, 2);
        UNROLL for (unsigned l = 0; l < CWS_TILE_LANES; l += 2)
            pair(lane + l * tile->stride, lane + (l + 1) * tile->stride, plane + 8 * l, to + 16 * l);
    }
    if (tile->elems % CWS_TILE_ROW != 0) {
        tile_linear(tile);
        split2(tile->linear, tile->plane[0], rows * CWS_TILE_ROW, tile->elems, dst);
    }
}

ALWAYS_INLINE uint32_t float_bits(float f)
{
    uint32_t v;
    memcpy(&v, &f, 4);
    return v;
}

/* Never a NaN here: the product of a small integer and a finite scale. */
ALWAYS_INLINE uint16_t to_bf16(float f)
{
    uint32_t v = float_bits(f);
    return (uint16_t)((v + 0x7fff + (v >> 16 & 1)) >> 16);
}

ALWAYS_INLINE uint16_t to_f16(float f)
{
    uint32_t v = float_bits(f), sign = v >> 16 & 0x8000, a = v & 0x7fffffff;
    if (a >= 0x477ff000) /* 65520 and more round to infinity */
        return (uint16_t)(sign | 0x7c00);
    if (a >= 0x38800000) { /* normal as f16 */
        a += 0xfff + (a >> 13 & 1);
        return (uint16_t)(sign | ((a - 0x38000000) >> 13));
    }
    unsigned shift = 126 - (a >> 23); /* 2^-24 is one step; 1.x * 2^(e-127) = mantissa * 2^(e-150) */
    if (shift > 25)
        return (uint16_t)sign;
    uint32_t mantissa = (a & 0x7fffff) | 0x800000, steps = mantissa >> shift, dropped = mantissa & ((1u << shift) - 1);
    uint32_t half = 1u << (shift - 1);
    steps += dropped > half || (dropped == half && (steps & 1));
    return (uint16_t)(sign | steps);
}

static void tile_quant(const uint8_t *symbols, unsigned count, float scale, enum cws_dtype dtype, uint8_t *dst)
{
    if (dtype == CWS_F32) {
        for (unsigned i = 0; i < count; i++) {
            float f = (float)(symbols[i] - 128) * scale;
            memcpy(dst + 4 * (size_t)i, &f, 4);
        }
    } else if (dtype == CWS_BF16) {
        for (unsigned i = 0; i < count; i++) {
            uint16_t v = to_bf16((float)(symbols[i] - 128) * scale);
            memcpy(dst + 2 * (size_t)i, &v, 2);
        }
    } else {
        for (unsigned i = 0; i < count; i++) {
            uint16_t v = to_f16((float)(symbols[i] - 128) * scale);
            memcpy(dst + 2 * (size_t)i, &v, 2);
        }
    }
}

#endif
