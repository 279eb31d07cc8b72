/* index.c - the end of a store: the index, which says where every tensor and chunk lies, and the trailer. */
#include "store/format/content_hash.h"
#include "run.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static uint64_t index_bytes(const struct cws_packing *p)
{
    return sizeof(struct cws_index_header) + (p->in->logical->header_bytes + 7) / 8 * 8 +
           p->in->logical->tensor_count * sizeof *p->records + p->chunk_count * sizeof *p->chunks +
           p->table_count * sizeof *p->tables;
}

static uint8_t *append(uint8_t *at, const void *data, size_t bytes)
{
    if (bytes)
        memcpy(at, data, bytes);
    return at + bytes;
}

int cws_pack_write_index(struct cws_packing *p, uint64_t front_bytes, uint64_t front_xxh3, uint64_t *out_bytes,
                         struct cws_error *err)
{
    const struct cws_header *h = p->in->logical;
    struct cws_trailer t = {
        .magic = CWS_MAGIC,
        .version = CWS_FORMAT_VERSION,
        .trailer_bytes = sizeof t,
        .logical_bytes = h->header_bytes + h->data_bytes,
        .front_bytes = front_bytes,
        .front_xxh3 = front_xxh3,
        .index_offset = p->data_at,
        .index_bytes = index_bytes(p),
    };
    if (t.index_offset + t.index_bytes + sizeof t == front_bytes + h->data_bytes)
        t.index_offset += CWS_CHUNK_ALIGN; /* a plain loader would believe the size */
    t.file_bytes = t.index_offset + t.index_bytes + sizeof t;
    uint64_t gap = t.index_offset - p->data_at, total = gap + t.index_bytes + sizeof t;
    uint8_t *bytes = calloc(1, total);
    if (!bytes)
        return cws_fail(err, -ENOMEM, "%s: not enough memory for the index", p->in->path);
    struct cws_index_header head = {
        .header_bytes = h->header_bytes,
        .tensor_count = (uint32_t)h->tensor_count,
        .table_count = p->table_count,
        .chunk_count = p->chunk_count,
    };
    uint8_t *at = append(bytes + gap, &head, sizeof head);
    at = append(at, p->in->header_text, h->header_bytes) + -h->header_bytes % 8;
    at = append(at, p->records, h->tensor_count * sizeof *p->records);
    at = append(at, p->chunks, p->chunk_count * sizeof *p->chunks);
    at = append(at, p->tables, p->table_count * sizeof *p->tables);
    struct cws_hash128 sum = {0, 0};
    for (size_t i = 0; i < h->tensor_count; i++) {
        cws_content_hash_add(&sum, cws_content_key, p->records[i].content_hash, sizeof p->records[i].content_hash,
                             i * sizeof p->records[i].content_hash);
        if (p->records[i].codec == CWS_CODEC_QUANT)
            t.incompat |= CWS_INCOMPAT_LOSSY;
        if (p->records[i].dtype > CWS_F64)
            t.incompat |= CWS_INCOMPAT_TYPES;
    }
    t.content_hash[0] = sum.lo;
    t.content_hash[1] = sum.hi;
    t.index_xxh3 = XXH3_64bits(bytes + gap, t.index_bytes);
    t.trailer_xxh3 = XXH3_64bits(&t, offsetof(struct cws_trailer, trailer_xxh3));
    append(at, &t, sizeof t);
    *out_bytes = t.file_bytes;
    int code = p->out->write(p->out->arg, bytes, total, p->data_at, err);
    free(bytes);
    return code;
}
