/* A whole store of arbitrary bytes: opened, listed, verified, read. The checksums of trailer, index and front are made right
 * where the trailer's offsets allow it, and those of the chunks, so that the rules behind them are reached. */
#include "store/content_hash.h"
#include "store/store.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void sign(uint8_t *file, size_t size)
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
            uint64_t left = t.index_bytes - sizeof h, tensors = (uint64_t)h.tensor_count * sizeof(struct cws_tensor_record);
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
                                         records + i * sizeof(struct cws_tensor_record) + offsetof(struct cws_tensor_record, content_hash),
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

static int count(void *arg, const struct cws_verify_fault *f)
{
    (void)f;
    return ++*(int *)arg > 3;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    struct cws_store *s;
    struct cws_error err = {0};
    if (size > 1 << 17)
        return 0;
    if (fd < 0) {
        setenv("CODEC_IO", "preadv", 1); /* a ring for each input is slow */
        fd = memfd_create("store", 0);
    }
    uint8_t *file = malloc(size + 1);
    if (!file || fd < 0)
        abort();
    memcpy(file, data, size);
    if (size % 2 == 0 || (size && data[size - 1] & 1))
        sign(file, size);
    if (ftruncate(fd, 0) || pwrite(fd, file, size, 0) != (ssize_t)size)
        abort();
    free(file);
    int code = cws_store_open_fd(fd, "f", &s, &err);
    if ((code == 0) != (s != NULL) || (code && (err.code != code || !err.message[0])))
        abort();
    if (code)
        return 0;
    int faults = 0;
    int bad = cws_store_verify(s, 1, count, NULL, &faults, &err);
    struct cws_store_cursor *c;
    uint64_t bytes = cws_store_logical_bytes(s);
    if (cws_store_cursor_create(s, 1, &c, &err))
        abort();
    uint8_t *out = malloc(4096);
    for (uint64_t at = 0; at < bytes && at < 1 << 22; at += 4096) {
        uint64_t end = at + 4096 < bytes ? at + 4096 : bytes;
        if (cws_store_read(c, at, end, out, &err) && bad == 0)
            abort(); /* verify said that it is sound */
    }
    free(out);
    cws_store_cursor_destroy(c);
    cws_store_close(s);
    return 0;
}
