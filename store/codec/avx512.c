/* avx512.c - the decoder for processors with AVX-512. Built with AVX-512 F, BW, VL, DQ, VBMI, VBMI2 and GFNI; nothing
 * here may be called before runs_here() says yes.
 *
 * A tile is decoded 32 lanes at a time, beside another tile: four vectors hold 64 bits of each lane, 16 bits in each,
 * first bit on top. A step finds each lane's next word from its upper 16 bits (decode_table.h) and shifts all four.
 * Eight steps are a row of 256 elements, which leaves in element order. */

#include "fast.h"

#if defined(__x86_64__)
#include "elements.h"
#include <cpuid.h>
#include <immintrin.h>

/* clang 14 does not know all of these names in __builtin_cpu_supports; that "avx512f" is there also tells that the
 * system saves the registers. */
static bool runs_here(void)
{
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("bmi2"))
        return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & bit_AVX512VBMI2) || !(c & bit_GFNI))
        return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C))
        return false;
    return cws_decoder_avx2.variant.runs_here();
}

struct window { /* 64 bits of each of 32 lanes */
    __m512i part[4];
};

/* Only the lowest four bits of each count matter. */
ALWAYS_INLINE void consume(struct window *w, __m512i bits)
{
    w->part[0] = _mm512_shldv_epi16(w->part[0], w->part[1], bits);
    w->part[1] = _mm512_shldv_epi16(w->part[1], w->part[2], bits);
    w->part[2] = _mm512_shldv_epi16(w->part[2], w->part[3], bits);
    w->part[3] = _mm512_shldv_epi16(w->part[3], _mm512_setzero_si512(), bits);
}

struct cursor { /* of 32 lanes: which byte of the tile, which bit of it */
    __m512i byte[2];
    __m512i bit;
};

ALWAYS_INLINE __m128i two_words(const uint8_t *streams, const uint32_t *byte)
{
    __m128i v = _mm_loadl_epi64((const __m128i *)(streams + byte[0]));
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(v), (const __m64 *)(streams + byte[1])));
}

/* A gather takes longer, by a twentieth of all on Zen 4. */
ALWAYS_INLINE __m512i eight_words(const uint8_t *streams, const uint32_t *byte)
{
    __m256i a = _mm256_inserti128_si256(_mm256_castsi128_si256(two_words(streams, byte)), two_words(streams, byte + 2),
                                        1);
    __m256i b = _mm256_inserti128_si256(_mm256_castsi128_si256(two_words(streams, byte + 4)),
                                        two_words(streams, byte + 6), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

/* 64 bits from each lane's byte on, the bits before its own not yet dropped; none past last_byte. */
ALWAYS_INLINE struct window fetch(const uint8_t *streams, const struct cursor *at, __m512i last_byte)
{
    /* Two vectors of 8 lanes to the first (+ 4: third) words of 16 lanes, then the next words; bytes swap: the first on
     * top. */
    static const uint8_t index[64] __attribute__((aligned(64))) = {
        1,  0,  9,  8,  17,  16,  25,  24,  33,  32,  41, 40, 49, 48, 57,  56,  65,  64,  73,  72,  81, 80,
        89, 88, 97, 96, 105, 104, 113, 112, 121, 120, 3,  2,  11, 10, 19,  18,  27,  26,  35,  34,  43, 42,
        51, 50, 59, 58, 67,  66,  75,  74,  83,  82,  91, 90, 99, 98, 107, 106, 115, 114, 123, 122,
    };
    const __m512i first = _mm512_load_si512(index), third = _mm512_add_epi8(first, _mm512_set1_epi8(4));
    const __m512i mirror = _mm512_set1_epi64((long long)UINT64_C(0x8040201008040201));
    __m512i low = _mm512_min_epu32(at->byte[0], last_byte), high = _mm512_min_epu32(at->byte[1], last_byte);
    __m512i q[4], a, b, c, d;
    struct window w;
    uint32_t byte[CWS_TILE_LANES] __attribute__((aligned(64)));
    _mm512_store_si512(byte, low);
    _mm512_store_si512(byte + 16, high);
    UNROLL for (int i = 0; i < 4; i++) q[i] = eight_words(streams, byte + 8 * i);
    UNROLL for (int i = 0; i < 4; i++) q[i] = _mm512_gf2p8affine_epi64_epi8(q[i], mirror, 0);
    a = _mm512_permutex2var_epi8(q[0], first, q[1]);
    b = _mm512_permutex2var_epi8(q[0], third, q[1]);
    c = _mm512_permutex2var_epi8(q[2], first, q[3]);
    d = _mm512_permutex2var_epi8(q[2], third, q[3]);
    w.part[0] = _mm512_inserti64x4(a, _mm512_castsi512_si256(c), 1);
    w.part[1] = _mm512_shuffle_i64x2(a, c, 0xee);
    w.part[2] = _mm512_inserti64x4(b, _mm512_castsi512_si256(d), 1);
    w.part[3] = _mm512_shuffle_i64x2(b, d, 0xee);
    consume(&w, at->bit);
    return w;
}

/* used: bits, below 2^15. */
ALWAYS_INLINE void advance(struct cursor *at, __m512i used)
{
    __m512i sum = _mm512_add_epi16(at->bit, used), bytes = _mm512_srli_epi16(sum, 3);
    at->bit = _mm512_and_si512(sum, _mm512_set1_epi16(7));
    at->byte[0] = _mm512_add_epi32(at->byte[0], _mm512_cvtepu16_epi32(_mm512_castsi512_si256(bytes)));
    at->byte[1] = _mm512_add_epi32(at->byte[1], _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(bytes, 1)));
}

struct code { /* a cws_vector_table in registers */
    __m512i symbol[4], length[2], bias;
    __m512i shift, cap, shortest, last[CWS_VECTOR_LASTS];
};

ALWAYS_INLINE void load_code(struct code *c, const struct cws_vector_table *t, int lasts)
{
    UNROLL for (int i = 0; i < 4; i++) c->symbol[i] = _mm512_load_si512(t->symbol + 64 * i);
    if (lasts == 0) {
        c->length[0] = _mm512_load_si512(t->length);
        c->length[1] = _mm512_load_si512(t->length + 64);
        c->shift = _mm512_set1_epi16((short)t->shift);
        c->cap = _mm512_set1_epi16((short)t->cap);
    } else {
        c->bias = _mm512_load_si512(t->bias);
        c->shortest = _mm512_set1_epi16(t->shortest);
        UNROLL for (int i = 0; i < lasts; i++) c->last[i] = _mm512_set1_epi16((short)t->last[i]);
    }
}

/* One word of each lane; *used grows by its bits. Returns the indexes of the symbols in the lower bytes; what the upper
 * bytes hold, here and in *used, means nothing. */
ALWAYS_INLINE __m512i step(struct window *w, const struct code *c, int lasts, __m512i *used)
{
    __m512i top = w->part[0], bits, index;
    if (lasts == 0) {
        index = _mm512_add_epi16(_mm512_srli_epi16(top, 10),
                                 _mm512_subs_epu16(_mm512_srlv_epi16(top, c->shift), c->cap));
        bits = _mm512_permutex2var_epi8(c->length[0], index, c->length[1]);
    } else {
        bits = c->shortest;
        UNROLL for (int i = 0; i < lasts; i++)
            bits = _mm512_mask_sub_epi16(bits, _mm512_cmpgt_epu16_mask(top, c->last[i]), bits, _mm512_set1_epi16(-1));
        index = _mm512_shldv_epi16(_mm512_setzero_si512(), top, bits); /* the word */
        index = _mm512_add_epi16(index, _mm512_permutexvar_epi16(bits, c->bias));
    }
    consume(w, bits);
    *used = _mm512_add_epi16(*used, bits);
    return index;
}

/* Indexes of 8 steps, two in each word, to symbols in element order. */
ALWAYS_INLINE void put_row(const __m512i pair[4], const struct code *c, int lasts, uint8_t *out)
{
    static const uint16_t index[32] __attribute__((aligned(64))) = {
        0, 16, 32, 48, 1, 17, 33, 49, 2, 18, 34, 50, 3, 19, 35, 51,
        4, 20, 36, 52, 5, 21, 37, 53, 6, 22, 38, 54, 7, 23, 39, 55,
    };
    const __m512i front = _mm512_load_si512(index), back = _mm512_add_epi16(front, _mm512_set1_epi16(8));
    __m512i a = _mm512_inserti64x4(pair[0], _mm512_castsi512_si256(pair[1]), 1);
    __m512i b = _mm512_inserti64x4(pair[2], _mm512_castsi512_si256(pair[3]), 1);
    __m512i c0 = _mm512_shuffle_i64x2(pair[0], pair[1], 0xee), d = _mm512_shuffle_i64x2(pair[2], pair[3], 0xee);
    __m512i row[4] = {_mm512_permutex2var_epi16(a, front, b), _mm512_permutex2var_epi16(a, back, b),
                      _mm512_permutex2var_epi16(c0, front, d), _mm512_permutex2var_epi16(c0, back, d)};
    UNROLL for (int i = 0; i < 4; i++)
    {
        __m512i v = _mm512_permutex2var_epi8(c->symbol[0], row[i], c->symbol[1]);
        if (lasts != 0)
            v = _mm512_mask_blend_epi8(_mm512_movepi8_mask(row[i]), v,
                                       _mm512_permutex2var_epi8(c->symbol[2], row[i], c->symbol[3]));
        _mm512_storeu_si512(out + 64 * i, v);
    }
}

ALWAYS_INLINE __m512i low_bytes(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi16(0xff)); }

/* Steps [from, to) of a row of two tiles. */
ALWAYS_INLINE void steps(const struct code *c, struct window w[2], int lasts, int from, int to, __m512i pair[2][4],
                         __m512i used[2])
{
    __m512i even[2], odd[2];
    used[0] = used[1] = _mm512_setzero_si512();
    UNROLL for (int i = from; i < to; i += 2)
    {
        UNROLL for (int k = 0; k < 2; k++) even[k] = step(&w[k], c, lasts, &used[k]);
        UNROLL for (int k = 0; k < 2; k++) odd[k] = step(&w[k], c, lasts, &used[k]);
        UNROLL for (int k = 0; k < 2; k++) pair[k][i / 2] = _mm512_mask_blend_epi8(
            UINT64_C(0xaaaaaaaaaaaaaaaa), even[k], _mm512_slli_epi16(odd[k], 8));
    }
    UNROLL for (int k = 0; k < 2; k++) used[k] = low_bytes(used[k]);
}

/* The last, partial row: `rest` elements. */
static void partial_row(const uint8_t *streams, struct cursor *at, __m512i last_byte, const struct cws_vector_table *t,
                        unsigned rest, uint8_t *out)
{
    struct code c;
    __m512i pair[4];
    uint16_t count[CWS_TILE_LANES];
    int lasts = t->direct ? 0 : CWS_VECTOR_LASTS;
    load_code(&c, t, lasts);
    for (unsigned l = 0; l < CWS_TILE_LANES; l++)
        count[l] = (uint16_t)partial_symbols(rest, l);
    __m512i left = _mm512_loadu_si512(count);
    for (int i = 0; i < 8; i++) {
        __mmask32 active = _mm512_cmpgt_epu16_mask(left, _mm512_set1_epi16((short)i));
        struct window w = fetch(streams, at, last_byte);
        __m512i used = _mm512_setzero_si512(), index = step(&w, &c, lasts, &used);
        advance(at, _mm512_maskz_mov_epi16(active, low_bytes(used)));
        index = low_bytes(index);
        pair[i / 2] = i % 2 ? _mm512_or_si512(pair[i / 2], _mm512_slli_epi16(index, 8)) : index;
    }
    put_row(pair, &c, lasts, out);
}

struct tile { /* a tile */
    struct cursor at;
    __m512i last_byte;
    const uint8_t *streams;
    uint8_t *out;
};

/* Two tiles at a time: a step waits for the one before it most of the time. */
ALWAYS_INLINE void whole_rows(struct tile job[2], const struct cws_vector_table *t, int lasts, bool eight,
                              unsigned rows)
{
    struct code c;
    struct cursor at[2] = {job[0].at, job[1].at};
    load_code(&c, t, lasts);
    for (unsigned r = 0; r < rows; r++) {
        __m512i pair[2][4], used[2];
        struct window w[2];
        bool done = false;
        UNROLL for (int k = 0; k < 2; k++) w[k] = fetch(job[k].streams, &at[k], job[k].last_byte);
        if (eight) {
            steps(&c, w, lasts, 0, 8, pair, used);
            __m512i most = _mm512_max_epu16(_mm512_add_epi16(used[0], at[0].bit), _mm512_add_epi16(used[1], at[1].bit));
            done = _mm512_cmpgt_epu16_mask(most, _mm512_set1_epi16(64)) == 0;
        }
        if (!done) {
            if (eight)
                UNROLL for (int k = 0; k < 2; k++) w[k] = fetch(job[k].streams, &at[k], job[k].last_byte);
            steps(&c, w, lasts, 0, 4, pair, used);
            UNROLL for (int k = 0; k < 2; k++)
            {
                advance(&at[k], used[k]);
                w[k] = fetch(job[k].streams, &at[k], job[k].last_byte);
            }
            steps(&c, w, lasts, 4, 8, pair, used);
        }
        UNROLL for (int k = 0; k < 2; k++)
        {
            advance(&at[k], used[k]);
            put_row(pair[k], &c, lasts, job[k].out + (size_t)r * CWS_TILE_ROW);
        }
    }
    job[0].at = at[0];
    job[1].at = at[1];
}

#define ROWS(NAME, LASTS, EIGHT)                                                                                       \
    static __attribute__((noinline)) void NAME(struct tile job[2], const struct cws_vector_table *t, unsigned rows)    \
    {                                                                                                                  \
        whole_rows(job, t, LASTS, EIGHT, rows);                                                                        \
    }
ROWS(direct_eight, 0, true)
ROWS(five_four, 5, false)
ROWS(seven_four, 7, false)
ROWS(seven_eight, 7, true)
ROWS(any_four, CWS_VECTOR_LASTS, false)
ROWS(any_eight, CWS_VECTOR_LASTS, true)

static void start(struct tile *job, const uint8_t *streams, const struct cws_tile_bits *bits, uint8_t *out,
                  uint32_t ends[CWS_TILE_LANES + 1])
{
    ends[0] = 0;
    for (unsigned l = 0; l < CWS_TILE_LANES; l++)
        ends[l + 1] = ends[l] + bits->lane[l];
    __m512i low = _mm512_loadu_si512(ends), high = _mm512_loadu_si512(ends + 16);
    job->at.byte[0] = _mm512_srli_epi32(low, 3);
    job->at.byte[1] = _mm512_srli_epi32(high, 3);
    job->at.bit = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi32_epi16(low)), _mm512_cvtepi32_epi16(high),
                                     1);
    job->at.bit = _mm512_and_si512(job->at.bit, _mm512_set1_epi16(7));
    job->streams = streams + bits->first_bit / 8; /* a word starts there */
    job->last_byte = _mm512_set1_epi32((int)((bits->end_bit - bits->first_bit) / 8));
    job->out = out;
}

/* A lane that ran past the tile's end has also passed its own. */
static bool ended(const struct cursor *at, const uint32_t ends[CWS_TILE_LANES + 1])
{
    __m512i bit[2] = {_mm512_cvtepu16_epi32(_mm512_castsi512_si256(at->bit)),
                      _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(at->bit, 1))};
    bool right = true;
    for (int i = 0; i < 2; i++) {
        __m512i end = _mm512_add_epi32(_mm512_slli_epi32(at->byte[i], 3), bit[i]);
        right &= _mm512_cmpneq_epi32_mask(end, _mm512_loadu_si512(ends + 1 + 16 * i)) == 0;
    }
    return right;
}

static void rows_of(struct tile job[2], const struct cws_vector_table *t, unsigned rows)
{
    if (t->direct)
        direct_eight(job, t, rows);
    else if (t->short_words)
        (t->lasts <= 7 ? seven_eight : any_eight)(job, t, rows);
    else
        (t->lasts <= 5 ? five_four : t->lasts <= 7 ? seven_four : any_four)(job, t, rows);
}

static bool finish(struct tile *job, const struct cws_vector_table *t, unsigned elems,
                   const uint32_t ends[CWS_TILE_LANES + 1])
{
    if (elems % CWS_TILE_ROW != 0)
        partial_row(job->streams, &job->at, job->last_byte, t, elems % CWS_TILE_ROW,
                    job->out + elems / CWS_TILE_ROW * CWS_TILE_ROW);
    return ended(&job->at, ends);
}

/* Rows of a tile that has no other beside it are decoded as if there were two, to the same place: it takes hardly
 * longer. */
static bool two_avx512(const struct cws_decode_table *table, const uint8_t *streams, const struct cws_tile_bits bits[2],
                       const unsigned elems[2], uint8_t *const out[2])
{
    const struct cws_vector_table *t = &table->vector;
    unsigned rows = elems[0] / CWS_TILE_ROW, both = elems[1] / CWS_TILE_ROW;
    uint32_t ends[2][CWS_TILE_LANES + 1];
    struct tile job[2];
    for (int k = 0; k < 2; k++)
        start(&job[k], streams, &bits[k], out[k], ends[k]);
    rows_of(job, t, both);
    job[0].out += (size_t)both * CWS_TILE_ROW;
    struct tile rest[2] = {job[0], job[0]};
    rows_of(rest, t, rows - both);
    rest[0].out = out[0];
    return finish(&rest[0], t, elems[0], ends[0]) && finish(&job[1], t, elems[1], ends[1]);
}

static bool lanes_avx512(const struct cws_decode_table *table, const uint8_t *streams, const struct cws_tile_bits *bits,
                         unsigned elems, uint8_t *out, unsigned stride)
{
    uint32_t ends[CWS_TILE_LANES + 1];
    struct tile job[2];
    (void)stride;
    start(&job[0], streams, bits, out, ends);
    job[1] = job[0];
    rows_of(job, &table->vector, elems / CWS_TILE_ROW);
    return finish(&job[0], &table->vector, elems, ends);
}

/* The next tile's lines are fetched while this one is merged and the next one's lanes are decoded. A prefetch past the
 * buffer's end does not fault. */
#define AHEAD (2u * 256u * CWS_TILE_LANES)

static void split_avx512(const struct cws_tile *tile, unsigned elem_bytes, uint8_t *dst)
{
    if (elem_bytes != 2) {
        split_linear(tile->lanes, tile, elem_bytes, dst);
        return;
    }
    static const uint8_t index[64] __attribute__((aligned(64))) = {
        0,  64, 1,  65, 2,  66, 3,  67, 4,  68, 5,  69, 6,  70, 7,  71, 8,  72, 9,  73, 10, 74,
        11, 75, 12, 76, 13, 77, 14, 78, 15, 79, 16, 80, 17, 81, 18, 82, 19, 83, 20, 84, 21, 85,
        22, 86, 23, 87, 24, 88, 25, 89, 26, 90, 27, 91, 28, 92, 29, 93, 30, 94, 31, 95,
    };
    const __m512i front = _mm512_load_si512(index), back = _mm512_add_epi8(front, _mm512_set1_epi8(32));
    unsigned i = 0;
    for (; i + 64 <= tile->elems; i += 64) {
        __m512i symbols = _mm512_loadu_si512(tile->lanes + i), low = _mm512_loadu_si512(tile->plane[0] + i);
        __m512i a = _mm512_permutex2var_epi8(low, front, symbols), b = _mm512_permutex2var_epi8(low, back, symbols);
        uint8_t *to = dst + 2 * (size_t)i;
        __builtin_prefetch(to + AHEAD, 0, 2);
        __builtin_prefetch(to + AHEAD + 64, 0, 2);
        _mm512_storeu_si512(to, _mm512_shrdi_epi16(a, a, 1)); /* rotated right by one */
        _mm512_storeu_si512(to + 64, _mm512_shrdi_epi16(b, b, 1));
    }
    split2(tile->lanes, tile->plane[0], i, tile->elems, dst);
}

static const uint8_t *linear_avx512(const struct cws_tile *tile) { return tile->lanes; }

/* 16 products, exact in f32, as bits; never a NaN. */
ALWAYS_INLINE __m512 products(const uint8_t *symbols, __m512 scale)
{
    __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)symbols));
    return _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(v, _mm512_set1_epi32(128))), scale);
}

ALWAYS_INLINE __m512i rounded(__m512 f) /* to bf16, in the upper halves */
{
    __m512i v = _mm512_castps_si512(f), odd = _mm512_and_si512(_mm512_srli_epi32(v, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(0x7fff)), odd);
}

static void quant_avx512(const uint8_t *symbols, unsigned count, float scale, enum cws_dtype dtype, uint8_t *dst)
{
    static const uint16_t index[32] __attribute__((aligned(64))) = {
        1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
        33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63,
    };
    const __m512i upper = _mm512_load_si512(index);
    const __m512 s = _mm512_set1_ps(scale);
    unsigned i = 0;
    if (dtype == CWS_BF16)
        for (; i + 32 <= count; i += 32) {
            __m512i a = rounded(products(symbols + i, s)), b = rounded(products(symbols + i + 16, s));
            _mm512_storeu_si512(dst + 2 * (size_t)i, _mm512_permutex2var_epi16(a, upper, b));
        }
    else if (dtype == CWS_F16)
        for (; i + 16 <= count; i += 16)
            _mm256_storeu_si256((__m256i *)(dst + 2 * (size_t)i),
                                _mm512_cvtps_ph(products(symbols + i, s), _MM_FROUND_TO_NEAREST_INT));
    else
        for (; i + 16 <= count; i += 16)
            _mm512_storeu_ps(dst + 4 * (size_t)i, products(symbols + i, s));
    tile_quant(symbols + i, count - i, scale, dtype, dst + cws_dtype_unit(dtype) * (size_t)i);
}

const struct cws_decoder_ops cws_decoder_avx512 = {
    .variant = {"avx512", runs_here},
    .lanes = lanes_avx512,
    .two = two_avx512,
    .split = split_avx512,
    .linear = linear_avx512,
    .quant = quant_avx512,
};
#endif
