/* checksum_avx2.c - the checksum for processors with AVX2. Built with -mavx2; not to be called where there is none. */
#include "checksum.h"

#if defined(__x86_64__)
#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t cws_checksum_avx2(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}
#endif
