/* encode_avx2.c - the encoder's inner loops for processors with AVX2. Built with -mavx2 -mbmi2; nothing here may be
 * called before runs_here() says yes. */
#include "encode.h"

#if defined(__x86_64__)
#include <immintrin.h>

static bool runs_here(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}

static void split2(const uint8_t *elems, size_t count, uint8_t *plane, uint8_t *symbols)
{
    const __m256i byte = _mm256_set1_epi16(255);
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(elems + 2 * i)),
                b = _mm256_loadu_si256((const __m256i *)(elems + 2 * i + 32));
        a = _mm256_or_si256(_mm256_add_epi16(a, a), _mm256_srli_epi16(a, 15));
        b = _mm256_or_si256(_mm256_add_epi16(b, b), _mm256_srli_epi16(b, 15));
        __m256i low = _mm256_packus_epi16(_mm256_and_si256(a, byte), _mm256_and_si256(b, byte));
        __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
        _mm256_storeu_si256((__m256i *)(plane + i), _mm256_permute4x64_epi64(low, 0xd8));
        _mm256_storeu_si256((__m256i *)(symbols + i), _mm256_permute4x64_epi64(high, 0xd8));
    }
    cws_encoder_portable.split2(elems + 2 * i, count - i, plane + i, symbols + i);
}

#define COMMON CWS_COMMON
#define TABLES (COMMON / 2)
#define NIBBLE_MAX 15 /* rounds until a counter of four bits is full */
#define BYTE_MAX 17   /* fills of a nibble until a byte is */

/* What is not common, one by one. */
static void count_rest(__m256i symbols, uint32_t which, uint64_t histogram[256])
{
    uint8_t rest[32];
    _mm256_storeu_si256((__m256i *)rest, symbols);
    for (; which; which &= which - 1)
        histogram[rest[__builtin_ctz(which)]]++;
}

/* Table k turns symbols base + 2k and base + 2k + 1 into a one in the low and in the high half of a byte. */
static void common_tables(__m256i table[TABLES])
{
    for (unsigned k = 0; k < TABLES; k++)
        table[k] = _mm256_broadcastsi128_si256(cws_common_pair(k));
}

/* Weights have few exponents: with these tables an addition counts 64 counters. */
static void count2(const uint8_t *elems, size_t count, uint64_t histogram[256])
{
    int base = cws_common_base(elems, count);
    if (base < 0) {
        cws_encoder_portable.count2(elems, count, histogram);
        return;
    }
    const __m256i zero = _mm256_setzero_si256(), half = _mm256_set1_epi8(15);
    const __m256i first = _mm256_set1_epi8((char)base), last = _mm256_set1_epi8(COMMON);
    __m256i table[TABLES], sum[COMMON], bytes[COMMON];
    common_tables(table);
    for (unsigned c = 0; c < COMMON; c++)
        sum[c] = bytes[c] = zero;
    size_t i = 0;
    for (unsigned fills = 1; i + 32 <= count; fills++) {
        __m256i nibbles[TABLES];
        for (unsigned k = 0; k < TABLES; k++)
            nibbles[k] = zero;
        for (unsigned round = 0; round < NIBBLE_MAX && i + 32 <= count; round++, i += 32) {
            __m256i a = _mm256_loadu_si256((const __m256i *)(elems + 2 * i)),
                    b = _mm256_loadu_si256((const __m256i *)(elems + 2 * i + 32));
            a = _mm256_srli_epi16(_mm256_add_epi16(a, a), 8);
            b = _mm256_srli_epi16(_mm256_add_epi16(b, b), 8);
            __m256i symbols = _mm256_packus_epi16(a, b); /* in any order */
            __m256i rank = _mm256_min_epu8(_mm256_sub_epi8(symbols, first), last);
            for (unsigned k = 0; k < TABLES; k++)
                nibbles[k] = _mm256_add_epi8(nibbles[k], _mm256_shuffle_epi8(table[k], rank));
            uint32_t other = (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(rank, last));
            if (__builtin_expect(other != 0, 0))
                count_rest(symbols, other, histogram);
        }
        for (unsigned k = 0; k < TABLES; k++) {
            bytes[2 * k] = _mm256_add_epi8(bytes[2 * k], _mm256_and_si256(nibbles[k], half));
            bytes[2 * k + 1] = _mm256_add_epi8(bytes[2 * k + 1],
                                               _mm256_and_si256(_mm256_srli_epi16(nibbles[k], 4), half));
        }
        if (fills % BYTE_MAX == 0 || i + 32 > count)
            for (unsigned k = 0; k < COMMON; k++) {
                sum[k] = _mm256_add_epi64(sum[k], _mm256_sad_epu8(bytes[k], zero));
                bytes[k] = zero;
            }
    }
    for (unsigned k = 0; k < COMMON && base + k < 256; k++) {
        uint64_t part[4];
        _mm256_storeu_si256((__m256i *)part, sum[k]);
        histogram[base + k] += part[0] + part[1] + part[2] + part[3];
    }
    for (; i < count; i++) {
        uint16_t v;
        memcpy(&v, elems + 2 * i, 2);
        histogram[v >> 7 & 0xff]++;
    }
}

static void range2(const uint8_t *elems, size_t count, uint8_t *out_least, uint8_t *out_most)
{
    const __m256i one = _mm256_set1_epi16(256);
    __m256i least = _mm256_set1_epi16(-1), most = _mm256_setzero_si256();
    uint16_t left[32 + 32]; /* what was found, as elements again, and the rest */
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        __m256i u = _mm256_loadu_si256((const __m256i *)(elems + 2 * i));
        u = _mm256_add_epi16(u, u);
        most = _mm256_max_epu16(most, u);
        least = _mm256_min_epu16(least, _mm256_sub_epi16(u, one));
    }
    _mm256_storeu_si256((__m256i *)left, _mm256_srli_epi16(most, 1));
    _mm256_storeu_si256((__m256i *)(left + 16), _mm256_srli_epi16(_mm256_add_epi16(least, one), 1));
    size_t n = i > 0 ? 32 : 0;
    memcpy(left + n, elems + 2 * i, 2 * (count - i));
    cws_encoder_portable.range2((const uint8_t *)left, n + count - i, out_least, out_most);
}

#define SLOTS CWS_ENCODE_SLOTS
#define RARE_MAX (1u << (CWS_CODE_BITS_MAX - 4)) /* of the codes: more without a slot, and no tile would do without */
#define WORD_MAX 56                              /* bits of a word, so that what lies below them never counts */

/* Symbol 0 has slot 0, the largest coded ones have the others: zeros are far from all other weights, and what is far
 * below the largest is rare. */
static void prepare(struct cws_encode_table *t)
{
    unsigned base = 1, last = 255, rare = 0; /* 2^-CWS_CODE_BITS_MAX */
    while (last > 1 && t->high[last] == 0)
        last--;
    while (base < last && (t->high[base] == 0 || last - base >= SLOTS - 1)) {
        rare += t->high[base] ? 1u << (CWS_CODE_BITS_MAX - (t->high[base] >> 4)) : 0;
        base++;
    }
    t->base = (uint8_t)base;
    t->paired = rare <= RARE_MAX;
    memset(t->present, 0, sizeof t->present);
    if (!t->paired)
        return;
    for (unsigned i = 0; i < SLOTS; i++)
        t->present[i] = (uint8_t)(base + i > 256 || t->high[i ? base + i - 1 : 0] == 0 ? 0 : 255);
    for (unsigned j = 0; j < SLOTS; j++)
        for (unsigned i = 0; t->present[j] && i < SLOTS; i++) {
            if (!t->present[i])
                continue;
            uint32_t first = t->code[i ? base + i - 1 : 0], second = t->code[j ? base + j - 1 : 0];
            unsigned bits = (first >> 16) + (second >> 16);
            uint64_t code = (first & 0xffff) | (uint64_t)(second & 0xffff) << (first >> 16);
            t->pair[i + SLOTS * j] = code << (64 - bits) | bits;
        }
}

/* Slots of pairs. False: a symbol has no slot, or no code. */
static bool find_pairs(const struct cws_encode_table *t, const uint8_t *symbols, unsigned elems, uint16_t *pairs)
{
    const __m256i before = _mm256_set1_epi8((char)(t->base - 1)), zero = _mm256_setzero_si256(),
                  room = _mm256_set1_epi8(SLOTS - 1);
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)t->present));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(t->present + 16)));
    const __m256i to_low = _mm256_set1_epi8(0x70), to_high = _mm256_set1_epi8(16),
                  weight = _mm256_set1_epi16(1 | SLOTS << 8);
    __m256i bad = zero, good = _mm256_set1_epi8(-1);
    for (unsigned i = 0; i < elems; i += 32) {
        __m256i s = _mm256_loadu_si256((const __m256i *)(symbols + i)), slot = _mm256_subs_epu8(s, before);
        __m256i known = _mm256_or_si256(_mm256_shuffle_epi8(low, _mm256_add_epi8(slot, to_low)),
                                        _mm256_shuffle_epi8(high, _mm256_sub_epi8(slot, to_high)));
        good = _mm256_and_si256(good, known);
        bad = _mm256_or_si256(bad, _mm256_andnot_si256(room, slot)); /* beyond the slots */
        /* below them */
        bad = _mm256_or_si256(bad, _mm256_andnot_si256(_mm256_cmpeq_epi8(s, zero), _mm256_cmpeq_epi8(slot, zero)));
        _mm256_storeu_si256((__m256i *)(pairs + i / 2), _mm256_maddubs_epi16(_mm256_and_si256(slot, room), weight));
    }
    return _mm256_testz_si256(bad, bad) && _mm256_movemask_epi8(good) == -1;
}

/* Some pairs more: codes come in at the top, and push those before them down. */
static inline __attribute__((always_inline)) void push(const uint64_t *pair, const uint16_t *pairs, unsigned count,
                                                       uint64_t *word, uint64_t *bits)
{
    for (unsigned k = 0; k < count; k++) {
        uint64_t e = pair[pairs[k]];
        *word = *word >> (e & 63) | e;
        *bits += e;
    }
}

static inline __attribute__((always_inline)) unsigned append(struct cws_bits *b, uint64_t word, uint64_t bits)
{
    unsigned n = bits & 255;
    cws_bits_append(b, word >> (-n & 63), n);
    return n;
}

/* 8 symbols of a lane, or 4 and 4 where they do not fit a word. */
static inline __attribute__((always_inline)) unsigned append_row(struct cws_bits *b, const uint64_t *pair,
                                                                 const uint16_t *pairs)
{
    uint64_t word = 0, bits = 0;
    push(pair, pairs, 4, &word, &bits);
    if (__builtin_expect((bits & 255) <= WORD_MAX, 1))
        return append(b, word, bits);
    unsigned n = 0;
    for (unsigned half = 0; half < 2; half++) {
        word = bits = 0;
        push(pair, pairs + 2 * half, 2, &word, &bits);
        n += append(b, word, bits);
    }
    return n;
}

static uint8_t *tile(const struct cws_encode_table *t, const uint8_t *symbols, unsigned elems, uint8_t *to,
                     uint32_t lane_bits[CWS_TILE_LANES])
{
    enum { ROW = CWS_TILE_ROW / 2 };
    uint16_t pairs[CWS_TILE_MAX / 2];
    if (elems % CWS_TILE_ROW != 0 || !t->paired || !find_pairs(t, symbols, elems, pairs))
        return cws_encoder_portable.tile(t, symbols, elems, to, lane_bits);
    struct cws_bits b = {to, 0, 0};
    for (unsigned l = 0; l < CWS_TILE_LANES; l++) {
        const uint16_t *at = pairs + 4 * l, *end = at + elems / 2;
        uint32_t total = 0;
        for (; end - at >= 2 * ROW; at += 2 * ROW) {
            uint64_t word = 0, bits = 0;
            push(t->pair, at, 4, &word, &bits);
            push(t->pair, at + ROW, 4, &word, &bits);
            if (__builtin_expect((bits & 255) <= WORD_MAX, 1)) {
                total += append(&b, word, bits);
            } else {
                total += append_row(&b, t->pair, at);
                total += append_row(&b, t->pair, at + ROW);
            }
        }
        if (at < end)
            total += append_row(&b, t->pair, at);
        lane_bits[l] = total;
    }
    return cws_bits_end(&b, to);
}

const struct cws_encoder_ops cws_encoder_avx2 = {
    .variant = {"avx2", runs_here},
    .split2 = split2,
    .count2 = count2,
    .range2 = range2,
    .prepare = prepare,
    .tile = tile,
};
#endif
