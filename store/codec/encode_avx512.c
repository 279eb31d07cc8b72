/* encode_avx512.c - the encoder's inner loops for processors with AVX-512. Built with -mavx512f -mavx512bw -mavx512vl
 * -mavx512vbmi -mbmi2; nothing here may be called before runs_here() says yes. */
#include "encode.h"

#if defined(__x86_64__)
#include <immintrin.h>

static bool runs_here(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2");
}

/* Bytes 1, 3, 5, ... of two vectors; one less and it is 0, 2, 4, ... */
static inline __m512i odd_bytes(void)
{
    const __m512i words = _mm512_setr_epi64(0x0706050403020100, 0x0f0e0d0c0b0a0908, 0x1716151413121110,
                                            0x1f1e1d1c1b1a1918, 0x2726252423222120, 0x2f2e2d2c2b2a2928,
                                            0x3736353433323130, 0x3f3e3d3c3b3a3938);
    return _mm512_or_si512(_mm512_add_epi8(words, words), _mm512_set1_epi8(1));
}

#define AHEAD 1024 /* bytes of output: a prefetch past its end does not fault */

static void split2(const uint8_t *elems, size_t count, uint8_t *plane, uint8_t *symbols)
{
    const __m512i odd = odd_bytes(), even = _mm512_sub_epi8(odd, _mm512_set1_epi8(1));
    size_t i = 0;
    for (; i + 64 <= count; i += 64) {
        __m512i a = _mm512_loadu_si512(elems + 2 * i), b = _mm512_loadu_si512(elems + 2 * i + 64);
        __builtin_prefetch(plane + i + AHEAD, 1);
        a = _mm512_or_si512(_mm512_add_epi16(a, a), _mm512_srli_epi16(a, 15));
        b = _mm512_or_si512(_mm512_add_epi16(b, b), _mm512_srli_epi16(b, 15));
        _mm512_storeu_si512(plane + i, _mm512_permutex2var_epi8(a, even, b));
        _mm512_storeu_si512(symbols + i, _mm512_permutex2var_epi8(a, odd, b));
    }
    cws_encoder_portable.split2(elems + 2 * i, count - i, plane + i, symbols + i);
}

#define COMMON CWS_COMMON
#define TABLES (COMMON / 2)
#define NIBBLE_MAX 15 /* rounds until a counter of four bits is full */
#define BYTE_MAX 17   /* fills of a nibble until a byte is */

/* Table k turns symbols base + 2k and base + 2k + 1 into a one in the low and in the high half of a byte. */
static void common_tables(__m512i table[TABLES])
{
    for (unsigned k = 0; k < TABLES; k++)
        table[k] = _mm512_broadcast_i32x4(cws_common_pair(k));
}

/* Weights have few exponents: with these tables an addition counts 128 counters; what is not common is looked at one by
 * one. */
static void count2(const uint8_t *elems, size_t count, uint64_t histogram[256])
{
    int base = cws_common_base(elems, count);
    if (base < 0) {
        cws_encoder_portable.count2(elems, count, histogram);
        return;
    }
    const __m512i odd = odd_bytes(), zero = _mm512_setzero_si512(), half = _mm512_set1_epi8(15);
    const __m512i first = _mm512_set1_epi8((char)base), last = _mm512_set1_epi8(COMMON);
    __m512i table[TABLES], sum[COMMON], bytes[COMMON];
    common_tables(table);
    for (unsigned c = 0; c < COMMON; c++)
        sum[c] = bytes[c] = zero;
    size_t i = 0;
    for (unsigned fills = 1; i + 64 <= count; fills++) {
        __m512i nibbles[TABLES];
        for (unsigned k = 0; k < TABLES; k++)
            nibbles[k] = zero;
        for (unsigned round = 0; round < NIBBLE_MAX && i + 64 <= count; round++, i += 64) {
            __m512i a = _mm512_loadu_si512(elems + 2 * i), b = _mm512_loadu_si512(elems + 2 * i + 64);
            __m512i symbols = _mm512_permutex2var_epi8(_mm512_add_epi16(a, a), odd, _mm512_add_epi16(b, b));
            __m512i rank = _mm512_min_epu8(_mm512_sub_epi8(symbols, first), last);
            for (unsigned k = 0; k < TABLES; k++)
                nibbles[k] = _mm512_add_epi8(nibbles[k], _mm512_shuffle_epi8(table[k], rank));
            __mmask64 other = _mm512_cmpeq_epi8_mask(rank, last);
            if (__builtin_expect(other != 0, 0)) {
                uint8_t rest[64];
                _mm512_storeu_si512(rest, symbols);
                for (uint64_t m = other; m; m &= m - 1)
                    histogram[rest[__builtin_ctzll(m)]]++;
            }
        }
        for (unsigned k = 0; k < TABLES; k++) {
            bytes[2 * k] = _mm512_add_epi8(bytes[2 * k], _mm512_and_si512(nibbles[k], half));
            bytes[2 * k + 1] = _mm512_add_epi8(bytes[2 * k + 1],
                                               _mm512_and_si512(_mm512_srli_epi16(nibbles[k], 4), half));
        }
        if (fills % BYTE_MAX == 0 || i + 64 > count)
            for (unsigned k = 0; k < COMMON; k++) {
                sum[k] = _mm512_add_epi64(sum[k], _mm512_sad_epu8(bytes[k], zero));
                bytes[k] = zero;
            }
    }
    for (unsigned k = 0; k < COMMON && base + k < 256; k++)
        histogram[base + k] += (uint64_t)_mm512_reduce_add_epi64(sum[k]);
    for (; i < count; i++) {
        uint16_t v;
        memcpy(&v, elems + 2 * i, 2);
        histogram[v >> 7 & 0xff]++;
    }
}

static void range2(const uint8_t *elems, size_t count, uint8_t *out_least, uint8_t *out_most)
{
    const __m512i one = _mm512_set1_epi16(256);
    __m512i least[2] = {_mm512_set1_epi16(-1), _mm512_set1_epi16(-1)},
            most[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    size_t i = 0;
    for (; i + 64 <= count; i += 64)
        for (unsigned k = 0; k < 2; k++) {
            __m512i u = _mm512_loadu_si512(elems + 2 * i + 64 * k);
            u = _mm512_add_epi16(u, u);
            most[k] = _mm512_max_epu16(most[k], u);
            least[k] = _mm512_min_epu16(least[k], _mm512_sub_epi16(u, one));
        }
    /* As elements again, with any sign, for the rest and for the lanes of these. */
    uint16_t left[64 + 64];
    most[0] = _mm512_srli_epi16(_mm512_max_epu16(most[0], most[1]), 1);
    least[0] = _mm512_srli_epi16(_mm512_add_epi16(_mm512_min_epu16(least[0], least[1]), one), 1);
    _mm512_storeu_si512(left, most[0]);
    _mm512_storeu_si512(left + 32, least[0]);
    size_t n = i > 0 ? 64 : 0;
    memcpy(left + n, elems + 2 * i, 2 * (count - i));
    cws_encoder_portable.range2((const uint8_t *)left, n + count - i, out_least, out_most);
}

struct lut {
    __m512i part[4];
};

static inline struct lut lut_load(const uint8_t table[256])
{
    struct lut t;
    for (unsigned k = 0; k < 4; k++)
        t.part[k] = _mm512_loadu_si512(table + 64 * k);
    return t;
}

static inline __m512i lut_get(const struct lut *t, __m512i index)
{
    __m512i a = _mm512_permutex2var_epi8(t->part[0], index, t->part[1]);
    return _mm512_mask_mov_epi8(a, _mm512_movepi8_mask(index), _mm512_permutex2var_epi8(t->part[2], index, t->part[3]));
}

/* The same where no symbol is above 127. */
static inline __m512i lut_low(const struct lut *t, __m512i index)
{
    return _mm512_permutex2var_epi8(t->part[0], index, t->part[1]);
}

struct groups {               /* of 64 symbols, 8 groups of 8: what each u64 holds becomes a string of bits */
    __m512i first, second;    /* the first and the last four symbols: at most 48 bits each */
    __m512i first_bits, bits; /* of the first, of both */
};

/* Pairs of codes in each 64-bit half of a group, joined. codes, bits: u16 each; even + odd * 2^(bits of even) is a
 * pair. */
static inline __m512i join_four(__m512i codes, __m512i bits)
{
    const __m512i one = _mm512_set1_epi16(1), low32 = _mm512_set1_epi64(0xffffffff);
    __m512i pairs = _mm512_madd_epi16(codes, _mm512_sllv_epi16(one, _mm512_slli_epi32(bits, 16)));
    __m512i pair_bits = _mm512_and_si512(_mm512_madd_epi16(bits, one), low32);
    return _mm512_or_si512(_mm512_and_si512(pairs, low32), _mm512_sllv_epi64(_mm512_srli_epi64(pairs, 32), pair_bits));
}

/* low, high: the bytes of cws_encode_table. */
static inline struct groups join(__m512i low, __m512i high)
{
    const __m512i half = _mm512_set1_epi8(15), zero = _mm512_setzero_si512();
    __m512i bits = _mm512_and_si512(_mm512_srli_epi16(high, 4), half), top = _mm512_and_si512(high, half);
    /* groups 0, 2, 4, 6 */
    __m512i even = join_four(_mm512_unpacklo_epi8(low, top), _mm512_unpacklo_epi8(bits, zero));
    __m512i odd = join_four(_mm512_unpackhi_epi8(low, top), _mm512_unpackhi_epi8(bits, zero));
    struct groups g;
    g.first = _mm512_unpacklo_epi64(even, odd);
    g.second = _mm512_unpackhi_epi64(even, odd);
    g.first_bits = _mm512_sad_epu8(_mm512_maskz_mov_epi32(0x5555, bits), zero);
    g.bits = _mm512_sad_epu8(bits, zero);
    return g;
}

/* Eight lanes of a tile, each appended to its own words. */
struct lanes {
    __m512i buffer, used; /* 0..63 bits not yet in a word */
    __m512i at;           /* address of the word they go to */
};

/* Up to 64 bits to each lane. The word is stored whether it is full or not: which ones are is as good as random. */
static inline void append(struct lanes *b, __m512i word, __m512i bits)
{
    const __m512i full_bits = _mm512_set1_epi64(64), part = _mm512_set1_epi64(63), step = _mm512_set1_epi64(8);
    __m512i joined = _mm512_or_si512(b->buffer, _mm512_sllv_epi64(word, b->used));
    __m512i carry = _mm512_srlv_epi64(word, _mm512_sub_epi64(full_bits, b->used)); /* 64 gives 0 */
    _mm512_i64scatter_epi64(NULL, b->at, joined, 1);
    b->used = _mm512_add_epi64(b->used, bits);
    __mmask8 full = _mm512_test_epi64_mask(b->used, full_bits);
    b->buffer = _mm512_mask_mov_epi64(joined, full, carry);
    b->used = _mm512_and_si512(b->used, part);
    b->at = _mm512_mask_add_epi64(b->at, full, b->at, step);
}

/* What the loop over a tile needs in registers. */
struct coding {
    struct lut low, high;
    __m512i least; /* of all bytes of cws_encode_table.high that were looked up */
    __m512i seen;  /* all symbols looked up with `small`, ORed */
};

/* small: no symbol above 127 has a code, as in weights, whose magnitude is below 2. */
static inline __attribute__((always_inline)) struct groups take(struct coding *c, bool small, const uint8_t *symbols)
{
    __m512i s = _mm512_loadu_si512(symbols), high = small ? lut_low(&c->high, s) : lut_get(&c->high, s);
    c->least = _mm512_min_epu8(c->least, high);
    if (small)
        c->seen = _mm512_or_si512(c->seen, s);
    return join(small ? lut_low(&c->low, s) : lut_get(&c->low, s), high);
}

static inline __m512i both(const struct groups *g)
{
    return _mm512_or_si512(g->first, _mm512_sllv_epi64(g->second, g->first_bits));
}

/* 8 symbols of each lane, or 4 and 4 where they do not fit a word. */
static inline void append_group(struct lanes *b, const struct groups *g)
{
    if (__builtin_expect(_mm512_cmpgt_epu64_mask(g->bits, _mm512_set1_epi64(64)) == 0, 1)) {
        append(b, both(g), g->bits);
    } else {
        append(b, g->first, g->first_bits);
        append(b, g->second, _mm512_sub_epi64(g->bits, g->first_bits));
    }
}

static inline __attribute__((always_inline)) void encode_lanes(struct coding *c, bool small, const uint8_t *symbols,
                                                               unsigned rows, struct lanes *b)
{
    unsigned r = 0;
    for (; r + 2 <= rows; r += 2) {
        const uint8_t *from = symbols + r * CWS_TILE_ROW;
        struct groups g = take(c, small, from), h = take(c, small, from + CWS_TILE_ROW);
        __m512i bits = _mm512_add_epi64(g.bits, h.bits);
        if (__builtin_expect(_mm512_cmpgt_epu64_mask(bits, _mm512_set1_epi64(64)) == 0, 1)) {
            append(b, _mm512_or_si512(both(&g), _mm512_sllv_epi64(both(&h), g.bits)), bits);
        } else {
            append_group(b, &g);
            append_group(b, &h);
        }
    }
    if (r < rows) {
        struct groups g = take(c, small, symbols + r * CWS_TILE_ROW);
        append_group(b, &g);
    }
}

#define LANE_WORDS (CWS_TILE_MAX / CWS_TILE_LANES * CWS_CODE_BITS_MAX / 64)

struct apart { /* each lane's bits from bit 0 of a word on; word 0 is 0, and so is the word behind the last one begun */
    uint64_t word[CWS_TILE_LANES][1 + LANE_WORDS + 1 + 8] __attribute__((aligned(64)));
};

static void encode_apart(struct coding *c, const uint8_t *symbols, unsigned rows, struct apart *apart,
                         uint32_t lane_bits[CWS_TILE_LANES])
{
    __m512i coded = _mm512_or_si512(c->high.part[2], c->high.part[3]);
    bool small = _mm512_test_epi8_mask(coded, coded) == 0;
    for (unsigned l = 0; l < CWS_TILE_LANES; l += 8) {
        uint64_t start[8] __attribute__((aligned(64))), at[8] __attribute__((aligned(64))),
            left[8] __attribute__((aligned(64)));
        for (unsigned k = 0; k < 8; k++) {
            apart->word[l + k][0] = 0;
            start[k] = (uint64_t)(uintptr_t)&apart->word[l + k][1];
        }
        struct lanes b = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_load_si512(start)};
        if (small)
            encode_lanes(c, true, symbols + 8 * l, rows, &b);
        else
            encode_lanes(c, false, symbols + 8 * l, rows, &b);
        _mm512_store_si512(at, b.at);
        _mm512_store_si512(left, b.buffer);
        for (unsigned k = 0; k < 8; k++) {
            uint64_t end[2] = {left[k], 0};
            memcpy((void *)(uintptr_t)at[k], end, sizeof end);
        }
        __m512i bits = _mm512_add_epi64(_mm512_slli_epi64(_mm512_sub_epi64(b.at, _mm512_load_si512(start)), 3), b.used);
        _mm256_storeu_si256((__m256i *)(lane_bits + l), _mm512_cvtepi64_epi32(bits));
    }
}

/* The lanes one after the other, shifted to where the one before ends. Writes up to 64 bytes more. */
static uint8_t *join_lanes(const struct apart *apart, const uint32_t lane_bits[CWS_TILE_LANES], uint8_t *to)
{
    size_t bit = 0;
    uint64_t before = 0; /* the bits of the lanes before in the word where a lane starts */
    for (unsigned l = 0; l < CWS_TILE_LANES; l++) {
        const uint64_t *word = &apart->word[l][1];
        uint8_t *start = to + bit / 64 * 8;
        __m512i left = _mm512_set1_epi64((long long)(bit % 64)), right = _mm512_sub_epi64(_mm512_set1_epi64(64), left);
        __m512i seam = _mm512_zextsi128_si512(_mm_cvtsi64_si128((long long)before));
        size_t words = (bit % 64 + lane_bits[l]) / 64; /* that are full now */
        for (size_t i = 0; i <= words; i += 8) {
            __m512i shifted = _mm512_or_si512(_mm512_sllv_epi64(_mm512_loadu_si512(word + i), left),
                                              _mm512_srlv_epi64(_mm512_loadu_si512(word + i - 1), right));
            _mm512_storeu_si512(start + 8 * i, _mm512_or_si512(shifted, seam));
            seam = _mm512_setzero_si512();
        }
        bit += lane_bits[l];
        memcpy(&before, start + 8 * words, 8);
    }
    return to + (bit + 31) / 32 * 4;
}

static uint8_t *tile(const struct cws_encode_table *table, const uint8_t *symbols, unsigned elems, uint8_t *to,
                     uint32_t lane_bits[CWS_TILE_LANES])
{
    struct apart apart;
    if (elems % CWS_TILE_ROW != 0)
        return cws_encoder_portable.tile(table, symbols, elems, to, lane_bits);
    struct coding c = {lut_load(table->low), lut_load(table->high), _mm512_set1_epi8(-1), _mm512_setzero_si512()};
    encode_apart(&c, symbols, elems / CWS_TILE_ROW, &apart, lane_bits);
    if (_mm512_cmplt_epu8_mask(c.least, _mm512_set1_epi8(16)) != 0 || _mm512_movepi8_mask(c.seen) != 0)
        return NULL; /* no length: no code */
    return join_lanes(&apart, lane_bits, to);
}

const struct cws_encoder_ops cws_encoder_avx512 = {
    .variant = {"avx512", runs_here},
    .split2 = split2,
    .count2 = count2,
    .range2 = range2,
    .tile = tile,
};
#endif
