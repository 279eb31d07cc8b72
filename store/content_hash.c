#include "content_hash.h"

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
/* Keys of four words at a time; the products stay in the scalar multiplier, which gives all 128 bits. Takes whole
 * 128-byte blocks and returns how many bytes that was. */
__attribute__((target("avx512f,avx512dq"))) static size_t add_avx512(unsigned __int128 *sum, uint64_t y0, uint64_t y1,
                                                                     const uint8_t *p, size_t bytes)
{
    const __m512i mix = _mm512_set1_epi64((long long)KEY_MIX), step = _mm512_set1_epi64((long long)(4 * KEY_STEP));
    const __m512i word_step = _mm512_mullo_epi64(_mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), _mm512_set1_epi64((long long)KEY_STEP));
    long long a0 = (long long)y0, a1 = (long long)y1;
    __m512i y = _mm512_add_epi64(_mm512_set_epi64(a1, a0, a1, a0, a1, a0, a1, a0), word_step);
    unsigned __int128 a = 0, b = 0;
    size_t done = 0;
    for (; done + 128 <= bytes; done += 128) {
        uint64_t v[16] __attribute__((aligned(64)));
        for (unsigned half = 0; half < 2; half++) {
            __m512i z = _mm512_mullo_epi64(_mm512_xor_si512(y, _mm512_srli_epi64(y, 32)), mix);
            z = _mm512_xor_si512(z, _mm512_srli_epi64(z, 29));
            _mm512_store_si512(v + 8 * half, _mm512_add_epi64(z, _mm512_loadu_si512(p + done + 64 * half)));
            y = _mm512_add_epi64(y, step);
        }
        for (unsigned i = 0; i < 16; i += 4) {
            a += (unsigned __int128)v[i] * v[i + 1];
            b += (unsigned __int128)v[i + 2] * v[i + 3];
        }
    }
    *sum = a + b;
    return done;
}

static size_t add_fast(unsigned __int128 *sum, uint64_t y0, uint64_t y1, const uint8_t *p, size_t bytes)
{
    static _Atomic int known; /* 0: not asked yet; racing first uses find the same */
    int can = atomic_load_explicit(&known, memory_order_relaxed);
    if (can == 0) {
        __builtin_cpu_init();
        can = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") ? 1 : -1;
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
