/* codec_lanes.h - the body of the fast decoders, compiled once per instruction set: the including file is built with
 * that set's flags and may define CWS_LANE_GROUP. Everything is static. */
#ifndef CWS_CODEC_LANES_H
#define CWS_CODEC_LANES_H
#include "codec_fast.h"
#if defined(__BMI2__)
#include <immintrin.h>
#endif

#ifndef CWS_LANE_GROUP
#define CWS_LANE_GROUP 4 /* lanes decoded side by side: hides the latency of a lookup without spilling */
#endif
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed" /* an unroll that did not happen is only slower */
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define ALWAYS_INLINE static inline __attribute__((always_inline))

#define LOOKUPS 5      /* of 11 bits in the 57 that one load is sure to give */
#define SINGLE_LOOKUPS 4 /* of 12 bits */
#define SINGLE_GROUP 8 /* lanes; no pointer of each moves, so that more of them fit the registers */
#define WINDOW_MASK ((1u << CWS_ENTRY_WINDOW) - 1)
#define SINGLE_MASK ((1u << CWS_CODE_BITS_MAX) - 1)
#define SENTINEL (UINT64_C(1) << 63)

/* How many bits the first k symbols of a window take. */
ALWAYS_INLINE unsigned symbols_bits(uint64_t bounds, unsigned k)
{
#if defined(__BMI2__)
    return (unsigned)_tzcnt_u64(_pdep_u64(UINT64_C(1) << k, bounds));
#else
    while (k-- > 0)
        bounds &= bounds - 1;
    return (unsigned)__builtin_ctzll(bounds);
#endif
}

/* 57 or more bits from position `at` on. The top bit is replaced by a sentinel: the zeros above it count the bits that
 * were shifted out. */
ALWAYS_INLINE uint64_t refill(const uint8_t *streams, uint64_t at)
{
    return cws_load64(streams + (at >> 3)) >> (at & 7) | SENTINEL;
}

/* Decodes CWS_LANE_GROUP lanes; at[], out[] and end[] are per lane. No load starts past end_bit, whatever the bits
 * say. On return at[] tells where each lane's symbols really ended. */
ALWAYS_INLINE bool lane_group(const struct cws_decode_table *table, const uint8_t *streams, uint64_t end_bit,
                              uint64_t at[CWS_LANE_GROUP], uint8_t *out[CWS_LANE_GROUP], uint8_t *const end[CWS_LANE_GROUP])
{
    uint64_t buffer[CWS_LANE_GROUP];
    for (;;) { /* whole entries, while they cannot overshoot */
        bool more = true;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
            more &= (end[g] - out[g] >= LOOKUPS * CWS_ENTRY_SYMBOLS) & (at[g] <= end_bit);
        if (!more)
            break;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
            buffer[g] = refill(streams, at[g]);
        UNROLL for (int i = 0; i < LOOKUPS; i++) {
            UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++) {
                const struct cws_decode_entry *e = &table->entry[buffer[g] & WINDOW_MASK];
                memcpy(out[g], e, 8);
                buffer[g] >>= e->bits & 63;
                out[g] += e->count;
            }
        }
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
            at[g] += (unsigned)__builtin_clzll(buffer[g]);
    }
    for (;;) { /* the rest: no more symbols of an entry than are left */
        bool left = false;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++) {
            left |= out[g] != end[g];
            if (at[g] > end_bit)
                return false;
        }
        if (!left)
            return true;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
            buffer[g] = refill(streams, at[g]);
        UNROLL for (int i = 0; i < LOOKUPS; i++) {
            UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++) {
                const struct cws_decode_entry *e = &table->entry[buffer[g] & WINDOW_MASK];
                uint64_t room = (uint64_t)(end[g] - out[g]), k = e->count < room ? e->count : room;
                memcpy(out[g], e, 8);
                buffer[g] >>= symbols_bits(table->bounds[buffer[g] & WINDOW_MASK], (unsigned)k);
                out[g] += k;
            }
        }
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
            at[g] += (unsigned)__builtin_clzll(buffer[g]);
    }
}

/* A lane of a partial last row has fewer than 8 of it. */
ALWAYS_INLINE unsigned lane_symbols_of(unsigned elems, unsigned lane)
{
    unsigned rest = elems % CWS_TILE_ROW, before = 8 * lane;
    unsigned last = rest > before ? (rest - before < 8 ? rest - before : 8) : 0;
    return elems / CWS_TILE_ROW * 8 + last;
}

/* The symbols of one lane behind those of whole rows. */
static bool single_rest(const struct cws_decode_table *table, const uint8_t *streams, uint64_t end_bit, uint64_t *at,
                        uint8_t *out, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (*at > end_bit)
            return false;
        const struct cws_decode_single *e = &table->one[refill(streams, *at) & SINGLE_MASK];
        out[i] = e->symbol;
        *at += e->bits;
    }
    return true;
}

static __attribute__((noinline)) bool decode_single(const struct cws_decode_table *table, const uint8_t *streams,
                                                    uint64_t first_bit, uint64_t end_bit,
                                                    const uint32_t lane_bits[CWS_TILE_LANES], unsigned elems, uint8_t *out,
                                                    unsigned stride)
{
    uint64_t start = first_bit;
    unsigned whole = elems / CWS_TILE_ROW * 8;
    for (unsigned l = 0; l < CWS_TILE_LANES; l += SINGLE_GROUP, out += SINGLE_GROUP * (size_t)stride) {
        uint64_t at[SINGLE_GROUP], stop[SINGLE_GROUP], buffer[SINGLE_GROUP];
        for (unsigned g = 0; g < SINGLE_GROUP; g++) {
            at[g] = start;
            stop[g] = start += lane_bits[l + g];
        }
        for (unsigned done = 0; done < whole; done += SINGLE_LOOKUPS) {
            bool inside = true;
            UNROLL for (unsigned g = 0; g < SINGLE_GROUP; g++)
                inside &= at[g] <= end_bit;
            if (!inside)
                return false;
            UNROLL for (unsigned g = 0; g < SINGLE_GROUP; g++)
                buffer[g] = refill(streams, at[g]);
            UNROLL for (unsigned i = 0; i < SINGLE_LOOKUPS; i++) {
                UNROLL for (unsigned g = 0; g < SINGLE_GROUP; g++) {
                    const struct cws_decode_single *e = &table->one[buffer[g] & SINGLE_MASK];
                    out[g * (size_t)stride + done + i] = e->symbol;
                    buffer[g] >>= e->bits & 63;
                }
            }
            UNROLL for (unsigned g = 0; g < SINGLE_GROUP; g++)
                at[g] += (unsigned)__builtin_clzll(buffer[g]);
        }
        for (unsigned g = 0; g < SINGLE_GROUP; g++)
            if (!single_rest(table, streams, end_bit, &at[g], out + g * (size_t)stride + whole,
                             lane_symbols_of(elems, l + g) - whole) ||
                at[g] != stop[g])
                return false;
    }
    return true;
}

static __attribute__((noinline)) bool decode_entries(const struct cws_decode_table *table, const uint8_t *streams,
                                                     uint64_t first_bit, uint64_t end_bit,
                                                     const uint32_t lane_bits[CWS_TILE_LANES], unsigned elems, uint8_t *out,
                                                     unsigned stride)
{
    uint64_t start = first_bit;
    for (unsigned l = 0; l < CWS_TILE_LANES; l += CWS_LANE_GROUP) {
        uint64_t at[CWS_LANE_GROUP], stop[CWS_LANE_GROUP];
        uint8_t *lane_out[CWS_LANE_GROUP], *lane_end[CWS_LANE_GROUP];
        UNROLL for (unsigned g = 0; g < CWS_LANE_GROUP; g++) {
            at[g] = start;
            stop[g] = start += lane_bits[l + g];
            lane_out[g] = out + (l + g) * stride;
            lane_end[g] = lane_out[g] + lane_symbols_of(elems, l + g);
        }
        if (!lane_group(table, streams, end_bit, at, lane_out, lane_end))
            return false;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
            if (at[g] != stop[g])
                return false;
    }
    return true;
}

static bool decode_lanes(const struct cws_decode_table *table, const uint8_t *streams, uint64_t first_bit, uint64_t end_bit,
                         const uint32_t lane_bits[CWS_TILE_LANES], unsigned elems, uint8_t *out, unsigned stride)
{
    return (table->single ? decode_single : decode_entries)(table, streams, first_bit, end_bit, lane_bits, elems, out, stride);
}

/* Element order: row r of 256 takes 8 symbols of each lane. Up to 255 bytes of the last row are of no meaning. */
static void tile_linear(const struct cws_tile *tile)
{
    for (unsigned r = 0; r * CWS_TILE_ROW < tile->elems; r++) {
        const uint8_t *from = tile->lanes + 8 * r;
        uint8_t *to = tile->linear + r * CWS_TILE_ROW;
        UNROLL for (unsigned l = 0; l < CWS_TILE_LANES; l++)
            memcpy(to + 8 * l, from + l * tile->stride, 8);
    }
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

static void split4(const uint8_t *symbol, const uint8_t *p0, const uint8_t *p1, const uint8_t *p2, unsigned n, uint8_t *dst)
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
        UNROLL for (unsigned b = 0; b < 6; b++)
            v |= (uint64_t)p[b][i] << (8 * b);
        memcpy(dst + 8 * (size_t)i, &v, 8);
    }
}

static void tile_split(const struct cws_tile *tile, unsigned elem_bytes, uint8_t *dst)
{
    tile_linear(tile);
    if (elem_bytes == 1)
        memcpy(dst, tile->linear, tile->elems);
    else if (elem_bytes == 2)
        split2(tile->linear, tile->plane[0], 0, tile->elems, dst);
    else if (elem_bytes == 4)
        split4(tile->linear, tile->plane[0], tile->plane[1], tile->plane[2], tile->elems, dst);
    else
        split8(tile->linear, tile->plane, tile->elems, dst);
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
