/* raw.c - the description of bytes that are stored as they are. */
#include "raw.h"
#include "store/format/content_hash.h"
#include "store/format/dtype.h"

#include <stdlib.h>

#define CHUNK_BYTES ((uint64_t)256 << 10)

struct described {
    struct cws_tensor_info info;
    struct cws_tensor_record record;
    struct cws_chunk_record chunks[];
};

struct cws_tensor_info *cws_gpu_raw_describe(const struct cws_tensor_info *like, size_t bytes, const uint8_t *now)
{
    uint64_t count = (bytes + CHUNK_BYTES - 1) / CHUNK_BYTES;
    struct described *d = calloc(1, sizeof *d + count * sizeof *d->chunks);
    struct cws_hash128 all = {0};
    if (!d)
        return NULL;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t at = i * CHUNK_BYTES, size = bytes - at < CHUNK_BYTES ? bytes - at : CHUNK_BYTES;
        struct cws_hash128 hash = {0};
        cws_content_hash_add(&hash, cws_content_key, now + at, size, at);
        cws_hash128_add(&all, hash);
        d->chunks[i] = (struct cws_chunk_record){.offset = like->begin + at,
                                                 .stored_bytes = (uint32_t)size,
                                                 .logical_bytes = (uint32_t)size,
                                                 .codec = CWS_CODEC_RAW,
                                                 .content_hash = {hash.lo, hash.hi}};
    }
    d->record = (struct cws_tensor_record){.chunk_count = count,
                                           .content_hash = {all.lo, all.hi},
                                           .chunk_bytes = CHUNK_BYTES,
                                           .table = UINT32_MAX,
                                           .dtype = cws_dtype_code(like->dtype),
                                           .codec = CWS_CODEC_RAW};
    d->info = *like;
    d->info.end = like->begin + bytes;
    d->info.stored_bytes = bytes;
    d->info.record = &d->record;
    d->info.chunks = d->chunks;
    return &d->info;
}
