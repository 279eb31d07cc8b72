/* Built with -mavx512f -mavx512bw -mavx512vl -mavx512vbmi -mbmi2; nothing here may be called before runs_here(). */
#include "codec_encode.h"

#if defined(__x86_64__)
#include <immintrin.h>

static bool runs_here(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("bmi2");
}

static void split2(const uint8_t *elems, size_t count, uint8_t *plane, uint8_t *symbols)
{
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m512i v = _mm512_loadu_si512(elems + 2 * i);
        __m512i low = _mm512_or_si512(_mm512_slli_epi16(v, 1), _mm512_srli_epi16(v, 15));
        _mm256_storeu_si256((__m256i *)(plane + i), _mm512_cvtepi16_epi8(low));
        _mm256_storeu_si256((__m256i *)(symbols + i), _mm512_cvtepi16_epi8(_mm512_srli_epi16(v, 7)));
    }
    cws_encoder_portable.split2(elems + 2 * i, count - i, plane + i, symbols + i);
}

#define COMMON 12         /* symbols that are counted by comparing */
#define PROBE 1024        /* elements that tell which they are */
#define COVER_MIN 0.97    /* below, comparing does not pay */
#define FLUSH 255         /* rounds until a byte counter is full */

/* Weights have few exponents: each of the commonest is compared with 64 symbols at a time, and only what is none of them
 * is looked at one by one. */
static void count2(const uint8_t *elems, size_t count, uint64_t histogram[256])
{
    uint64_t probe[256] = {0};
    uint8_t common[COMMON];
    size_t i = count < PROBE ? count : PROBE, covered = 0;
    cws_encoder_portable.count2(elems, i, probe);
    for (unsigned s = 0; s < 256; s++)
        histogram[s] += probe[s];
    for (unsigned k = 0; k < COMMON; k++) {
        unsigned best = 0;
        for (unsigned s = 1; s < 256; s++)
            best = probe[s] > probe[best] ? s : best;
        covered += probe[best];
        probe[best] = 0;
        common[k] = (uint8_t)best;
    }
    for (unsigned k = 1; k < COMMON; k++)
        for (unsigned j = 0; j < k; j++)
            if (common[j] == common[k]) { /* fewer than COMMON symbols seen: too few to bother */
                cws_encoder_portable.count2(elems + 2 * i, count - i, histogram);
                return;
            }
    if ((double)covered < COVER_MIN * (double)i) {
        cws_encoder_portable.count2(elems + 2 * i, count - i, histogram);
        return;
    }
    const __m512i one = _mm512_set1_epi8(1), zero = _mm512_setzero_si512(), byte = _mm512_set1_epi16(0xff);
    __m512i want[COMMON], sum[COMMON];
    for (unsigned k = 0; k < COMMON; k++) {
        want[k] = _mm512_set1_epi8((char)common[k]);
        sum[k] = zero;
    }
    while (i + 64 <= count) {
        __m512i seen[COMMON];
        for (unsigned k = 0; k < COMMON; k++)
            seen[k] = zero;
        for (unsigned round = 0; round < FLUSH && i + 64 <= count; round++, i += 64) {
            __m512i a = _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(elems + 2 * i), 7), byte);
            __m512i b = _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(elems + 2 * i + 64), 7), byte);
            __m512i symbols = _mm512_packus_epi16(a, b); /* the order does not matter */
            __mmask64 other = ~(__mmask64)0;
            for (unsigned k = 0; k < COMMON; k++) {
                __mmask64 hit = _mm512_cmpeq_epi8_mask(symbols, want[k]);
                seen[k] = _mm512_mask_add_epi8(seen[k], hit, seen[k], one);
                other = _kandn_mask64(hit, other);
            }
            if (__builtin_expect(other != 0, 0)) {
                uint8_t rest[64];
                _mm512_storeu_si512(rest, symbols);
                for (uint64_t m = other; m; m &= m - 1)
                    histogram[rest[__builtin_ctzll(m)]]++;
            }
        }
        for (unsigned k = 0; k < COMMON; k++)
            sum[k] = _mm512_add_epi64(sum[k], _mm512_sad_epu8(seen[k], zero));
    }
    for (unsigned k = 0; k < COMMON; k++)
        histogram[common[k]] += (uint64_t)_mm512_reduce_add_epi64(sum[k]);
    cws_encoder_portable.count2(elems + 2 * i, count - i, histogram);
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

static inline __m512i lut_get(const struct lut *t, __m512i index, __mmask64 upper)
{
    __m512i a = _mm512_permutex2var_epi8(t->part[0], index, t->part[1]);
    return _mm512_mask_mov_epi8(a, upper, _mm512_permutex2var_epi8(t->part[2], index, t->part[3]));
}

struct groups { /* of 64 symbols, 8 groups of 8: what each u64 holds becomes a string of bits */
    __m512i first, second;           /* the first and the last four symbols: at most 48 bits each */
    __m512i first_bits, second_bits;
};

/* Joins codes in pairs, then pairs of pairs. low, high: the bytes of cws_encode_table. */
static inline struct groups join(__m512i low, __m512i high)
{
    const __m512i byte16 = _mm512_set1_epi16(0xff), word32 = _mm512_set1_epi32(0xffff), half64 = _mm512_set1_epi64(0xffffffff);
    __m512i bits = _mm512_and_si512(_mm512_srli_epi16(high, 4), _mm512_set1_epi8(15));
    __m512i top = _mm512_and_si512(high, _mm512_set1_epi8(15));
    /* 16-bit codes of the even and of the odd symbols */
    __m512i even = _mm512_or_si512(_mm512_and_si512(low, byte16), _mm512_slli_epi16(top, 8));
    __m512i odd = _mm512_or_si512(_mm512_srli_epi16(low, 8), _mm512_andnot_si512(byte16, top));
    __m512i even_bits = _mm512_and_si512(bits, byte16);
    /* pairs of up to 24 bits: those in the low and in the high half of each u32 */
    __m512i p0 = _mm512_or_si512(_mm512_and_si512(even, word32),
                                 _mm512_sllv_epi32(_mm512_and_si512(odd, word32), _mm512_and_si512(even_bits, word32)));
    __m512i p1 = _mm512_or_si512(_mm512_srli_epi32(even, 16),
                                 _mm512_sllv_epi32(_mm512_srli_epi32(odd, 16), _mm512_srli_epi32(even_bits, 16)));
    __m512i pair_bits = _mm512_maddubs_epi16(bits, _mm512_set1_epi8(1));      /* u16 each */
    __m512i quad_bits = _mm512_madd_epi16(pair_bits, _mm512_set1_epi16(1));   /* u32 each */
    __m512i p0_bits = _mm512_and_si512(pair_bits, word32);
    struct groups g;
    g.first = _mm512_or_si512(_mm512_and_si512(p0, half64),
                              _mm512_sllv_epi64(_mm512_and_si512(p1, half64), _mm512_and_si512(p0_bits, half64)));
    g.second = _mm512_or_si512(_mm512_srli_epi64(p0, 32),
                               _mm512_sllv_epi64(_mm512_srli_epi64(p1, 32), _mm512_srli_epi64(p0_bits, 32)));
    g.first_bits = _mm512_and_si512(quad_bits, half64);
    g.second_bits = _mm512_srli_epi64(quad_bits, 32);
    return g;
}

#define ROWS_MAX (CWS_TILE_MAX / CWS_TILE_ROW)

#define QUARTERS 4 /* of a tile, 8 lanes each, appended side by side: one append waits for the one before */

/* Appends word[][l] for each lane. A quarter's first bit is known from the lengths, so its bytes can be made apart, with
 * the right shift, and joined: only the byte at a seam belongs to two. */
static uint8_t *append_quarters(uint64_t (*word)[CWS_TILE_LANES], uint8_t (*bits)[CWS_TILE_LANES], unsigned rows,
                                const uint32_t lane_bits[CWS_TILE_LANES], uint8_t *to)
{
    uint8_t apart[QUARTERS][CWS_TILE_MAX / QUARTERS * CWS_CODE_BITS_MAX / 8 + 16];
    struct cws_bits b[QUARTERS];
    unsigned first = 0;
    for (unsigned q = 0; q < QUARTERS; q++) {
        b[q] = (struct cws_bits){q ? apart[q] : to, 0, first & 7};
        for (unsigned l = 8 * q; l < 8 * q + 8; l++)
            first += lane_bits[l];
    }
    struct cws_bits b0 = b[0], b1 = b[1], b2 = b[2], b3 = b[3];
    for (unsigned l = 0; l < 8; l++)
        for (unsigned r = 0; r < rows; r++) {
            cws_bits_append(&b0, word[r][l], bits[r][l]);
            cws_bits_append(&b1, word[r][l + 8], bits[r][l + 8]);
            cws_bits_append(&b2, word[r][l + 16], bits[r][l + 16]);
            cws_bits_append(&b3, word[r][l + 24], bits[r][l + 24]);
        }
    b[1] = b1, b[2] = b2, b[3] = b3;
    for (unsigned q = 1; q < QUARTERS; q++) {
        memcpy(b[q].to, &b[q].buffer, 8);
        size_t whole = (size_t)(b[q].to - apart[q]);
        apart[q][0] |= (uint8_t)b0.buffer; /* a quarter has 64 bits or more, so byte 0 is written */
        memcpy(b0.to, apart[q], whole);
        b0.to += whole;
        b0.buffer = b[q].buffer;
        b0.used = b[q].used;
    }
    return cws_bits_end(&b0, to);
}

/* One word per 8 symbols where all of them fit 56 bits, else two. Lanes are appended one after the other, so the words are
 * kept by row and read by column. */
static uint8_t *tile(const struct cws_encode_table *table, const uint8_t *symbols, unsigned elems, uint8_t *to,
                     uint32_t lane_bits[CWS_TILE_LANES])
{
    uint64_t word[ROWS_MAX][CWS_TILE_LANES] __attribute__((aligned(64)));
    uint64_t second[ROWS_MAX][CWS_TILE_LANES] __attribute__((aligned(64)));
    uint8_t bits[ROWS_MAX][CWS_TILE_LANES], second_bits[ROWS_MAX][CWS_TILE_LANES];
    if (elems % CWS_TILE_ROW != 0)
        return cws_encoder_portable.tile(table, symbols, elems, to, lane_bits);
    unsigned rows = elems / CWS_TILE_ROW;
    struct lut low = lut_load(table->low), high = lut_load(table->high);
    __m512i least = _mm512_set1_epi8(-1), longest = _mm512_setzero_si512(), sum[QUARTERS];
    for (unsigned q = 0; q < QUARTERS; q++)
        sum[q] = longest;
    for (unsigned r = 0; r < rows; r++)
        for (unsigned l = 0; l < CWS_TILE_LANES; l += 8) {
            __m512i s = _mm512_loadu_si512(symbols + r * CWS_TILE_ROW + 8 * l);
            __mmask64 upper = _mm512_movepi8_mask(s);
            __m512i h = lut_get(&high, s, upper);
            struct groups g = join(lut_get(&low, s, upper), h);
            least = _mm512_min_epu8(least, h);
            __m512i total = _mm512_add_epi64(g.first_bits, g.second_bits);
            longest = _mm512_max_epu64(longest, total);
            sum[l / 8] = _mm512_add_epi64(sum[l / 8], total);
            _mm512_store_si512(&word[r][l], _mm512_or_si512(g.first, _mm512_sllv_epi64(g.second, g.first_bits)));
            _mm_storel_epi64((__m128i *)&bits[r][l], _mm512_cvtepi64_epi8(total));
        }
    if (_mm512_cmplt_epu8_mask(least, _mm512_set1_epi8(16)) != 0)
        return NULL; /* no length: no code */
    if (_mm512_reduce_max_epu64(longest) <= 56) {
        for (unsigned q = 0; q < QUARTERS; q++)
            _mm256_storeu_si256((__m256i *)(lane_bits + 8 * q), _mm512_cvtepi64_epi32(sum[q]));
        return append_quarters(word, bits, rows, lane_bits, to);
    }
    struct cws_bits b = {to, 0, 0};
    for (unsigned r = 0; r < rows; r++)
        for (unsigned l = 0; l < CWS_TILE_LANES; l += 8) {
            __m512i s = _mm512_loadu_si512(symbols + r * CWS_TILE_ROW + 8 * l);
            __mmask64 upper = _mm512_movepi8_mask(s);
            struct groups g = join(lut_get(&low, s, upper), lut_get(&high, s, upper));
            _mm512_store_si512(&word[r][l], g.first);
            _mm512_store_si512(&second[r][l], g.second);
            _mm_storel_epi64((__m128i *)&bits[r][l], _mm512_cvtepi64_epi8(g.first_bits));
            _mm_storel_epi64((__m128i *)&second_bits[r][l], _mm512_cvtepi64_epi8(g.second_bits));
        }
    for (unsigned l = 0; l < CWS_TILE_LANES; l++) {
        const uint8_t *start = b.to;
        unsigned start_used = b.used;
        for (unsigned r = 0; r < rows; r++) {
            cws_bits_append(&b, word[r][l], bits[r][l]);
            cws_bits_append(&b, second[r][l], second_bits[r][l]);
        }
        lane_bits[l] = (uint32_t)(8 * (b.to - start)) + b.used - start_used;
    }
    return cws_bits_end(&b, to);
}

const struct cws_encoder_ops cws_encoder_avx512 = {
    .name = "avx512",
    .runs_here = runs_here,
    .split2 = split2,
    .count2 = count2,
    .tile = tile,
};
#endif
