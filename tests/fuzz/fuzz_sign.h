/* fuzz_sign.h - makes the checksums of an arbitrary store right, where its offsets allow it, so that a fuzzer reaches
 * the rules behind them. */
#ifndef CWS_TEST_FUZZ_SIGN_H
#define CWS_TEST_FUZZ_SIGN_H
#include "store/format/content_hash.h"
#include "store/format/format.h"

#include <stddef.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static inline void fuzz_sign(uint8_t *file, size_t size)
{
    struct cws_trailer t;
    if (size < sizeof t)
        return;
    memcpy(&t, file + size - sizeof t, sizeof t);
    t.file_bytes = size;
    if (t.index_offset <= size - sizeof t) {
        t.index_bytes = size - sizeof t - t.index_offset;
        struct cws_index_header h;
        uint8_t *index = file + t.index_offset, *end = index + t.index_bytes;
        if (t.index_bytes >= sizeof h) {
            memcpy(&h, index, sizeof h);
            uint64_t left = t.index_bytes - sizeof h,
                     tensors = (uint64_t)h.tensor_count * sizeof(struct cws_tensor_record);
            uint64_t padded = (h.header_bytes + 7) / 8 * 8;
            if (h.header_bytes <= left && padded <= left && tensors <= left - padded &&
                h.chunk_count <= (left - padded - tensors) / sizeof(struct cws_chunk_record)) {
                uint8_t *records = index + sizeof h + padded, *at = records + tensors;
                for (uint64_t i = 0; i < h.chunk_count; i++, at += sizeof(struct cws_chunk_record)) {
                    struct cws_chunk_record c;
                    memcpy(&c, at, sizeof c);
                    if (c.offset <= size && c.stored_bytes <= size - c.offset)
                        c.xxh3 = XXH3_64bits_withSeed(file + c.offset, c.stored_bytes, i);
                    memcpy(at, &c, sizeof c);
                }
                struct cws_hash128 sum = {0, 0};
                for (uint32_t i = 0; i < h.tensor_count; i++)
                    cws_content_hash_add(&sum, cws_content_key,
                                         records + i * sizeof(struct cws_tensor_record) +
                                             offsetof(struct cws_tensor_record, content_hash),
                                         16, 16 * (uint64_t)i);
                t.content_hash[0] = sum.lo;
                t.content_hash[1] = sum.hi;
            }
        }
        t.index_xxh3 = XXH3_64bits(index, (size_t)(end - index));
    }
    if (t.front_bytes <= size)
        t.front_xxh3 = XXH3_64bits(file, t.front_bytes);
    t.trailer_xxh3 = XXH3_64bits(&t, sizeof t - 8);
    memcpy(file + size - sizeof t, &t, sizeof t);
}

#endif
