/* checksum.c - the checksum of stored bytes, by the fastest code that this machine runs. */
#include "checksum.h"
#include "store/base/race_range.h"

#include <stdatomic.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t cws_checksum_portable(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}

uint64_t cws_checksum(const void *data, size_t bytes, uint64_t seed)
{
    cws_race_read(data, bytes);
#if defined(__x86_64__)
    static _Atomic int known; /* 0: not asked yet; racing first uses find the same */
    int can = atomic_load_explicit(&known, memory_order_relaxed);
    if (can == 0) {
        __builtin_cpu_init();
        can = __builtin_cpu_supports("avx2") ? 1 : -1;
        atomic_store_explicit(&known, can, memory_order_relaxed);
    }
    if (can > 0)
        return cws_checksum_avx2(data, bytes, seed);
#endif
    return cws_checksum_portable(data, bytes, seed);
}
