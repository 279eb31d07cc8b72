/* avx2.c - the decoder for processors with AVX2. Built with -mavx2 -mbmi -mbmi2 -mlzcnt -mf16c; nothing here may be
 * called before runs_here() says yes. */
#include "fast.h"

#if defined(__x86_64__)
#include "lanes.h"
#include <cpuid.h>

/* clang 14 does not know "lzcnt" and "f16c" in __builtin_cpu_supports. */
static bool runs_here(void)
{
    unsigned a, b, c, d;
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2"))
        return false;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C))
        return false;
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & bit_LZCNT);
}

/* 16 elements: 8 symbols of each of two lanes above 16 plane bytes, rotated right by one. */
ALWAYS_INLINE void split2_pair(const uint8_t *lane0, const uint8_t *lane1, const uint8_t *plane, uint8_t *dst)
{
    __m128i symbols = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i *)lane0),
                                         _mm_loadl_epi64((const __m128i *)lane1));
    __m256i high = _mm256_slli_epi16(_mm256_cvtepu8_epi16(symbols), 7);
    __m256i low = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)plane));
    __m256i v = _mm256_or_si256(_mm256_or_si256(high, _mm256_srli_epi16(low, 1)), _mm256_slli_epi16(low, 15));
    _mm256_storeu_si256((__m256i *)dst, v);
}

static void split_avx2(const struct cws_tile *tile, unsigned elem_bytes, uint8_t *dst)
{
    tile_split_pairs(tile, elem_bytes, dst, split2_pair);
}

static void quant_avx2(const uint8_t *symbols, unsigned count, float scale, enum cws_dtype dtype, uint8_t *dst)
{
    unsigned done = 0;
    if (dtype == CWS_F16) {
        __m256 s = _mm256_set1_ps(scale);
        for (; done + 8 <= count; done += 8) {
            __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(symbols + done)));
            __m256 f = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_sub_epi32(v, _mm256_set1_epi32(128))), s);
            _mm_storeu_si128((__m128i *)(dst + 2 * (size_t)done), _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT));
        }
    }
    tile_quant(symbols + done, count - done, scale, dtype, dst + cws_dtype_unit(dtype) * (size_t)done);
}

const struct cws_decoder_ops cws_decoder_avx2 = {
    .variant = {"avx2", runs_here},
    .lanes = decode_lanes,
    .split = split_avx2,
    .linear = tile_linear,
    .quant = quant_avx2,
};
#endif
