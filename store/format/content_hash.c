/* content_hash.c - the hash of decoded bytes. Parts of a tensor are hashed apart and added. */
#include "content_hash.h"
#include "store/base/race_range.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdatomic.h>
#endif

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the store's integers are used in place: only little-endian machines are supported"
#endif

/* Fractional parts of the square roots of 2 and 3: nothing up the sleeve. Part of the format. */
const uint64_t cws_content_key[2] = {UINT64_C(0x6a09e667f3bcc908), UINT64_C(0xbb67ae8584caa73b)};

#define KEY_STEP UINT64_C(0x9e3779b97f4a7c15)
#define KEY_MIX UINT64_C(0xd6e8feb86659fd93)

static inline uint64_t derive(uint64_t y)
{
    uint64_t z = (y ^ (y >> 32)) * KEY_MIX;
    return z ^ (z >> 29);
}

static inline uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline unsigned __int128 word(uint64_t lo, uint64_t hi, uint64_t y0, uint64_t y1)
{
    return (unsigned __int128)(uint64_t)(lo + derive(y0)) * (uint64_t)(hi + derive(y1));
}

#if defined(__x86_64__)
#define SUMS_MAX 4096 /* numbers of 52 bits that a sum of 64 bits holds */

static inline unsigned __int128 sum_of(const uint64_t part[8])
{
    unsigned __int128 all = 0;
    for (unsigned i = 0; i < 8; i++)
        all += part[i];
    return all;
}

/* Eight words at a time: a product's factors are cut at bit 52, and the halves of what multiplies them are summed
 * apart. Takes whole 128-byte blocks and returns how many bytes that was. */
__attribute__((target("avx512f,avx512dq,avx512ifma"))) static size_t add_avx512(unsigned __int128 *sum, uint64_t y0,
                                                                                uint64_t y1, const uint8_t *p,
                                                                                size_t bytes)
{
    const __m512i mix = _mm512_set1_epi64((long long)KEY_MIX), step = _mm512_set1_epi64((long long)(8 * KEY_STEP)),
                  zero = _mm512_setzero_si512();
    /* The words' order behind an unpack. */
    const __m512i word_step = _mm512_mullo_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0),
                                                 _mm512_set1_epi64((long long)KEY_STEP));
    __m512i key0 = _mm512_add_epi64(_mm512_set1_epi64((long long)y0), word_step);
    __m512i key1 = _mm512_add_epi64(_mm512_set1_epi64((long long)y1), word_step);
    size_t blocks = bytes / 128;
    for (size_t done = 0; done < blocks;) {
        size_t stop = blocks - done > SUMS_MAX ? done + SUMS_MAX : blocks;
        /* of weight 1, 2^52, 2^104 */
        __m512i low = zero, middle[3] = {zero, zero, zero}, high[3] = {zero, zero, zero};
        for (; done < stop; done++) {
            __m512i v = _mm512_loadu_si512(p + 128 * done), w = _mm512_loadu_si512(p + 128 * done + 64);
            __m512i z0 = _mm512_mullo_epi64(_mm512_xor_si512(key0, _mm512_srli_epi64(key0, 32)), mix);
            __m512i z1 = _mm512_mullo_epi64(_mm512_xor_si512(key1, _mm512_srli_epi64(key1, 32)), mix);
            __m512i a = _mm512_add_epi64(_mm512_xor_si512(z0, _mm512_srli_epi64(z0, 29)), _mm512_unpacklo_epi64(v, w));
            __m512i b = _mm512_add_epi64(_mm512_xor_si512(z1, _mm512_srli_epi64(z1, 29)), _mm512_unpackhi_epi64(v, w));
            __m512i a_top = _mm512_srli_epi64(a, 52), b_top = _mm512_srli_epi64(b, 52);
            low = _mm512_madd52lo_epu64(low, a, b);
            middle[0] = _mm512_madd52hi_epu64(middle[0], a, b);
            middle[1] = _mm512_madd52lo_epu64(middle[1], a, b_top);
            middle[2] = _mm512_madd52lo_epu64(middle[2], a_top, b);
            high[0] = _mm512_madd52hi_epu64(high[0], a, b_top);
            high[1] = _mm512_madd52hi_epu64(high[1], a_top, b);
            high[2] = _mm512_madd52lo_epu64(high[2], a_top, b_top);
            key0 = _mm512_add_epi64(key0, step);
            key1 = _mm512_add_epi64(key1, step);
        }
        uint64_t part[5][8];
        _mm512_storeu_si512(part[0], low);
        for (unsigned k = 0; k < 3; k++)
            _mm512_storeu_si512(part[1 + k], middle[k]);
        _mm512_storeu_si512(part[4], _mm512_add_epi64(_mm512_add_epi64(high[0], high[1]), high[2]));
        *sum += sum_of(part[0]) + (sum_of(part[4]) << 104);
        *sum += (sum_of(part[1]) + sum_of(part[2]) + sum_of(part[3])) << 52;
    }
    return 128 * blocks;
}

static size_t add_fast(unsigned __int128 *sum, uint64_t y0, uint64_t y1, const uint8_t *p, size_t bytes)
{
    static _Atomic int known; /* 0: not asked yet; racing first uses find the same */
    int can = atomic_load_explicit(&known, memory_order_relaxed);
    if (can == 0) {
        __builtin_cpu_init();
        can = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512ifma")
                  ? 1
                  : -1;
        atomic_store_explicit(&known, can, memory_order_relaxed);
    }
    return can > 0 ? add_avx512(sum, y0, y1, p, bytes) : 0;
}
#else
static size_t add_fast(unsigned __int128 *sum, uint64_t y0, uint64_t y1, const uint8_t *p, size_t bytes)
{
    (void)sum, (void)y0, (void)y1, (void)p, (void)bytes;
    return 0;
}
#endif

void cws_content_hash_add(struct cws_hash128 *sum, const uint64_t key[2], const void *data, size_t bytes,
                          uint64_t first_byte)
{
    cws_race_read(data, bytes);
    const uint8_t *p = data;
    uint64_t step = first_byte / 16 * KEY_STEP;
    uint64_t y0 = key[0] + step, y1 = key[1] + step;
    /* Two sums, so that the carries of one do not wait for the other's. */
    unsigned __int128 a = 0, b = 0;
    size_t fast = add_fast(&a, y0, y1, p, bytes);
    p += fast;
    bytes -= fast;
    y0 += fast / 16 * KEY_STEP;
    y1 += fast / 16 * KEY_STEP;
    size_t pairs = bytes / 32;
    for (size_t i = 0; i < pairs; i++, p += 32) {
        a += word(load64(p), load64(p + 8), y0, y1);
        b += word(load64(p + 16), load64(p + 24), y0 + KEY_STEP, y1 + KEY_STEP);
        y0 += 2 * KEY_STEP;
        y1 += 2 * KEY_STEP;
    }
    size_t left = bytes - 32 * pairs;
    while (left > 0) {
        uint8_t last[16] = {0};
        size_t take = left < 16 ? left : 16;
        memcpy(last, p, take);
        a += word(load64(last), load64(last + 8), y0, y1);
        y0 += KEY_STEP;
        y1 += KEY_STEP;
        p += take;
        left -= take;
    }
    a += b;
    cws_hash128_add(sum, (struct cws_hash128){(uint64_t)a, (uint64_t)(a >> 64)});
}

void cws_hash128_add(struct cws_hash128 *sum, struct cws_hash128 part)
{
    uint64_t lo = sum->lo + part.lo;
    sum->hi += part.hi + (lo < part.lo);
    sum->lo = lo;
}
