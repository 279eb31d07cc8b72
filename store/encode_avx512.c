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

/* Bytes 1, 3, 5, ... of two vectors; one less and it is 0, 2, 4, ... */
static inline __m512i odd_bytes(void)
{
    uint8_t index[64];
    for (unsigned i = 0; i < 64; i++)
        index[i] = (uint8_t)(2 * i + 1);
    return _mm512_loadu_si512(index);
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

#define COMMON 12      /* neighbouring symbols that are counted in vectors */
#define PROBE 512      /* elements that tell which they are */
#define COVER_MIN 0.97 /* below, vectors do not pay */
#define TABLES (COMMON / 2)
#define NIBBLE_MAX 15 /* rounds until a counter of four bits is full */
#define BYTE_MAX 17   /* fills of a nibble until a byte is */

/* The first of the COMMON neighbours that cover most of the probe, or -1 when they do not cover enough. */
static int common_base(const uint8_t *elems, size_t count)
{
    uint32_t probe[256] = {0}, sum = 0, most = 0;
    int base = 0;
    for (size_t i = 0; i < count; i++) {
        uint16_t v;
        memcpy(&v, elems + 2 * i, 2);
        probe[v >> 7 & 0xff]++;
    }
    for (int s = 0; s < 256; s++) {
        sum += probe[s] - (s >= COMMON ? probe[s - COMMON] : 0);
        if (sum > most) {
            most = sum;
            base = s - COMMON + 1;
        }
    }
    return most < COVER_MIN * (double)count ? -1 : base < 0 ? 0 : base;
}

/* Weights have few exponents. Table k turns symbols base + 2k and base + 2k + 1 into a one in the low and in the high half
 * of a byte, so that an addition counts 128 counters; what is not common is looked at one by one. */
static void count2(const uint8_t *elems, size_t count, uint64_t histogram[256])
{
    int base = common_base(elems, count < PROBE ? count : PROBE);
    if (base < 0) {
        cws_encoder_portable.count2(elems, count, histogram);
        return;
    }
    const __m512i odd = odd_bytes(), zero = _mm512_setzero_si512(), half = _mm512_set1_epi8(15);
    const __m512i first = _mm512_set1_epi8((char)base), last = _mm512_set1_epi8(COMMON);
    __m512i table[TABLES], sum[COMMON], bytes[COMMON];
    for (unsigned k = 0; k < TABLES; k++) {
        uint8_t ones[16] = {0};
        ones[2 * k] = 1;
        ones[2 * k + 1] = 16;
        table[k] = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)ones));
        sum[2 * k] = sum[2 * k + 1] = bytes[2 * k] = bytes[2 * k + 1] = zero;
    }
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
            bytes[2 * k + 1] = _mm512_add_epi8(bytes[2 * k + 1], _mm512_and_si512(_mm512_srli_epi16(nibbles[k], 4), half));
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
    __m512i least[2] = {_mm512_set1_epi16(-1), _mm512_set1_epi16(-1)}, most[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
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

struct groups { /* of 64 symbols, 8 groups of 8: what each u64 holds becomes a string of bits */
    __m512i first, second; /* the first and the last four symbols: at most 48 bits each */
    __m512i first_bits, bits; /* of the first, of both */
};

/* Pairs of codes in each 64-bit half of a group, joined. codes, bits: u16 each; even + odd * 2^(bits of even) is a pair. */
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
    __m512i even = join_four(_mm512_unpacklo_epi8(low, top), _mm512_unpacklo_epi8(bits, zero)); /* groups 0, 2, 4, 6 */
    __m512i odd = join_four(_mm512_unpackhi_epi8(low, top), _mm512_unpackhi_epi8(bits, zero));
    struct groups g;
    g.first = _mm512_unpacklo_epi64(even, odd);
    g.second = _mm512_unpackhi_epi64(even, odd);
    g.first_bits = _mm512_sad_epu8(_mm512_maskz_mov_epi32(0x5555, bits), zero);
    g.bits = _mm512_sad_epu8(bits, zero);
    return g;
}

#define WORDS_MAX (2 * CWS_TILE_MAX / CWS_TILE_ROW) /* of a lane */

struct words { /* what a tile's lanes are joined from, by lane within a step */
    uint64_t word[WORDS_MAX][CWS_TILE_LANES] __attribute__((aligned(64)));
    uint8_t bits[WORDS_MAX][CWS_TILE_LANES];
};

/* A stream to which up to 64 bits are appended at a time. */
struct wide_bits {
    uint8_t *to;
    uint64_t buffer;
    unsigned used; /* 0..63 */
};

/* Whether the buffer is full is as good as random: masks, not branches. */
static inline void wide_append(struct wide_bits *b, uint64_t word, unsigned bits)
{
    uint64_t low = b->buffer | word << b->used, carry = word >> 1 >> (~b->used & 63);
    unsigned used = b->used + bits;
    uint64_t full = (uint64_t)0 - (used >> 6);
    memcpy(b->to, &low, 8);
    b->to += full & 8;
    b->buffer = (low & ~full) | (carry & full);
    b->used = used & 63;
}

/* Whole bytes out of the buffer. */
static inline void wide_flush(struct wide_bits *b)
{
    memcpy(b->to, &b->buffer, 8);
    b->to += b->used >> 3;
    b->buffer >>= b->used & 56;
    b->used &= 7;
}

#define HALF_LANES (CWS_TILE_LANES / 2)

/* Appends word[][l] for each lane. One append waits for the one before, so two halves of the tile are made side by side: the
 * bit where the second one starts is known from the lengths, so its bytes can be made apart, with the right shift, and
 * joined. Only the byte at the seam belongs to both. */
static uint8_t *append_halves(const struct words *w, unsigned words, const uint32_t lane_bits[CWS_TILE_LANES], uint8_t *to)
{
    uint8_t apart[CWS_TILE_MAX / 2 * CWS_CODE_BITS_MAX / 8 + 16];
    unsigned first = 0;
    for (unsigned l = 0; l < HALF_LANES; l++)
        first += lane_bits[l];
    struct wide_bits a = {to, 0, 0}, b = {apart, 0, first & 7};
    for (unsigned l = 0; l < HALF_LANES; l++)
        for (unsigned r = 0; r < words; r++) {
            wide_append(&a, w->word[r][l], w->bits[r][l]);
            wide_append(&b, w->word[r][l + HALF_LANES], w->bits[r][l + HALF_LANES]);
        }
    wide_flush(&a);
    wide_flush(&b);
    size_t whole = (size_t)(b.to - apart);
    apart[0] |= (uint8_t)a.buffer; /* a half has 128 bits or more, so byte 0 is written */
    memcpy(a.to, apart, whole);
    struct cws_bits out = {a.to + whole, b.buffer, b.used};
    return cws_bits_end(&out, to);
}

static inline void put_words(struct words *w, unsigned at, unsigned lane, __m512i word, __m512i bits)
{
    _mm512_store_si512(&w->word[at][lane], word);
    _mm_storel_epi64((__m128i *)&w->bits[at][lane], _mm512_cvtepi64_epi8(bits));
}

/* Words of 16 symbols, or two of 8 where one of eight lanes has too long a word. Returns how many words a lane has (the
 * last ones may be empty), or 0: 8 symbols do not fit either. small: no symbol above 127 has a code, as in weights, whose
 * magnitude is below 2; those that come nevertheless are ORed into *seen. */
static inline __attribute__((always_inline)) unsigned words_of_16(struct words *w, bool small, const struct lut *low,
                                                                  const struct lut *high, const uint8_t *symbols, unsigned rows,
                                                                  uint32_t lane_bits[CWS_TILE_LANES], __m512i *least, __m512i *seen)
{
    const __m512i room = _mm512_set1_epi64(64), zero = _mm512_setzero_si512();
    unsigned count[CWS_TILE_LANES / 8], most = 0;
    for (unsigned l = 0; l < CWS_TILE_LANES; l += 8) {
        __m512i sum = zero;
        unsigned n = 0;
        for (unsigned r = 0; r < rows; r += 2) {
            const uint8_t *from = symbols + r * CWS_TILE_ROW + 8 * l;
            __m512i s0 = _mm512_loadu_si512(from), h0 = small ? lut_low(high, s0) : lut_get(high, s0);
            struct groups a = join(small ? lut_low(low, s0) : lut_get(low, s0), h0);
            __m512i s1 = _mm512_loadu_si512(from + CWS_TILE_ROW), h1 = small ? lut_low(high, s1) : lut_get(high, s1);
            struct groups b = join(small ? lut_low(low, s1) : lut_get(low, s1), h1);
            if (small)
                *seen = _mm512_or_si512(*seen, _mm512_or_si512(s0, s1));
            __m512i bits = _mm512_add_epi64(a.bits, b.bits);
            __m512i wa = _mm512_or_si512(a.first, _mm512_sllv_epi64(a.second, a.first_bits));
            __m512i wb = _mm512_or_si512(b.first, _mm512_sllv_epi64(b.second, b.first_bits));
            *least = _mm512_min_epu8(*least, _mm512_min_epu8(h0, h1));
            sum = _mm512_add_epi64(sum, bits);
            if (__builtin_expect(_mm512_cmpgt_epu64_mask(bits, room) == 0, 1)) {
                put_words(w, n++, l, _mm512_or_si512(wa, _mm512_sllv_epi64(wb, a.bits)), bits);
                continue;
            }
            if (_mm512_cmpgt_epu64_mask(_mm512_max_epu64(a.bits, b.bits), room) != 0)
                return 0;
            put_words(w, n++, l, wa, a.bits);
            put_words(w, n++, l, wb, b.bits);
        }
        _mm256_storeu_si256((__m256i *)(lane_bits + l), _mm512_cvtepi64_epi32(sum));
        count[l / 8] = n;
        most = n > most ? n : most;
    }
    for (unsigned l = 0; l < CWS_TILE_LANES; l += 8)
        for (unsigned n = count[l / 8]; n < most; n++)
            put_words(w, n, l, zero, zero);
    return most;
}

static unsigned words_of_16_any(struct words *w, const struct lut *low, const struct lut *high, const uint8_t *symbols, unsigned rows,
                                uint32_t lane_bits[CWS_TILE_LANES], __m512i *least, __m512i *seen)
{
    __m512i coded = _mm512_or_si512(high->part[2], high->part[3]);
    if (_mm512_test_epi8_mask(coded, coded) == 0)
        return words_of_16(w, true, low, high, symbols, rows, lane_bits, least, seen);
    return words_of_16(w, false, low, high, symbols, rows, lane_bits, least, seen);
}

/* Words of 8 symbols where they fit, else of 4. Returns how many words a lane has. */
static unsigned words_of_8(struct words *w, const struct lut *low, const struct lut *high, const uint8_t *symbols, unsigned rows,
                           bool fours, uint32_t lane_bits[CWS_TILE_LANES], __m512i *least, uint64_t *out_longest)
{
    __m512i longest = _mm512_setzero_si512();
    unsigned each = fours ? 2 : 1;
    for (unsigned l = 0; l < CWS_TILE_LANES; l += 8) {
        __m512i sum = _mm512_setzero_si512();
        for (unsigned r = 0; r < rows; r++) {
            __m512i s = _mm512_loadu_si512(symbols + r * CWS_TILE_ROW + 8 * l), h = lut_get(high, s);
            struct groups g = join(lut_get(low, s), h);
            *least = _mm512_min_epu8(*least, h);
            longest = _mm512_max_epu64(longest, g.bits);
            sum = _mm512_add_epi64(sum, g.bits);
            if (fours) {
                put_words(w, 2 * r, l, g.first, g.first_bits);
                put_words(w, 2 * r + 1, l, g.second, _mm512_sub_epi64(g.bits, g.first_bits));
            } else {
                put_words(w, r, l, _mm512_or_si512(g.first, _mm512_sllv_epi64(g.second, g.first_bits)), g.bits);
            }
        }
        _mm256_storeu_si256((__m256i *)(lane_bits + l), _mm512_cvtepi64_epi32(sum));
    }
    *out_longest = _mm512_reduce_max_epu64(longest);
    return each * rows;
}

/* As few words as fit 64 bits: lanes are appended one after the other, so the words are kept by row and read by column. */
static uint8_t *tile(const struct cws_encode_table *table, const uint8_t *symbols, unsigned elems, uint8_t *to,
                     uint32_t lane_bits[CWS_TILE_LANES])
{
    struct words w;
    if (elems % CWS_TILE_ROW != 0)
        return cws_encoder_portable.tile(table, symbols, elems, to, lane_bits);
    unsigned rows = elems / CWS_TILE_ROW, words = 0;
    struct lut low = lut_load(table->low), high = lut_load(table->high);
    __m512i least = _mm512_set1_epi8(-1), seen = _mm512_setzero_si512();
    uint64_t longest;
    if (rows % 2 == 0 && table->average_bits < 3.5)
        words = words_of_16_any(&w, &low, &high, symbols, rows, lane_bits, &least, &seen);
    if (words == 0) {
        words = words_of_8(&w, &low, &high, symbols, rows, false, lane_bits, &least, &longest);
        if (longest > 64)
            words = words_of_8(&w, &low, &high, symbols, rows, true, lane_bits, &least, &longest);
    }
    if (_mm512_cmplt_epu8_mask(least, _mm512_set1_epi8(16)) != 0 || _mm512_movepi8_mask(seen) != 0)
        return NULL; /* no length: no code */
    return append_halves(&w, words, lane_bits, to);
}

const struct cws_encoder_ops cws_encoder_avx512 = {
    .name = "avx512",
    .runs_here = runs_here,
    .split2 = split2,
    .count2 = count2,
    .range2 = range2,
    .tile = tile,
};
#endif
