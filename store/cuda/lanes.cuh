/* lanes.cuh - one warp decodes one tile: each lane its own bit stream. */
#ifndef CWS_GPU_LANES_CUH
#define CWS_GPU_LANES_CUH
#include "job.h"

/* A lane's place in the streams. Low bits of the buffer come first; they start two bits before `bit`, so that masking
 * gives a byte offset into the table. So reading starts in the word before the streams, which is part of the chunk: at
 * least its head lies there. The buffer is loaded at the same step by all lanes, not by each when it runs out: a warp
 * waits for the loads of all its lanes, so loads at every step would cost their latency at every step. */
struct bit_reader {
    const uint32_t *words; /* the word before the streams */
    uint32_t last;         /* index of the last word that may be read: the end of the padding */
    uint32_t bit;          /* counted from `words` on; counts on past the end in a corrupt stream */
    uint32_t loaded;       /* `bit` when the buffer was loaded */
    uint32_t low, high;
};

/* 62 bits from `bit` on: five lookups. */
static __device__ __forceinline__ void reader_load(bit_reader &r)
{
    uint32_t word = min(r.bit / 32, r.last - 2);
    uint32_t a = __ldg(r.words + word), b = __ldg(r.words + word + 1), c = __ldg(r.words + word + 2);
    r.low = __funnelshift_r(a, b, r.bit);
    r.high = __funnelshift_r(b, c, r.bit);
    r.loaded = r.bit;
}

/* bit: of the streams, at most 32 * stream_words. */
static __device__ __forceinline__ void reader_start(bit_reader &r, const uint8_t *streams, uint32_t stream_words,
                                                    uint32_t bit)
{
    r.words = (const uint32_t *)streams - 1;
    r.last = stream_words + CWS_STREAM_PAD / 4;
    r.bit = bit + 30;
    reader_load(r);
}

/* Bits from the start of the streams. */
static __device__ __forceinline__ uint32_t reader_bit(const bit_reader &r) { return r.bit - 30; }

static __device__ __forceinline__ uint32_t reader_entry(const bit_reader &r, const uint32_t *table)
{
    return *(const uint32_t *)((const char *)table + (r.low & ((1u << CWS_GPU_WINDOW) - 1) << 2));
}

static __device__ __forceinline__ void reader_take(bit_reader &r, uint32_t bits)
{
    r.low = __funnelshift_r(r.low, r.high, bits);
    r.high >>= bits;
    r.bit += bits;
}

/* Pair i of 4 since the last load: two symbols, in the low bytes of the result. Before it at most 2 + 12 * i bits of
 * the buffer are spent, so that 12 are there for each of the pairs to come and for a second symbol that did not fit its
 * pair. */
template <typename Between>
static __device__ __forceinline__ uint32_t reader_pair(bit_reader &r, const uint32_t *table, unsigned i,
                                                       const Between &between)
{
    uint32_t e = reader_entry(r, table);
    between(i);
    reader_take(r, e >> CWS_GPU_ENTRY_BITS);
    if (e & 1u << CWS_GPU_ENTRY_ALONE) {
        uint32_t second = reader_entry(r, table);
        reader_take(r, second >> CWS_GPU_ENTRY_FIRST & 15);
        if (i < 3 && r.bit - r.loaded > 2 + CWS_GPU_WINDOW * (i + 1))
            reader_load(r);
        e = __byte_perm(e, second, 0x0040);
    }
    return e;
}

/* One symbol, in the low byte, from either form of table. */
static __device__ __forceinline__ uint32_t reader_one(bit_reader &r, const uint32_t *table)
{
    uint32_t e = reader_entry(r, table);
    reader_take(r, e >> CWS_GPU_ENTRY_FIRST & 15);
    return e;
}

/* Eight symbols, from a loaded buffer; loads it anew for the next eight, whose wait then falls behind what the caller
 * does meanwhile. between(0) to between(3): what can be done while lookups are on their way. */

/* From a table of pairs, two in the low bytes of each word. */
template <typename Between>
static __device__ __forceinline__ void reader_pairs(bit_reader &r, const uint32_t *table, const Between &between,
                                                    uint32_t out[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = reader_pair(r, table, i, between);
    reader_load(r);
}

/* From either form of table, one in the low byte of each word. Of an entry's lengths the shifts see the first one
 * alone, for they take five bits, and the bit above it is zero; the sum of four of them is masked once. */
template <typename Between>
static __device__ __forceinline__ void reader_ones(bit_reader &r, const uint32_t *table, const Between &between,
                                                   uint32_t out[8])
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint32_t spent = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t e = reader_entry(r, table), bits = e >> CWS_GPU_ENTRY_FIRST;
            if (i % 2 == 0)
                between(2 * half + i / 2);
            r.low = __funnelshift_r(r.low, r.high, bits);
            r.high = __funnelshift_r(r.high, 0, bits);
            spent += bits;
            out[4 * half + i] = e;
        }
        r.bit += spent & 0xff;
        reader_load(r);
    }
}

/* count < 8 symbols, the rest zero, as reader_ones has them. */
static __device__ __forceinline__ void reader_some(bit_reader &r, const uint32_t *table, unsigned count,
                                                   uint32_t out[8])
{
#pragma unroll
    for (int i = 0; i < 8; i++) {
        out[i] = 0;
        if (i < count) {
            reader_load(r);
            out[i] = reader_one(r, table) & 0xff;
        }
    }
}

/* As reader_pairs has them, from as reader_ones has them. */
static __device__ __forceinline__ void pairs_of(const uint32_t one[8], uint32_t out[4])
{
#pragma unroll
    for (int i = 0; i < 4; i++)
        out[i] = __byte_perm(one[2 * i], one[2 * i + 1], 0x0040);
}

#endif
