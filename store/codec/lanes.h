/* lanes.h - the body of the fast decoders, compiled once per instruction set: the including file is built with
 * that set's flags and may define CWS_LANE_GROUP. Everything is static. */
#ifndef CWS_CODEC_LANES_H
#define CWS_CODEC_LANES_H
#include "elements.h"
#if defined(__BMI2__)
#include <immintrin.h>
#endif

#ifndef CWS_LANE_GROUP
#define CWS_LANE_GROUP 4 /* lanes decoded side by side: hides the latency of a lookup without spilling */
#endif
#define LOOKUPS 5        /* of 11 bits in the 57 that one load is sure to give */
#define SINGLE_LOOKUPS 4 /* of 12 bits */
#define SINGLE_GROUP 8   /* lanes; no pointer of each moves, so that more of them fit the registers */
#define WINDOW_MASK ((1u << CWS_ENTRY_WINDOW) - 1)
#define SENTINEL (UINT64_C(1) << 63)

/* How many bits the first k symbols of an entry take, of which it has more or as many. Where counting is one
 * instruction, that is as fast as what is known of the whole entry, and no branch is guessed wrong. */
ALWAYS_INLINE unsigned symbols_bits(const struct cws_decode_entry *e, uint64_t bounds, unsigned k)
{
#if defined(__BMI2__)
    (void)e;
    return (unsigned)_tzcnt_u64(_pdep_u64(UINT64_C(1) << k, bounds));
#else
    if (__builtin_expect(k == e->count, 1))
        return e->bits;
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
                              uint64_t at[CWS_LANE_GROUP], uint8_t *out[CWS_LANE_GROUP],
                              uint8_t *const end[CWS_LANE_GROUP])
{
    uint64_t buffer[CWS_LANE_GROUP];
    for (;;) { /* whole entries, while they cannot overshoot */
        bool more = true;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
            more &= (end[g] - out[g] >= LOOKUPS * CWS_ENTRY_SYMBOLS) & (at[g] <= end_bit);
        if (!more)
            break;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++) buffer[g] = refill(streams, at[g]);
        UNROLL for (int i = 0; i < LOOKUPS; i++)
        {
            UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
            {
                const struct cws_decode_entry *e = &table->entry[buffer[g] & WINDOW_MASK];
                memcpy(out[g], e, 8);
                buffer[g] >>= e->bits & 63;
                out[g] += e->count;
            }
        }
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++) at[g] += (unsigned)__builtin_clzll(buffer[g]);
    }
    for (;;) { /* the rest: no more symbols of an entry than are left */
        bool left = false;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
        {
            left |= out[g] != end[g];
            if (at[g] > end_bit)
                return false;
        }
        if (!left)
            return true;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++) buffer[g] = refill(streams, at[g]);
        UNROLL for (int i = 0; i < LOOKUPS; i++)
        {
            UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++)
            {
                const struct cws_decode_entry *e = &table->entry[buffer[g] & WINDOW_MASK];
                uint64_t room = (uint64_t)(end[g] - out[g]), k = e->count < room ? e->count : room;
                memcpy(out[g], e, 8);
                buffer[g] >>= symbols_bits(e, table->bounds[buffer[g] & WINDOW_MASK], (unsigned)k) & 63;
                out[g] += k;
            }
        }
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++) at[g] += (unsigned)__builtin_clzll(buffer[g]);
    }
}

ALWAYS_INLINE uint64_t low_bits(uint64_t v, unsigned n)
{
#if defined(__BMI2__)
    return _bzhi_u64(v, n); /* n in a register, v kept: one instruction */
#else
    return v & ((UINT64_C(1) << n) - 1);
#endif
}

/* The symbols of one lane behind those of whole rows. */
static bool single_rest(const struct cws_decode_single *one, const uint8_t *streams, uint64_t end_bit, uint64_t *at,
                        uint8_t *out, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (*at > end_bit)
            return false;
        const struct cws_decode_single *e = &one[low_bits(refill(streams, *at), CWS_CODE_BITS_MAX)];
        out[i] = e->symbol;
        *at += e->bits;
    }
    return true;
}

ALWAYS_INLINE bool single_lanes(const struct cws_decode_single *one, const uint8_t *streams,
                                const struct cws_tile_bits *bits, unsigned elems, uint8_t *out, unsigned stride)
{
    uint64_t start = bits->first_bit;
    unsigned whole = elems / CWS_TILE_ROW * 8;
    for (unsigned l = 0; l < CWS_TILE_LANES; l += SINGLE_GROUP, out += SINGLE_GROUP * (size_t)stride) {
        uint64_t at[SINGLE_GROUP], stop[SINGLE_GROUP], buffer[SINGLE_GROUP];
        for (unsigned g = 0; g < SINGLE_GROUP; g++) {
            at[g] = start;
            stop[g] = start += bits->lane[l + g];
        }
        for (unsigned done = 0; done < whole; done += SINGLE_LOOKUPS) {
            bool inside = true;
            UNROLL for (unsigned g = 0; g < SINGLE_GROUP; g++) inside &= at[g] <= bits->end_bit;
            if (!inside)
                return false;
            UNROLL for (unsigned g = 0; g < SINGLE_GROUP; g++) buffer[g] = refill(streams, at[g]);
            UNROLL for (unsigned i = 0; i < SINGLE_LOOKUPS; i++)
            {
                UNROLL for (unsigned g = 0; g < SINGLE_GROUP; g++)
                {
                    const struct cws_decode_single *e = &one[low_bits(buffer[g], CWS_CODE_BITS_MAX)];
                    out[g * (size_t)stride + done + i] = e->symbol;
                    buffer[g] >>= e->bits & 63;
                }
            }
            UNROLL for (unsigned g = 0; g < SINGLE_GROUP; g++) at[g] += (unsigned)__builtin_clzll(buffer[g]);
        }
        for (unsigned g = 0; g < SINGLE_GROUP; g++)
            if (!single_rest(one, streams, bits->end_bit, &at[g], out + g * (size_t)stride + whole,
                             lane_symbols_of(elems, l + g) - whole) ||
                at[g] != stop[g])
                return false;
    }
    return true;
}

/* A stride that the compiler knows takes no register. */
static __attribute__((noinline)) bool decode_single(const struct cws_decode_table *table, const uint8_t *streams,
                                                    const struct cws_tile_bits *bits, unsigned elems, uint8_t *out,
                                                    unsigned stride)
{
    const struct cws_decode_single *one = table->one;
    __asm__("" : "+r"(one)); /* else the offset in the table is added at each lookup */
    switch (stride) {
    case CWS_LANE_STRIDE(128): return single_lanes(one, streams, bits, elems, out, CWS_LANE_STRIDE(128));
    case CWS_LANE_STRIDE(256): return single_lanes(one, streams, bits, elems, out, CWS_LANE_STRIDE(256));
    case CWS_LANE_STRIDE(1024): return single_lanes(one, streams, bits, elems, out, CWS_LANE_STRIDE(1024));
    }
    return single_lanes(one, streams, bits, elems, out, stride);
}

static __attribute__((noinline)) bool decode_entries(const struct cws_decode_table *table, const uint8_t *streams,
                                                     const struct cws_tile_bits *bits, unsigned elems, uint8_t *out,
                                                     unsigned stride)
{
    uint64_t start = bits->first_bit;
    for (unsigned l = 0; l < CWS_TILE_LANES; l += CWS_LANE_GROUP) {
        uint64_t at[CWS_LANE_GROUP], stop[CWS_LANE_GROUP];
        uint8_t *lane_out[CWS_LANE_GROUP], *lane_end[CWS_LANE_GROUP];
        UNROLL for (unsigned g = 0; g < CWS_LANE_GROUP; g++)
        {
            at[g] = start;
            stop[g] = start += bits->lane[l + g];
            lane_out[g] = out + (l + g) * stride;
            lane_end[g] = lane_out[g] + lane_symbols_of(elems, l + g);
        }
        if (!lane_group(table, streams, bits->end_bit, at, lane_out, lane_end))
            return false;
        UNROLL for (int g = 0; g < CWS_LANE_GROUP; g++) if (at[g] != stop[g]) return false;
    }
    return true;
}

static bool decode_lanes(const struct cws_decode_table *table, const uint8_t *streams, const struct cws_tile_bits *bits,
                         unsigned elems, uint8_t *out, unsigned stride)
{
    return (table->single ? decode_single : decode_entries)(table, streams, bits, elems, out, stride);
}

#endif
